"""Students as the scripts train them: networks, methods, protocols, one run and its spread.

No script by itself: `import students` works where one of the scripts is started.
"""

import dataclasses
import itertools
import statistics
import time

import keras
import numpy as np
import tensorflow as tf

import keras_mikd as mikd

DATASETS = ["digits", "cifar10", "cifar100"]
NETWORKS = [
    "digits_cnn",
    *("resnet8", "resnet14", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110"),
    *("resnet8x4", "resnet32x4", "wrn_16_1", "wrn_16_2", "wrn_40_1", "wrn_40_2"),
]


def kd(teacher, student, weight, *, task_weight=1.0, temperature=4.0):
    """Hinton's soft targets."""
    loss = mikd.SoftTargets(temperature=temperature, weight=weight, name="kd")
    return mikd.Distiller(teacher, student, [loss], task_loss_weight=task_weight)


def attention_transfer(teacher, student, weight):
    """Attention maps of every pair of stages."""
    losses = [
        mikd.AttentionTransfer(
            teacher_layer=teacher_place,
            student_layer=student_place,
            weight=weight,
            name=f"at_{student_place}",
        )
        for teacher_place, student_place in mikd.pair_stages(teacher, student)
    ]
    return mikd.Distiller(teacher, student, losses)


def hint(teacher, student, weight):
    """FitNets' regression of the features of the second stage, together with the task."""
    loss = mikd.Hint(teacher_layer="stage2", student_layer="stage2", weight=weight, name="hint")
    return mikd.Distiller(teacher, student, [loss])


def vid(teacher, student, weight, *, initial_variance=0.3):
    """VID on every pair of stages."""
    return mikd.VIDDistiller(
        teacher, student, stage_weight=weight, initial_variance=initial_variance
    )


def mimkd(teacher, student, weight):
    """MIMKD at its three levels."""
    return mikd.MIMKDDistiller(
        teacher, student, global_weight=weight, local_weight=weight, feature_weight=weight
    )


def kd_muse(teacher, student, weight, *, kd_weight=3.0, temperature=4.0):
    """Soft targets, and MUSE from the teacher's pooled vector to all stages at the given weight."""
    soft_targets = mikd.SoftTargets(temperature=temperature, weight=kd_weight, name="kd")
    return mikd.Distiller(teacher, student, [soft_targets, muse(student, weight)])


def muse(network, weight, **options):
    """MUSE of all stages of a network towards a pooled vector, its own or another's."""
    return mikd.MUSE(
        teacher_layer="pooled",
        student_layer=stages(network),
        weight=weight,
        negatives_from="other_classes",
        name="muse",
        **options,
    )


def stages(network):
    """Places of the stages of a network, in order."""
    return [place for place, _ in mikd.pair_stages(network, network)]


METHODS = {"kd": kd, "at": attention_transfer, "hint": hint, "vid": vid, "mimkd": mimkd}


def adam_with_cosine(learning_rate, steps):
    return keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(learning_rate, steps))


def sgd_with_steps(learning_rate, steps):
    """SGD of the CRD benchmark: a tenth of the rate after 150, 180 and 210 of 240 epochs."""
    boundaries = [steps * epoch // 240 for epoch in (150, 180, 210)]
    rates = [learning_rate * 0.1**k for k in range(4)]
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay(boundaries, rates)
    return keras.optimizers.SGD(schedule, momentum=0.9)


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How students are trained on a data set, and the weight of each method there."""

    student: str
    epochs: int
    batch_size: int
    learning_rate: float
    optimizer: callable
    l2: float
    kd_task_weight: float
    weights: dict

    def __str__(self):
        return (
            f"{self.student}, {self.epochs} epochs, batches of {self.batch_size}, "
            f"learning rate {self.learning_rate:g}"
        )


_CIFAR = Protocol(
    student="resnet20",
    epochs=240,
    batch_size=64,
    learning_rate=0.05,
    optimizer=sgd_with_steps,
    # PyTorch's weight decay of 5e-4 is this penalty: the gradient of l2 * w^2 is 2 * l2 * w.
    l2=2.5e-4,
    kd_task_weight=0.1,
    # Those of the CRD benchmark; MIMKD's are not public.
    weights={"kd": 0.9, "at": 1000.0, "hint": 100.0, "vid": 1.0, "mimkd": 1.0},
)
PROTOCOLS = {
    "digits": Protocol(
        student="resnet8",
        epochs=150,
        batch_size=25,
        learning_rate=1e-2,
        optimizer=adam_with_cosine,
        l2=0.0,
        kd_task_weight=1.0,
        weights={"kd": 3.0, "at": 10.0, "hint": 100.0, "vid": 3.0, "mimkd": 3.0},
    ),
    "cifar10": _CIFAR,
    "cifar100": _CIFAR,
}


def load_data(dataset, **arguments):
    """Returns the `Splits` of a data set; ends in one line where that cannot be had."""
    try:
        return getattr(mikd.datasets, f"load_{dataset}")(**arguments)
    except (FileNotFoundError, ValueError) as error:
        if isinstance(error, ValueError) and not str(error).startswith("Expected"):
            raise  # No argument that does not fit the data, but a fault.
        raise SystemExit(f"{dataset}: {error}") from None


def without(dataset, dropped):
    """Returns a data set of as many batches that lack the dropped classes, none of them empty."""

    def keep(images, labels):
        kept = tf.reduce_all(labels[:, None] != tf.constant(dropped, labels.dtype), axis=1)
        return tf.boolean_mask(images, kept), tf.boolean_mask(labels, kept)

    batches = dataset.map(keep).filter(lambda images, labels: tf.size(labels) > 0)
    batches = batches.repeat().take(len(dataset))
    # A filter hides how many there are, without which Keras warns that data ran out.
    return batches.apply(tf.data.experimental.assert_cardinality(len(dataset)))


def new_student(protocol, data):
    """Returns an untrained student for a data set."""
    network = getattr(mikd.models, protocol.student)
    penalty = {"kernel_regularizer": keras.regularizers.L2(protocol.l2)} if protocol.l2 else {}
    return network(data.num_classes, data.image_shape, **penalty)


def train(model, data, *, optimizer, epochs, logs=None, callbacks=()):
    """Fits a student or a distiller; returns what was logged, epoch by epoch."""
    model.compile(
        optimizer,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    if logs is not None:
        callbacks = [*callbacks, keras.callbacks.TensorBoard(logs, write_graph=False)]
    return model.fit(
        data.train,
        validation_data=data.validation,
        validation_freq=max(1, epochs // 20),
        epochs=epochs,
        shuffle=False,
        verbose=0,
        callbacks=callbacks,
    ).history


def accuracy(model, dataset):
    """Returns the accuracy in per cent."""
    return 100 * model.evaluate(dataset, verbose=0, return_dict=True)["accuracy"]


class StepTime(keras.callbacks.Callback):
    """Median milliseconds of a training step, the first epoch left out."""

    def __init__(self):
        super().__init__()
        self.times = []

    def on_epoch_begin(self, epoch, logs=None):
        self.measured = epoch > 0

    def on_train_batch_begin(self, batch, logs=None):
        self.start = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        if self.measured:
            self.times.append(1000 * (time.perf_counter() - self.start))

    def median(self):
        return statistics.median(self.times) if self.times else float("nan")


def run(model, data, *, optimizer, epochs, logs):
    """Trains a student or a distiller; returns its numbers, and its read-outs on validation."""
    step_time = StepTime()
    history = train(
        model, data, optimizer=optimizer, epochs=epochs, logs=logs, callbacks=[step_time]
    )
    validation = model.evaluate(data.validation, verbose=0, return_dict=True)
    return {
        "validation": 100 * validation["accuracy"],
        "test": accuracy(model, data.test),
        "milliseconds": step_time.median(),
        "nats": {k: v for k, v in validation.items() if k.endswith("_nats")},
        "curve": [100 * v for v in history["val_accuracy"]],
    }


def outputs(model, dataset):
    """Returns the logits and labels of a data set with a fixed order."""
    labels = np.concatenate([labels for _, labels in dataset])
    return model.predict(dataset, verbose=0), labels


def mean(row, key):
    """Returns the mean of a number over the runs of a row, `{"runs": [numbers of each seed]}`."""
    return statistics.mean(run[key] for run in row["runs"])


def chosen_rows(rows):
    """Keeps, of every method, the row whose weight is best on the validation split."""
    groups = itertools.groupby(rows, key=lambda row: row["method"])
    return [max(group, key=lambda row: mean(row, "validation")) for _, group in groups]


def readouts(row):
    """Returns the mean read-outs of a row on the validation split, in words."""
    runs = [run["nats"] for run in row["runs"]]
    return ", ".join(f"{k} {statistics.mean(nats[k] for nats in runs):.2f}" for k in runs[0])


def mean_and_spread(values):
    """Returns `"mean ± standard deviation"`, or the value where there is only one."""
    values = list(values)
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread}"

"""How the experiments train networks: data, students, methods, optimizers, flags.

No script by itself: `import protocol` works where one of the experiments is started.
"""

import collections
import dataclasses
import hashlib
import math
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import tensorflow as tf
from absl import flags

import keras_mikd as mikd
from keras_mikd import recipes
from keras_mikd.comparison.step_time import StepTime

# The flags that are defined below belong to the script that asks for them, and show in its help.
flags.disclaim_key_flags()

NETWORKS = [
    "digits_cnn",
    *("resnet8", "resnet14", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110"),
    *("resnet8x4", "resnet32x4", "wrn_16_1", "wrn_16_2", "wrn_40_1", "wrn_40_2"),
]

STRATEGIES = {
    "none": tf.distribute.get_strategy,
    "mirrored": tf.distribute.MirroredStrategy,
    "multi_worker": tf.distribute.MultiWorkerMirroredStrategy,
    "tpu": lambda: tf.distribute.TPUStrategy(
        tf.distribute.cluster_resolver.TPUClusterResolver.connect("")
    ),
}


def adam_with_cosine(learning_rate, steps):
    return keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(learning_rate, steps))


def sgd_with_steps(learning_rate, steps):
    """SGD of the CRD benchmark: a tenth of the rate after 150, 180 and 210 of 240 epochs.

    PyTorch adds a weight decay of 5e-4 to the gradient of every weight, those of BatchNorm, biases
    and heads too. Momentum makes ten times as much of it, which Keras' decay takes by itself.
    """
    # Keras counts steps from 0 and changes the rate after a boundary.
    boundaries = [steps * epoch // 240 - 1 for epoch in (150, 180, 210)]
    rates = [learning_rate * 0.1**k for k in range(4)]
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay(boundaries, rates)
    return keras.optimizers.SGD(schedule, momentum=0.9, weight_decay=5e-3)


@dataclasses.dataclass(frozen=True)
class Protocol:
    """Data, network and optimizer of the students of an experiment."""

    dataset: str
    student: str
    epochs: int
    batch_size: int
    learning_rate: float
    optimizer: Callable
    kd_task_weight: float
    weights: dict
    """Weights of every method with a teacher: `offline.py` tries all, others take the last."""
    options: dict
    """Arguments of the recipes of some methods."""
    data: dict
    """Arguments of the data set."""
    labels_per_class: int | None = None
    data_dir: str | None = None

    @property
    def held_out(self):
        """Part of the training images that is held out, `None` where the data set decides."""
        return self.data.get("validation_fraction")

    def settings(self):
        """Returns what the numbers of a run depend on."""
        return {name: v for name, v in dataclasses.asdict(self).items() if name != "data_dir"}

    def __str__(self):
        return (
            f"{self.student}, {self.epochs} epochs, batches of {self.batch_size}, "
            f"learning rate {self.learning_rate:g}"
            + (", validation on the test split" if self.held_out == 0 else "")
        )


DIGITS = Protocol(
    dataset="digits",
    student="resnet8",
    epochs=150,
    batch_size=25,
    learning_rate=1e-2,
    optimizer=adam_with_cosine,
    kd_task_weight=1.0,
    weights={
        "kd": [0.3, 1.0, 3.0],
        "at": [10.0],
        "hint": [100.0],
        "vid": [3.0],
        "mimkd": [3.0],
        "kd_muse": [0.3, 1.0, 3.0],
    },
    options={"vid": {"initial_variance": 0.3}},
    data={},
)
CIFAR100 = Protocol(
    dataset="cifar100",
    student="resnet20",
    epochs=240,
    batch_size=64,
    learning_rate=0.05,
    optimizer=sgd_with_steps,
    kd_task_weight=0.1,
    # Of the CRD benchmark, for the losses that `options` make equal to its own. MIMKD's and MUSE's
    # are not public: those are ours, and no more than a start.
    weights={
        "kd": [0.9],
        "at": [1000.0],
        "hint": [100.0],
        "vid": [1.0],
        "mimkd": [1.0],
        "kd_muse": [1.0],
    },
    options={
        "at": {"raw": True},
        "hint": {"raw": True, "regressor": "repdistiller"},
        "vid": {"raw": True, "variant": "repdistiller"},
    },
    # All images, and a step for what does not fill the last batch. See `--validation_fraction`.
    data={"validation_fraction": 0.0, "drop_remainder": False},
)
PROTOCOLS = {
    "digits": DIGITS,
    "cifar10": dataclasses.replace(CIFAR100, dataset="cifar10"),
    "cifar100": CIFAR100,
}


def define_flags():
    """Defines what every experiment with students asks for."""
    flags.DEFINE_string("output_dir", None, "Folder for everything written.", required=True)
    flags.DEFINE_enum("dataset", "digits", list(PROTOCOLS), "Data, and with it the protocol.")
    flags.DEFINE_string("data_dir", None, "Folder of TensorFlow Datasets.")
    flags.DEFINE_enum("student", None, NETWORKS, "Network; the protocol's if not given.")
    flags.DEFINE_integer("epochs", None, "Epochs; the protocol's if not given.", 1)
    flags.DEFINE_integer("batch_size", None, "Images in a batch; the protocol's if not given.", 1)
    flags.DEFINE_float("learning_rate", None, "First rate; the protocol's if not given.", 0.0)
    flags.DEFINE_integer("seeds", 1, "Runs per row: seeds 0, 1, ... of weights and order.", 1)
    define_validation()
    define_strategy()


def define_validation():
    flags.DEFINE_float(
        "validation_fraction",
        None,
        "Part of CIFAR's training images to hold out; 0, the benchmark's, if not given. What is "
        "to be chosen needs one.",
    )


def define_strategy():
    flags.DEFINE_enum(
        "strategy",
        "none",
        list(STRATEGIES),
        "One device, all devices of this host, several hosts, or a TPU.",
    )


def define_teacher():
    flags.DEFINE_string("teacher", None, "Teacher of examples/train_teacher.py.", required=True)


def define_mcmi_teacher():
    flags.DEFINE_list("mcmi_teacher", None, "Teachers of tune_teachers.py.", required=True)


def define_comparison(methods):
    """Defines what the experiments ask for that compare methods, each at its best weight."""
    flags.DEFINE_integer("labels_per_class", 10, "Training images of each class; 0 for all.", 0)
    flags.DEFINE_list("methods", list(methods), "Some of: " + ", ".join(methods))
    flags.DEFINE_list("weights", None, "Weights to try; each method's own if not given.")


def define_designs():
    """Defines what the experiments ask for that compare designs of one method."""
    flags.DEFINE_string("output_dir", None, "Folder for everything written.", required=True)
    flags.DEFINE_list("designs", None, "Names of designs; all of them if not given.")
    flags.DEFINE_integer("epochs", 150, "Epochs of a student; the first is not timed.", 2)
    flags.DEFINE_integer("seeds", 2, "Students per design: seeds 100, 101, ...", 1)


def chosen(values, **changes):
    """Returns the protocol of a data set, with `changes` and then what the flags say."""
    names = ("student", "epochs", "batch_size", "learning_rate", "data_dir")
    given = {name: values[name].value for name in names if values[name].value is not None}
    own = PROTOCOLS[values.dataset]
    return with_validation(dataclasses.replace(own, **{**changes, **given}), values)


def with_validation(protocol, values):
    """Returns the protocol with the part that `--validation_fraction` holds out."""
    fraction = values.validation_fraction
    if fraction is None:
        return protocol
    if protocol.held_out is None or not 0 <= fraction < 1:
        raise SystemExit(
            "Expected --validation_fraction in [0, 1), for CIFAR: the digits have a validation "
            f"split of their own. Received: --validation_fraction={fraction:g}"
        )
    return dataclasses.replace(protocol, data={**protocol.data, "validation_fraction": fraction})


def check_choice(protocol, flag, candidates):
    """Refuses to choose where there is nothing but the test split to choose on."""
    if candidates > 1 and protocol.held_out == 0:
        raise SystemExit(
            f"Expected --validation_fraction=0.1, say, to choose among the {candidates} of --{flag}"
            ". Received: no images to choose on, as in the benchmark; give one, or a fraction."
        )


def cells(methods, weights, known, given):
    """Returns `{"method": ..., "weight": ...}` of every row.

    Args:
        methods: Names, some of `known`.
        weights: `{method: weights to try}`. Other methods have none.
        known: All names.
        given: Texts of `--weights`, for every method with a weight, or `None`.
    """
    check_names("methods", methods, known)
    own = {**weights, **dict.fromkeys(weights, numbers("weights", given))} if given else weights
    return [{"method": m, "weight": weight} for m in methods for weight in own.get(m, [0.0])]


def most_weights(rows):
    """Returns how many weights a method has at most, of which validation chooses one."""
    return max(collections.Counter(row["method"] for row in rows).values())


def check_names(flag, names, known):
    if not names or not set(names) <= set(known):
        raise SystemExit(
            f"Expected --{flag} to be some of {', '.join(known)}. "
            f"Received: --{flag}={','.join(names)}"
        )


def numbers(flag, texts, kind=float):
    """Returns the values of a list flag, which are numbers above 0, float or int."""
    try:
        values = [kind(text) for text in texts]
    except ValueError:
        values = []
    if not values or not all(0 < value < math.inf for value in values):
        words = "integers" if kind is int else "numbers"
        raise SystemExit(
            f"Expected --{flag} to be {words} above 0. Received: --{flag}={','.join(texts)}"
        )
    return values


def is_chief():
    """Whether this process writes files."""
    return tf.distribute.get_strategy().extended.should_checkpoint


def load_network(path, script="examples/train_teacher.py", **options):
    """Returns a saved network; ends in one line where there is none."""
    if not zipfile.is_zipfile(path):
        raise SystemExit(f"Expected a network that {script} saved. Received: {path}")
    return keras.saving.load_model(path, **options)


def teacher_files(teacher, mcmi_teachers):
    """Returns `{name: path}` of a teacher and its tuned copies, called by their files."""
    files = {"MLL": teacher, **{Path(path).stem: path for path in mcmi_teachers}}
    if len(files) <= len(mcmi_teachers):
        raise SystemExit(
            "Expected files of different names, none of them MLL.keras. "
            f"Received: --mcmi_teacher={','.join(mcmi_teachers)}"
        )
    return files


def digest(path):
    """Returns what tells one saved network from another."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]


def load(dataset, **arguments):
    """Returns the `Splits` of a data set; ends in one line where they cannot be had."""
    try:
        return getattr(mikd.datasets, f"load_{dataset}")(**arguments)
    except (FileNotFoundError, ValueError) as error:
        if isinstance(error, ValueError) and not str(error).startswith("Expected"):
            raise  # No argument that does not fit the data, but a fault.
        raise SystemExit(f"{dataset}: {error}") from None


def load_data(protocol, seed, **arguments):
    """Returns the `Splits` of a seed, with other arguments than the protocol's if given.

    Where nothing is held out, the test split is that of validation too, as in the benchmark: the
    numbers are those of the last epoch, and nothing is chosen.
    """
    own = {
        "batch_size": protocol.batch_size,
        "labels_per_class": protocol.labels_per_class,
        "data_dir": protocol.data_dir,
        **protocol.data,
    }
    data = load(protocol.dataset, seed=seed, **{**own, **arguments})
    if data.validation is not None:
        return data
    return dataclasses.replace(data, validation=data.test, num_validation=data.num_test)


def new_student(protocol, data, network=None):
    """Returns an untrained network, the protocol's if none is named."""
    make = getattr(mikd.models, network or protocol.student)
    return make(data.num_classes, data.image_shape)


def alone(network, distiller=mikd.SelfDistiller):
    """Returns what trains a network by itself, under a strategy too.

    Keras itself does not train on several hosts, nor with batches that replicas do not divide.
    """
    return distiller(network, []) if tf.distribute.has_strategy() else network


def with_teacher(protocol, method, teacher, student, weight):
    """Returns the distiller of a method with a teacher, or what trains the student alone."""
    if method == "student":
        return alone(student)
    kd_weight, options = protocol.weights["kd"][-1], protocol.options.get(method, {})
    losses = {
        "kd": lambda: recipes.kd(teacher, student, weight=weight),
        "at": lambda: recipes.attention_transfer(teacher, student, weight=weight, **options),
        "hint": lambda: recipes.hint(teacher, student, weight=weight, **options),
        "vid": lambda: recipes.vid(teacher, student, stage_weight=weight, **options),
        "mimkd": lambda: recipes.mimkd(
            teacher, student, global_weight=weight, local_weight=weight, feature_weight=weight
        ),
        "kd_muse": lambda: (
            recipes.kd(teacher, student, weight=kd_weight)
            + recipes.muse(teacher, student, weight=weight)
        ),
    }[method]()
    task_weight = protocol.kd_task_weight if method.startswith("kd") else 1.0
    return mikd.Distiller(teacher, student, losses, task_loss_weight=task_weight)


def fit(model, data, protocol, folder, validations=20):
    """Fits a student or a distiller; returns Keras' history and the milliseconds of a step.

    The validation split is looked at about as many times as `validations` says, for the curve.
    """
    step_time = StepTime()
    model.compile(
        protocol.optimizer(protocol.learning_rate, protocol.epochs * len(data.train)),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    history = model.fit(
        data.train,
        validation_data=data.validation,
        validation_freq=max(1, protocol.epochs // validations),
        epochs=protocol.epochs,
        shuffle=False,
        verbose=0,
        callbacks=[step_time, keras.callbacks.TensorBoard(folder, write_graph=False)],
    ).history
    return history, step_time.median()


def train(build, protocol, seed, folder, *, splits=("validation", "test"), **data_arguments):
    """Trains and saves the student that `build` takes; returns its numbers on the splits."""
    keras.utils.set_random_seed(seed)
    data = load_data(protocol, seed, **data_arguments)
    student = new_student(protocol, data)
    return trained(build(student), student, data, protocol, folder, splits=splits)


def trained(
    model, student, data, protocol, folder, *, splits=("validation", "test"), validations=20
):
    """Fits what trains a student, saves the student; returns its numbers on the splits."""
    history, milliseconds = fit(model, data, protocol, folder, validations)
    values = {
        split: model.evaluate(getattr(data, split), verbose=0, return_dict=True) for split in splits
    }
    if is_chief():
        student.save(folder / "student.keras")
    return {
        **{split: 100 * each["accuracy"] for split, each in values.items()},
        "milliseconds": milliseconds,
        "nats": {k: v for k, v in values["validation"].items() if k.endswith("_nats")},
        "curve": [100 * value for value in history["val_accuracy"]],
        "weights": student.count_params(),
        "training_only_weights": model.count_params() - student.count_params(),
    }

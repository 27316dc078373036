r"""Trains a teacher and saves it as `<output_dir>/teacher.keras`.

The digits need no download (40 epochs take about 20 seconds on two cores):

    python examples/train_teacher.py --output_dir=runs/digits

Any image classifier of TensorFlow Datasets is `--dataset=<its name>`. A teacher of the CRD
benchmark, whose number is that of the last epoch: all 50,000 images, a step for the short last
batch too, a tenth of the rate after 150, 180 and 210 of the 240 epochs, and a weight decay of 5e-4
on every weight:

    python examples/train_teacher.py --dataset=cifar100 --download --model=resnet32x4 \
        --optimizer=sgd --schedule=steps --weight_decay=5e-4 --learning_rate=0.05 --batch_size=64 \
        --epochs=240 --validation_fraction=0 --nodrop_remainder --output_dir=runs/cifar100

Writes TensorBoard logs to `<output_dir>/logs`.
"""

import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import tensorflow as tf
from absl import app, flags, logging

import keras_mikd as mikd

STRATEGIES = {
    "none": tf.distribute.get_strategy,
    "mirrored": tf.distribute.MirroredStrategy,
    "multi_worker": tf.distribute.MultiWorkerMirroredStrategy,  # See launch_workers.py.
    "tpu": lambda: tf.distribute.TPUStrategy(
        tf.distribute.cluster_resolver.TPUClusterResolver.connect("")
    ),
}

FLAGS = flags.FLAGS
flags.DEFINE_string("output_dir", None, "Folder for the teacher and its logs.", required=True)
flags.DEFINE_string("dataset", "digits", "The digits, or an image classifier of TFDS by name.")
flags.DEFINE_string("data_dir", None, "Folder of TensorFlow Datasets; its default if not given.")
flags.DEFINE_bool("download", False, "Download a missing data set.")
flags.DEFINE_integer("labels_per_class", None, "Training images of each class; None for all.", 1)
flags.DEFINE_string("model", "resnet14", "Network of keras_mikd.models.")
flags.DEFINE_enum("optimizer", "adam", ["adam", "sgd"], "Adam, or SGD with momentum 0.9.")
flags.DEFINE_float("learning_rate", 3e-3, "First learning rate.", 0.0)
flags.DEFINE_enum(
    "schedule",
    "cosine",
    ["cosine", "steps"],
    "How the rate falls: to 0 as a cosine, or to a tenth after 5/8, 3/4 and 7/8 of the epochs.",
)
flags.DEFINE_float("weight_decay", 0.0, "Decay of all weights, as PyTorch's SGD or AdamW.", 0.0)
flags.DEFINE_float(
    "validation_fraction", None, "Part of the training images to hold out, 0 for none."
)
flags.DEFINE_bool("drop_remainder", True, "Leave out what does not fill the last batch.")
flags.DEFINE_string("policy", "float32", "Keras' dtype policy in training; saved is float32.")
flags.DEFINE_integer("epochs", 40, "Epochs.", 1)
flags.DEFINE_integer("batch_size", 64, "Images in a batch.", 1)
flags.DEFINE_integer("seed", 0, "Seed of weights, order and augmentation.", 0)
flags.DEFINE_enum("strategy", "none", list(STRATEGIES), "Devices to train on.")


def load_data(dataset, options, split):
    if dataset == "digits":
        if split["validation_fraction"] is not None or not split["drop_remainder"]:
            raise SystemExit(
                "Expected --dataset=digits without --validation_fraction and --nodrop_remainder: "
                "it has a split of its own. Received: one of them."
            )
        del options["download"]
        return mikd.datasets.load_digits(augment=True, **options)
    given = {name: value for name, value in split.items() if value is not None}
    return mikd.datasets.loader(dataset)(**options, **given)


def new_schedule(name, learning_rate, steps):
    if name == "cosine":
        return keras.optimizers.schedules.CosineDecay(learning_rate, steps)
    # Keras counts steps from 0 and changes the rate after a boundary.
    boundaries = [steps * eighths // 8 - 1 for eighths in (5, 6, 7)]
    rates = [learning_rate * 0.1**k for k in range(4)]
    return keras.optimizers.schedules.PiecewiseConstantDecay(boundaries, rates)


def new_optimizer(name, rate, weight_decay):
    if name == "adam":
        return keras.optimizers.Adam(rate, weight_decay=weight_decay or None)
    # PyTorch's decay is part of the gradient, of which momentum makes 1 / (1 - 0.9) times as much.
    decay = weight_decay / (1 - 0.9) or None
    return keras.optimizers.SGD(rate, momentum=0.9, weight_decay=decay)


def compiled(network, optimizer="sgd"):
    # A distiller without losses: unlike a plain Keras model, it also fits on several hosts.
    model = mikd.SelfDistiller(network, [])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"])
    return model


def train(teacher, data, optimizer, epochs, logs):
    options = {"epochs": epochs, "shuffle": False, "verbose": 2}  # The data shuffles itself.
    board = keras.callbacks.TensorBoard(logs, write_graph=False)
    compiled(teacher, optimizer).fit(
        data.train, validation_data=data.validation, callbacks=[board], **options
    )


def main(_):
    logging.set_verbosity(logging.WARNING)  # TensorFlow Datasets logs every read.
    output = Path(FLAGS.output_dir)
    path = output / "teacher.keras"
    if path.exists():
        raise SystemExit(f"Expected a new --output_dir. Received: {path} exists.")
    names = ("batch_size", "labels_per_class", "seed", "data_dir", "download")
    options = {name: FLAGS[name].value for name in names}
    strategy = STRATEGIES[FLAGS.strategy]()
    with strategy.scope():
        keras.utils.set_random_seed(FLAGS.seed)
        split = ("validation_fraction", "drop_remainder")
        data = load_data(FLAGS.dataset, options, {name: FLAGS[name].value for name in split})
        network = getattr(mikd.models, FLAGS.model)
        keras.config.set_dtype_policy(FLAGS.policy)
        teacher = network(data.num_classes, data.image_shape)
        print(
            f"Teacher {FLAGS.model} ({teacher.count_params():,} weights), "
            f"{data.num_train} training images, {FLAGS.epochs} epochs of {len(data.train)} steps"
        )
        rate = new_schedule(FLAGS.schedule, FLAGS.learning_rate, FLAGS.epochs * len(data.train))
        optimizer = new_optimizer(FLAGS.optimizer, rate, FLAGS.weight_decay)
        train(teacher, data, optimizer, FLAGS.epochs, output / "logs" / "teacher")
        keras.config.set_dtype_policy("float32")
        saved = network(data.num_classes, data.image_shape)
        saved.set_weights(teacher.get_weights())
        accuracy = compiled(saved).evaluate(data.test, verbose=0, return_dict=True)["accuracy"]
    if strategy.cluster_resolver and strategy.cluster_resolver.task_id:
        return  # Of several workers, the first one writes.
    saved.save(path)
    print(
        f"\nTeacher: {100 * accuracy:.2f} % of the test split, saved as {path}\n"
        f"Curves: tensorboard --logdir {output}/logs\n"
        f"Next: python examples/distill.py --dataset={FLAGS.dataset} --output_dir={output}"
    )


if __name__ == "__main__":
    app.run(main)

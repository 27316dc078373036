r"""Trains a teacher and saves it as `<output_dir>/teacher.keras`.

The digits need no download (40 epochs take about 20 seconds on two cores):

    python examples/train_teacher.py --output_dir=runs/digits

CIFAR comes through TensorFlow Datasets, with the augmentation and schedule of the CRD benchmark:

    python examples/train_teacher.py --dataset=cifar100 --download --model=resnet32x4 \
        --optimizer=sgd --learning_rate=0.05 --batch_size=64 --epochs=240 --output_dir=runs/cifar100
"""

import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
from absl import app, flags, logging

import keras_mikd as mikd
import strategies
import students

NETWORKS = [
    *("resnet8", "resnet14", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110"),
    *("resnet8x4", "resnet32x4", "wrn_16_1", "wrn_16_2", "wrn_40_1", "wrn_40_2"),
]

FLAGS = flags.FLAGS
flags.DEFINE_string("output_dir", None, "Folder for the teacher and its logs.", required=True)
flags.DEFINE_enum("dataset", "digits", ["digits", "cifar10", "cifar100"], "Data to train on.")
flags.DEFINE_string("data_dir", None, "Folder of TensorFlow Datasets; its default if not given.")
flags.DEFINE_bool("download", False, "Download a missing CIFAR data set.")
flags.DEFINE_enum("model", "resnet14", NETWORKS, "Network of keras_mikd.models.")
flags.DEFINE_enum("optimizer", "adam", ["adam", "sgd"], "Adam, or SGD with momentum 0.9.")
flags.DEFINE_float("learning_rate", 3e-3, "First learning rate; it falls to 0 as a cosine.", 0.0)
flags.DEFINE_float("weight_decay", 0.0, "Factor of the L2 penalty on every kernel.", 0.0)
flags.DEFINE_integer("epochs", 40, "Epochs.", 1)
flags.DEFINE_integer("batch_size", 64, "Images in a batch.", 1)
flags.DEFINE_integer("seed", 0, "Seed of weights, order and augmentation.", 0)
strategies.define_flags()


def load_data():
    own = {"augment": True} if FLAGS.dataset == "digits" else {"download": FLAGS.download}
    return students.load_data(
        FLAGS.dataset,
        batch_size=FLAGS.batch_size,
        seed=FLAGS.seed,
        data_dir=FLAGS.data_dir,
        **own,
    )


def new_teacher(data):
    penalty = keras.regularizers.L2(FLAGS.weight_decay) if FLAGS.weight_decay else None
    network = getattr(mikd.models, FLAGS.model)
    return network(data.num_classes, data.image_shape, kernel_regularizer=penalty)


def compiled(teacher, data):
    """Returns what trains the teacher."""
    model = strategies.fits_everywhere(teacher)
    rate = keras.optimizers.schedules.CosineDecay(
        FLAGS.learning_rate, FLAGS.epochs * len(data.train)
    )
    optimizers = {
        "adam": lambda: keras.optimizers.Adam(rate),
        "sgd": lambda: keras.optimizers.SGD(rate, momentum=0.9),
    }
    model.compile(
        optimizers[FLAGS.optimizer](),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def check_flags():
    if FLAGS.download and FLAGS.dataset == "digits":
        raise SystemExit("--download: the digits come with scikit-learn; leave the flag out")
    path = Path(FLAGS.output_dir) / "teacher.keras"
    if path.exists():
        raise SystemExit(f"--output_dir: {path} exists and is kept; name another folder")
    strategies.check_flags()
    return path


def main(argv):
    del argv
    logging.set_verbosity(logging.WARNING)  # TensorFlow Datasets tells every read.
    path = check_flags()
    with strategies.chosen().scope():
        run(path)


def run(path):
    keras.utils.set_random_seed(FLAGS.seed)
    data = load_data()
    teacher = new_teacher(data)
    print(
        f"Teacher {FLAGS.model} ({teacher.count_params():,} weights), "
        f"{data.num_train} training images, {FLAGS.epochs} epochs"
    )
    model = compiled(teacher, data)
    model.fit(
        data.train,
        validation_data=data.validation,
        epochs=FLAGS.epochs,
        shuffle=False,
        verbose=2,
        callbacks=[keras.callbacks.TensorBoard(path.parent / "logs" / "teacher")],
    )
    accuracy = model.evaluate(data.test, verbose=0, return_dict=True)["accuracy"]
    if strategies.is_chief():
        teacher.save(path)
        print(f"Teacher: {100 * accuracy:.2f} % of the test split, saved as {path}")


if __name__ == "__main__":
    app.run(main)

r"""Every method on photographs with few labels: a table for each number of images per class.

    python experiments/compare.py --teacher=wrn_40_2.keras --dataset=cifar10 --data_dir=... \
        --output_dir=runs/cifar10

Needs a teacher of examples/train_teacher.py for the same data. Teacher and students see the same
augmented views, which are drawn once. All methods have as many trials on the validation split. A
run that is there is not made again, so the script may be killed and started again, and its folder
may get more methods, weights, seeds and sizes later.

Writes to `<output_dir>/<images per class>`: a file for every run with its student, and
`comparison.json`, the table; `<output_dir>/accuracy.png`, all sizes in one figure.
"""

import functools
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags, logging
from matplotlib.figure import Figure

import keras_mikd as mikd
import protocol
from keras_mikd.comparison.methods import METHODS, Method
from mimkd_designs import DESIGNS

KNOWN = METHODS | DESIGNS

FLAGS = flags.FLAGS
flags.DEFINE_string("output_dir", None, "Folder for everything written.", required=True)
flags.DEFINE_string("teacher", None, "Teacher of examples/train_teacher.py.", required=True)
flags.DEFINE_string("dataset", "cifar10", "The digits, or an image classifier of TFDS by name.")
flags.DEFINE_string("data_dir", None, "Folder of TensorFlow Datasets.")
flags.DEFINE_string("student", "wrn_16_1", "Network of keras_mikd.models.")
flags.DEFINE_list("labels_per_class", ["50"], "Training images of each class, a table for each.")
flags.DEFINE_list("methods", list(METHODS), "Some of: " + ", ".join(KNOWN))
flags.DEFINE_list("with_kd", [], "Some of --methods, to be tried with soft targets too.")
flags.DEFINE_integer("seeds", 3, "Runs at the chosen weight.", 1)
flags.DEFINE_integer("trial_seeds", 1, "How many of these seeds every weight is tried with.", 1)
flags.DEFINE_integer("epochs", 80, "Epochs of a student.", 1)
flags.DEFINE_integer("batch_size", 64, "Images in a batch.", 1)
flags.DEFINE_float("learning_rate", 1e-2, "First rate of Adam; it falls to 0 as a cosine.", 0.0)
flags.DEFINE_integer("views", 8, "Augmented views of every image.", 1)
flags.DEFINE_integer("validation_images", 2000, "Images to choose weights on.", 1)
flags.DEFINE_enum("balance", "none", ["none", "gradient"], "See `Distiller`.")
flags.DEFINE_float("cache_gib", 4.0, "Largest memory for the teacher's tensors.", 0.0)


def crop_and_flip(image, seed):
    """Pads four pixels by reflection, crops a window, and mirrors half of the images."""
    shape = image.shape
    image = tf.pad(image, [[4, 4], [4, 4], [0, 0]], "REFLECT")
    image = tf.image.stateless_random_crop(image, shape, seed)
    return tf.image.stateless_random_flip_left_right(image, seed + 1)


def shift(image, seed):
    """Moves an image by at most a pixel, which leaves a digit what it is."""
    padded = tf.pad(image, [[1, 1], [1, 1], [0, 0]])
    return tf.image.stateless_random_crop(padded, image.shape, seed)


def arrays(batches, most=None):
    """Returns a data set of batches as arrays, at most so many examples."""
    parts = [np.concatenate(part) for part in zip(*batches.as_numpy_iterator(), strict=True)]
    return tuple(part[:most] for part in parts)


def optimizer(learning_rate):
    """Returns what makes the optimizer of a run, a function that knows its rate."""
    return lambda steps: protocol.adam_with_cosine(learning_rate, steps)


def with_kd(name, weight):
    """Returns a method at a weight, with soft targets of the weight that is to be chosen."""
    alone = KNOWN[name].losses
    return lambda teacher, student, kd_weight: (
        alone(teacher, student, weight) + mikd.recipes.kd(teacher, student, weight=kd_weight)
    )


def table(teacher, labels_per_class):
    """Returns the comparison of one number of images per class.

    The weight of a method with KD beside it is the one that was chosen for it alone.
    """
    compared = functools.partial(_comparison, teacher, labels_per_class)
    methods = {name: KNOWN[name] for name in FLAGS.methods}
    result = compared(methods)
    if not FLAGS.with_kd:
        return result
    chosen = {row["method"]: row["weight"] for row in result.rows}
    weights = METHODS["kd"].weights
    both = {f"{name}+kd": Method(with_kd(name, chosen[name]), weights) for name in FLAGS.with_kd}
    return compared(methods | both)


def _comparison(teacher, labels_per_class, methods):
    keras.utils.set_random_seed(0)  # The draw and its order are the same in every run.
    options = {"labels_per_class": labels_per_class, "data_dir": FLAGS.data_dir, "batch_size": 10}
    is_digits = FLAGS.dataset == "digits"
    if not is_digits:
        options |= {"augment": False, "drop_remainder": False}
    data = mikd.datasets.loader(FLAGS.dataset)(**options)
    augment = shift if is_digits else crop_and_flip
    make = getattr(mikd.models, FLAGS.student)
    print(f"\n{FLAGS.dataset}, {labels_per_class} images of each class", flush=True)
    return mikd.compare(
        teacher,
        lambda: make(data.num_classes, data.image_shape),
        arrays(data.train),
        arrays(data.validation, FLAGS.validation_images),
        arrays(data.test),
        methods={name: method.losses for name, method in methods.items()},
        weights={name: method.weights for name, method in methods.items()},
        seeds=FLAGS.seeds,
        trial_seeds=FLAGS.trial_seeds,
        epochs=FLAGS.epochs,
        batch_size=FLAGS.batch_size,
        optimizer=optimizer(FLAGS.learning_rate),
        balance=None if FLAGS.balance == "none" else FLAGS.balance,
        augment=augment if FLAGS.views > 1 else None,
        views=FLAGS.views,
        max_cache_bytes=int(FLAGS.cache_gib * 2**30),
        folder=Path(FLAGS.output_dir) / str(labels_per_class),
    )


def draw(tables):
    """Draws accuracy over images per class, a line for each method with its intervals."""
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    for method in dict.fromkeys(row["method"] for t in tables.values() for row in t.rows):
        rows = {n: row for n, t in tables.items() for row in t.rows if row["method"] == method}
        axes.errorbar(
            list(rows),
            [row["mean"] for row in rows.values()],
            yerr=[row["interval"] or 0.0 for row in rows.values()],
            marker="o",
            capsize=3,
            label=method,
        )
    axes.set(
        xscale="log",
        xlabel="training images of each class",
        ylabel=f"accuracy on the test split of {FLAGS.dataset}, %",
    )
    axes.legend(ncols=2)
    return figure


def main(argv):
    del argv
    logging.set_verbosity(logging.WARNING)  # TensorFlow Datasets tells every read.
    protocol.check_names("methods", FLAGS.methods, KNOWN)
    if FLAGS.with_kd:
        protocol.check_names("with_kd", FLAGS.with_kd, FLAGS.methods)
    sizes = protocol.numbers("labels_per_class", FLAGS.labels_per_class, int)
    teacher = protocol.load_network(FLAGS.teacher)
    tables = {size: table(teacher, size) for size in sizes}
    path = Path(FLAGS.output_dir) / "accuracy.png"
    mikd.figures.save_png(draw(tables), path, overwrite=True)


if __name__ == "__main__":
    app.run(main)

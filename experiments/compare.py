r"""Every method on photographs with few labels: a table for each number of images per class.

    python experiments/compare.py --teacher=wrn_40_2.keras --dataset=cifar10 --data_dir=... \
        --output_dir=runs/cifar10

Needs a teacher of examples/train_teacher.py for the same data. Teacher and students see the same
augmented views, which are drawn once. All methods have as many trials on the validation split. A
run that is there is not made again, so the script may be killed and started again, and its folder
may get more methods, weights, seeds and sizes later.

Weights that are ratios of gradients, one for all methods, by `--balance=gradient --weights=1`.

Other experiments of VID's paper: all images, of which `--labels_per_class` have a label, by
`--unlabelled`; from a CNN to a perceptron by `--student=mlp_1024 --methods=kd,vid_unfolded`, with
the heads of perceptron_methods.py. Without the teacher, alone or beside a peer, by
`--methods=self_muse,dml,...` of no_teacher_methods.py. On two cores, after
examples/train_teacher.py of the digits:

    python experiments/compare.py --teacher=... --dataset=digits --labels_per_class=10 \
        --student=resnet8 --batch_size=25 --views=1 --epochs=20 --unlabelled \
        --methods=kd,hint,at,vid,mimkd --with_kd=vid --output_dir=runs/unlabelled
    python experiments/compare.py --teacher=... --dataset=digits --labels_per_class=10 \
        --student=mlp_256 --batch_size=25 --views=1 --methods=kd,hint_pooled,vid_unfolded \
        --output_dir=runs/mlp

Writes to `<output_dir>/<images per class>`: a file for every run with its student, and
`comparison.json`, the table; `<output_dir>/accuracy.png`, all sizes in one figure.
"""

import functools
from pathlib import Path

import keras
from absl import app, flags, logging
from matplotlib.figure import Figure

import few_labels
import keras_mikd as mikd
import protocol
from keras_mikd.comparison.methods import BALANCED, METHODS, Method
from mimkd_designs import DESIGNS
from no_teacher_methods import NO_TEACHER_METHODS
from perceptron_methods import PERCEPTRON_METHODS

KNOWN = METHODS | DESIGNS | PERCEPTRON_METHODS | NO_TEACHER_METHODS

FLAGS = flags.FLAGS
few_labels.define_flags(
    dataset="cifar10",
    student="wrn_16_1",
    labels_per_class=["50"],
    epochs=80,
    batch_size=64,
    views=8,
)
few_labels.define_trials()
flags.DEFINE_string("teacher", None, "Teacher of examples/train_teacher.py.", required=True)
flags.DEFINE_boolean("unlabelled", False, "Whether all images stay, and others have no label.")
flags.DEFINE_list("methods", list(METHODS), "Some of: " + ", ".join(KNOWN))
flags.DEFINE_list("with_kd", [], "Some of --methods, to be tried with soft targets too.")
flags.DEFINE_enum("balance", "none", ["none", "gradient"], "See `Distiller`.")
flags.DEFINE_list(
    "weights", None, "Weights to try for every method; its own if not given, ratios with --balance."
)


def tried(method):
    """Returns a method with the weights to try: those of the flag, or what they are ratios for."""
    if FLAGS.weights:
        return method._replace(weights=protocol.numbers("weights", FLAGS.weights))
    return method if FLAGS.balance == "none" else method._replace(weights=BALANCED)


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
    data = few_labels.load(FLAGS.dataset, labels_per_class, unlabelled=FLAGS.unlabelled)
    options = {"balance": None if FLAGS.balance == "none" else FLAGS.balance}
    if FLAGS.unlabelled:
        options["loss"] = keras.losses.SparseCategoricalCrossentropy(True, ignore_class=-1)
    folder = Path(FLAGS.output_dir) / str(labels_per_class)
    compared = functools.partial(few_labels.compare, teacher, data, folder=folder, **options)
    said = "labels" if FLAGS.unlabelled else "images"
    print(f"\n{FLAGS.dataset}, {labels_per_class} {said} of each class", flush=True)
    methods = {name: tried(KNOWN[name]) for name in FLAGS.methods}
    result = compared(methods)
    if not FLAGS.with_kd:
        return result
    chosen = {row["method"]: row["weight"] for row in result.rows}
    weights = tried(METHODS["kd"]).weights
    both = {f"{name}+kd": Method(with_kd(name, chosen[name]), weights) for name in FLAGS.with_kd}
    return compared(methods | both)


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

r"""Transformers as teachers and as students: one table for each of three pairs of networks.

    python experiments/transformers.py --pair=vit_to_resnet --output_dir=runs/vit_to_resnet

The pairs: `vit_to_resnet` and `resnet_to_vit` on the digits, students with 10 labelled images of
each class; `text`, a text transformer of four blocks and one of a single block, on paragraphs of
scikit-learn's docstrings (docstrings.py), students with 50 of each class. The teacher has all
training examples. It is trained first, once, and kept in the folder.

The methods: `student` (alone), `kd`, `hint`, `vid` and `mimkd`. Places are found in both networks
and paired (`pair_stages`); none is named. Every weight is trained with the first seed. The one that
is best on the validation split gets the other seeds, and is reported on the test split.

Writes to `<output_dir>`: `teacher.keras`, `results.json` (every run), and a folder for every run.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import keras
from absl import app, flags, logging

import docstrings
import keras_mikd as mikd
import protocol
import results
from keras_mikd import recipes

METHODS = ["student", "kd", "hint", "vid", "mimkd"]
NOTE = """\
gain: points above the student alone. weights: the student's, + those that only train.
nats, on the validation split: *_mi_nats is a lower bound on the mutual information of
the pair, *_gaussian_nats is nats per channel."""
MAX_LENGTH = 32

FLAGS = flags.FLAGS
flags.DEFINE_string("output_dir", None, "Folder for everything written.", required=True)
flags.DEFINE_enum("pair", None, ["vit_to_resnet", "resnet_to_vit", "text"], "Pair.", required=True)
flags.DEFINE_integer("seeds", 3, "Runs per row: seeds 0, 1, ... of weights, order and labels.", 1)
flags.DEFINE_list("methods", METHODS, "Some of: " + ", ".join(METHODS))
flags.DEFINE_list("weights", None, "Weights to try; each method's own if not given.")
flags.DEFINE_integer("epochs", None, "Epochs of a student; the pair's if not given.", 1)
flags.DEFINE_integer("teacher_epochs", None, "Epochs of the teacher, likewise.", 1)
flags.DEFINE_string("data_dir", None, "Folder of TensorFlow Datasets.")


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two networks, each a function of the data, with how they are trained."""

    data: Callable
    teacher: Callable
    student: Callable
    labels_per_class: int
    epochs: int
    teacher_epochs: int
    learning_rate: float
    teacher_learning_rate: float


def digits(*, labels_per_class=None, **options):
    """Few images are as they are, all of them come shifted at random."""
    options["batch_size"] = 25 if labels_per_class else 64
    augment = labels_per_class is None
    return protocol.load("digits", labels_per_class=labels_per_class, augment=augment, **options)


def texts(*, labels_per_class=None, seed, data_dir):
    del data_dir  # scikit-learn has them itself.
    batch_size = 40 if labels_per_class else 64
    return docstrings.load(
        max_length=MAX_LENGTH, labels_per_class=labels_per_class, batch_size=batch_size, seed=seed
    )


def vit(depth, width):
    return lambda data: mikd.models.vision_transformer(
        depth=depth,
        width=width,
        num_heads=4,
        patch_size=2,
        dropout=0.1,
        num_classes=data.num_classes,
        input_shape=data.image_shape,
    )


def resnet(depth):
    make = getattr(mikd.models, f"resnet{depth}")
    return lambda data: make(data.num_classes, data.image_shape)


def text_transformer(depth, width):
    return lambda data: mikd.models.text_transformer(
        depth=depth,
        width=width,
        num_classes=len(docstrings.CLASSES),
        vocabulary_size=data.vocabulary_size,
        max_length=MAX_LENGTH,
    )


PAIRS = {
    "vit_to_resnet": Pair(digits, vit(4, 64), resnet(8), 10, 60, 100, 1e-2, 2e-3),
    "resnet_to_vit": Pair(digits, resnet(14), vit(2, 32), 10, 80, 40, 3e-3, 3e-3),
    "text": Pair(texts, text_transformer(4, 32), text_transformer(1, 32), 50, 20, 15, 3e-3, 2e-3),
}
WEIGHTS = {
    "kd": [1.0, 3.0],
    "hint": [1.0, 10.0, 100.0],
    "vid": [0.3, 3.0],
    "mimkd": [0.3, 3.0],
}


def compiled(model, learning_rate, steps):
    model.compile(
        protocol.adam_with_cosine(learning_rate, steps),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )


def new_teacher(pair, data_dir, path):
    """Returns the teacher of the folder, or trains it."""
    data = pair.data(seed=0, data_dir=data_dir)
    if not Path(path).exists():
        keras.utils.set_random_seed(0)
        teacher = pair.teacher(data)
        compiled(teacher, pair.teacher_learning_rate, pair.teacher_epochs * len(data.train))
        teacher.fit(data.train, epochs=pair.teacher_epochs, shuffle=False, verbose=0)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        teacher.save(path)
    teacher = protocol.load_network(path)
    scores = {s: teacher.evaluate(getattr(data, s), verbose=0)[1] for s in ("validation", "test")}
    return teacher, {split: 100 * score for split, score in scores.items()}


def losses(method, teacher, student, weight):
    """Returns the losses of a method, each with the weight."""
    levels = {f"{level}_weight": weight for level in ("global", "local", "feature")}
    return {
        "student": list,
        "kd": lambda: recipes.kd(teacher, student, weight=weight),
        "hint": lambda: recipes.hint(teacher, student, weight=weight),
        "vid": lambda: recipes.vid(teacher, student, stage_weight=weight, initial_variance="auto"),
        "mimkd": lambda: recipes.mimkd(teacher, student, **levels),
    }[method]()


def train(pair, teacher, settings, folder, method, weight, seed):
    """Returns the numbers of one student."""
    keras.utils.set_random_seed(seed)
    data = pair.data(labels_per_class=pair.labels_per_class, seed=seed, data_dir=settings.data_dir)
    student = pair.student(data)
    model = student
    if method != "student":
        model = mikd.Distiller(teacher, student, losses(method, teacher, student, weight))
    return protocol.trained(model, student, data, settings, folder, validations=2)


def compare(kept, rows, one):
    """Trains every row with the first seed, the best of each method with all; prints these."""
    print("Per cent of the validation split, with the first seed and with all:")
    results.sweep(kept, rows, [0], one)
    first = [{**row, "runs": [kept.run(one, **row, seed=0)]} for row in rows]
    best = [{"method": r["method"], "weight": r["weight"]} for r in results.chosen_rows(first)]
    results.sweep(kept, best, range(FLAGS.seeds), one)
    made = [row for row in kept.rows("method", "weight") if len(row["runs"]) >= FLAGS.seeds]
    results.print_comparison(
        [row for row in made if {k: row[k] for k in ("method", "weight")} in best], "student", NOTE
    )


def main(argv):
    del argv
    logging.set_verbosity(logging.WARNING)  # TensorFlow Datasets tells every read.
    given = {k: FLAGS[k].value for k in ("epochs", "teacher_epochs") if FLAGS[k].value}
    pair = dataclasses.replace(PAIRS[FLAGS.pair], **given)
    rows = protocol.cells(FLAGS.methods, WEIGHTS, METHODS, FLAGS.weights)
    path = f"{FLAGS.output_dir}/teacher.keras"
    teacher, scores = new_teacher(pair, FLAGS.data_dir, path)
    settings = dataclasses.replace(
        protocol.DIGITS,
        epochs=pair.epochs,
        learning_rate=pair.learning_rate,
        data_dir=FLAGS.data_dir,
    )
    kept = results.Results(
        FLAGS.output_dir,
        pair=FLAGS.pair,
        epochs=pair.epochs,
        teacher_epochs=pair.teacher_epochs,
        teacher=protocol.digest(path),
    )
    print(
        f"Teacher: {teacher.count_params():,} weights, {scores['validation']:.2f} % of the "
        f"validation split, {scores['test']:.2f} % of the test split\n"
        f"Students: {pair.epochs} epochs, {pair.labels_per_class} labels per class"
    )
    compare(kept, rows, functools.partial(train, pair, teacher, settings))
    print(f"\nEvery run: {kept.path}; what it left: a folder beside it")


if __name__ == "__main__":
    app.run(main)

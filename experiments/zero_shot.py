r"""Trains students that never see some classes, and shows what they make of them.

The images of the dropped classes are removed from every batch. The student keeps an output for each
class. It learns from labels alone, from the teacher as it was (MLL), and from tuned teachers
(MCMI), with the weights of the paper: 0.1 for the labels, 0.9 for the soft targets. Only the
teacher, which was trained on all classes, can tell it of the dropped ones. What helps it to was
chosen on the validation split of the digits: centroids that are measured every epoch, a larger
budget, and soft targets of a high temperature, where the paper has 4:

    python experiments/tune_teachers.py --teacher=runs/digits/teacher.keras --weights=4 \
        --centroids=epoch --log_likelihood_budget=0.5 --accuracy_drop=10 --output_dir=runs/mcmi
    python experiments/zero_shot.py --teacher=runs/digits/teacher.keras --seeds=5 \
        --mcmi_teacher=runs/mcmi/weight4.keras --output_dir=runs/zero_shot

drops the classes that the paper dropped, of which it has 10. Other sets, and every class by itself:

    python experiments/zero_shot.py ... --dropped=3,3+8
    python experiments/zero_shot.py ... --each_class

With CIFAR-10 and the authors' protocol (resnet56 to resnet20):

    python experiments/zero_shot.py --dataset=cifar10 --teacher=runs/cifar10/teacher.keras \
        --mcmi_teacher=runs/cifar10-mcmi/weight0.25.keras --output_dir=runs/cifar10-zero

Photographs on two cores: few images of each class, whose augmented views are drawn once, so that
every teacher runs over them once:

    python experiments/zero_shot.py --dataset=cifar10 --teacher=... --mcmi_teacher=... \
        --student=wrn_16_1 --labels_per_class=50 --views=8 --epochs=40 --output_dir=...

Every teacher has its column, so nothing is chosen. Writes to `<output_dir>`: `results.json` (every
run), a folder for every run, and for each set the confusion matrices and the t-SNE of the logits on
the test split, of the students of seed 0 (`confusion_<set>.png`, `tsne_<set>.png`).
"""

import dataclasses
import functools
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags, logging

import few_labels
import keras_mikd as mikd
import protocol
import results
from keras_mikd import recipes
from keras_mikd.batches import take_apart

LABELS_ONLY = "labels only"
# With all its images, a student of digits needs fewer epochs than with a hundred. The temperature
# of CIFAR is the paper's.
EPOCHS = {"digits": {"epochs": 30}}
TEMPERATURES = {"digits": 20.0, "cifar10": 4.0, "cifar100": 4.0}
NOTE = """
Test accuracy in per cent, on the dropped classes | on the others; mean and standard
deviation over the seeds."""

FLAGS = flags.FLAGS
protocol.define_flags()
protocol.define_teacher()
protocol.define_mcmi_teacher()
flags.DEFINE_list(
    "dropped",
    "9,9+7,9+7+5,9+7+5+3,9+7+5+3+1,9+7+5+3+1+0",
    "Sets of classes to drop, their numbers joined by +.",
)
flags.DEFINE_integer("labels_per_class", 0, "Training images of each class; 0 for all.", 0)
flags.DEFINE_integer(
    "views", 0, "Augmented views of an image, seen once by a teacher; 0: new ones every epoch.", 0
)
flags.DEFINE_bool("each_class", False, "Drop every class by itself instead.")
flags.DEFINE_float("label_weight", 0.1, "Weight of the labels beside a teacher.", 0.0)
flags.DEFINE_float("kd_weight", 0.9, "Weight of the soft targets.", 0.0)
flags.DEFINE_float(
    "kd_temperature", None, "Temperature of the soft targets; 20 for digits, 4 for CIFAR.", 0.0
)


def taught(teacher, student, label_weight, kd_weight, temperature):
    """Returns the distiller of a student with soft targets."""
    losses = recipes.kd(teacher, student, weight=kd_weight, temperature=temperature)
    return mikd.Distiller(teacher, student, losses, task_loss_weight=label_weight)


def without(dataset, dropped):
    """Returns a data set of as many batches that lack the dropped classes, none of them empty."""

    def labels_of(batch):
        return take_apart(batch[0] if len(batch) == 1 else batch).y

    def keep(*batch):
        labels = labels_of(batch)
        kept = tf.reduce_all(labels[:, None] != tf.constant(dropped, labels.dtype), axis=1)
        batch = tf.nest.map_structure(lambda part: tf.boolean_mask(part, kept), batch)
        return batch[0] if len(batch) == 1 else batch  # A cache has one tuple with names.

    batches = dataset.map(keep).filter(lambda *batch: tf.size(labels_of(batch)) > 0)
    batches = batches.repeat().take(len(dataset))
    # A filter hides how many there are, without which Keras warns that data ran out.
    return batches.apply(tf.data.experimental.assert_cardinality(len(dataset)))


def cached(settings, teachers):
    """Returns a cache of every teacher's logits over the same views of the same images."""
    keras.utils.set_random_seed(0)  # The images and their order are the same in every run.
    data = protocol.load_data(settings, seed=0, augment=False, drop_remainder=False)
    caches = {}
    for name, teacher in teachers.items():
        print(f"Teacher {name}:", flush=True)
        caches[name] = mikd.TeacherCache(
            teacher,
            *few_labels.arrays(data.train),
            augment=few_labels.crop_and_flip,
            views=FLAGS.views,
        ).build()
    return caches


def training_batches(data, settings, caches, teacher, seed):
    """Returns the batches of a student: new views in every epoch, or those of a cache."""
    if not caches:
        return data.train
    alone = teacher == LABELS_ONLY
    cache = next(iter(caches.values())) if alone else caches[teacher]
    return cache.batches(settings.batch_size, seed=seed, with_teacher=not alone)


def train(settings, teachers, caches, soft_targets, folder, dropped, teacher, seed):
    """Returns the accuracies of one student, and saves its logits on the test split."""
    keras.utils.set_random_seed(seed)
    data = protocol.load_data(settings, seed)
    student = protocol.new_student(settings, data)
    if teacher == LABELS_ONLY:
        model = protocol.alone(student)
    else:
        model = taught(teachers[teacher], student, **soft_targets)
    classes = classes_of(dropped)
    batches = training_batches(data, settings, caches, teacher, seed)
    seen = dataclasses.replace(data, train=without(batches, classes))
    if caches:  # Validation would run the teacher over more images than training does.
        seen = dataclasses.replace(seen, validation=None)
    protocol.fit(model, seen, settings, folder)
    logits = model.predict(data.test, verbose=0)
    labels = np.concatenate([labels for _, labels in data.test])
    if protocol.is_chief():
        np.savez(folder / "test.npz", logits=logits, labels=labels)
    return accuracies(logits, labels, classes)


def accuracies(logits, labels, dropped):
    """Returns the accuracy on the dropped classes, on each of them, and on the others."""
    right = logits.argmax(axis=1) == labels
    unseen = np.isin(labels, dropped)
    return {
        "dropped_accuracy": 100 * right[unseen].mean(),
        "each_accuracy": {str(label): 100 * right[labels == label].mean() for label in dropped},
        "kept_accuracy": 100 * right[~unseen].mean(),
    }


def classes_of(name):
    """Returns the classes of a set such as `"9+7"`."""
    return [int(part) for part in name.split("+")]


def draw(output_dir, dropped, teachers):
    """Saves the two figures of a set, with the students of seed 0."""
    names = {t: results.run_name({"dropped": dropped, "teacher": t, "seed": 0}) for t in teachers}
    saved = {t: np.load(Path(output_dir) / name / "test.npz") for t, name in names.items()}
    logits = {teacher: each["logits"] for teacher, each in saved.items()}
    labels = saved[LABELS_ONLY]["labels"]
    classes = range(logits[LABELS_ONLY].shape[1])
    captions = [f"{c}{' (dropped)' if c in classes_of(dropped) else ''}" for c in classes]
    predictions = {teacher: each.argmax(axis=1) for teacher, each in logits.items()}
    confusion = mikd.figures.confusion_matrix(
        labels, predictions, num_classes=len(captions), class_names=captions
    )
    tsne = mikd.figures.logits_tsne(logits, labels, class_names=captions)
    results.save_figure(confusion, output_dir, f"confusion_{dropped}")
    results.save_figure(tsne, output_dir, f"tsne_{dropped}")


def print_table(rows, sets, teachers):
    by_key = {(row["dropped"], row["teacher"]): row for row in rows}
    table = [[cell(by_key[dropped, teacher]) for teacher in teachers] for dropped in sets]
    width = max(len(text) for text in (*teachers, *sum(table, [])))
    print("\n" + "  ".join([f"{'dropped':12}", *(f"{name:>{width}}" for name in teachers)]))
    for dropped, cells in zip(sets, table, strict=True):
        print("  ".join([f"{dropped:12}", *(f"{text:>{width}}" for text in cells)]))
    if len(sets) > 1:
        means = [
            np.mean([results.mean(by_key[dropped, t], "dropped_accuracy") for dropped in sets])
            for t in teachers
        ]
        print("  ".join([f"{'mean dropped':12}", *(f"{mean:>{width}.2f}" for mean in means)]))
    print(NOTE)


def cell(row):
    return " | ".join(results.spread(row, f"{each}_accuracy") for each in ("dropped", "kept"))


def check_sets(sets, num_classes):
    """Refuses sets with a class that is not there or twice, and sets of all classes."""
    for name in sets:
        parts = name.split("+")
        known = all(part.isdecimal() and int(part) < num_classes for part in parts)
        if not known or len(set(parts)) < len(parts) or len(parts) >= num_classes:
            raise SystemExit(
                f"Expected different classes from 0 to {num_classes - 1}, joined by +, and one "
                f"left. Received: --dropped={name}"
            )


def main(argv):
    del argv
    logging.set_verbosity(logging.WARNING)  # TensorFlow Datasets tells every read.
    if FLAGS.views and FLAGS.dataset == "digits":
        raise SystemExit("Expected --views with photographs. Received: --dataset=digits")
    labels_per_class = FLAGS.labels_per_class or None
    settings = protocol.chosen(
        FLAGS, labels_per_class=labels_per_class, **EPOCHS.get(FLAGS.dataset, {})
    )
    soft_targets = {
        "label_weight": FLAGS.label_weight,
        "kd_weight": FLAGS.kd_weight,
        "temperature": FLAGS.kd_temperature or TEMPERATURES[FLAGS.dataset],
    }
    num_classes = 100 if FLAGS.dataset == "cifar100" else 10
    sets = [str(label) for label in range(num_classes)] if FLAGS.each_class else FLAGS.dropped
    check_sets(sets, num_classes)
    files = protocol.teacher_files(FLAGS.teacher, FLAGS.mcmi_teacher)
    with protocol.STRATEGIES[FLAGS.strategy]().scope():
        teachers = {name: protocol.load_network(path) for name, path in files.items()}
        kept = results.Results(
            FLAGS.output_dir,
            protocol=settings.settings(),
            soft_targets=soft_targets,
            teachers={name: protocol.digest(path) for name, path in files.items()},
            **({"views": FLAGS.views} if FLAGS.views else {}),
        )
        caches = cached(settings, teachers) if FLAGS.views else {}
        print(f"Students: {settings}\nPer cent of the dropped classes, seed by seed:")
        names = [LABELS_ONLY, *teachers]
        rows = [{"dropped": each, "teacher": name} for each in sets for name in names]
        one = functools.partial(train, settings, teachers, caches, soft_targets)
        results.sweep(kept, rows, range(FLAGS.seeds), one, shown="dropped_accuracy")
        print_table(kept.rows("dropped", "teacher"), sets, names)
        if protocol.is_chief():
            for dropped in sets:
                draw(FLAGS.output_dir, dropped, names)
    print(f"\nFigures: {FLAGS.output_dir}/confusion_*.png, tsne_*.png; every run: {kept.path}")


if __name__ == "__main__":
    app.run(main)

r"""Trains students that never see some classes, and shows what they make of them.

The images of the dropped classes are removed from every batch; the student keeps an output for each
class. It learns from labels alone, from the teacher as it was (MLL), and from tuned teachers
(MCMI), with the weights of the paper: 0.1 for the labels, 0.9 for the soft targets. Only the
teacher, which was trained on all classes, can tell it of the dropped ones. What helps it to was
chosen on the validation split of the digits: centroids that are measured every epoch, a larger
budget, and soft targets of a high temperature, where the paper has 4:

    python examples/tune_teacher.py --teacher=runs/digits/teacher.keras --output_dir=runs/mcmi \
        --centroids=epoch --weight=4 --log_likelihood_budget=0.5 --accuracy_drop=10
    python examples/zero_shot.py --teacher=runs/digits/teacher.keras --output_dir=runs/zero_shot \
        --mcmi_teacher=runs/mcmi/weight4.keras --seeds=5

drops the classes that the paper dropped, of which it has 10. Other sets, and every class by itself:

    python examples/zero_shot.py ... --dropped=3,3+8
    python examples/zero_shot.py ... --each_class

With CIFAR-10 and the authors' protocol (resnet56 to resnet20):

    python examples/zero_shot.py --dataset=cifar10 --teacher=runs/cifar10/teacher.keras \
        --mcmi_teacher=runs/cifar10-mcmi/weight0.25.keras --output_dir=runs/cifar10-zero

Every teacher has its column, so that nothing is chosen. Writes to `<output_dir>`: `results.json`
(every student, after every set), for each set the confusion matrices and the t-SNE of the logits on
the test split, of the students of seed 0 (`confusion_<set>.png`, `tsne_<set>.png`), the same in
TensorBoard, and logs under `logs/`.
"""

import dataclasses
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from absl import app, flags, logging

import keras_mikd as mikd
import scripts
import strategies
import students

FLAGS = flags.FLAGS
scripts.define_flags()
scripts.define_teacher()
scripts.define_mcmi_teacher()
flags.DEFINE_list(
    "dropped",
    "9,9+7,9+7+5,9+7+5+3,9+7+5+3+1,9+7+5+3+1+0",
    "Sets of classes to drop, their numbers joined by +.",
)
flags.DEFINE_bool("each_class", False, "Drop every class by itself instead.")
flags.DEFINE_float("label_weight", 0.1, "Weight of the labels beside a teacher.", 0.0)
flags.DEFINE_float("kd_weight", 0.9, "Weight of the soft targets.", 0.0)
flags.DEFINE_float(
    "kd_temperature", None, "Temperature of the soft targets; 20 for digits, 4 for CIFAR.", 0.0
)

LABELS_ONLY = "labels only"
# With all its images, a student of digits needs fewer epochs than with a hundred.
DIGITS_EPOCHS = 30


def train_student(protocol, teacher, dropped, seed, logs):
    """Returns one student's logits and labels on the test split."""
    keras.utils.set_random_seed(seed)
    data = students.load_data(
        FLAGS.dataset, batch_size=protocol.batch_size, seed=seed, data_dir=FLAGS.data_dir
    )
    steps = protocol.epochs * len(data.train)
    student = students.new_student(protocol, data)
    if teacher is None:
        model = strategies.fits_everywhere(student)
    else:
        model = students.kd(
            teacher,
            student,
            FLAGS.kd_weight,
            task_weight=FLAGS.label_weight,
            temperature=scripts.given("kd_temperature", 20.0 if FLAGS.dataset == "digits" else 4.0),
        )
    students.train(
        model,
        dataclasses.replace(data, train=students.without(data.train, dropped)),
        optimizer=protocol.optimizer(protocol.learning_rate, steps),
        epochs=protocol.epochs,
        logs=logs,
    )
    return students.outputs(model, data.test)


def numbers(logits, labels, dropped):
    """Returns the accuracy on the dropped classes, on each of them, and on the others."""
    right = logits.argmax(axis=1) == labels
    unseen = np.isin(labels, dropped)
    return {
        "dropped": 100 * right[unseen].mean(),
        "each": {str(label): 100 * right[labels == label].mean() for label in dropped},
        "kept": 100 * right[~unseen].mean(),
    }


def train_set(protocol, teachers, dropped):
    """Trains students of every teacher without some classes; draws them and returns a row."""
    name = "+".join(map(str, dropped))
    row = {"dropped": dropped, "runs": {}}
    seen = {}
    for teacher, model in teachers.items():
        runs = []
        for seed in range(FLAGS.seeds):
            folder = f"without_{name}-{teacher}-seed{seed}".replace(" ", "_")
            logs = Path(FLAGS.output_dir) / "logs" / folder
            logits, labels = train_student(protocol, model, dropped, seed, logs)
            runs.append(numbers(logits, labels, dropped))
            if not seed:
                seen[teacher] = logits
        row["runs"][teacher] = runs
        print(f"  without {name}, {teacher}: {cell(runs)}", flush=True)
    draw(name, dropped, seen, labels)
    return row


def cell(runs):
    dropped, kept = (
        students.mean_and_spread(run[key] for run in runs) for key in ("dropped", "kept")
    )
    return f"{dropped} | {kept}"


def draw(name, dropped, seen, labels):
    """Saves the two figures of a set and shows them in TensorBoard."""
    classes = range(next(iter(seen.values())).shape[1])
    names = [f"{label}{' (dropped)' if label in dropped else ''}" for label in classes]
    predictions = {teacher: logits.argmax(axis=1) for teacher, logits in seen.items()}
    confusion = mikd.figures.confusion_matrix(
        labels, predictions, num_classes=len(names), class_names=names
    )
    scripts.save_figure(confusion, f"confusion_{name}")
    tsne = mikd.figures.logits_tsne(seen, labels, class_names=names)
    scripts.save_figure(tsne, f"tsne_{name}")


def print_table(rows):
    teachers = list(rows[0]["runs"])
    cells = [[cell(row["runs"][teacher]) for teacher in teachers] for row in rows]
    width = max(len(text) for text in (*teachers, *sum(cells, [])))
    print("\n" + "  ".join([f"{'dropped':12}", *(f"{name:>{width}}" for name in teachers)]))
    for row, texts in zip(rows, cells, strict=True):
        name = "+".join(map(str, row["dropped"]))
        print("  ".join([f"{name:12}", *(f"{text:>{width}}" for text in texts)]))
    if len(rows) > 1:
        means = [mean_of_dropped(rows, teacher) for teacher in teachers]
        print("  ".join([f"{'mean dropped':12}", *(f"{mean:>{width}.2f}" for mean in means)]))
    print(
        "\nTest accuracy in per cent, on the dropped classes | on the others; mean and standard\n"
        "deviation over the seeds."
    )


def mean_of_dropped(rows, teacher):
    return np.mean([run["dropped"] for row in rows for run in row["runs"][teacher]])


def dropped_sets(num_classes):
    """Returns the sets of classes to drop, each a list of integers."""
    if FLAGS.each_class:
        return [[label] for label in range(num_classes)]
    sets = []
    for text in FLAGS.dropped:
        parts = text.split("+")
        valid = all(part.isdecimal() and int(part) < num_classes for part in parts)
        if not valid or len(set(parts)) < len(parts) or len(parts) >= num_classes:
            raise SystemExit(
                f"--dropped: expected different classes of 0 to {num_classes - 1} joined by +, and "
                f"one left; got {text!r}"
            )
        sets.append([int(part) for part in parts])
    if len({frozenset(each) for each in sets}) < len(sets) or not sets:
        raise SystemExit(f"--dropped: expected different sets; got {FLAGS.dropped}")
    return sets


def check_flags():
    if FLAGS.each_class and FLAGS["dropped"].present:
        raise SystemExit("--each_class and --dropped are given; expected one of them")
    scripts.check_file("teacher", FLAGS.teacher, "train_teacher.py")
    files = scripts.mcmi_teacher_files()
    if LABELS_ONLY in files:
        raise SystemExit(f"--mcmi_teacher: no file can be called {LABELS_ONLY!r} here")
    sets = dropped_sets(100 if FLAGS.dataset == "cifar100" else 10)
    names = ["+".join(map(str, each)) for each in sets]
    strategies.check_flags()
    figures = [f"{kind}_{name}.png" for name in names for kind in ("confusion", "tsne")]
    scripts.check_outputs(["results.json", "logs", *figures])
    return sets, files


def main(argv):
    del argv
    logging.set_verbosity(logging.WARNING)  # TensorFlow Datasets tells every read.
    sets, files = check_flags()
    protocol = scripts.protocol(**({"epochs": DIGITS_EPOCHS} if FLAGS.dataset == "digits" else {}))
    with strategies.chosen().scope():
        run(protocol, sets, files)


def run(protocol, sets, files):
    Path(FLAGS.output_dir).mkdir(parents=True, exist_ok=True)
    teachers = {LABELS_ONLY: None, "MLL": scripts.load_network(FLAGS.teacher)}
    teachers |= {name: scripts.load_network(path) for name, path in files.items()}
    print(f"Students: {protocol}", flush=True)
    rows = []
    for dropped in sets:
        rows.append(train_set(protocol, teachers, dropped))
        scripts.save_results(rows)
    print_table(rows)
    print(
        f"\nFigures: {FLAGS.output_dir}/confusion_*.png, tsne_*.png; and tensorboard --logdir "
        f"{FLAGS.output_dir}/logs"
    )


if __name__ == "__main__":
    app.run(main)

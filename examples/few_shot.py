r"""Trains students on few images, from the teacher as it was (MLL) and from tuned ones (MCMI).

Needs a teacher of train_teacher.py and teachers of tune_teacher.py that were tuned from it:

    python examples/few_shot.py --teacher=runs/digits/teacher.keras --output_dir=runs/few_shot \
        --mcmi_teacher=runs/mcmi/weight0.1.keras,runs/mcmi/weight0.25.keras \
        --labels_per_class=5,10 --seeds=5

Of several MCMI teachers, each method gets the one whose students are best on the validation split;
the table has their accuracy on the test split. It is a choice that the MLL teacher does not have:
with one MCMI teacher there is none.

CIFAR with the authors' protocol: the first fraction of the images in file order, as many steps as
with all of them, resnet56 to resnet20. Their numbers are the best epoch on the test split; these
are the last one:

    python examples/few_shot.py --dataset=cifar100 --teacher=runs/cifar100/teacher.keras \
        --mcmi_teacher=runs/cifar100-mcmi/weight0.15.keras --fraction=0.05,0.1,0.25 --methods=kd \
        --seeds=5 --output_dir=runs/cifar100-few

Writes to `<output_dir>`: `results.json` (every student, after every row), `few_shot.png`, and
TensorBoard logs under `logs/`.
"""

import os
import statistics
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
from absl import app, flags, logging
from matplotlib.figure import Figure

import scripts
import strategies
import students

FLAGS = flags.FLAGS
scripts.define_flags()
scripts.define_teacher()
scripts.define_mcmi_teacher()
flags.DEFINE_list("methods", "kd,at,hint,vid,mimkd", "Some of: kd, at, hint, vid, mimkd.")
flags.DEFINE_list("labels_per_class", None, "Image(s) of each class; 5,10 for digits.")
flags.DEFINE_list("fraction", None, "Fraction(s) of the training set instead.")
for method in students.METHODS:
    flags.DEFINE_float(
        f"{method}_weight", None, f"Weight of {method}; the protocol's if not given.", 0.0
    )

ALONE = "student alone"


def settings():
    """Returns `{name: arguments of the data set}` of every row of the table."""
    if FLAGS.fraction is not None:
        return {
            f"{100 * value:g} %": {"train_fraction": value}
            for value in scripts.numbers_above_zero("fraction")
        }
    counts = FLAGS.labels_per_class or ["5", "10"]
    return {f"{int(count)} per class": {"labels_per_class": int(count)} for count in counts}


def train_student(protocol, method, teacher, seed, arguments, logs):
    """Returns the validation and the test accuracy of one student."""
    keras.utils.set_random_seed(seed)
    data = students.load_data(
        FLAGS.dataset,
        batch_size=protocol.batch_size,
        seed=seed,
        data_dir=FLAGS.data_dir,
        **arguments,
    )
    student = students.new_student(protocol, data)
    if method == ALONE:
        model = strategies.fits_everywhere(student)
    else:
        weight = scripts.given(f"{method}_weight", protocol.weights[method])
        options = {"task_weight": protocol.kd_task_weight} if method == "kd" else {}
        model = students.METHODS[method](teacher, student, weight, **options)
    students.train(
        model,
        data,
        optimizer=protocol.optimizer(protocol.learning_rate, protocol.epochs * len(data.train)),
        epochs=protocol.epochs,
        logs=logs,
    )
    return {
        "validation": students.accuracy(model, data.validation),
        "test": students.accuracy(model, data.test),
    }


def train_row(protocol, setting, arguments, method, name, teacher):
    """Trains a student for every seed."""
    runs = []
    for seed in range(FLAGS.seeds):
        folder = f"{setting}-{method}-{name}-seed{seed}".replace(" ", "_")
        logs = Path(FLAGS.output_dir) / "logs" / folder
        runs.append(train_student(protocol, method, teacher, seed, arguments, logs))
    row = {"setting": setting, "method": method, "teacher": name, "runs": runs}
    print(
        f"  {setting}, {method}{f' from {name}' if name else ''}: "
        f"{mean(row, 'validation'):.2f} % of the validation split",
        flush=True,
    )
    return row


def mean(row, split):
    return statistics.mean(run[split] for run in row["runs"])


def row_of(rows, setting, method):
    """Returns the row of a method that has one teacher, or none."""
    (row,) = (row for row in rows if (row["setting"], row["method"]) == (setting, method))
    return row


def compared(rows, setting, method):
    """Returns the row of the MLL teacher and that of the MCMI teacher that validation chooses."""
    own = [row for row in rows if (row["setting"], row["method"]) == (setting, method)]
    tuned = [row for row in own if row["teacher"] != "MLL"]
    (mll,) = (row for row in own if row["teacher"] == "MLL")
    return mll, max(tuned, key=lambda row: mean(row, "validation"))


def gains(mll, mcmi):
    """Returns what each seed gains on the test split; the two students share images and weights."""
    pairs = zip(mll["runs"], mcmi["runs"], strict=True)
    return [tuned["test"] - plain["test"] for plain, tuned in pairs]


def test_split(row):
    return students.mean_and_spread(run["test"] for run in row["runs"])


def print_table(rows, names):
    print(f"\n{'images':14} {'method':13} {'MLL teacher':>14} {'MCMI teacher':>14} {'gain':>14}")
    for setting in names:
        alone = row_of(rows, setting, ALONE)
        print(f"{setting:14} {ALONE:13} {test_split(alone):>14}")
        for method in FLAGS.methods:
            mll, mcmi = compared(rows, setting, method)
            print(
                f"{setting:14} {method:13} {test_split(mll):>14} {test_split(mcmi):>14} "
                f"{students.mean_and_spread(gains(mll, mcmi)):>14}  {mcmi['teacher']}"
            )
    print(
        "\nPer cent of the test split, mean and standard deviation over the seeds; the gain is\n"
        "taken seed by seed. Beside it: the MCMI teacher, chosen on the validation split."
    )


def draw(rows, names):
    figure = Figure(figsize=(1.5 + 3.5 * len(names), 4), layout="constrained")
    for axes, setting in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for position, method in enumerate(FLAGS.methods):
            for side, (colour, row) in enumerate(
                zip(("C0", "C1"), compared(rows, setting, method), strict=True)
            ):
                place = position + 0.35 * (side - 0.5)
                axes.bar(place, mean(row, "test"), width=0.33, color=colour, alpha=0.6)
                dots = [run["test"] for run in row["runs"]]
                axes.plot([place] * len(dots), dots, "k.", markersize=3)
        alone = row_of(rows, setting, ALONE)
        axes.axhline(mean(alone, "test"), color="k", linestyle="--", linewidth=1)
        axes.set_xticks(range(len(FLAGS.methods)), FLAGS.methods)
        lowest = min(
            run["test"] for row in rows if row["setting"] == setting for run in row["runs"]
        )
        axes.set(title=setting, ylabel="test accuracy, %", ylim=(max(0, lowest - 5), None))
    figure.legend(
        [*axes.containers[:2], axes.lines[-1]],
        ["MLL teacher", "MCMI teacher", ALONE],
        loc="outside lower center",
        ncols=3,
    )
    scripts.save_figure(figure, "few_shot")


def check_flags():
    unknown = sorted(set(FLAGS.methods) - set(students.METHODS))
    if unknown or not FLAGS.methods:
        raise SystemExit(
            f"--methods: expected some of {', '.join(students.METHODS)}; got {unknown}"
        )
    for method in students.METHODS:
        if FLAGS[f"{method}_weight"].present and method not in FLAGS.methods:
            raise SystemExit(f"--{method}_weight is given and {method} is not among --methods")
    if FLAGS.fraction is not None and FLAGS.labels_per_class is not None:
        raise SystemExit("--fraction and --labels_per_class are given; expected one of them")
    if FLAGS.fraction is not None and max(scripts.numbers_above_zero("fraction")) > 1:
        raise SystemExit(f"--fraction: expected at most 1; got {FLAGS.fraction}")
    for count in FLAGS.labels_per_class or []:
        if not count.isdecimal() or not int(count):
            raise SystemExit(f"--labels_per_class: expected integers above 0; got {count!r}")
    scripts.check_file("teacher", FLAGS.teacher, "train_teacher.py")
    scripts.mcmi_teacher_files()
    strategies.check_flags()
    scripts.check_outputs(["results.json", "few_shot.png", "logs"])


def main(argv):
    del argv
    logging.set_verbosity(logging.WARNING)  # TensorFlow Datasets tells every read.
    check_flags()
    protocol = scripts.protocol()
    with strategies.chosen().scope():
        run(protocol)


def run(protocol):
    Path(FLAGS.output_dir).mkdir(parents=True, exist_ok=True)
    teachers = {"MLL": scripts.load_network(FLAGS.teacher)}
    for name, path in scripts.mcmi_teacher_files().items():
        teachers[name] = scripts.load_network(path)
    print(f"Students: {protocol}", flush=True)
    rows = []
    for setting, arguments in settings().items():
        for method, name in [(ALONE, ""), *((m, t) for m in FLAGS.methods for t in teachers)]:
            teacher = teachers.get(name)
            rows.append(train_row(protocol, setting, arguments, method, name, teacher))
            scripts.save_results(rows)
    print_table(rows, settings())
    draw(rows, settings())
    print(f"\nFigure: {FLAGS.output_dir}/few_shot.png; every student: results.json beside it")


if __name__ == "__main__":
    app.run(main)

r"""Trains students on few images, from the teacher as it was (MLL) and from tuned ones (MCMI).

Needs a teacher of examples/train_teacher.py and copies of it that tune_teachers.py tuned:

    python experiments/few_shot.py --teacher=runs/digits/teacher.keras --output_dir=runs/few_shot \
        --mcmi_teacher=runs/mcmi/weight0.1.keras,runs/mcmi/weight0.25.keras --seeds=5

Of several MCMI teachers, each method gets the one whose students are best on the validation split.
The table has their accuracy on the test split. The MLL teacher has no such choice; with one MCMI
teacher there is none.

CIFAR with the authors' protocol, which is that of the CRD benchmark on the first fraction of the
images: in file order, as many steps as with all of them, resnet56 to resnet20. Their numbers are
the best epoch on the test split; these are the last one. They have KD and CRD; the weights of the
other methods are the benchmark's, but for MIMKD's, which is ours:

    python experiments/few_shot.py --dataset=cifar100 --teacher=runs/cifar100/teacher.keras \
        --mcmi_teacher=runs/cifar100-mcmi/weight0.15.keras --fraction=0.05,0.1,0.25 --methods=kd \
        --seeds=5 --output_dir=runs/cifar100-few

Writes to `<output_dir>`: `results.json` (every run), `few_shot.png`, and a folder for every run.
"""

import functools

from absl import app, flags, logging
from matplotlib.figure import Figure

import protocol
import results

METHODS = ["kd", "at", "hint", "vid", "mimkd"]
NOTE = """
Per cent of the test split, mean and standard deviation over the seeds. The gain is
taken seed by seed. Beside it: the MCMI teacher, chosen on the validation split."""

FLAGS = flags.FLAGS
protocol.define_flags()
protocol.define_teacher()
protocol.define_mcmi_teacher()
flags.DEFINE_list("methods", METHODS, "Some of: " + ", ".join(METHODS))
flags.DEFINE_list("labels_per_class", ["5", "10"], "Training images of each class.")
flags.DEFINE_list("fraction", None, "Fractions of the training set instead.")


def image_sets(counts, fractions):
    """Returns `{name: arguments of the data set}`."""
    if fractions:
        return {f"{100 * value:g} %": {"train_fraction": value} for value in fractions}
    return {f"{count} per class": {"labels_per_class": count} for count in counts}


def rows_of(images, methods, teachers):
    """Returns the key of every row."""
    trained = [("student", ""), *((method, name) for method in methods for name in teachers)]
    return [
        {"images": i, "method": method, "teacher": name} for i in images for method, name in trained
    ]


def train(settings, teachers, images_of, folder, images, method, teacher, seed):
    """Returns the numbers of one student."""
    weight = settings.weights[method][-1] if teacher else 0.0

    def build(student):
        return protocol.with_teacher(settings, method, teachers.get(teacher), student, weight)

    return protocol.train(build, settings, seed, folder, **images_of[images])


def compared(rows, images, method):
    """Returns the row of the MLL teacher and that of the MCMI teacher that validation chooses."""
    own = [row for row in rows if (row["images"], row["method"]) == (images, method)]
    (mll,) = (row for row in own if row["teacher"] == "MLL")
    tuned = [row for row in own if row is not mll]
    return mll, max(tuned, key=lambda row: results.mean(row, "validation"))


def alone(rows, images):
    """Returns the row of the student without a teacher."""
    (row,) = (r for r in rows if (r["images"], r["method"]) == (images, "student"))
    return row


def gains(mll, mcmi):
    """Returns what each seed gains on the test split: both students share images and weights."""
    tests = [{run["seed"]: run["test"] for run in row["runs"]} for row in (mll, mcmi)]
    return [tests[1][seed] - test for seed, test in tests[0].items()]


def print_table(rows, images, methods):
    print(f"\n{'images':14} {'method':13} {'MLL teacher':>14} {'MCMI teacher':>14} {'gain':>14}")
    for name in images:
        print(f"{name:14} {'student alone':13} {results.spread(alone(rows, name), 'test'):>14}")
        for method in methods:
            mll, mcmi = compared(rows, name, method)
            cells = [results.spread(row, "test") for row in (mll, mcmi)]
            cells.append(results.mean_and_spread(gains(mll, mcmi)))
            text = " ".join(f"{cell:>14}" for cell in cells)
            print(f"{name:14} {method:13} {text}  {mcmi['teacher']}")
    print(NOTE)


def draw(rows, images, methods):
    """Returns a figure with bars for both teachers, a dot for every seed."""
    figure = Figure(figsize=(1.5 + 3.5 * len(images), 4), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(images), squeeze=False)[0], images, strict=True):
        for position, method in enumerate(methods):
            for side, row in enumerate(compared(rows, name, method)):
                place = position + 0.35 * (side - 0.5)
                axes.bar(place, results.mean(row, "test"), 0.33, color=f"C{side}", alpha=0.6)
                dots = [run["test"] for run in row["runs"]]
                axes.plot([place] * len(dots), dots, "k.", markersize=3)
        line = results.mean(alone(rows, name), "test")
        axes.axhline(line, color="k", linestyle="--", linewidth=1)
        axes.set_xticks(range(len(methods)), methods)
        axes.set(title=name, ylabel="test accuracy, %")
        lowest = min(run["test"] for row in rows if row["images"] == name for run in row["runs"])
        axes.set_ylim(max(0, lowest - 5))
    figure.legend(
        [*axes.containers[:2], axes.lines[-1]],
        ["MLL teacher", "MCMI teacher", "student alone"],
        loc="outside lower center",
        ncols=3,
    )
    return figure


def main(argv):
    del argv
    logging.set_verbosity(logging.WARNING)  # TensorFlow Datasets tells every read.
    settings = protocol.chosen(FLAGS)
    protocol.check_names("methods", FLAGS.methods, METHODS)
    protocol.check_choice(settings, "mcmi_teacher", len(FLAGS.mcmi_teacher))
    counts = protocol.numbers("labels_per_class", FLAGS.labels_per_class, int)
    fractions = FLAGS.fraction and protocol.numbers("fraction", FLAGS.fraction)
    images = image_sets(counts, fractions)
    files = protocol.teacher_files(FLAGS.teacher, FLAGS.mcmi_teacher)
    with protocol.STRATEGIES[FLAGS.strategy]().scope():
        teachers = {name: protocol.load_network(path) for name, path in files.items()}
        digests = {name: protocol.digest(path) for name, path in files.items()}
        kept = results.Results(FLAGS.output_dir, protocol=settings.settings(), teachers=digests)
        print(f"Students: {settings}\nPer cent of the validation split, seed by seed:")
        one = functools.partial(train, settings, teachers, images)
        rows = rows_of(images, FLAGS.methods, teachers)
        results.sweep(kept, rows, range(FLAGS.seeds), one)
        rows = kept.rows("images", "method", "teacher")
        print_table(rows, images, FLAGS.methods)
        results.save_figure(draw(rows, images, FLAGS.methods), FLAGS.output_dir, "few_shot")
    print(f"\nFigure: {FLAGS.output_dir}/few_shot.png; every run: {kept.path}")


if __name__ == "__main__":
    app.run(main)

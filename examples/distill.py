r"""Trains the same small student alone and with every method, and prints one table.

Needs `<output_dir>/teacher.keras` of train_teacher.py (or `--teacher`). With 10 labelled digits per
class:

    python examples/distill.py --output_dir=runs/digits

A loss weight may be a list: every value is trained, and the one that is best on the validation
split is reported on the test split:

    python examples/distill.py --output_dir=runs/sweep --teacher=runs/digits/teacher.keras \
        --methods=student,vid --vid_weight=1,3,10 --seeds=5

On several devices or hosts (launch_workers.py starts local ones):

    python examples/launch_workers.py --workers=2 -- examples/distill.py --strategy=multi_worker \
        --output_dir=runs/workers --teacher=runs/digits/teacher.keras

Writes to `<output_dir>`: `results.json`, `comparison.png`, TensorBoard logs under `logs/`, and
`student.keras`, the student that is best on the validation split.
"""

import json
import os
import statistics
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import matplotlib
from absl import app, flags, logging

import keras_mikd as mikd
import scripts
import strategies
import students

matplotlib.use("Agg")
import matplotlib.pyplot as plt

METHODS = ("student", "kd", "vid", "mimkd", "kd_muse")

FLAGS = flags.FLAGS
flags.DEFINE_string("output_dir", None, "Folder for everything that is written.", required=True)
flags.DEFINE_string("teacher", None, "Saved teacher; <output_dir>/teacher.keras if not given.")
flags.DEFINE_enum("dataset", "digits", students.DATASETS, "Data to train on.")
flags.DEFINE_string("data_dir", None, "Folder of TensorFlow Datasets; its default if not given.")
flags.DEFINE_integer("labels_per_class", 10, "Training images of each class; 0 for all.", 0)
flags.DEFINE_enum("student", "resnet8", students.NETWORKS, "Network of keras_mikd.models.")
flags.DEFINE_list("methods", "student,kd,vid,mimkd", "Some of: " + ", ".join(METHODS))
flags.DEFINE_list("kd_weight", "3", "Weight(s) of the soft targets.")
flags.DEFINE_float("kd_temperature", 4.0, "Temperature of the soft targets.", 0.0)
flags.DEFINE_list("vid_weight", "3", "Weight(s) of every stage pair of VID.")
flags.DEFINE_float("vid_initial_variance", 0.3, "First variance of VID's heads.", 1e-4)
flags.DEFINE_list("mimkd_weight", "3", "Weight(s) of every level of MIMKD.")
flags.DEFINE_list("kd_muse_weight", "1", "Weight(s) of MUSE, beside the protocol's soft targets.")
flags.DEFINE_float("learning_rate", 1e-2, "First learning rate; it falls to 0 as a cosine.", 0.0)
flags.DEFINE_integer("epochs", 150, "Epochs of a student.", 1)
flags.DEFINE_integer("batch_size", 25, "Images in a batch.", 1)
flags.DEFINE_integer("seeds", 1, "Students per row: seeds 0, 1, ... of weights, labels, order.", 1)

strategies.define_flags()


def build(method, weight, teacher, student):
    """Returns the model to fit: the student itself, or a distiller around it."""
    if method == "student":
        return strategies.fits_everywhere(student)
    options = {
        "kd": {"temperature": FLAGS.kd_temperature},
        "vid": {"initial_variance": FLAGS.vid_initial_variance},
        "kd_muse": {
            "kd_weight": students.PROTOCOLS[FLAGS.dataset].weights["kd"],
            "temperature": FLAGS.kd_temperature,
        },
    }
    builders = {**students.METHODS, "kd_muse": students.kd_muse}
    return builders[method](teacher, student, weight, **options.get(method, {}))


def train(method, weight, seed, teacher):
    """Trains one student; returns it, its numbers and its validation accuracy by epoch."""
    keras.utils.set_random_seed(seed)
    data = students.load_data(
        FLAGS.dataset,
        batch_size=FLAGS.batch_size,
        labels_per_class=FLAGS.labels_per_class or None,
        seed=seed,
        data_dir=FLAGS.data_dir,
    )
    student = getattr(mikd.models, FLAGS.student)(data.num_classes, data.image_shape)
    model = build(method, weight, teacher, student)
    numbers = students.run(
        model,
        data,
        optimizer=students.adam_with_cosine(FLAGS.learning_rate, FLAGS.epochs * len(data.train)),
        epochs=FLAGS.epochs,
        logs=Path(FLAGS.output_dir) / "logs" / f"{method}-weight{weight:g}-seed{seed}",
    )
    numbers["weights"] = student.count_params()
    numbers["training_only_weights"] = model.count_params() - student.count_params()
    return student, numbers


def train_row(method, weight, teacher):
    """Trains a student per seed; returns the row of the table and the best student."""
    trained, runs = [], []
    for seed in range(FLAGS.seeds):
        student, numbers = train(method, weight, seed, teacher)
        trained.append(student)
        runs.append(numbers)
        print(
            f"  {method} (weight {weight:g}, seed {seed}): {numbers['validation']:.2f} % of the "
            f"validation split after {FLAGS.epochs} epochs",
            flush=True,
        )
    best = max(range(len(runs)), key=lambda i: runs[i]["validation"])
    return {"method": method, "weight": weight, "runs": runs, "best": trained[best]}


def print_table(rows):
    alone = next((students.mean(row, "test") for row in rows if row["method"] == "student"), None)
    print(f"\n{'method':8} {'weight':>6} {'test %':>14} {'gain':>6} {'weights':>15} {'ms/step':>8}")
    for row in rows:
        gain = "" if alone is None else f"{students.mean(row, 'test') - alone:+.2f}"
        run = row["runs"][0]
        extra = run["training_only_weights"]
        weights = f"{run['weights']:,}" + (f" +{extra:,}" if extra else "")
        accuracy = students.mean_and_spread(run["test"] for run in row["runs"])
        print(
            f"{row['method']:8} {row['weight']:>6g} {accuracy:>14} {gain:>6} {weights:>15} "
            f"{students.mean(row, 'milliseconds'):>8.2f}"
        )
        if run["nats"]:
            print(f"         nats: {students.readouts(row)}")
    print(
        "\ngain: points above the student alone. weights: the student's, + those that only train.\n"
        "nats, on the validation split: *_mi_nats is a Donsker-Varadhan lower bound on the mutual\n"
        "information of the pair; *_gaussian_nats is nats per channel and a bound only if the\n"
        "teacher's channel is Gaussian; MUSE's are to be compared with their ceiling. MIMKD and\n"
        "MUSE are reconstructions: their critics are not public."
    )


def draw(rows, path):
    figure, (bars, curves) = plt.subplots(1, 2, figsize=(10, 4))
    for position, row in enumerate(rows):
        values = [run["test"] for run in row["runs"]]
        bars.bar(position, statistics.mean(values), width=0.6, alpha=0.6)
        bars.plot([position] * len(values), values, "k.")
        curve = [
            statistics.mean(step) for step in zip(*(r["curve"] for r in row["runs"]), strict=True)
        ]
        epochs = [max(1, FLAGS.epochs // 20) * (i + 1) for i in range(len(curve))]
        curves.plot(epochs, curve, label=row["method"])
    bars.set_xticks(range(len(rows)), [row["method"] for row in rows])
    lowest = min(run["test"] for row in rows for run in row["runs"])
    bars.set(ylabel="test accuracy, %", ylim=(max(0, lowest - 5), 100))
    bars.set_title("Test accuracy (dots: seeds)")
    curves.set(xlabel="epoch", ylabel="validation accuracy, %", ylim=(max(0, lowest - 15), 100))
    curves.set_title("Validation accuracy (mean)")
    curves.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def _log_folders():
    """What an interrupted run may have left."""
    return [
        f"logs/{method}-weight{float(weight):g}-seed0"
        for method in FLAGS.methods
        for weight in (FLAGS[f"{method}_weight"].value if method in METHODS[1:] else [0])
    ]


def check_flags():
    unknown = sorted(set(FLAGS.methods) - set(METHODS))
    if unknown or not FLAGS.methods:
        raise SystemExit(f"--methods: expected some of {', '.join(METHODS)}; got {unknown}")
    for method in METHODS[1:]:
        flag = f"{method}_weight"
        if FLAGS[flag].present and method not in FLAGS.methods:
            raise SystemExit(f"--{flag} is given and {method} is not among --methods")
        scripts.numbers_above_zero(flag)
    strategies.check_flags()
    output_dir = Path(FLAGS.output_dir)
    teacher = Path(FLAGS.teacher or output_dir / "teacher.keras")
    scripts.check_file("teacher", teacher, "train_teacher.py")
    scripts.check_outputs(["results.json", "comparison.png", "student.keras", *_log_folders()])
    return teacher, output_dir


def main(argv):
    del argv
    logging.set_verbosity(logging.WARNING)  # TensorFlow Datasets tells every read.
    teacher_path, output_dir = check_flags()
    with strategies.chosen().scope():
        run(teacher_path, output_dir)


def run(teacher_path, output_dir):
    output_dir.mkdir(parents=True, exist_ok=True)
    teacher = scripts.load_network(teacher_path)
    print(
        f"Students {FLAGS.student}, {FLAGS.labels_per_class or 'all'} labels per class", flush=True
    )
    weights = {"student": ["0"], **{m: FLAGS[f"{m}_weight"].value for m in METHODS[1:]}}
    rows = [
        train_row(method, float(weight), teacher)
        for method in FLAGS.methods
        for weight in weights[method]
    ]
    rows = students.chosen_rows(rows)
    if not strategies.is_chief():
        return
    print_table(rows)
    best = max(rows, key=lambda row: max(run["validation"] for run in row["runs"]))
    best.pop("best").save(output_dir / "student.keras")
    draw(rows, output_dir / "comparison.png")
    results = [{k: v for k, v in row.items() if k != "best"} for row in rows]
    (output_dir / "results.json").write_text(json.dumps(results, indent=1))
    print(
        f"\nBest on the validation split: {best['method']}, saved as {output_dir}/student.keras\n"
        f"Figure: {output_dir}/comparison.png; curves: tensorboard --logdir {output_dir}/logs"
    )


if __name__ == "__main__":
    app.run(main)

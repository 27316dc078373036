r"""Tunes a trained teacher for more conditional mutual information (MCMI).

Needs a teacher of train_teacher.py. Every weight tunes a copy of it:

    python examples/tune_teacher.py --teacher=runs/digits/teacher.keras --output_dir=runs/mcmi \
        --weight=0.1,0.25,0.5

CIFAR with the authors' settings (centroids measured once, no limit on what the weight may cost, 20
epochs of SGD from 0.05):

    python examples/tune_teacher.py --dataset=cifar100 --teacher=runs/cifar100/teacher.keras \
        --output_dir=runs/cifar100-mcmi --weight=0.25 --log_likelihood_budget=0

The table shows conditional mutual information (CMI), log-likelihood and accuracy before and after.
Chosen is the weight with the most CMI on the validation split, among those that cost at most
`--accuracy_drop` points of accuracy there. Whether a student learns more from it is another
question, which few_shot.py answers.

Writes to `<output_dir>`: a teacher for every weight (`weight<w>.keras`), `results.json`,
`trajectory.png` (CMI over log-likelihood, epoch by epoch), `eigen_cam.png` (where the teacher looks
before and after, with the chosen weight), and TensorBoard logs and figures under `logs/`.
"""

import math
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
flags.DEFINE_string("output_dir", None, "Folder for everything that is written.", required=True)
flags.DEFINE_string("teacher", None, "Saved teacher to tune a copy of.", required=True)
flags.DEFINE_enum("dataset", "digits", students.DATASETS, "Data to tune on.")
flags.DEFINE_string("data_dir", None, "Folder of TensorFlow Datasets; its default if not given.")
flags.DEFINE_list("weight", "0.25", "Weight(s) of the divergence; a teacher for each.")
flags.DEFINE_enum(
    "centroids", "frozen", ["frozen", "epoch", "running"], "How centroids follow the teacher."
)
flags.DEFINE_float("log_likelihood_budget", 0.3, "Nats an example may give up; 0: no limit.", 0.0)
flags.DEFINE_float(
    "log_likelihood_drop",
    0.0,
    "Stop where the validation log-likelihood fell further, and go back, nats; 0: never.",
    0.0,
)
flags.DEFINE_float("accuracy_drop", 2.0, "Points of validation accuracy a choice may cost.", 0.0)
flags.DEFINE_float("learning_rate", None, "First rate; 0.0125 for digits, 0.05 for CIFAR.", 0.0)
flags.DEFINE_integer("epochs", 20, "Epochs.", 1)
flags.DEFINE_integer("batch_size", 64, "Images in a batch.", 1)
flags.DEFINE_integer("seed", 0, "Seed of order and augmentation.", 0)
flags.DEFINE_string(
    "cam_place", None, "Place that Eigen-CAM shows; stage2 for digits, the last stage for CIFAR."
)
flags.DEFINE_integer("cam_class", None, "Class of its images; one of each of 10 if not given.", 0)
strategies.define_flags()

NUM_CAM_IMAGES = 10


def load_data():
    augment = {"augment": True} if FLAGS.dataset == "digits" else {}  # CIFAR always is.
    return students.load_data(
        FLAGS.dataset,
        batch_size=FLAGS.batch_size,
        seed=FLAGS.seed,
        data_dir=FLAGS.data_dir,
        **augment,
    )


def measure(teacher, data):
    """Returns CMI, log-likelihood and accuracy on the validation and the test split."""
    reports = {
        split: mikd.measure_cmi(teacher, getattr(data, split), verbose=0)
        for split in ("validation", "test")
    }
    return {
        split: {
            "cmi": report.cmi,
            "log_likelihood": report.log_likelihood,
            "accuracy": 100 * report.accuracy,
        }
        for split, report in reports.items()
    }


def tune(teacher, weight, before):
    """Returns the tuned copy, and how it came about: CMI and log-likelihood of every epoch kept."""
    keras.utils.set_random_seed(FLAGS.seed)
    data = load_data()
    model = mikd.MCMITeacher(
        teacher,
        weight=weight,
        centroids=FLAGS.centroids,
        log_likelihood_budget=FLAGS.log_likelihood_budget or None,
    )
    rate = keras.optimizers.schedules.CosineDecay(
        scripts.given("learning_rate", 0.0125 if FLAGS.dataset == "digits" else 0.05),
        FLAGS.epochs * len(data.train),
    )
    model.compile(keras.optimizers.SGD(rate, momentum=0.9))
    logs = Path(FLAGS.output_dir) / "logs" / f"weight{weight:g}"
    limit = before["validation"]["log_likelihood"] - (FLAGS.log_likelihood_drop or math.inf)
    guard = mikd.LogLikelihoodGuard(limit)
    history = model.fit(
        data.train,
        validation_data=data.validation,
        epochs=FLAGS.epochs,
        shuffle=False,
        verbose=0,
        callbacks=[guard, keras.callbacks.TensorBoard(logs, write_graph=False)],
    ).history
    epochs = FLAGS.epochs
    if guard.stopped_epoch is not None:  # What came after the best epoch is not in the teacher.
        epochs = 0 if guard.best_epoch is None else guard.best_epoch + 1
    curve = {
        key: [before["validation"][key], *history[f"val_{key}"][:epochs]]
        for key in ("cmi", "log_likelihood")
    }
    return model.teacher, curve


def teacher_file(weight):
    return Path(FLAGS.output_dir) / f"weight{weight:g}.keras"


def choose(rows, before):
    """Returns the row with the most CMI among those that keep the accuracy, on validation."""

    def validation(row, key):
        return row["after"]["validation"][key]

    lowest = before["validation"]["accuracy"] - FLAGS.accuracy_drop
    kept = [row for row in rows if validation(row, "accuracy") >= lowest]
    if not kept:
        return max(rows, key=lambda row: validation(row, "accuracy")), False
    return max(kept, key=lambda row: validation(row, "cmi")), True


def print_table(before, rows, chosen):
    columns = "CMI, nats  log-likelihood  accuracy, %"
    print(f"\n{'':10}{'validation':^38}   {'test':^38}\n{'weight':10}{columns}   {columns}")
    for name, each in [("before", before), *((f"{r['weight']:g}", r["after"]) for r in rows)]:
        cells = [
            f"{split['cmi']:9.4f}  {split['log_likelihood']:14.4f}  {split['accuracy']:11.2f}"
            for split in (each["validation"], each["test"])
        ]
        mark = "  <- chosen" if name == f"{chosen['weight']:g}" else ""
        print(f"{name:10}{'   '.join(cells)}{mark}")


def cam_images(data):
    """Returns test images to look at, and their classes."""
    images, labels = (np.concatenate(part) for part in zip(*data.test, strict=True))
    if FLAGS.cam_class is None:
        _, found = np.unique(labels, return_index=True)
    else:
        found = np.flatnonzero(labels == FLAGS.cam_class)
    found = found[:NUM_CAM_IMAGES]
    return images[found], labels[found]


def draw(teacher, tuned, before, rows, chosen, data):
    """Saves the two figures and shows them in TensorBoard."""
    start = {key: [before["validation"][key]] for key in ("cmi", "log_likelihood")}
    runs = {f"weight {row['weight']:g}": row["curve"] for row in rows}
    images, labels = cam_images(data)
    # The last stage has 2 x 2 locations of the digits' 8 x 8.
    place = FLAGS.cam_place or ("stage2" if FLAGS.dataset == "digits" else None)
    networks = {"MLL": teacher, f"MCMI {chosen['weight']:g}": tuned}
    figures = {
        "trajectory": mikd.figures.cmi_trajectory({"MLL teacher": start, **runs}),
        "eigen_cam": mikd.figures.eigen_cam_grid(networks, images, place, captions=labels),
    }
    for name, figure in figures.items():
        scripts.save_figure(figure, name)


def check_flags():
    scripts.check_file("teacher", FLAGS.teacher, "train_teacher.py")
    weights = scripts.numbers_above_zero("weight")
    if len(set(weights)) < len(weights):
        raise SystemExit(f"--weight: expected different weights; got {FLAGS.weight}")
    strategies.check_flags()
    teachers = [f"weight{weight:g}.keras" for weight in weights]
    scripts.check_outputs(["results.json", "trajectory.png", "eigen_cam.png", "logs", *teachers])
    return weights


def main(argv):
    del argv
    logging.set_verbosity(logging.WARNING)  # TensorFlow Datasets tells every read.
    weights = check_flags()
    with strategies.chosen().scope():
        run(weights)


def run(weights):
    data = load_data()
    if FLAGS.cam_class is not None and FLAGS.cam_class >= data.num_classes:
        raise SystemExit(
            f"--cam_class: expected less than {data.num_classes}; got {FLAGS.cam_class}"
        )
    Path(FLAGS.output_dir).mkdir(parents=True, exist_ok=True)
    teacher = scripts.load_network(FLAGS.teacher)
    before = measure(teacher, data)
    rows, tuned = [], {}
    for weight in weights:
        tuned[weight], curve = tune(teacher, weight, before)
        if strategies.is_chief():
            tuned[weight].save(teacher_file(weight))
        after = measure(tuned[weight], data)
        rows.append({"weight": weight, "after": after, "curve": curve})
        print(
            f"  weight {weight:g}: {after['validation']['accuracy']:.2f} % and "
            f"{after['validation']['cmi']:.4f} nats of the validation split",
            flush=True,
        )
    chosen, kept = choose(rows, before)
    print_table(before, rows, chosen)
    draw(teacher, tuned[chosen["weight"]], before, rows, chosen, data)
    results = {"before": before, "rows": rows, "chosen": chosen["weight"]}
    scripts.save_results(results)
    if not kept:
        print(
            f"\nEvery weight costs more than {FLAGS.accuracy_drop:g} points of validation accuracy."
        )
    print(
        f"\nChosen on the validation split: weight {chosen['weight']:g}, saved as "
        f"{teacher_file(chosen['weight'])}\n"
        f"Figures: {FLAGS.output_dir}/trajectory.png, {FLAGS.output_dir}/eigen_cam.png; curves: "
        f"tensorboard --logdir {FLAGS.output_dir}/logs"
    )


if __name__ == "__main__":
    app.run(main)

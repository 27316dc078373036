r"""Tunes copies of a trained teacher for more conditional mutual information (MCMI): one table.

Needs a teacher of examples/train_teacher.py. Every weight tunes a copy of it:

    python experiments/tune_teachers.py --teacher=runs/digits/teacher.keras --output_dir=runs/mcmi \
        --weights=0.1,0.25,0.5

CIFAR with the authors' settings: all images, centroids measured once and in training mode, no
limit on what the weight may cost, 20 epochs of SGD from 0.05 with a weight decay of 5e-4 (their
cosine falls from epoch to epoch, this one from step to step):

    python experiments/tune_teachers.py --dataset=cifar100 --teacher=runs/cifar100/teacher.keras \
        --output_dir=runs/cifar100-mcmi --weights=0.25 --log_likelihood_budget=0 \
        --centroids_training

The table shows conditional mutual information (CMI), log-likelihood and accuracy before and after.
Chosen is the weight with the most CMI on the validation split, among those that cost at most
`--accuracy_drop` points of accuracy there. Whether a student learns more from it is another
question: few_shot.py answers it.

Writes to `<output_dir>`: `results.json`, a teacher (`weight<w>.keras`) and a folder of TensorBoard
logs for every weight, `trajectory.png` (CMI over log-likelihood, epoch by epoch) and
`eigen_cam.png` (where the teacher looks before and after, with the chosen weight).
"""

import dataclasses
import functools

import keras
import numpy as np
from absl import app, flags, logging

import keras_mikd as mikd
import protocol
import results

FLAGS = flags.FLAGS
flags.DEFINE_string("output_dir", None, "Folder for everything that is written.", required=True)
flags.DEFINE_enum("dataset", "digits", list(protocol.PROTOCOLS), "Data to tune on.")
flags.DEFINE_string("data_dir", None, "Folder of TensorFlow Datasets.")
protocol.define_teacher()
protocol.define_validation()
protocol.define_strategy()
flags.DEFINE_list("weights", "0.25", "Weights of the divergence; a teacher for each.")
flags.DEFINE_enum(
    "centroids", "frozen", ["frozen", "epoch", "running"], "How centroids follow the teacher."
)
flags.DEFINE_bool("centroids_training", False, "Measure them in training mode, as the authors.")
flags.DEFINE_float("log_likelihood_budget", 0.3, "Nats an example may give up; 0: no limit.", 0.0)
flags.DEFINE_float(
    "log_likelihood_drop",
    0.0,
    "Stop where the validation log-likelihood fell further, and go back, nats; 0: never.",
    0.0,
)
flags.DEFINE_float("accuracy_drop", 2.0, "Points of validation accuracy a choice may cost.", 0.0)
flags.DEFINE_float("learning_rate", None, "First rate; 0.0125 for digits, 0.05 for CIFAR.", 0.0)
flags.DEFINE_float(
    "weight_decay", None, "Decay of all weights, as PyTorch's; 0 for digits, 5e-4 for CIFAR.", 0.0
)
flags.DEFINE_integer("epochs", 20, "Epochs.", 1)
flags.DEFINE_integer("batch_size", 64, "Images in a batch.", 1)
flags.DEFINE_integer("seed", 0, "Seed of order and augmentation.", 0)
flags.DEFINE_string(
    "cam_place", None, "Place that Eigen-CAM shows; stage2 for digits, the last stage for CIFAR."
)
flags.DEFINE_integer("cam_class", None, "Class of its images; one of each of 10 if not given.", 0)

WEIGHT_DECAYS = {"digits": 0.0, "cifar10": 5e-4, "cifar100": 5e-4}
RATES = {"digits": 0.0125, "cifar10": 0.05, "cifar100": 0.05}
# The last stage has 2 x 2 locations of the digits' 8 x 8.
CAM_PLACES = {"digits": "stage2"}
NUM_CAM_IMAGES = 10


def load_data(settings, seed):
    augment = {"augment": True} if settings.dataset == "digits" else {}  # CIFAR always is.
    return protocol.load_data(settings, seed, **augment)


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


def tune(settings, tuning, teacher, before, folder, weight):
    """Saves a tuned copy; returns its numbers, and those of every epoch that is in it."""
    keras.utils.set_random_seed(tuning["seed"])
    data = load_data(settings, tuning["seed"])
    model = mikd.MCMITeacher(
        teacher,
        weight=weight,
        centroids=tuning["centroids"],
        centroids_training=tuning["centroids_training"],
        log_likelihood_budget=tuning["log_likelihood_budget"] or None,
        batch_norm="running",  # As released, and as in the results.
    )
    steps = settings.epochs * len(data.train)
    rate = keras.optimizers.schedules.CosineDecay(settings.learning_rate, steps)
    # Momentum makes 1 / (1 - 0.9) times as much of PyTorch's decay, a part of the gradient.
    decay = tuning["weight_decay"] / (1 - 0.9) or None
    model.compile(keras.optimizers.SGD(rate, momentum=0.9, weight_decay=decay))
    limit = before["validation"]["log_likelihood"] - (tuning["log_likelihood_drop"] or 1e9)
    guard = mikd.LogLikelihoodGuard(limit)
    history = model.fit(
        data.train,
        validation_data=data.validation,
        epochs=settings.epochs,
        shuffle=False,
        verbose=0,
        callbacks=[guard, keras.callbacks.TensorBoard(folder, write_graph=False)],
    ).history
    if protocol.is_chief():
        model.teacher.save(folder.with_name(f"{folder.name}.keras"))
    return {"after": measure(model.teacher, data), "curve": curve(history, before, guard)}


def curve(history, before, guard):
    """Returns CMI and log-likelihood on validation, before and after every epoch kept."""
    epochs = None
    if guard.stopped_epoch is not None:  # What came after the best epoch is not in the teacher.
        epochs = 0 if guard.best_epoch is None else guard.best_epoch + 1
    return {
        key: [before["validation"][key], *history[f"val_{key}"][:epochs]]
        for key in ("cmi", "log_likelihood")
    }


def choose(runs, before, accuracy_drop):
    """Returns the run with the most CMI among those that keep the accuracy, on validation."""
    lowest = before["validation"]["accuracy"] - accuracy_drop
    kept = [run for run in runs if run["after"]["validation"]["accuracy"] >= lowest]
    if kept:
        return max(kept, key=lambda run: run["after"]["validation"]["cmi"])
    print(f"\nEvery weight costs more than {accuracy_drop:g} points of validation accuracy.")
    return max(runs, key=lambda run: run["after"]["validation"]["accuracy"])


def print_table(before, runs, chosen):
    columns = "CMI, nats  log-likelihood  accuracy, %"
    print(f"\n{'':10}{'validation':^38}   {'test':^38}\n{'weight':10}{columns}   {columns}")
    for name, each in [("before", before), *((f"{r['weight']:g}", r["after"]) for r in runs)]:
        cells = [
            f"{split['cmi']:9.4f}  {split['log_likelihood']:14.4f}  {split['accuracy']:11.2f}"
            for split in (each["validation"], each["test"])
        ]
        mark = "  <- chosen" if name == f"{chosen['weight']:g}" else ""
        print(f"{name:10}{'   '.join(cells)}{mark}")


def cam_images(data, cam_class):
    """Returns test images to look at, and their classes."""
    images, labels = (np.concatenate(part) for part in zip(*data.test, strict=True))
    if cam_class is None:
        _, found = np.unique(labels, return_index=True)
    else:
        found = np.flatnonzero(labels == cam_class)
    found = found[:NUM_CAM_IMAGES]
    return images[found], labels[found]


def trajectory(before, runs):
    start = {key: [before["validation"][key]] for key in ("cmi", "log_likelihood")}
    curves = {f"weight {run['weight']:g}": run["curve"] for run in runs}
    return mikd.figures.cmi_trajectory({"MLL teacher": start, **curves})


def main(argv):
    del argv
    logging.set_verbosity(logging.WARNING)  # TensorFlow Datasets tells every read.
    settings = dataclasses.replace(
        protocol.PROTOCOLS[FLAGS.dataset],
        epochs=FLAGS.epochs,
        batch_size=FLAGS.batch_size,
        learning_rate=FLAGS.learning_rate or RATES[FLAGS.dataset],
        data_dir=FLAGS.data_dir,
    )
    settings = protocol.with_validation(settings, FLAGS)
    names = ("centroids", "centroids_training", "log_likelihood_budget", "log_likelihood_drop")
    tuning = {name: FLAGS[name].value for name in (*names, "seed", "weight_decay")}
    if tuning["weight_decay"] is None:
        tuning["weight_decay"] = WEIGHT_DECAYS[FLAGS.dataset]
    weights = protocol.numbers("weights", FLAGS.weights)
    protocol.check_choice(settings, "weights", len(weights))
    with protocol.STRATEGIES[FLAGS.strategy]().scope():
        teacher = protocol.load_network(FLAGS.teacher)
        data = load_data(settings, FLAGS.seed)
        before = measure(teacher, data)
        kept = results.Results(
            FLAGS.output_dir,
            dataset=FLAGS.dataset,
            epochs=FLAGS.epochs,
            batch_size=FLAGS.batch_size,
            learning_rate=settings.learning_rate,
            data=settings.data,
            **tuning,
            teacher=protocol.digest(FLAGS.teacher),
        )
        for weight in weights:
            after = kept.run(
                functools.partial(tune, settings, tuning, teacher, before), weight=weight
            )
            validation = after["after"]["validation"]
            print(
                f"  weight {weight:g}: {validation['accuracy']:.2f} % and "
                f"{validation['cmi']:.4f} nats of the validation split",
                flush=True,
            )
        chosen = choose(kept.runs, before, FLAGS.accuracy_drop)
        print_table(before, kept.runs, chosen)
        path = kept.folder / f"{results.run_name({'weight': chosen['weight']})}.keras"
        images, labels = cam_images(data, FLAGS.cam_class)
        place = FLAGS.cam_place or CAM_PLACES.get(FLAGS.dataset)
        networks = {"MLL": teacher, f"MCMI {chosen['weight']:g}": protocol.load_network(path)}
        grid = mikd.figures.eigen_cam_grid(networks, images, place, captions=labels)
        results.save_figure(grid, FLAGS.output_dir, "eigen_cam")
        results.save_figure(trajectory(before, kept.runs), FLAGS.output_dir, "trajectory")
    print(
        f"\nChosen on the validation split: weight {chosen['weight']:g}, saved as {path}\n"
        f"Figures: {FLAGS.output_dir}/trajectory.png, {FLAGS.output_dir}/eigen_cam.png; curves: "
        f"tensorboard --logdir {FLAGS.output_dir}"
    )


if __name__ == "__main__":
    app.run(main)

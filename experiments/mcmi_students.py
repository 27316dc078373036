r"""Which teacher teaches best: as it was, trained on, or tuned for more information (MCMI).

    python experiments/mcmi_students.py --teacher=runs/demo/teacher.keras --output_dir=runs/mcmi

Needs a teacher of examples/train_teacher.py for the same data. Copies of it are tuned on
`--tuning_images` of each class: by likelihood alone (weight 0: what the extra training does) and
for more conditional mutual information (CMI). Students of every one of them learn with the labels
of few images, as in compare.py: the same images, the same trials, the same seeds. On photographs:

    python experiments/mcmi_students.py --teacher=wrn_40_2.keras --dataset=cifar10 --data_dir=... \
        --student=wrn_16_1 --labels_per_class=50 --batch_size=64 --epochs=40 \
        --tuning_images=200 --tuning_epochs=8 --output_dir=runs/mcmi_cifar10

Gains are differences to students of the teacher as it was with the same seed. Writes to
`<output_dir>`: `results.json` (the teachers' numbers), the teachers, what `keras_mikd.compare`
writes for the students of each of them, and `eigen_cam.png`, where the first and the last look.
What is there is not made again.
"""

import functools
import statistics
from pathlib import Path

import keras
import numpy as np
from absl import app, flags, logging

import few_labels
import keras_mikd as mikd
import protocol
import results
from keras_mikd.comparison.methods import METHODS
from keras_mikd.comparison.report import half_interval

FLAGS = flags.FLAGS
few_labels.define_flags()
few_labels.define_trials()
flags.DEFINE_string("teacher", None, "Teacher of examples/train_teacher.py.", required=True)
flags.DEFINE_list("methods", ["kd"], "Some of: " + ", ".join(METHODS))
flags.DEFINE_list("mcmi_weights", ["0.25", "1"], "Weights of MCMI; a teacher for each.")
flags.DEFINE_float("log_likelihood_budget", 0.3, "Nats an example may give up.", 0.0)
flags.DEFINE_enum("centroids", "epoch", ["frozen", "epoch", "running"], "As in `MCMITeacher`.")
flags.DEFINE_integer("tuning_images", 80, "Images of each class to tune on.", 1)
flags.DEFINE_integer("tuning_epochs", 10, "Epochs of tuning.", 1)
flags.DEFINE_float("tuning_rate", 0.0125, "First rate of SGD; it falls to 0 as a cosine.", 0.0)
AS_IT_WAS = "as it was"


def tune(teacher, to_tune_on, data, folder, weight):
    """Saves a tuned copy of the teacher; returns its numbers."""
    keras.utils.set_random_seed(0)
    batches = few_labels.augmented_batches(to_tune_on)
    model = mikd.MCMITeacher(
        teacher,
        weight=weight,
        centroids=FLAGS.centroids,
        log_likelihood_budget=FLAGS.log_likelihood_budget,
    )
    rate = keras.optimizers.schedules.CosineDecay(
        FLAGS.tuning_rate, FLAGS.tuning_epochs * len(batches)
    )
    model.compile(keras.optimizers.SGD(rate, momentum=0.9))
    model.fit(batches, epochs=FLAGS.tuning_epochs, shuffle=False, verbose=2)
    path = folder.with_name(f"{folder.name}.keras")
    path.parent.mkdir(parents=True, exist_ok=True)
    model.teacher.save(path)
    return measured(model.teacher, data)


def measured(teacher, data):
    """Returns what there is to say of a teacher on the validation and on the test split."""
    found = {}
    for split in ("validation", "test"):
        x, y = getattr(data, split)
        report = mikd.measure_cmi(teacher, (x, y), batch_size=100, verbose=0)
        found[split] = {
            "cmi": report.cmi,
            "log_likelihood": report.log_likelihood,
            "accuracy": 100 * report.accuracy,
        }
    return found


def gain(rows, method):
    """Returns the mean over seeds of what students gain over those of the teacher as it was."""
    first, own = ({r["method"]: r["values"] for r in each}[method] for each in rows)
    differences = [b - a for a, b in zip(first, own, strict=True)]
    return statistics.mean(differences), half_interval(differences)


def print_table(found):
    first = found[AS_IT_WAS]["rows"]
    print(f"\n{'teacher':12}{'CMI, nats':>10}{'likelihood':>12}{'accuracy':>10}   students")
    for name, each in found.items():
        cmi, likelihood, accuracy = each["test"].values()
        line = f"{name:12}{cmi:10.4f}{likelihood:12.4f}{accuracy:10.2f}"
        for row in each["rows"]:
            if row["method"] == "student":
                continue
            line += f"   {row['method']} {row['mean']:.2f}"
            if name != AS_IT_WAS:
                mean, half = gain((first, each["rows"]), row["method"])
                line += f" ({mean:+.2f}" + (")" if half is None else f" ± {half:.2f})")
        print(line)


def main(_):
    logging.set_verbosity(logging.WARNING)  # TensorFlow Datasets tells every read.
    protocol.check_names("methods", FLAGS.methods, METHODS)
    weights = protocol.numbers("mcmi_weights", FLAGS.mcmi_weights)
    (labels_per_class,) = protocol.numbers("labels_per_class", FLAGS.labels_per_class, int)
    folder = Path(FLAGS.output_dir)
    teacher = protocol.load_network(FLAGS.teacher)
    data = few_labels.load(FLAGS.dataset, labels_per_class)
    to_tune_on = few_labels.load(FLAGS.dataset, FLAGS.tuning_images)
    names = ("dataset", "tuning_images", "tuning_epochs", "tuning_rate", "centroids")
    settings = {name: FLAGS[name].value for name in (*names, "log_likelihood_budget")}
    settings |= {"batch_size": FLAGS.batch_size, "validation_images": FLAGS.validation_images}
    kept = results.Results(folder, teacher=protocol.digest(FLAGS.teacher), **settings)
    methods = {name: METHODS[name] for name in FLAGS.methods}
    networks, found = {AS_IT_WAS: teacher}, {AS_IT_WAS: measured(teacher, data)}
    for weight in (0.0, *weights):
        run = kept.run(functools.partial(tune, teacher, to_tune_on, data), weight=weight)
        name = results.run_name({"weight": weight})
        networks[name] = protocol.load_network(folder / f"{name}.keras")
        found[name] = {split: run[split] for split in ("validation", "test")}
    for name, network in networks.items():
        print(f"\nTeacher: {name}", flush=True)
        students = folder / f"students-{name.replace(' ', '_')}"
        found[name]["rows"] = few_labels.compare(network, data, methods, students).rows
    print_table(found)
    images, labels = data.test
    shown = np.unique(labels, return_index=True)[1][:10]  # An image of each class.
    place = "stage2" if FLAGS.dataset.startswith("digits") else None
    grid = mikd.figures.eigen_cam_grid(
        {AS_IT_WAS: teacher, name: network}, images[shown], place, captions=labels[shown]
    )
    results.save_figure(grid, folder, "eigen_cam")


if __name__ == "__main__":
    app.run(main)

r"""Measures the teacher's information at every temperature, and what students learn from it.

A higher temperature of the soft targets shows more of what the teacher knows beyond the label, up
to the point where all classes look alike. The MCMI paper draws this conditional mutual information
(CMI), and what students learn, over the temperature (its Fig. 1):

    python experiments/cmi_temperature.py --teacher=runs/digits/teacher.keras --seeds=5 \
        --output_dir=runs/temperature

A tuned teacher is measured in the same way. CMI is that of the softened outputs on the validation
split. Students (KD) are trained with `--labels_per_class` images of each class.

Writes to `<output_dir>`: `results.json`, `cmi_temperature.png`, and a folder for every run.
"""

import functools

from absl import app, flags, logging
from matplotlib.figure import Figure

import keras_mikd as mikd
import protocol
import results
from keras_mikd import recipes

FLAGS = flags.FLAGS
protocol.define_flags()
protocol.define_teacher()
flags.DEFINE_list("temperature", "1,2,4,8,16,32", "Temperatures of the soft targets.")
flags.DEFINE_integer("labels_per_class", None, "Images of each class; 0: all; 10 for digits.", 0)


def train(settings, teacher, folder, temperature, seed):
    """Returns the numbers of one student."""

    def build(student):
        weight = settings.weights["kd"][-1]
        losses = recipes.kd(teacher, student, weight=weight, temperature=temperature)
        return mikd.Distiller(teacher, student, losses, task_loss_weight=settings.kd_task_weight)

    return protocol.train(build, settings, seed, folder)


def print_table(rows, reports):
    print(f"\n{'temperature':>11}  {'CMI, nats':>9}  {'validation, %':>13}  {'test, %':>13}")
    for row in rows:
        cells = "  ".join(f"{results.spread(row, s):>13}" for s in ("validation", "test"))
        cmi = reports[row["temperature"]].cmi
        print(f"{row['temperature']:>11g}  {cmi:>9.4f}  {cells}")


def draw(rows, reports):
    """Returns a figure with the information and the accuracy over the temperature."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    information = figure.subplots()
    accuracy = information.twinx()
    temperatures = [row["temperature"] for row in rows]
    information.plot(temperatures, [reports[each].cmi for each in temperatures], "C0s--")
    accuracy.plot(temperatures, [results.mean(row, "test") for row in rows], "C1o-")
    for row in rows:
        dots = [run["test"] for run in row["runs"]]
        accuracy.plot([row["temperature"]] * len(dots), dots, "C1.", markersize=3)
    information.set(xlabel="temperature", xscale="log", xticks=temperatures)
    information.set_xticklabels([f"{each:g}" for each in temperatures])
    information.minorticks_off()
    information.set_ylabel("CMI of the teacher, nats", color="C0")
    accuracy.set_ylabel("test accuracy of the students, %", color="C1")
    return figure


def main(argv):
    del argv
    logging.set_verbosity(logging.WARNING)  # TensorFlow Datasets tells every read.
    few = FLAGS.labels_per_class
    if few is None:
        few = 10 if FLAGS.dataset == "digits" else 0
    settings = protocol.chosen(FLAGS, labels_per_class=few or None)
    temperatures = sorted(set(protocol.numbers("temperature", FLAGS.temperature)))
    with protocol.STRATEGIES[FLAGS.strategy]().scope():
        teacher = protocol.load_network(FLAGS.teacher)
        kept = results.Results(
            FLAGS.output_dir, protocol=settings.settings(), teacher=protocol.digest(FLAGS.teacher)
        )
        validation = protocol.load_data(settings, seed=0).validation
        reports = {
            each: mikd.measure_cmi(teacher, validation, temperature=each, verbose=0)
            for each in temperatures
        }
        print(f"Students: {settings}\nPer cent of the validation split, seed by seed:")
        one = functools.partial(train, settings, teacher)
        rows = [{"temperature": each} for each in temperatures]
        results.sweep(kept, rows, range(FLAGS.seeds), one)
        rows = [row for row in kept.rows("temperature") if row["temperature"] in reports]
        rows.sort(key=lambda row: row["temperature"])
        print_table(rows, reports)
        results.save_figure(draw(rows, reports), FLAGS.output_dir, "cmi_temperature")
    print(f"\nFigure: {FLAGS.output_dir}/cmi_temperature.png; every run: {kept.path}")


if __name__ == "__main__":
    app.run(main)

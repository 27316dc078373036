r"""Measures the teacher's information at every temperature, and what students learn from it.

A higher temperature of the soft targets shows more of what the teacher knows beyond the label, up
to the point where all classes look alike. The MCMI paper draws this conditional mutual information
(CMI), and what students learn, over the temperature (its Fig. 1):

    python experiments/cmi_temperature.py --teacher=runs/digits/teacher.keras --seeds=5 \
        --output_dir=runs/temperature

A tuned teacher is measured in the same way. On photographs:

    python experiments/cmi_temperature.py --teacher=wrn_40_2.keras --dataset=cifar10 \
        --data_dir=... --student=wrn_16_1 --labels_per_class=50 --batch_size=64 --epochs=40 \
        --weights=3,30 --output_dir=runs/temperature_cifar10

CMI is that of the softened outputs on the validation split. Every temperature has its own weight,
chosen there among `--weights`.

Writes to `<output_dir>`: `temperatures.json`, `cmi_temperature.png`, and what `keras_mikd.compare`
writes, with a method such as `T4` for every temperature. What is there is not made again.
"""

import functools
import json
from pathlib import Path

from absl import app, flags, logging
from matplotlib.figure import Figure

import few_labels
import keras_mikd as mikd
import protocol
from keras_mikd import recipes
from keras_mikd.comparison.methods import STUDENT, Method

FLAGS = flags.FLAGS
few_labels.define_flags()
few_labels.define_trials()
flags.DEFINE_string("teacher", None, "Teacher of examples/train_teacher.py.", required=True)
flags.DEFINE_list("temperature", "1,2,4,8,16,32", "Temperatures of the soft targets.")
flags.DEFINE_list("weights", "0.9", "Weights of the soft targets to try at every temperature.")


def with_temperature(temperature, teacher, student, weight):
    """Returns the losses of a student of soft targets at a temperature."""
    return recipes.kd(teacher, student, weight=weight, temperature=temperature)


def print_table(rows, alone):
    print(f"\n{'temperature':>11}  {'CMI, nats':>9}  {'weight':>6}  {'validation, %':>13}  test, %")
    for row in rows:
        print(
            f"{row['temperature']:>11g}  {row['cmi']:>9.4f}  {row['weight']:>6g}  "
            f"{max(row['trials'].values()):>13.2f}  {spread(row)}"
        )
    print(f"Student alone: {spread(alone)}. ± is the 95 % interval of a mean over the seeds.")


def spread(row):
    """Returns the mean of a row on the test split, with its interval."""
    half = "" if row["interval"] is None else f" ± {row['interval']:.2f}"
    return f"{row['mean']:.2f}{half}"


def draw(rows, alone):
    """Returns a figure with the information and the accuracy over the temperature."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    information = figure.subplots()
    accuracy = information.twinx()
    temperatures = [row["temperature"] for row in rows]
    information.plot(temperatures, [row["cmi"] for row in rows], "C0s--")
    half = [row["interval"] or 0.0 for row in rows]
    accuracy.errorbar(temperatures, [row["mean"] for row in rows], half, fmt="C1o-", capsize=3)
    accuracy.axhline(alone["mean"], color="C1", linestyle=":")
    information.set(xlabel="temperature", xscale="log", xticks=temperatures)
    information.set_xticklabels([f"{each:g}" for each in temperatures])
    information.minorticks_off()
    information.set_ylabel("CMI of the teacher, nats", color="C0")
    accuracy.set_ylabel("test accuracy of the students, % (dotted: alone)", color="C1")
    return figure


def main(_):
    logging.set_verbosity(logging.WARNING)  # TensorFlow Datasets tells every read.
    temperatures = sorted(set(protocol.numbers("temperature", FLAGS.temperature)))
    weights = protocol.numbers("weights", FLAGS.weights)
    (labels_per_class,) = protocol.numbers("labels_per_class", FLAGS.labels_per_class, int)
    folder = Path(FLAGS.output_dir)
    teacher = protocol.load_network(FLAGS.teacher)
    data = few_labels.load(FLAGS.dataset, labels_per_class)
    methods = {
        f"T{each:g}": Method(functools.partial(with_temperature, each), weights)
        for each in temperatures
    }
    found = few_labels.compare(teacher, data, methods, folder).rows
    of_method = {row["method"]: row for row in found}
    rows = []
    for each in temperatures:
        report = mikd.measure_cmi(teacher, data.validation, temperature=each, verbose=0)
        rows.append({"temperature": each, "cmi": report.cmi, **of_method[f"T{each:g}"]})
    print_table(rows, of_method[STUDENT])
    (folder / "temperatures.json").write_text(json.dumps(rows, indent=1))
    figure = draw(rows, of_method[STUDENT])
    mikd.figures.save_png(figure, folder / "cmi_temperature.png", overwrite=True)
    print(f"\nFigure: {folder}/cmi_temperature.png; every run: {folder}")


if __name__ == "__main__":
    app.run(main)

r"""Measures the teacher's information at every temperature, and what students learn from it.

A higher temperature of the soft targets shows more of what the teacher knows beyond the label, up
to the point where all classes look alike. The MCMI paper draws this conditional mutual information
(CMI), and what students learn, over the temperature (its Fig. 1):

    python examples/cmi_temperature.py --teacher=runs/digits/teacher.keras \
        --output_dir=runs/temperature --seeds=5

Any teacher can be measured so, a tuned one as well. CMI is that of the softened outputs on the
validation split; students (KD) are trained with `--labels_per_class` images of each class.

Writes to `<output_dir>`: `results.json`, `cmi_temperature.png` (also in TensorBoard) and logs under
`logs/`.
"""

import os
import statistics
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
from absl import app, flags, logging
from matplotlib.figure import Figure

import keras_mikd as mikd
import scripts
import strategies
import students

FLAGS = flags.FLAGS
scripts.define_flags()
scripts.define_teacher()
flags.DEFINE_list("temperature", "1,2,4,8,16,32", "Temperature(s) of the soft targets.")
flags.DEFINE_integer("labels_per_class", None, "Images of each class; 0: all; 10 for digits.", 0)
flags.DEFINE_float("kd_weight", None, "Weight of soft targets; the protocol's if not given.", 0.0)


def load_data(protocol, seed):
    few = scripts.given("labels_per_class", 10 if FLAGS.dataset == "digits" else 0)
    return students.load_data(
        FLAGS.dataset,
        batch_size=protocol.batch_size,
        labels_per_class=few or None,
        seed=seed,
        data_dir=FLAGS.data_dir,
    )


def train_student(protocol, teacher, temperature, seed):
    """Returns the validation and the test accuracy of one student."""
    keras.utils.set_random_seed(seed)
    data = load_data(protocol, seed)
    model = students.kd(
        teacher,
        students.new_student(protocol, data),
        scripts.given("kd_weight", protocol.weights["kd"]),
        task_weight=protocol.kd_task_weight,
        temperature=temperature,
    )
    students.train(
        model,
        data,
        optimizer=protocol.optimizer(protocol.learning_rate, protocol.epochs * len(data.train)),
        epochs=protocol.epochs,
        logs=Path(FLAGS.output_dir) / "logs" / f"temperature{temperature:g}-seed{seed}",
    )
    return {
        "validation": students.accuracy(model, data.validation),
        "test": students.accuracy(model, data.test),
    }


def measure(protocol, teacher, temperature):
    """Returns a row: the information at a temperature and the students that learned from it."""
    data = load_data(protocol, seed=0)
    report = mikd.measure_cmi(teacher, data.validation, temperature=temperature, verbose=0)
    runs = [train_student(protocol, teacher, temperature, seed) for seed in range(FLAGS.seeds)]
    row = {"temperature": temperature, "cmi": report.cmi, "ncmi": report.ncmi, "runs": runs}
    print(
        f"  {temperature:>11g}  {report.cmi:>9.4f}  "
        + "  ".join(f"{accuracies(row, split):>13}" for split in ("validation", "test")),
        flush=True,
    )
    return row


def accuracies(row, split):
    return students.mean_and_spread(run[split] for run in row["runs"])


def draw(rows):
    figure = Figure(figsize=(6, 4), layout="constrained")
    information = figure.subplots()
    accuracy = information.twinx()
    temperatures = [row["temperature"] for row in rows]
    information.plot(temperatures, [row["cmi"] for row in rows], "C0s--")
    means = [statistics.mean(run["test"] for run in row["runs"]) for row in rows]
    accuracy.plot(temperatures, means, "C1o-")
    for row in rows:
        dots = [run["test"] for run in row["runs"]]
        accuracy.plot([row["temperature"]] * len(dots), dots, "C1.", markersize=3)
    information.set(xlabel="temperature", xscale="log", xticks=temperatures)
    information.set_xticklabels([f"{each:g}" for each in temperatures])
    information.minorticks_off()
    information.set_ylabel("CMI of the teacher, nats", color="C0")
    accuracy.set_ylabel("test accuracy of the students, %", color="C1")
    scripts.save_figure(figure, "cmi_temperature")


def check_flags():
    scripts.check_file("teacher", FLAGS.teacher, "train_teacher.py")
    strategies.check_flags()
    scripts.check_outputs(["results.json", "cmi_temperature.png", "logs"])
    return sorted(set(scripts.numbers_above_zero("temperature")))


def main(argv):
    del argv
    logging.set_verbosity(logging.WARNING)  # TensorFlow Datasets tells every read.
    temperatures = check_flags()
    protocol = scripts.protocol()
    with strategies.chosen().scope():
        run(protocol, temperatures)


def run(protocol, temperatures):
    Path(FLAGS.output_dir).mkdir(parents=True, exist_ok=True)
    teacher = scripts.load_network(FLAGS.teacher)
    print(
        f"Students: {protocol}\n\n  temperature  CMI, nats   validation, %        test, %",
        flush=True,
    )
    rows = []
    for temperature in temperatures:
        rows.append(measure(protocol, teacher, temperature))
        scripts.save_results(rows)
    draw(rows)
    print(
        f"\nFigure: {FLAGS.output_dir}/cmi_temperature.png; every student: results.json beside it"
    )


if __name__ == "__main__":
    app.run(main)

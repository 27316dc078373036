"""Flags that several scripts have, checks before they start, and what they write.

No script by itself: `import scripts` works where one of the scripts is started.
"""

import dataclasses
import json
import math
import zipfile
from pathlib import Path

import keras
from absl import flags

import keras_mikd as mikd
import strategies
import students

# The flags that are defined below belong to the script that asks for them, and show in its help.
flags.disclaim_key_flags()
FLAGS = flags.FLAGS


def define_flags():
    """Defines what every script that trains students asks for."""
    flags.DEFINE_string("output_dir", None, "Folder for everything written.", required=True)
    flags.DEFINE_enum("dataset", "digits", students.DATASETS, "Data, and with it the protocol.")
    flags.DEFINE_string("data_dir", None, "Folder of TensorFlow Datasets.")
    flags.DEFINE_enum("student", None, students.NETWORKS, "Network; the protocol's if not given.")
    flags.DEFINE_integer("epochs", None, "Epochs; the protocol's if not given.", 1)
    flags.DEFINE_integer("batch_size", None, "Images in a batch; the protocol's if not given.", 1)
    flags.DEFINE_float("learning_rate", None, "First rate; the protocol's if not given.", 0.0)
    flags.DEFINE_integer("seeds", 1, "Students per row: seeds 0, 1, ... of weights and order.", 1)
    strategies.define_flags()


def define_teacher():
    flags.DEFINE_string("teacher", None, "Saved teacher, of train_teacher.py.", required=True)


def define_mcmi_teacher():
    flags.DEFINE_list("mcmi_teacher", None, "Teacher(s) of tune_teacher.py.", required=True)


def define_comparison(methods):
    """Defines what every script asks for that compares methods, each at its best weight."""
    flags.DEFINE_integer("labels_per_class", 10, "Training images of each class; 0 for all.", 0)
    flags.DEFINE_list("methods", list(methods), "Some of: " + ", ".join(methods))
    flags.DEFINE_list("weights", None, "Weights to choose from; each method's own if not given.")


def check_comparison(methods, weights):
    """Refuses methods that there are not, and weights of none; `weights` are those by method."""
    unknown = sorted(set(FLAGS.methods) - set(methods))
    if unknown or not FLAGS.methods:
        raise SystemExit(f"--methods: expected some of {', '.join(methods)}; got {unknown}")
    if FLAGS.weights is not None:
        numbers_above_zero("weights")
        if not set(FLAGS.methods) & set(weights):
            raise SystemExit("--weights is given and no method of --methods has a weight")
    strategies.check_flags()
    check_outputs(["results.json", "logs"])


def compare(train, weights):
    """Trains every method with its weights and every seed, and returns the rows of the table.

    Args:
        train: Function `(method, weight, seed, folder for logs)` that returns a run's numbers.
        weights: `{method: weights to choose from}`; other methods have none.
    """
    rows = []
    for method in FLAGS.methods:
        given_or_own = numbers_above_zero("weights") if FLAGS.weights else weights.get(method)
        for weight in given_or_own if method in weights else [0.0]:
            runs = []
            for seed in range(FLAGS.seeds):
                folder = f"{method}-weight{weight:g}-seed{seed}"
                runs.append(train(method, weight, seed, Path(FLAGS.output_dir) / "logs" / folder))
            rows.append({"method": method, "weight": weight, "runs": runs})
            save_results(rows)
            validation = students.mean(rows[-1], "validation")
            print(
                f"  {method}, weight {weight:g}: {validation:.2f} % of the validation split",
                flush=True,
            )
    return rows


def few_labels(protocol, seed):
    """Returns the data set with the labels that the flags leave it."""
    return students.load_data(
        FLAGS.dataset,
        batch_size=protocol.batch_size,
        labels_per_class=FLAGS.labels_per_class or None,
        seed=seed,
        data_dir=FLAGS.data_dir,
    )


def print_comparison(rows, alone, note):
    """Prints the rows that validation chooses, with gains over the method `alone`, and a note."""
    base = next((students.mean(row, "test") for row in rows if row["method"] == alone), None)
    width = max(len(row["method"]) for row in rows)
    print(f"\n{'method':{width}} {'weight':>6} {'test %':>14} {'gain':>6} {'ms/step':>8}")
    for row in students.chosen_rows(rows):
        gain = "" if base is None else f"{students.mean(row, 'test') - base:+.2f}"
        accuracy = students.mean_and_spread(run["test"] for run in row["runs"])
        print(
            f"{row['method']:{width}} {row['weight']:>6g} {accuracy:>14} {gain:>6} "
            f"{students.mean(row, 'milliseconds'):>8.2f}"
        )
        if readouts := students.readouts(row):
            print(f"    nats: {readouts}")
    print(f"\n{note}\n\nEvery run: {FLAGS.output_dir}/results.json")


def protocol(**changes):
    """Returns the protocol of the data set, with what the script and then the flags change."""
    check_network("student", FLAGS.student)
    chosen = {
        name: FLAGS[name].value
        for name in ("student", "epochs", "batch_size", "learning_rate")
        if FLAGS[name].value is not None
    }
    return dataclasses.replace(students.PROTOCOLS[FLAGS.dataset], **{**changes, **chosen})


def check_network(flag, network):
    """Refuses a network that does not take the images of the data set."""
    if network == "digits_cnn" and FLAGS.dataset != "digits":
        raise SystemExit(f"--{flag}: digits_cnn is for digits; got --dataset={FLAGS.dataset}")


def check_file(flag, path, script):
    """Refuses a file that is not there, and names the script that makes it."""
    if not Path(path).exists():
        raise SystemExit(f"--{flag}: {path} does not exist; run {script} first")


def load_network(path, **kwargs):
    """Returns a saved network; ends in one line where the file holds none."""
    if not zipfile.is_zipfile(path):
        raise SystemExit(f"{path}: expected a network that Keras saved; this is no .keras file")
    return keras.saving.load_model(path, **kwargs)


def mcmi_teacher_files():
    """Returns `{name: path}` of the tuned teachers, called by the names of their files."""
    files = {}
    for path in FLAGS.mcmi_teacher:
        check_file("mcmi_teacher", path, "tune_teacher.py")
        if Path(path).stem in (*files, "MLL"):
            raise SystemExit(
                "--mcmi_teacher: expected files of different names, none of them MLL.keras; "
                f"got {FLAGS.mcmi_teacher}"
            )
        files[Path(path).stem] = path
    return files


def check_outputs(names):
    """Refuses a folder that holds what the script would write."""
    for name in names:
        path = Path(FLAGS.output_dir) / name
        if path.exists():
            raise SystemExit(f"--output_dir: {path} exists and is kept; name another")


def given(flag, default):
    """Returns the value of a flag, or the default where it is not given."""
    return default if FLAGS[flag].value is None else FLAGS[flag].value


def numbers_above_zero(flag):
    """Returns the values of a list flag as floats, which have to be above 0."""
    try:
        values = [float(value) for value in FLAGS[flag].value]
    except ValueError:
        values = [0.0]
    if not values or not all(0 < value < math.inf for value in values):
        raise SystemExit(f"--{flag}: expected numbers above 0; got {FLAGS[flag].value}")
    return values


def save_figure(figure, name):
    """Saves a figure as `<output_dir>/<name>.png` and shows it in TensorBoard."""
    if not strategies.is_chief():
        return
    mikd.figures.save_png(figure, Path(FLAGS.output_dir) / f"{name}.png")
    logs = Path(FLAGS.output_dir) / "logs" / "figures"
    mikd.figures.log_to_tensorboard(figure, logs, name)


def save_results(results):
    """Writes `<output_dir>/results.json`, over that of the row before."""
    if strategies.is_chief():
        path = Path(FLAGS.output_dir) / "results.json"
        path.write_text(json.dumps(results, indent=1))

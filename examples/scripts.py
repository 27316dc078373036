"""Flags that several scripts have, checks before they start, and what they write.

No script by itself: `import scripts` works where one of the scripts is started.
"""

import dataclasses
import json
import math
from pathlib import Path

from absl import flags

import keras_mikd as mikd
import students

# The flags that are defined below belong to the script that asks for them, and show in its help.
flags.disclaim_key_flags()
FLAGS = flags.FLAGS


def define_flags():
    """Defines what every script about MCMI students asks for."""
    flags.DEFINE_string("output_dir", None, "Folder for everything written.", required=True)
    flags.DEFINE_string("teacher", None, "Saved teacher, of train_teacher.py.", required=True)
    flags.DEFINE_enum("dataset", "digits", students.DATASETS, "Data, and with it the protocol.")
    flags.DEFINE_string("data_dir", None, "Folder of TensorFlow Datasets.")
    flags.DEFINE_enum("student", None, students.NETWORKS, "Network; the protocol's if not given.")
    flags.DEFINE_integer("epochs", None, "Epochs; the protocol's if not given.", 1)
    flags.DEFINE_integer("batch_size", None, "Images in a batch; the protocol's if not given.", 1)
    flags.DEFINE_float("learning_rate", None, "First rate; the protocol's if not given.", 0.0)
    flags.DEFINE_integer("seeds", 1, "Students per row: seeds 0, 1, ... of weights and order.", 1)


def define_mcmi_teacher():
    flags.DEFINE_list("mcmi_teacher", None, "Teacher(s) of tune_teacher.py.", required=True)


def protocol(**changes):
    """Returns the protocol of the data set, with what the script and then the flags change."""
    if FLAGS.student == "digits_cnn" and FLAGS.dataset != "digits":
        raise SystemExit(f"--student: digits_cnn is for digits; got --dataset={FLAGS.dataset}")
    chosen = {
        name: FLAGS[name].value
        for name in ("student", "epochs", "batch_size", "learning_rate")
        if FLAGS[name].value is not None
    }
    return dataclasses.replace(students.PROTOCOLS[FLAGS.dataset], **{**changes, **chosen})


def check_file(flag, path, script):
    """Refuses a file that is not there, and names the script that makes it."""
    if not Path(path).exists():
        raise SystemExit(f"--{flag}: {path} does not exist; run {script} first")


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
    mikd.figures.save_png(figure, Path(FLAGS.output_dir) / f"{name}.png")
    logs = Path(FLAGS.output_dir) / "logs" / "figures"
    mikd.figures.log_to_tensorboard(figure, logs, name)


def save_results(results):
    """Writes `<output_dir>/results.json`, over that of the row before."""
    path = Path(FLAGS.output_dir) / "results.json"
    path.write_text(json.dumps(results, indent=1))

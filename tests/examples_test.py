"""The scripts, run as a reader of the README runs them, on very little data."""

import ast
import json
import re
import shlex
import sys

import keras
import numpy as np
import pytest
from absl import flags

from tests.example_runs import ROOT, loaded, run_example, tensorboard_tags

SCRIPTS = sorted(path.stem for path in (ROOT / "examples").glob("*.py"))
TINY = ["--student=digits_cnn", "--epochs=2", "--labels_per_class=2", "--batch_size=10"]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The folder and what was printed, after teacher, students and export."""
    folder = tmp_path_factory.mktemp("demo")
    data, out = f"--data_dir={folder / 'data'}", f"--output_dir={folder / 'out'}"
    teacher = ["--model=digits_cnn", "--epochs=1", "--batch_size=100"]
    runs = [
        run_example("train_teacher", out, data, *teacher),
        run_example("distill", out, data, *TINY, "--methods=student,mimkd"),
        run_example("export_student", data, f"--student={folder / 'out' / 'student.keras'}"),
    ]
    for run in runs:
        assert run.returncode == 0, run.stderr
        assert "Traceback" not in run.stderr and "Warning" not in run.stderr, run.stderr
    return folder / "out", [run.stdout for run in runs]


def _rows(folder):
    return json.loads((folder / "results.json").read_text())


def test_the_teacher_is_saved_and_logged(demo):
    folder, (printed, *_) = demo
    teacher = keras.saving.load_model(folder / "teacher.keras")
    assert teacher.output_shape == (None, 10)
    assert f"saved as {folder}/teacher.keras" in printed
    for split in ("train", "validation"):
        assert "epoch_accuracy" in tensorboard_tags(folder / "logs" / "teacher" / split)


def test_what_is_printed_is_what_is_kept(demo):
    folder, (_, printed, _) = demo
    rows = _rows(folder)
    assert [row["method"] for row in rows] == ["student", "mimkd"]
    for row in rows:
        extra = row["training_only_weights"]
        gain = row["test"] - rows[0]["test"]
        line = [row["method"], f"{row['test']:.2f}", f"{gain:+.2f}", f"{extra:,}"]
        assert line in [each.split() for each in printed.splitlines()]
        assert len(row["curve"]) == 2
        assert all(np.isfinite(value) for value in row["nats"].values())
    assert rows[0]["training_only_weights"] == 0 < rows[1]["training_only_weights"]
    assert f"jsd_local_mi_nats {rows[1]['nats']['jsd_local_mi_nats']:.2f}" in printed


def test_the_best_on_the_validation_split_is_the_student(demo):
    folder, (_, printed, _) = demo
    best = max(_rows(folder), key=lambda row: row["validation"])
    assert f"split: {best['method']}, saved as {folder}/student.keras" in printed
    student = keras.saving.load_model(folder / "student.keras")
    assert student.count_params() == 5122


def test_the_figure_is_a_png(demo):
    content = (demo[0] / "comparison.png").read_bytes()
    assert content.startswith(b"\x89PNG\r\n") and len(content) > 10_000


def test_the_terms_of_a_method_are_in_tensorboard(demo):
    terms = {
        "epoch_loss",
        "epoch_accuracy",
        "epoch_terms/jsd_local",
        "epoch_readouts/jsd_local_mi_nats",
    }
    for split in ("train", "validation"):
        assert terms <= set(tensorboard_tags(demo[0] / "logs" / "mimkd" / split))


def test_the_student_is_exported_and_was_compared(demo):
    folder, (_, _, printed) = demo
    assert (folder / "student.tflite").stat().st_size > 4 * 5122
    assert "539 examples" in printed and "same class for 100.00%" in printed


@pytest.mark.slow
def test_every_method_has_a_row(demo, tmp_path):
    files = [f"--teacher={demo[0] / 'teacher.keras'}", f"--output_dir={tmp_path / 'all'}"]
    run = run_example("distill", f"--data_dir={demo[0].parent / 'data'}", *files, *TINY)
    assert run.returncode == 0, run.stderr
    rows = {row["method"]: row for row in _rows(tmp_path / "all")}
    assert list(rows) == ["student", "kd", "vid", "mimkd"]
    assert "vid_stage1_gaussian_nats" in rows["vid"]["nats"]


def _refused(script, *arguments):
    """Returns what a script says that ends before it starts."""
    with loaded(script) as module:
        flags.FLAGS([script, *map(str, arguments)])
        with pytest.raises(SystemExit) as refusal:
            module.main([script])
    return str(refusal.value)


@pytest.mark.parametrize(
    "script, name, arguments",
    [
        ("train_teacher", "teacher.keras", []),
        ("distill", "results.json", ["--teacher={folder}/teacher.keras"]),
        ("assistants", "results.json", ["--teacher={folder}/teacher.keras"]),
        ("tune_teacher", "weight1.keras", ["--teacher={folder}/teacher.keras", "--weight=1"]),
        ("self_distill", "logs", []),
        ("online_distill", "student.keras", []),
        ("distill_detector", "student.keras", []),
    ],
)
def test_what_is_there_is_kept(tmp_path, script, name, arguments):
    for file in (name, "teacher.keras"):
        (tmp_path / file).write_text("old")
    arguments = [argument.format(folder=tmp_path) for argument in arguments]
    message = _refused(script, f"--output_dir={tmp_path}", *arguments)
    assert message == f"Expected a new --output_dir. Received: {tmp_path / name} exists."
    assert {path.read_text() for path in tmp_path.iterdir()} == {"old"}


@pytest.mark.parametrize(
    "script, arguments, maker",
    [
        ("distill", ["--output_dir={folder}"], "train_teacher.py"),
        ("assistants", ["--output_dir={folder}"], "train_teacher.py"),
        ("tune_teacher", ["--output_dir={folder}", "--teacher={folder}/no"], "train_teacher.py"),
        ("export_student", ["--student={folder}/no"], "distill.py"),
    ],
)
def test_a_missing_network_names_the_script_that_makes_it(tmp_path, script, arguments, maker):
    message = _refused(script, *(argument.format(folder=tmp_path) for argument in arguments))
    assert f"of {maker}. Received: no {tmp_path}" in message


@pytest.mark.parametrize("script", ["distill", "self_distill", "online_distill"])
def test_an_unknown_method_is_refused(tmp_path, script):
    (tmp_path / "teacher.keras").write_text("old")
    message = _refused(script, f"--output_dir={tmp_path}", "--methods=kd,crd")
    assert "Expected --methods of [" in message and "Received: ['kd', 'crd']" in message


def test_an_older_export_is_kept(tmp_path):
    for file in ("student.keras", "student.tflite"):
        (tmp_path / file).write_text("old")
    message = _refused("export_student", f"--student={tmp_path}/student.keras")
    assert message == f"Expected a new --output. Received: {tmp_path}/student.tflite exists."


def _commands(text):
    """The command lines of a docstring, as lists of a script and its arguments."""
    lines = text.replace("\\\n", " ").splitlines()
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("    python ")]
    for command in commands:
        first, *rest = " ".join(command).split(" -- ")
        yield from (each.split() for each in (first, *rest))


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_documented_command_has_flags_that_exist(script):
    tree = ast.parse((ROOT / "examples" / f"{script}.py").read_text())
    commands = list(_commands(ast.get_docstring(tree)))
    assert commands
    for path, *arguments in commands:
        with loaded(re.fullmatch(r"examples/(\w+)\.py", path)[1]):
            assert flags.FLAGS([path, *arguments]) == [path]


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_is_one_short_file_that_reads_its_flags_in_main(script):
    text = (ROOT / "examples" / f"{script}.py").read_text()
    tree = ast.parse(text)
    imports = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
    modules = {getattr(n, "module", None) or n.names[0].name for n in imports}
    others = {module.partition(".")[0] for module in modules} - sys.stdlib_module_names
    allowed = {"absl", "keras", "keras_mikd", "matplotlib", "numpy", "tensorflow"}
    assert others <= allowed | ({"keras_cv"} if script == "distill_detector" else set())
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    readers = {f.name for f in functions for n in ast.walk(f) if getattr(n, "id", None) == "FLAGS"}
    assert readers == {"main"}
    assert len(text.splitlines()) <= 150


if __name__ == "__main__":
    pytest.main([__file__])

"""The scripts, run as a reader of the README runs them, on very little data."""

import concurrent.futures
import json
import os

import keras
import numpy as np
import pytest

from tests.example_runs import run_example, tensorboard_tags

METHODS = ["student", "kd", "vid", "mimkd"]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The folder and what was printed, after teacher, students and export."""
    folder = tmp_path_factory.mktemp("demo")
    data, student = f"--data_dir={folder / 'data'}", ["--student=digits_cnn", "--seeds=1"]
    tiny = ["--epochs=2", "--labels_per_class=2", "--batch_size=10"]
    out, methods = f"--output_dir={folder / 'out'}", [f"--methods={','.join(METHODS)}"]
    runs = [
        run_example(
            "train_teacher", out, data, "--model=resnet8", "--epochs=1", "--batch_size=100"
        ),
        run_example("distill", out, data, *student, *tiny, *methods, "--kd_weight=1,2"),
        run_example("export_student", data, f"--student={folder / 'out' / 'student.keras'}"),
    ]
    for run in runs:
        assert run.returncode == 0, run.stderr
        assert "Traceback" not in run.stderr
    return folder / "out", [run.stdout for run in runs]


def test_the_teacher_is_saved_and_logged(demo):
    folder, (printed, *_) = demo
    teacher = keras.saving.load_model(folder / "teacher.keras")
    assert teacher.output_shape == (None, 10)
    assert str(folder / "teacher.keras") in printed
    for split in ("train", "validation"):
        assert "epoch_accuracy" in tensorboard_tags(folder / "logs" / "teacher" / split)


def test_every_method_has_a_row(demo):
    folder, (_, printed, _) = demo
    rows = json.loads((folder / "results.json").read_text())
    assert [row["method"] for row in rows] == METHODS
    lines = printed.splitlines()
    for row in rows:
        (run,) = row["runs"]
        assert 0 <= run["test"] <= 100
        assert run["training_only_weights"] > 0 or row["method"] in ("student", "kd")
        assert len(run["curve"]) == 2
        assert all(np.isfinite(value) for value in run["nats"].values())
        assert any(
            line.startswith(row["method"]) and f"{run['test']:.2f}" in line for line in lines
        )
    assert any("_gaussian_nats" in key for key in rows[2]["runs"][0]["nats"])
    assert any("_mi_nats" in key for key in rows[3]["runs"][0]["nats"])


@pytest.mark.slow
def test_muse_stands_beside_soft_targets(demo, tmp_path):
    folder, _ = demo
    files = [f"--teacher={folder / 'teacher.keras'}", f"--output_dir={tmp_path / 'muse'}"]
    tiny = ["--student=digits_cnn", "--epochs=2", "--labels_per_class=2", "--batch_size=10"]
    done = run_example("distill", *files, *tiny, "--methods=kd_muse")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads((tmp_path / "muse" / "results.json").read_text())
    assert "muse_stage3_mutual_nats" in row["runs"][0]["nats"]


def test_the_best_weight_on_the_validation_split_is_reported(demo):
    folder, (_, printed, _) = demo
    seen = {
        weight: float(line.split(":")[1].split("%")[0])
        for line in printed.splitlines()
        for weight in (1, 2)
        if line.strip().startswith(f"kd (weight {weight},")
    }
    kd = json.loads((folder / "results.json").read_text())[1]
    assert len(seen) == 2
    assert seen[kd["weight"]] == max(seen.values())
    assert kd["runs"][0]["validation"] == pytest.approx(seen[kd["weight"]], abs=0.01)


def test_the_figure_is_a_png(demo):
    content = (demo[0] / "comparison.png").read_bytes()
    assert content.startswith(b"\x89PNG\r\n") and len(content) > 10_000


def test_the_terms_of_every_method_are_in_tensorboard(demo):
    (folder,) = (demo[0] / "logs").glob("mimkd-*")
    for split in ("train", "validation"):
        tags = tensorboard_tags(folder / split)
        assert {
            "epoch_loss",
            "epoch_accuracy",
            "epoch_jsd_local",
            "epoch_jsd_local_mi_nats",
        } <= set(tags)


def test_the_student_is_exported_and_was_compared(demo):
    folder, (_, _, printed) = demo
    student = keras.saving.load_model(folder / "student.keras")
    assert student.output_shape == (None, 10)
    assert (folder / "student.tflite").stat().st_size > 4 * student.count_params()
    assert "539 examples" in printed and "same class for 100.00%" in printed


# name -> script, arguments after which {folder} has old files, end of the message on the last line.
REFUSED = {
    "a teacher is kept": (
        "train_teacher",
        ["--output_dir={folder}"],
        "teacher.keras exists and is kept; name another folder",
    ),
    "results are kept": (
        "distill",
        ["--output_dir={folder}"],
        "results.json exists and is kept; name another",
    ),
    "an unknown method": (
        "distill",
        ["--output_dir={folder}/new", "--methods=kd,crd"],
        "expected some of student, kd, vid, mimkd, kd_muse; got ['crd']",
    ),
    "a weight for nothing": (
        "distill",
        ["--output_dir={folder}/new", "--methods=student,kd", "--vid_weight=2"],
        "--vid_weight is given and vid is not among --methods",
    ),
    "a missing student": (
        "export_student",
        ["--student={folder}/missing.keras"],
        "missing.keras does not exist; run distill.py first",
    ),
}


@pytest.fixture(scope="module")
def short_runs(tmp_path_factory):
    """A folder of old files and all runs that end before they start, several at a time."""
    folder = tmp_path_factory.mktemp("old")
    for name in ("teacher.keras", "results.json", "student.keras"):
        (folder / name).write_text("old")
    commands = {
        name: (script, *(argument.format(folder=folder) for argument in arguments))
        for name, (script, arguments, _) in REFUSED.items()
    }
    commands["help"] = ("distill", "--help")
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        runs = pool.map(lambda command: run_example(*command), commands.values())
        return folder, dict(zip(commands, runs, strict=True))


@pytest.mark.parametrize("name", REFUSED)
def test_wrong_flags_end_in_one_line(short_runs, name):
    run = short_runs[1][name]
    assert run.returncode == 1
    assert "Traceback" not in run.stderr
    assert run.stderr.strip().splitlines()[-1].endswith(REFUSED[name][-1])


def test_wrong_flags_write_nothing(short_runs):
    folder, _ = short_runs
    files = {path.name: path.read_text() for path in folder.iterdir()}
    assert files == dict.fromkeys(("teacher.keras", "results.json", "student.keras"), "old")


def test_help_says_what_the_script_does_and_lists_its_flags(short_runs):
    printed = short_runs[1]["help"].stdout
    assert printed.startswith("Trains the same small student alone and with every method")
    for flag in ("output_dir", "data_dir", "dataset", "methods", "kd_weight", "epochs", "seeds"):
        assert f"--{flag}: " in printed


if __name__ == "__main__":
    pytest.main([__file__])

"""The script about detectors, run as a reader runs it, on very little."""

import importlib.util
import json

import detectors
import keras
import numpy as np
import pytest

import keras_mikd as mikd
from tests.example_runs import ROOT, run_example, tensorboard_tags

TINY = ["--num_scenes=16", "--epochs=1", "--width=2"]


def _run(folder, name, *arguments):
    common = [f"--data_dir={folder / 'data'}", f"--output_dir={folder / name}"]
    return run_example("distill_detector", *common, *TINY, *arguments)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder and what was printed."""
    detectors.keras_cv()
    folder = tmp_path_factory.mktemp("detector")
    finished = _run(folder, "own")
    assert finished.returncode == 0, finished.stderr
    assert "Traceback" not in finished.stderr and "Warning" not in finished.stderr, finished.stderr
    return folder, finished.stdout


@pytest.mark.slow
def test_every_method_has_a_row_with_cocos_metrics(run):
    folder, printed = run
    rows = json.loads((folder / "own" / "results.json").read_text())
    assert [row["method"] for row in rows] == ["untrained", "plain", "muse"]
    for row in rows:
        (numbers,) = row["runs"]
        shown = [f"{100 * numbers['test'][name]:.2f}" for name in ("AP", "AP50", "AP75", "AR_100")]
        (line,) = (x for x in printed.splitlines() if x.split()[:5] == [row["method"], *shown])
        assert line and 0 <= numbers["validation"]["AP"] <= 1
    assert {row["runs"][0]["weights"] for row in rows} == {rows[0]["runs"][0]["weights"]}
    assert "plain, seed 0" in printed and "epoch 1/1: loss" in printed
    tags = tensorboard_tags(folder / "own" / "logs" / "muse-seed0" / "train")
    assert {"epoch_loss", "epoch_backbone", "epoch_pyramid", "epoch_box_loss"} <= set(tags)


@pytest.mark.slow
def test_the_student_is_the_best_on_the_validation_split(run):
    folder, _ = run
    spec = importlib.util.spec_from_file_location("retinanets", ROOT / "examples/retinanets.py")
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    student = keras.saving.load_model(folder / "own" / "student.keras", compile=False)
    scenes = mikd.datasets.load_digit_scenes(data_dir=str(folder / "data"))
    images, _ = next(iter(scenes.test))
    assert all(np.all(np.isfinite(output)) for output in student({"images": images}).values())
    rows = json.loads((folder / "own" / "results.json").read_text())
    assert student.count_params() == rows[0]["runs"][0]["weights"]


@pytest.mark.slow
def test_a_student_can_be_the_teacher_of_another(run):
    folder, _ = run
    teacher = folder / "own" / "student.keras"
    before = teacher.read_bytes()
    finished = _run(folder, "taught", "--methods=offline", f"--teacher={teacher}")
    assert finished.returncode == 0, finished.stderr
    rows = json.loads((folder / "taught" / "results.json").read_text())
    assert [row["method"] for row in rows] == ["untrained", "offline"]
    assert teacher.read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods=plain,other"], "expected some of plain, muse, offline"),
        (["--methods=offline"], "--teacher and the method offline need each other"),
        (["--dataset=coco"], "--num_scenes is for digit_scenes"),
    ],
)
def test_flags_that_do_not_fit_are_refused(tmp_path, arguments, message):
    detectors.keras_cv()
    finished = _run(tmp_path, "refused", *arguments)
    assert finished.returncode != 0 and message in finished.stderr
    assert not (tmp_path / "refused").exists()


if __name__ == "__main__":
    pytest.main([__file__])

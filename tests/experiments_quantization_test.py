"""experiments/quantization.py: every way has its file, and none is trained again."""

import json

import keras
import pytest

import keras_mikd as mikd
from tests import script_runs


@pytest.mark.slow
def test_every_way_has_its_file_and_none_is_trained_again(tmp_path, capsys):
    keras.utils.set_random_seed(0)
    teacher = tmp_path / "teacher.keras"
    mikd.models.digits_cnn(10, (8, 8, 1)).save(teacher)
    flags = [f"--teacher={teacher}", "--student=digits_cnn", "--labels_per_class=2"]
    flags += ["--batch_size=10", "--epochs=1", "--more_epochs=1", "--seeds=1", "--runs=2"]
    flags += ["--views=2", f"--output_dir={tmp_path / 'out'}"]
    with script_runs.module("experiments", "quantization") as script:
        script_runs.call(script, *flags)
        ways = [script.DISTILLED, *script.WAYS]
        printed = capsys.readouterr().out
        runs = json.loads((tmp_path / "out" / "results.json").read_text())["runs"]
        assert [run["way"] for run in runs] == ways
        for run in runs:
            assert run["loss"] == pytest.approx(run["float32"] - run["int8"])
            assert (tmp_path / "out" / f"{run['way']}-seed0" / "int8.tflite").exists()
        files = json.loads((tmp_path / "out" / "precisions.json").read_text())
        assert [file["precision"] for file in files] == ["float32", *script.PRECISIONS[1:]]
        assert files[0]["bytes"] > files[1]["bytes"] > files[3]["bytes"]
        assert all(way in printed for way in ways)
        script_runs.call(script, *flags)
    assert json.loads((tmp_path / "out" / "results.json").read_text())["runs"] == runs

"""The benchmarks of designs run; that their numbers are good is no test's business."""

import json

import pytest
from example_runs import run_benchmark

import keras_mikd as mikd


@pytest.mark.slow
def test_forms_of_muse_are_printed_and_written(tmp_path):
    output = tmp_path / "muse.json"
    designs = ["plain", "mutual term", "multiplicative: InfoNCE on the input", "additive"]
    process = run_benchmark(
        "muse_designs", "--epochs=2", f"--designs={','.join(designs)}", f"--output={output}"
    )
    assert process.returncode == 0, process.stderr
    rows = json.loads(output.read_text())["designs"]
    assert [row["design"] for row in rows] == designs
    for row in rows:
        assert f"\n{row['design']} " in process.stdout
        assert len(row["validation"]) == 2 and min(row["milliseconds"]) > 0


@pytest.mark.slow
def test_a_design_of_mimkd_trains_with_a_teacher(tmp_path):
    teacher = tmp_path / "teacher.keras"
    mikd.models.digits_cnn(10, (8, 8, 1)).save(teacher)
    process = run_benchmark(
        "critic_designs",
        f"--teacher={teacher}",
        "--epochs=2",
        "--seeds=1",
        "--designs=default,student alone",
    )
    assert process.returncode == 0, process.stderr
    assert "\ndefault " in process.stdout and "\nstudent alone " in process.stdout


@pytest.mark.slow
def test_an_unknown_design_is_refused():
    process = run_benchmark("muse_designs", "--designs=best")
    assert process.returncode == 1
    assert "--designs: expected some of ['plain', " in process.stderr


if __name__ == "__main__":
    pytest.main([__file__])

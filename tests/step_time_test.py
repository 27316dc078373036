"""The step-time benchmark runs; its times are not looked at.

All benchmarks refuse an existing output in the same way, so it is tried here only.
"""

import functools
import json
import os

import pytest
from example_runs import run_benchmark

run = functools.partial(run_benchmark, "step_time")


@pytest.mark.slow
def test_quick_run_prints_and_writes_every_variant(tmp_path):
    output = tmp_path / "times.json"
    process = run("--quick", "--pair=digits", f"--output={output}")
    assert process.returncode == 0, process.stderr
    results = json.loads(output.read_text())
    rows = results["pairs"]["digits"]["rows"]
    names = [row["variant"] for row in rows]
    assert names[:4] == ["floor", "floor, again", "student alone", "two students alone"]
    assert {"KD", "VID", "MIMKD", "BYOT (self)", "DML + MUSE (two peers)", "MCMI"} < set(names)
    assert (rows[0]["median_ms_ratio"], rows[0]["min_ms_ratio"]) == (1.0, 1.0)
    for row in rows:
        assert row["steps"] == 1
        assert row["median_ms"] == row["min_ms"] > 0
        assert f"\n{row['variant']} " in process.stdout
    references = {row["variant"]: row["reference"] for row in rows}
    assert set(references.values()) < set(names)
    assert (references["KD"], references["MUSE (self)"]) == ("floor", "student alone")
    assert (references["DML (two peers)"], references["MCMI"]) == (
        "two students alone",
        "teacher alone",
    )
    times = {row["variant"]: row["median_ms"] for row in rows}
    for row in rows:
        ratio = row["median_ms"] / times[row["reference"]]
        assert row["reference_ratio"] == pytest.approx(ratio)
    assert results["machine"]["cpus"] == os.cpu_count()


@pytest.mark.slow
def test_some_methods_in_mixed_precision_several_steps_at_a_time(tmp_path):
    output = tmp_path / "times.json"
    flags = ["--quick", "--pair=digits", "--methods=KD,MUSE (self)", f"--output={output}"]
    process = run(*flags, "--steps_per_execution=2", "--dtype_policy=mixed_bfloat16")
    assert process.returncode == 0, process.stderr
    results = json.loads(output.read_text())
    assert (results["steps_per_execution"], results["dtype_policy"]) == (2, "mixed_bfloat16")
    names = [row["variant"] for row in results["pairs"]["digits"]["rows"]]
    # What MUSE is compared with comes along.
    assert names == ["floor", "floor, again", "student alone", "KD", "MUSE (self)"]


def test_methods_that_there_are_not_are_refused():
    assert "--methods: expected some of student alone" in run("--methods=magic").stderr


def test_an_existing_output_is_refused(tmp_path):
    output = tmp_path / "times.json"
    output.write_text("kept")
    process = run("--quick", f"--output={output}")
    assert process.returncode != 0
    assert "exists; name another file" in process.stdout + process.stderr
    assert output.read_text() == "kept"

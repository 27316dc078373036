"""The profile of an epoch runs; its times are not looked at."""

import functools
import json
import os

import pytest
from example_runs import run_benchmark

run = functools.partial(run_benchmark, "epoch_profile")


@pytest.mark.slow
def test_a_small_run_prints_and_writes_every_method(tmp_path):
    output = tmp_path / "times.json"
    sizes = ["--methods=student alone,KD", "--batch_size=449", "--steps_per_execution=2"]
    process = run(*sizes, "--rounds=1", f"--output={output}")
    assert process.returncode == 0, process.stderr
    results = json.loads(output.read_text())
    assert list(results["rows"]) == ["student alone", "KD"]
    for name, row in results["rows"].items():
        assert f"\n{name} " in process.stdout
        assert list(row) == ["input", "step", "fit", "fit by N"] and min(row.values()) > 0
    assert results["machine"]["cpus"] == os.cpu_count()


def test_wrong_flags_are_refused():
    assert "--methods: expected some of student alone" in run("--methods=magic").stderr


if __name__ == "__main__":
    pytest.main([__file__])

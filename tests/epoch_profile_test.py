"""The profile of an epoch runs; its times are not looked at."""

import json
import os

import pytest

from tests import script_runs


@pytest.mark.slow
def test_a_small_run_prints_and_writes_every_method(tmp_path):
    output = tmp_path / "times.json"
    sizes = ["--methods=student alone,KD", "--batch_size=449", "--steps_per_execution=2"]
    flags = [*sizes, "--rounds=1", f"--output={output}"]
    printed = script_runs.succeed("benchmarks/epoch_profile.py", *flags)
    results = json.loads(output.read_text())
    assert list(results["rows"]) == ["student alone", "KD"]
    for name, row in results["rows"].items():
        assert f"\n{name} " in printed
        assert list(row) == ["input", "step", "fit", "fit by N"] and min(row.values()) > 0
    assert results["machine"]["cpus"] == os.cpu_count()


if __name__ == "__main__":
    pytest.main([__file__])

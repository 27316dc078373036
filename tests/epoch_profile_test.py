"""The profile of an epoch runs; its times are not looked at."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*arguments):
    return subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "epoch_profile.py", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


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


def test_wrong_flags_are_refused(tmp_path):
    (tmp_path / "old.json").write_text("kept")
    assert "name another file" in run(f"--output={tmp_path}/old.json").stderr
    assert "--methods: expected some of student alone" in run("--methods=magic").stderr
    assert (tmp_path / "old.json").read_text() == "kept"


if __name__ == "__main__":
    pytest.main([__file__])

"""The benchmark of compiled critics runs; its times are not looked at."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*arguments):
    return subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "compiled_critics.py", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_a_small_run_prints_and_writes_every_critic(tmp_path):
    output = tmp_path / "times.json"
    process = run("--batches=2,3", "--widths=4", "--rounds=1", f"--output={output}")
    assert process.returncode == 0, process.stderr
    rows = json.loads(output.read_text())["rows"]
    kinds = ["concat, 1 negative", "separable, 1 negative", "separable, all negatives"]
    sizes = [(row["critic"], row["batch"], row["width"]) for row in rows]
    assert sizes == [(kind, batch, 4) for kind in kinds for batch in (2, 3)]
    for row in rows:
        assert f"\n{row['critic']} " in process.stdout
        assert row["ratio"] == row["compiled_ms"] / row["plain_ms"] > 0


def test_wrong_flags_are_refused(tmp_path):
    (tmp_path / "old.json").write_text("kept")
    assert "name another file" in run(f"--output={tmp_path}/old.json").stderr
    assert "--batches: expected integers above 1; got 8,1" in run("--batches=8,1").stderr
    assert (tmp_path / "old.json").read_text() == "kept"


if __name__ == "__main__":
    pytest.main([__file__])

"""The benchmark of the teacher cache runs; its times are not looked at."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*arguments):
    return subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "teacher_cache.py", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_a_small_run_prints_and_writes_every_variant(tmp_path):
    output = tmp_path / "times.json"
    sizes = ["--teachers=resnet8", "--student=resnet8", "--examples=32", "--batch_size=32"]
    process = run(*sizes, "--rounds=1", f"--output={output}")
    assert process.returncode == 0, process.stderr
    result = json.loads(output.read_text())["resnet8"]
    assert result["rows"]["student alone"] == 1.0 and len(result["rows"]) == 6
    assert all(f"\n{name} " in process.stdout for name in result["rows"])
    # 32 rows of 100 logits in float32; of three stages and the logits in float16.
    assert result["logit_bytes"] == 32 * 100 * 4
    assert result["stage_bytes"] == 32 * (32 * 32 * 16 + 16 * 16 * 32 + 8 * 8 * 64 + 100) * 2


def test_wrong_flags_are_refused(tmp_path):
    (tmp_path / "old.json").write_text("kept")
    assert "name another file" in run(f"--output={tmp_path}/old.json").stderr
    assert "--batch_size: expected at most 8; got 64" in run("--examples=8").stderr
    assert (tmp_path / "old.json").read_text() == "kept"


if __name__ == "__main__":
    pytest.main([__file__])

"""The scaling benchmark counts what it has on paper; times are not looked at."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NETWORKS = ["--teacher=resnet14", "--student=digits_cnn", "--image_size=8", "--batch_size=16"]
# Of digits_cnn for 100 classes and 3 colours.
STUDENT, CHANNELS = 7420, 24


def run(*arguments):
    return subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "scaling.py", *NETWORKS, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_what_is_counted_is_what_is_on_paper(tmp_path):
    output = tmp_path / "scaling.json"
    short = ["--replicas=1,2", "--workers=", "--steps=1", "--rounds=1"]
    names = ["KD", "InfoNCE (global)", "InfoNCE (local)"]
    process = run(*short, f"--methods={','.join(names)}", f"--output={output}")
    assert process.returncode == 0, process.stderr
    results = json.loads(output.read_text())
    one, two = results["measured"][:3], results["measured"][3:]
    for rows in (one, two):
        assert [row["method"] for row in rows] == names
    for row in one:
        assert row["CollectiveReduceV2"] == row["CollectiveGatherV2"] == row["copy"] == 0
    kd, all_images, own_images = two
    assert kd["weights"] == STUDENT
    critic = own_images["weights"]
    assert kd["CollectiveReduceV2"] == 4 * STUDENT
    assert own_images["CollectiveReduceV2"] == 4 * critic
    assert kd["CollectiveGatherV2"] == own_images["CollectiveGatherV2"] == 0
    # A row for each of 8 images: a vector, and scores with 16. Beside it, the shapes are gathered.
    gathered = 4 * 8 * (CHANNELS + 16)
    assert gathered <= all_images["CollectiveGatherV2"] < gathered + 100
    assert all_images["CollectiveReduceV2"] == 4 * critic + 2 * gathered
    assert results["machine"]["cpus"] == os.cpu_count()


def test_on_paper(tmp_path):
    output = tmp_path / "paper.json"
    process = run("--replicas=", "--workers=", "--bandwidth=1", f"--output={output}")
    assert process.returncode == 0, process.stderr
    results = json.loads(output.read_text())
    assert results["measured"] == [] and results["settings"]["bandwidth"] == 1
    rows = {(row["devices"], row["method"]): row for row in results["on_paper"]}
    assert {devices for devices, _ in rows} == {8, 256} and len(rows) == 8
    ring = rows[8, "gradients of the student"]
    assert ring["bytes"] == 2 * 7 / 8 * 4 * STUDENT
    assert ring["milliseconds"] == pytest.approx(ring["bytes"] / 1e6)
    local = rows[8, "critic, local negatives"]["bytes"]
    # A row for each of 16 images: a vector, its own score and that of one negative. Gathered, it
    # goes to 7 others; its gradient, of the rows of all, goes twice around the ring.
    row = 4 * 16 * (CHANNELS + 2)
    added = rows[8, "critic, one global negative"]["bytes"] - local
    assert added == pytest.approx(7 * row + 2 * 7 / 8 * 8 * row)
    assert "256 devices: critic, all global negatives" in process.stdout


def test_wrong_flags_are_refused(tmp_path):
    (tmp_path / "old.json").write_text("kept")
    assert "exists; name another file" in run(f"--output={tmp_path}/old.json").stderr
    assert "--methods: expected some of" in run("--methods=magic").stderr
    assert (tmp_path / "old.json").read_text() == "kept"


if __name__ == "__main__":
    pytest.main([__file__])

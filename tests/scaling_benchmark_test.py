"""The scaling benchmark counts what it has on paper; times are not looked at."""

import json
import os

import pytest

from tests import script_runs

NETWORKS = ["--teacher=resnet14", "--student=digits_cnn", "--image_size=8", "--batch_size=16"]
# Of digits_cnn for 100 classes and 3 colours.
STUDENT, CHANNELS = 7420, 24


@pytest.mark.slow
def test_what_is_counted_is_what_is_on_paper(tmp_path):
    output = tmp_path / "scaling.json"
    short = ["--replicas=1,2", "--workers=", "--steps=1", "--rounds=1"]
    names = ["KD", "MIMKD", "InfoNCE (global)", "InfoNCE (local)"]
    flags = [*NETWORKS, *short, f"--methods={','.join(names)}", f"--output={output}"]
    script_runs.succeed("benchmarks/scaling.py", *flags)
    results = json.loads(output.read_text())
    one, two = results["measured"][:4], results["measured"][4:]
    for rows in (one, two):
        assert [row["method"] for row in rows] == names
    for row in one:
        assert row["CollectiveReduceV2"] == row["CollectiveGatherV2"] == row["copy"] == 0
    kd, maps_too, all_images, own_images = two
    assert kd["weights"] == STUDENT
    critic = own_images["weights"]
    assert kd["CollectiveReduceV2"] == 4 * STUDENT
    assert own_images["CollectiveReduceV2"] == 4 * critic
    assert kd["CollectiveGatherV2"] == own_images["CollectiveGatherV2"] == 0
    # A vector for each of 8 images. Beside it, the shapes are gathered.
    gathered = 4 * 8 * CHANNELS
    assert gathered <= all_images["CollectiveGatherV2"] < gathered + 100
    assert all_images["CollectiveReduceV2"] == 4 * critic + 2 * gathered
    # The stages, the last one twice, and the pooled vector of 16 images.
    maps = 8 * 8 * 8 + 4 * 4 * 16 + 2 * (2 * 2 * CHANNELS) + CHANNELS
    assert maps_too["CollectiveReduceV2"] == 4 * (maps_too["weights"] + 16 * maps)
    assert results["machine"]["cpus"] == os.cpu_count()


def test_on_paper(tmp_path, capsys):
    output = tmp_path / "paper.json"
    flags = [*NETWORKS, "--replicas=", "--workers=", "--bandwidth=1", f"--output={output}"]
    with script_runs.module("benchmarks", "scaling") as script:
        script_runs.call(script, *flags)
    results = json.loads(output.read_text())
    assert results["measured"] == [] and results["settings"]["bandwidth"] == 1
    rows = {(row["devices"], row["method"]): row for row in results["on_paper"]}
    assert {devices for devices, _ in rows} == {8, 256} and len(rows) == 8
    ring = rows[8, "gradients of the student"]
    assert ring["bytes"] == 2 * 7 / 8 * 4 * STUDENT
    assert ring["milliseconds"] == pytest.approx(ring["bytes"] / 1e6)
    local = rows[8, "critic, local negatives"]["bytes"]
    # The vectors of 16 images, and their scores with all 128. Gathered, they go to 7 others; their
    # gradients, of all images, go twice around the ring.
    for name, numbers in (
        ("critic, global negatives", 16 * CHANNELS),
        ("the same, all scores sent", 16 * (CHANNELS + 128)),
    ):
        own = 4 * numbers
        assert rows[8, name]["bytes"] - local == pytest.approx(7 * own + 2 * 7 / 8 * 8 * own)
    assert "256 devices: critic, global negatives" in capsys.readouterr().out


if __name__ == "__main__":
    pytest.main([__file__])

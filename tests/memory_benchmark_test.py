"""The memory benchmark runs; of its numbers, only what must hold on any machine is looked at."""

import json
import os

import pytest
from absl import flags
from absl.testing import flagsaver

from tests import script_runs


@pytest.mark.slow
def test_quick_run_prints_and_writes_every_method(tmp_path):
    output = tmp_path / "memory.json"
    printed = script_runs.succeed("benchmarks/memory.py", "--quick", f"--output={output}")
    results = json.loads(output.read_text())
    kd, vid = results["rows"]
    assert [row["method"] for row in (kd, vid)] == ["KD", "VID"]
    assert kd["weights"] == vid["weights"] == 5026  # Of digits_cnn.
    # Three heads, two linear maps and a variance per channel each: c * t + t * t + t.
    extra = sum(c * t + t * t + t for c, t in zip((8, 16, 24), (16, 32, 64), strict=True))
    assert (kd["extra"], vid["extra"]) == (0, extra)
    for row in (kd, vid):
        assert f"\n{row['method']} " in printed
        assert row["reference"] == "KD" and list(row["bytes"]) == [
            "batch 16",
            "batch 32",
            "8x data",
        ]
        assert all(2**20 < value < 2**30 for value in row["bytes"].values())
        for size in ("batch 16", "batch 32"):
            assert row["ratios"][size] == row["bytes"][size] / kd["bytes"][size]
        # Eight times as much data and no more memory; a tenth is for the allocator.
        assert row["growth"] == row["bytes"]["8x data"] / row["bytes"]["batch 16"] < 1.1
    assert results["machine"]["cpus"] == os.cpu_count()


def test_methods_come_with_what_they_are_compared_with():
    with script_runs.module("benchmarks", "memory") as script, flagsaver.flagsaver():
        flags.FLAGS(["memory", "--methods=VID,MCMI"])
        assert list(script.chosen_methods()) == ["KD", "teacher alone", "VID", "MCMI"]


if __name__ == "__main__":
    pytest.main([__file__])

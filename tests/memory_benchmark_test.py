"""The memory benchmark runs; of its numbers, only what must hold on any machine is looked at."""

import functools
import json
import os

import pytest
from example_runs import run_benchmark

run = functools.partial(run_benchmark, "memory")


@pytest.mark.slow
def test_quick_run_prints_and_writes_every_method(tmp_path):
    output = tmp_path / "memory.json"
    process = run("--quick", f"--output={output}")
    assert process.returncode == 0, process.stderr
    results = json.loads(output.read_text())
    kd, vid = results["rows"]
    assert [row["method"] for row in (kd, vid)] == ["KD", "VID"]
    assert kd["weights"] == vid["weights"] == 5026  # Of digits_cnn.
    # Three heads, two linear maps and a variance per channel each: c * t + t * t + t.
    extra = sum(c * t + t * t + t for c, t in zip((8, 16, 24), (16, 32, 64), strict=True))
    assert (kd["extra"], vid["extra"]) == (0, extra)
    for row in (kd, vid):
        assert f"\n{row['method']} " in process.stdout
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


def test_wrong_flags_are_refused():
    assert "--methods: expected some of" in run("--methods=magic").stderr


if __name__ == "__main__":
    pytest.main([__file__])

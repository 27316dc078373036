"""The benchmark of compiled critics runs; its times are not looked at."""

import functools
import json

import pytest
from example_runs import run_benchmark

run = functools.partial(run_benchmark, "compiled_critics")


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


def test_wrong_flags_are_refused():
    assert "--batches: expected integers above 1; got 8,1" in run("--batches=8,1").stderr


if __name__ == "__main__":
    pytest.main([__file__])

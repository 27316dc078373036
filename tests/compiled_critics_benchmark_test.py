"""The benchmark of compiled critics runs; its times are not looked at."""

import json

import pytest

from tests import script_runs


@pytest.mark.slow
def test_a_small_run_prints_and_writes_every_critic(tmp_path):
    output = tmp_path / "times.json"
    flags = ["--batches=2,3", "--widths=4", "--rounds=1", f"--output={output}"]
    printed = script_runs.succeed("benchmarks/compiled_critics.py", *flags)
    rows = json.loads(output.read_text())["rows"]
    kinds = ["concat, 1 negative", "separable, 1 negative", "separable, all negatives"]
    sizes = [(row["critic"], row["batch"], row["width"]) for row in rows]
    assert sizes == [(kind, batch, 4) for kind in kinds for batch in (2, 3)]
    for row in rows:
        assert f"\n{row['critic']} " in printed
        assert row["ratio"] == row["compiled_ms"] / row["plain_ms"] > 0


@pytest.mark.slow
def test_wrong_flags_are_refused():
    done = script_runs.run("benchmarks/compiled_critics.py", "--batches=8,1")
    assert "Expected --batches to be integers above 1. Received: --batches=8,1" in done.stderr


if __name__ == "__main__":
    pytest.main([__file__])

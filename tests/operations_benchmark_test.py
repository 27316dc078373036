"""The benchmark of operations: what it counts in a program, and that it runs."""

import json

import pytest

from tests import script_runs

PROGRAM = """HloModule step

%fused (p: f32[4]) -> f32[4] {
  %p = f32[4]{0} parameter(0)
  ROOT %exp = f32[4]{0} exponential(f32[4]{0} %p)
}

ENTRY %main (x: f32[4], y: f32[4,4]) -> (f32[4], f32[4]) {
  %x = f32[4]{0} parameter(0)
  %y = f32[4,4]{1,0} parameter(1)
  %one = f32[] constant(1)
  %fusion.1 = f32[4]{0} fusion(f32[4]{0} %x), kind=kLoop, calls=%fused
  %dot.2 = f32[4]{0} dot(f32[4,4]{1,0} %y, f32[4]{0} %fusion.1), lhs_contracting_dims={1}
  %pair = (f32[4]{0}, f32[4]{0}) sort(f32[4]{0} %x, f32[4]{0} %dot.2), dimensions={0}
  ROOT %out = (f32[4]{0}, f32[4]{0}) tuple(f32[4]{0} %fusion.1, f32[4]{0} %dot.2)
}
"""


def test_operations_are_those_of_the_entry_that_compute():
    with script_runs.module("benchmarks", "operations") as operations:
        assert operations.counted(PROGRAM) == {"fusion": 1, "dot": 1, "sort": 1}


@pytest.mark.slow
def test_a_small_run_prints_and_writes_every_count(tmp_path):
    output = tmp_path / "operations.json"
    flags = ["--methods=KD,VID", "--teacher=digits_cnn", f"--output={output}"]
    printed = script_runs.succeed("benchmarks/operations.py", *flags)
    result = json.loads(output.read_text())
    counts = {name: sum(kinds.values()) for name, kinds in result["operations"].items()}
    assert result["floor"] == counts["student alone"] + counts["teacher alone"]
    assert result["floor"] < counts["KD"] < counts["VID"]
    assert all(f"\n{name} " in printed for name in counts)
    done = script_runs.run("benchmarks/operations.py", "--methods=MUSE (self)")
    assert "Expected --methods to be some of" in done.stderr


if __name__ == "__main__":
    pytest.main([__file__])

"""The benchmark of the teacher cache runs; its times are not looked at."""

import functools
import json

import pytest
from example_runs import run_benchmark

run = functools.partial(run_benchmark, "teacher_cache")


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


def test_wrong_flags_are_refused():
    assert "--batch_size: expected at most 8; got 64" in run("--examples=8").stderr


if __name__ == "__main__":
    pytest.main([__file__])

"""The benchmark of the teacher cache runs; its times are not looked at."""

import json

import pytest

from tests import script_runs


@pytest.mark.slow
def test_a_small_run_prints_and_writes_every_variant(tmp_path):
    output = tmp_path / "times.json"
    sizes = ["--teachers=resnet8", "--student=resnet8", "--examples=32", "--batch_size=32"]
    flags = [*sizes, "--rounds=1", f"--output={output}"]
    printed = script_runs.succeed("benchmarks/teacher_cache.py", *flags)
    result = json.loads(output.read_text())["resnet8"]
    assert result["rows"]["student alone"] == 1.0 and len(result["rows"]) == 8
    assert all(f"\n{name} " in printed for name in result["rows"])
    # 32 rows of 100 logits in float32; of three stages and the logits in float16.
    assert result["logit_bytes"] == 32 * 100 * 4
    assert result["stage_bytes"] == 32 * (32 * 32 * 16 + 16 * 16 * 32 + 8 * 8 * 64 + 100) * 2


@pytest.mark.slow
def test_wrong_flags_are_refused():
    done = script_runs.run("benchmarks/teacher_cache.py", "--examples=8")
    assert "Expected --batch_size of at most 8. Received: --batch_size=64" in done.stderr


if __name__ == "__main__":
    pytest.main([__file__])

"""The step-time benchmark runs; its times are not looked at.

All benchmarks refuse an existing output and unknown methods in the same way, so it is tried here
only.
"""

import functools
import json
import os

import pytest
from absl import flags
from absl.testing import flagsaver

from tests import script_runs


@pytest.fixture
def script():
    with script_runs.module("benchmarks", "step_time") as script, flagsaver.flagsaver():
        flags.FLAGS.mark_as_parsed()
        yield script


def run(*arguments):
    return script_runs.succeed("benchmarks/step_time.py", *arguments)


@pytest.mark.slow
def test_quick_run_prints_and_writes_every_variant(tmp_path):
    output = tmp_path / "times.json"
    printed = run("--quick", "--pair=digits", f"--output={output}")
    results = json.loads(output.read_text())
    rows = results["pairs"]["digits"]["rows"]
    names = [row["variant"] for row in rows]
    assert names[:4] == ["floor", "floor, again", "student alone", "two students alone"]
    assert {"KD", "VID", "MIMKD", "BYOT (self)", "DML + MUSE (two peers)", "MCMI"} < set(names)
    assert (rows[0]["median_ms_ratio"], rows[0]["min_ms_ratio"]) == (1.0, 1.0)
    for row in rows:
        assert row["steps"] == 1
        assert row["median_ms"] == row["min_ms"] > 0
        assert f"\n{row['variant']} " in printed
    references = {row["variant"]: row["reference"] for row in rows}
    assert set(references.values()) < set(names)
    assert (references["KD"], references["MUSE (self)"]) == ("floor", "student alone")
    assert (references["DML (two peers)"], references["MCMI"]) == (
        "two students alone",
        "teacher alone",
    )
    times = {row["variant"]: row["median_ms"] for row in rows}
    for row in rows:
        ratio = row["median_ms"] / times[row["reference"]]
        assert row["reference_ratio"] == pytest.approx(ratio)
    assert results["machine"]["cpus"] == os.cpu_count()


@pytest.mark.slow
def test_some_methods_in_mixed_precision_several_steps_at_a_time(tmp_path):
    output = tmp_path / "times.json"
    arguments = ["--quick", "--pair=digits", "--methods=KD,MUSE (self)", f"--output={output}"]
    run(*arguments, "--steps_per_execution=2", "--dtype_policy=mixed_bfloat16")
    results = json.loads(output.read_text())
    assert (results["steps_per_execution"], results["dtype_policy"]) == (2, "mixed_bfloat16")
    names = [row["variant"] for row in results["pairs"]["digits"]["rows"]]
    # What MUSE is compared with comes along.
    assert names == ["floor", "floor, again", "student alone", "KD", "MUSE (self)"]


@pytest.fixture
def other_python(tmp_path):
    """A program in place of a Python with PyTorch: KD takes half a second, VID one."""
    path = tmp_path / "python"
    path.write_text(
        "#!/bin/sh\n"
        'echo "$@" > "$0.arguments"\n'
        "while read method how; do\n"
        '  if [ "$method" = KD ]; then echo "[0.5, 0.25, 0]"; else echo "[1.0, 2.0, 7]"; fi\n'
        "done\n"
    )
    path.chmod(0o755)
    return path


def test_steps_of_another_process_take_their_turns(script, other_python):
    pair = script.PAIRS["cifar"]
    flags.FLAGS.torch_python = str(other_python)
    with script.InPyTorch(pair) as other:
        assert other.extra_weights("VID eager") == 7
        asked = other_python.with_name("python.arguments").read_text().split()
        assert asked[0].endswith("torch_steps.py") and asked[1:] == ["32", "8", "100", "64"]
        steps = {
            name: functools.partial(other.seconds, asked)
            for name, (asked, _) in script.IN_PYTORCH.items()
        }
        times = script.measure(steps, None, 2, 1)
    assert times["KD in PyTorch, eager"] == [(0.5, 0.25)] * 2
    variants = {name: script.METHODS[name] for name in ("KD", "VID (RepDistiller's head)")}
    own = {"floor": [(0.1, 0.1)], "KD": [(0.25, 0.2)], "VID (RepDistiller's head)": [(0.5, 0.2)]}
    rows = {row["variant"]: row for row in script.summarize(own | times, variants, {})}
    assert rows["KD in PyTorch, compiled"]["reference"] == "KD"
    assert rows["KD in PyTorch, compiled"]["reference_ratio"] == 2.0
    assert rows["VID in PyTorch, eager"]["reference_ratio"] == 2.0


def test_a_python_without_pytorch_is_told(script, tmp_path):
    stops = tmp_path / "python"
    stops.write_text("#!/bin/sh\nexit 1\n")
    stops.chmod(0o755)
    flags.FLAGS.torch_python = str(stops)
    said = "Expected PyTorch in the Python of --torch_python"
    with script.InPyTorch(script.PAIRS["cifar"]) as other, pytest.raises(SystemExit, match=said):
        other.extra_weights("KD eager")


def test_pytorch_is_measured_on_one_pair_in_float32(script):
    flags.FLAGS.against, flags.FLAGS.pair = "torch", "digits"
    with pytest.raises(SystemExit, match="--pair=cifar --dtype_policy=float32"):
        script.check_against()
    flags.FLAGS.pair = "cifar"
    script.check_against()
    assert {"KD", "VID (RepDistiller's head)"} <= script.chosen(script.METHODS).keys()


def test_the_networks_of_pytorch_have_the_weights_of_ours():
    pytest.importorskip("torch", reason="PyTorch is no requirement")
    with script_runs.module("benchmarks", "torch_steps") as steps:
        assert steps.count(steps.ResNetTimesFour(8, 100)) == 1_233_540
        assert steps.count(steps.ResNetTimesFour(32, 100)) == 7_433_860


def test_a_row_is_compared_with_the_floor_and_with_its_reference(script):
    variants = {name: script.METHODS[name] for name in ("student alone", "MUSE (self)")}
    times = {
        "floor": [(0.002, 0.004), (0.004, 0.004)],
        "student alone": [(0.006, 0.002)],
        "MUSE (self)": [(0.012, 0.008)],
    }
    floor, student, muse = script.summarize(times, variants, {"MUSE (self)": 7})
    assert [row["extra_weights"] for row in (floor, student, muse)] == [0, 0, 7]
    assert (floor["median_ms"], floor["min_ms"], floor["cpu_ms"]) == (3.0, 2.0, 4.0)
    assert student["median_ms_ratio"] == student["reference_ratio"] * 2.0 == 2.0
    assert (muse["median_ms_ratio"], muse["min_ms_ratio"], muse["cpu_ms_ratio"]) == (4.0, 6.0, 2.0)
    assert (muse["reference"], muse["reference_ratio"]) == ("student alone", 2.0)


def test_what_a_method_is_compared_with_comes_along(script):
    flags.FLAGS(["step_time", "--methods=KD,MUSE (self)"])
    assert list(script.chosen(script.METHODS)) == ["student alone", "KD", "MUSE (self)"]


def test_methods_that_there_are_not_are_refused(script):
    with pytest.raises(SystemExit, match="some of student alone, .* Received: --methods=KD,magic"):
        script_runs.call(script, "--methods=KD,magic")


def test_an_existing_output_is_refused(script, tmp_path):
    output = tmp_path / "times.json"
    output.write_text("kept")
    with pytest.raises(SystemExit, match="Expected a new file. Received: --output=.*times.json"):
        script_runs.call(script, "--quick", f"--output={output}")
    assert output.read_text() == "kept"


if __name__ == "__main__":
    pytest.main([__file__])


@pytest.mark.slow
def test_batch_sizes_and_xla_by_name(tmp_path):
    output = tmp_path / "times.json"
    arguments = ["--quick", "--pair=digits", "--methods=KD", "--batch_sizes=4,8", "--xla=on"]
    run(*arguments, f"--output={output}")
    results = json.loads(output.read_text())
    assert results["xla"] == "on"
    sizes = {name: pair["batch_size"] for name, pair in results["pairs"].items()}
    assert sizes == {"digits, batch 4": 4, "digits, batch 8": 8}


def test_batch_sizes_that_are_none_are_refused(script):
    flags.FLAGS(["step_time.py", "--batch_sizes=64,zero"])
    with pytest.raises(SystemExit, match="Expected --batch_sizes=64,256. Received: .*zero"):
        script.sized("digits")

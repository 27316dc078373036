"""The pieces for a GPU: every command is one that its script takes, and what is through stays."""

import json
import re
import sys

import pytest

from tests import script_runs


@pytest.fixture
def on_gpu():
    with script_runs.module("benchmarks", "on_gpu") as module:
        yield module


def test_every_piece_has_flags_that_its_script_defines(on_gpu):
    for piece, (arguments, _) in on_gpu.PIECES.items():
        script = arguments.split()[0]
        if script == "-m":
            continue
        source = (script_runs.ROOT / script).read_text()
        known = set(re.findall(r'DEFINE_\w+\(\s*"(\w+)"', source))
        known |= {"output"} if "define_output()" in source else set()
        used = set(re.findall(r"--(\w+)", arguments))
        assert used <= known, (piece, used - known)


def test_names_of_methods_are_those_of_step_time(on_gpu):
    with script_runs.module("benchmarks", "methods") as methods:
        used = on_gpu._METHODS.strip("'").removeprefix("--methods=").split(",")
        assert set(used) <= {*methods.METHODS, *methods.EQUAL_SHAPES}


def test_what_is_through_stays_and_what_fails_is_said(on_gpu, tmp_path, capsys):
    on_gpu.PIECES = {"good": ("-c 'print(1)'", {}), "bad": ("-c 'raise SystemExit(3)'", {})}
    script_runs.call(on_gpu, f"--output_dir={tmp_path}")
    script_runs.call(on_gpu, f"--output_dir={tmp_path}")
    printed = capsys.readouterr().out
    assert printed.count("good ...") == 1 and "good: is through" in printed
    assert printed.count("bad ...") == 2 and "ended with 3" in printed
    ended = json.loads((tmp_path / "pieces.json").read_text())
    assert ended["good"]["code"] == 0 and ended["good"]["command"].startswith(sys.executable)
    assert (tmp_path / "good.log").read_text() == "1\n"
    with pytest.raises(SystemExit, match="Expected some of .* Received: --pieces=best"):
        script_runs.call(on_gpu, f"--output_dir={tmp_path}", "--pieces=best")


def test_a_piece_that_takes_too_long_is_ended(on_gpu, tmp_path, capsys):
    on_gpu.PIECES = {"long": ("-c 'import time; time.sleep(60)'", {})}
    script_runs.call(on_gpu, f"--output_dir={tmp_path}", "--minutes=0.01")
    assert "took too long" in capsys.readouterr().out


def test_the_files_of_others_are_left_alone(on_gpu, tmp_path):
    on_gpu.PIECES = {"tests": ("-c 'print(1)'", {})}
    (tmp_path / "tests.json").write_text("mine")
    with pytest.raises(SystemExit, match="Expected a new --output_dir"):
        script_runs.call(on_gpu, f"--output_dir={tmp_path}")
    assert (tmp_path / "tests.json").read_text() == "mine"

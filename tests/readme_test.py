"""The first snippet of the README, as it stands."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text()
SNIPPET = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]


def _printed(code, folder):
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True
    )
    numbers = re.findall(r"(teacher|alone|VID) ([\d.]+)%", done.stdout)
    return {name: float(value) for name, value in numbers}


def test_it_is_short_and_runs(tmp_path):
    lines = [line for line in SNIPPET.splitlines() if line.strip()]
    assert len(lines) <= 15
    assert len(README.splitlines()) <= 120
    brief = re.sub(r", 20\)", ", 1)", re.sub(r", 100\)", ", 1)", SNIPPET))
    assert brief != SNIPPET
    assert set(_printed(brief, tmp_path)) == {"teacher", "alone", "VID"}


@pytest.mark.slow
def test_the_student_of_a_teacher_is_better(tmp_path):
    accuracy = _printed(SNIPPET, tmp_path)
    assert accuracy["teacher"] > 95
    assert accuracy["VID"] > accuracy["alone"]

"""The README, as a reader pastes it."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
SNIPPETS = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_it_is_read_in_a_minute():
    assert len(README.splitlines()) <= 120
    (snippet,) = SNIPPETS
    assert len([line for line in snippet.splitlines() if line]) <= 15


def test_its_links_lead_to_files():
    links = set(re.findall(r"\]\((?!https?:)([^)#]+)", README))
    assert links and not {link for link in links if not (ROOT / link).exists()}


def _gain(snippet, folder):
    """Returns the gain that a snippet prints, in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-c", snippet]
    run = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900
    )
    assert run.returncode == 0, run.stderr
    (gain,) = re.findall(r"^gain, points: (\S+)$", run.stdout, re.MULTILINE)
    return float(gain)


def test_its_snippet_runs(tmp_path):
    (snippet,) = SNIPPETS
    brief = re.sub(r"epochs=\d+", "epochs=1", snippet)
    assert brief.count("epochs=1)") == 3
    assert -100 < _gain(brief, tmp_path) < 100


@pytest.mark.slow
def test_its_student_gains_as_pasted(tmp_path):
    (snippet,) = SNIPPETS
    assert _gain(snippet, tmp_path) > 0

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
# The command that fills the results draws these pictures.
DRAWN_LATER = {"docs/results/figures/images_per_class.svg"}


def test_it_is_read_in_a_minute():
    assert len(README.splitlines()) <= 120
    (snippet,) = SNIPPETS
    assert len(snippet.splitlines()) <= 15


def test_its_links_lead_to_files():
    links = set(re.findall(r"\]\((?!https?:)([^)#]+)", README)) - DRAWN_LATER
    assert links and not {link for link in links if not (ROOT / link).exists()}


@pytest.mark.slow
def test_its_snippet_runs_as_pasted_and_the_student_gains(tmp_path):
    (snippet,) = SNIPPETS
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-c", snippet]
    run = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900
    )
    assert run.returncode == 0, run.stderr
    (gain,) = re.findall(r"^gain, points: (\S+)$", run.stdout, re.MULTILINE)
    assert float(gain) > 0

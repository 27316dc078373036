"""docs/add_a_loss.md, followed to the letter in a copy of this project."""

import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "add_a_loss.md").read_text()
SECTIONS = {part.partition("\n")[0]: part for part in PAGE.split("\n## ")[1:]}
# "Write `file`:" or "Add to `file`, below `line`:", and a block of code.
EDIT = re.compile(
    r"^(?:Write|Add to) `([^`]+)`(?:, (above|below) `([^`]+)`)?:\n\n```python\n(.*?)```$",
    re.MULTILINE | re.DOTALL,
)
COMMAND = re.compile(r"^python -m pytest .*$", re.MULTILINE)


@pytest.fixture
def tree(tmp_path):
    for folder in ("keras_mikd", "tests"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def _follow(section, tree):
    """Writes what a section writes, and returns the files."""
    for name, where, line, code in EDIT.findall(section):
        path = tree / name
        assert bool(line) == path.exists(), name
        path.write_text(_inserted(path.read_text(), where, line, code) if line else code)
    return {name for name, *_ in EDIT.findall(section)}


def _inserted(text, where, line, code):
    first, *rest = re.findall(rf"^{re.escape(line)}.*\n", text, re.MULTILINE)
    assert rest == [], line
    return text.replace(first, code + first if where == "above" else first + code)


def _python(tree, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    command = [sys.executable, *arguments]
    run = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    return run.returncode, run.stdout + run.stderr


def test_every_block_of_code_has_a_file_and_the_linter_passes_them(tree):
    pytest.importorskip("ruff")
    files = set().union(*(_follow(section, tree) for section in SECTIONS.values()))
    assert PAGE.count("```python") == len(EDIT.findall(PAGE))
    for command in (["check"], ["format", "--check"]):
        code, output = _python(tree, "-m", "ruff", *command, *sorted(files))
        assert code == 0, output


@pytest.mark.slow
@pytest.mark.parametrize("section", SECTIONS)
def test_the_tests_of_the_page_pass(section, tree):
    _follow(SECTIONS[section], tree)
    (command,) = COMMAND.findall(SECTIONS[section])
    _, *arguments = shlex.split(command)
    code, output = _python(tree, *arguments)
    assert code == 0, output
    # The loss goes through all of the conformance tests, and not only through its own.
    assert int(re.search(r"(\d+) passed", output).group(1)) > 10, output

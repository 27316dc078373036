"""Scripts of experiments/ and benchmarks/: as modules of a test, or run as a reader runs them."""

import contextlib
import importlib
import os
import pathlib
import subprocess
import sys

import pytest
from absl import flags
from absl.testing import flagsaver

ROOT = pathlib.Path(__file__).parents[1]


@contextlib.contextmanager
def module(folder, name):
    """Imports a script. Its flags go with it, since other scripts define the same names."""
    known, loaded = set(flags.FLAGS), set(sys.modules)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(ROOT / folder)
            yield importlib.import_module(name)
    finally:
        for flag in set(flags.FLAGS) - known:
            delattr(flags.FLAGS, flag)
        for each in set(sys.modules) - loaded:
            file = getattr(sys.modules[each], "__file__", None) or ""
            if file.startswith(str(ROOT / folder)):
                del sys.modules[each]


def call(script, *arguments):
    """Runs the `main` of an imported script."""
    with flagsaver.flagsaver():
        flags.FLAGS([script.__name__, *map(str, arguments)])
        script.main([])


def run(path, *arguments):
    """Runs a script in a process of its own."""
    return subprocess.run(
        [sys.executable, path, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=900,
    )


def succeed(path, *arguments):
    """Returns what a script printed that ended well."""
    done = run(path, *arguments)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr and "Warning" not in done.stderr, done.stderr
    return done.stdout

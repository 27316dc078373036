"""Scripts run as a reader runs them, and what they leave for TensorBoard."""

import os
import pathlib
import subprocess
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = pathlib.Path(__file__).parents[1]


def run_example(script, *arguments):
    return _run(f"examples/{script}.py", *arguments)


def run_benchmark(script, *arguments):
    return _run(f"benchmarks/{script}.py", *arguments)


def _run(path, *arguments):
    return subprocess.run(
        [sys.executable, path, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )


def tensorboard_tags(folder):
    return EventAccumulator(str(folder)).Reload().Tags()["tensors"]

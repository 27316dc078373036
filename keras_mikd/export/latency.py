"""How long a `.tflite` file takes on this machine, by LiteRT's own benchmark."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

from keras_mikd import checks

_TOOL = pathlib.Path(__file__).with_name("latency_tool.py")
_INPUTS = (
    "The inputs were random, and zeros for integers that may be ids: does the network take them?"
)
_OPEN = (
    "Its input has an open size, which the benchmark takes for 1: export a network that was built "
    "with the size of its images."
)
_TEXT = "It makes no inputs of text: export a network that takes the ids of the words."


@dataclasses.dataclass(frozen=True)
class Latency:
    """Milliseconds of one call with a batch of one.

    Attributes:
        threads: Threads of the CPU.
        median_ms: Median over the runs.
        p95_ms: What 95 % of the runs stay below.
        runs: How many were timed, after a tenth as many that were not.
    """

    threads: int
    median_ms: float
    p95_ms: float
    runs: int


def measure_latency(
    path: str | os.PathLike, *, threads: tuple[int, ...] = (1,), runs: int = 50
) -> list[Latency]:
    """Times a `.tflite` file on the CPU of this machine, with inputs of its own.

    Runs `litert-benchmark` of the package `ai-edge-litert` in a process for each number of threads;
    a file whose last operator reshapes, which it cannot run, is timed by the interpreter. Inputs
    are random numbers, and zeros for integers of more than 8 bits, which may be the ids of an
    embedding. A phone is another machine: compare files with each other, and time the one that you
    choose on the device.

    Args:
        path: A `.tflite` file, as `export_tflite` writes it.
        threads: Numbers of threads to time, at least 1 each.
        runs: Calls to time for each of them, at least 1.

    Returns:
        A `Latency` for each number of threads.

    Raises:
        ImportError: If `ai-edge-litert` is not installed: `pip install "keras_mikd[tflite]"`.
        TypeError: If `path` is no path, such as a model.
        ValueError: If an argument is out of range, or no number of threads is given.
        FileNotFoundError: If there is no such file.
        RuntimeError: If the benchmark fails, as for inputs of text; the message has the end of what
            it printed.

    Example:
    ```python
    for latency in measure_latency("student.tflite", threads=(1, 2)):
        print(latency.threads, latency.median_ms, latency.p95_ms)
    ```
    """
    path = _checked_path(path)
    runs = checks.integer("runs", runs, at_least=1)
    numbers = [checks.integer("threads", number, at_least=1) for number in threads]
    if not numbers:
        raise ValueError("Expected `threads` to have a number in it. Received: threads=()")
    if not path.is_file():
        raise FileNotFoundError(f"Expected a .tflite file. Received: path={str(path)!r}")
    try:
        import ai_edge_litert.tools  # noqa: F401
    except ImportError as error:
        raise ImportError(
            'Expected ai-edge-litert, which times files: pip install "keras_mikd[tflite]".'
        ) from error
    return [_timed(path, number, runs) for number in numbers]


def _checked_path(path):
    if isinstance(path, (str, os.PathLike)):
        return pathlib.Path(path)
    network = "distiller.student" if hasattr(path, "distillation_losses") else "model"
    raise TypeError(
        f"Expected `path` to be a .tflite file. Received: path={path!r}. Write the file first: "
        f'export_tflite({network}, "student.tflite").'
    )


def _timed(path, threads, runs):
    with tempfile.TemporaryDirectory() as folder:
        result = pathlib.Path(folder, "result.json")
        options = {
            "model": path,
            "num_threads": threads,
            "num_runs": runs,
            "warmup_runs": max(runs // 10, 1),
            "result_json": result,
        }
        # Without -P, the folder of the script would stand before the packages in sys.path.
        command = [sys.executable, "-P", str(_TOOL)]
        command += [f"--{name}={value}" for name, value in options.items()]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if ended.returncode or not result.exists():
            raise _failure(path, ended)
        latency = json.loads(result.read_text())["latency"]
    return Latency(threads, float(latency["median_ms"]), float(latency["p95_ms"]), runs)


def _failure(path, ended):
    said = ended.stdout + ended.stderr
    advice = f" {_INPUTS}" if "Failed to invoke" in said else ""
    details = _inputs(path)
    if any(-1 in detail["shape_signature"][1:] for detail in details):
        advice = f" {_OPEN}"
    if any(np.dtype(detail["dtype"]).kind in "SU" for detail in details):
        advice = f" {_TEXT}"
    return RuntimeError(
        f"Expected LiteRT's benchmark to run {str(path)!r}. Received: exit code "
        f"{ended.returncode}, after {said[-500:]!r}.{advice}"
    )


def _inputs(path):
    from ai_edge_litert.interpreter import Interpreter

    try:
        return Interpreter(model_path=str(path)).get_input_details()
    except ValueError:  # It is no network.
        return []

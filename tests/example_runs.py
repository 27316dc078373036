"""Scripts run as a reader runs them, and what they leave for TensorBoard."""

import contextlib
import importlib.util
import os
import pathlib
import subprocess
import sys

from absl import flags
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = pathlib.Path(__file__).parents[1]
# A CPU as two devices. `MirroredStrategy` by itself would take one of them.
TWO_DEVICES = """
import functools, runpy, sys
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
mirrored = tf.distribute.MirroredStrategy
tf.distribute.MirroredStrategy = functools.partial(mirrored, ["CPU:0", "CPU:1"])
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_example(script, *arguments):
    return _run(f"examples/{script}.py", *arguments)


def run_on_two_devices(script, *arguments):
    return _run("-c", TWO_DEVICES, f"examples/{script}.py", *arguments, "--strategy=mirrored")


def run_on_two_workers(folder, script, *arguments):
    """Runs a script as two workers, whose output goes to the folder."""
    script = [f"examples/{script}.py", "--strategy=multi_worker", *arguments]
    return run_example("launch_workers", f"--output_dir={folder}", "--", *script)


def _run(*command):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("TF_CONFIG", None)
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )


@contextlib.contextmanager
def loaded(script):
    """Gives the module of an example, whose flags are gone afterwards."""
    before = set(flags.FLAGS)
    path = ROOT / "examples" / f"{script}.py"
    spec = importlib.util.spec_from_file_location(script, path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        for name in set(flags.FLAGS) - before:
            delattr(flags.FLAGS, name)
        flags.FLAGS.unparse_flags()


def tensorboard_tags(folder):
    return EventAccumulator(str(folder)).Reload().Tags()["tensors"]

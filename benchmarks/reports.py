"""What the benchmarks write, and the machine that they name in it.

No script by itself: `import reports` works where one of the benchmarks is started.
"""

import json
import os
import platform
from pathlib import Path

import keras
import tensorflow as tf
from absl import flags

import keras_mikd as mikd

# The flag belongs to the script that asks for it, and shows in its help.
flags.disclaim_key_flags()
FLAGS = flags.FLAGS


def define_output():
    flags.DEFINE_string("output", None, "JSON file to write the results to; it must not exist.")


def check_output():
    """Refuses before anything is measured what could not be written after it."""
    if FLAGS.output and Path(FLAGS.output).exists():
        raise SystemExit(f"Expected a new file. Received: --output={FLAGS.output}, which exists")


def write(results):
    if FLAGS.output:
        Path(FLAGS.output).write_text(json.dumps({"machine": machine(), **results}, indent=1))


def machine():
    gpus = tf.config.list_physical_devices("GPU")
    details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
    return {
        "cpus": os.cpu_count(),
        "architecture": platform.machine(),
        "system": platform.system(),
        "gpus": [detail.get("device_name") for detail in details],
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "keras_mikd": mikd.__version__,
    }

"""Every test process sees two logical CPU devices, and two of a GPU where there is one."""

import gc
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
# Tests compile often and run little: without LLVM's optimizations, XLA compiles in two thirds of
# the time. They are those of machine code; XLA's own passes over the graph stay on.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import keras
import pytest
import tensorflow as tf
from tensorflow.python.framework import config

GPUS = tf.config.list_physical_devices("GPU")
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
if GPUS:
    # Half a GPU each, for tests with two replicas; several test processes share the card.
    half = tf.config.LogicalDeviceConfiguration(memory_limit=4096)
    tf.config.set_logical_device_configuration(GPUS[0], [half] * 2)
    # Products of 10 bits would not keep the tolerances of float32.
    tf.config.experimental.enable_tensor_float_32_execution(False)


@pytest.fixture(autouse=True)
def _fresh_state():
    """Same seed, default precision and automatic names for every test."""
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy("float32")
    yield
    keras.utils.clear_session(free_memory=False)


@pytest.fixture(autouse=True, scope="module")
def _short_collections():
    """Later garbage collections leave out what a file leaves: its caches and compiled graphs."""
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def two_replicas():
    """The one mirrored strategy of a test process; a second one with collectives aborts."""
    kind = "GPU" if GPUS else "CPU"
    return tf.distribute.MirroredStrategy([f"{kind}:0", f"{kind}:1"])


@pytest.fixture
def deterministic_ops():
    """Deterministic kernels for one test; while they are on, Keras compiles nothing with XLA."""
    tf.config.experimental.enable_op_determinism()
    yield
    config.disable_op_determinism()

"""The flag `--strategy`: on which devices and hosts a script trains.

No script by itself: `import strategies` works where one of the scripts is started.
"""

import contextlib
import faulthandler
import json
import os
import sys

import tensorflow as tf
from absl import flags

import keras_mikd as mikd

STRATEGIES = ["none", "mirrored", "multi_worker", "tpu"]

# The flags that are defined below belong to the script that asks for them, and show in its help.
flags.disclaim_key_flags()
FLAGS = flags.FLAGS


def define_flags():
    flags.DEFINE_enum(
        "strategy", "none", STRATEGIES, "One device, all of this host, several hosts, or a TPU."
    )
    flags.DEFINE_integer(
        "logical_cpus", 1, "Devices to divide the CPU into, to try a strategy without GPUs.", 1
    )
    flags.DEFINE_string("tpu", "", "Address or name of the TPU; the local one if not given.")
    flags.DEFINE_float("worker_timeout", 300.0, "Seconds to wait for the other workers.", 1.0)


def check_flags():
    """Refuses what can be told before any device is looked at."""
    if FLAGS["tpu"].present and FLAGS.strategy != "tpu":
        raise SystemExit("--tpu is given and --strategy is not tpu")
    if FLAGS.logical_cpus > 1 and FLAGS.strategy != "mirrored":
        raise SystemExit(f"--logical_cpus is given and --strategy is {FLAGS.strategy}")
    if FLAGS.strategy == "multi_worker":
        cluster(os.environ.get("TF_CONFIG"))


def chosen():
    """Returns the strategy; to be called before anything else touches a device."""
    if FLAGS.logical_cpus > 1:
        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0],
            [tf.config.LogicalDeviceConfiguration()] * FLAGS.logical_cpus,
        )
    if FLAGS.strategy == "mirrored":
        return _checked(tf.distribute.MirroredStrategy(_devices()))
    if FLAGS.strategy == "multi_worker":
        workers, index = cluster(os.environ["TF_CONFIG"])
        try:
            with _time_out(workers):
                return _checked(tf.distribute.MultiWorkerMirroredStrategy())
        except tf.errors.OpError as error:
            raise SystemExit(
                f"TF_CONFIG: expected that worker {index} can listen at {workers[index]}, a free "
                f"port of its own host; {error.message}"
            ) from error
    if FLAGS.strategy == "tpu":
        try:
            resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=FLAGS.tpu)
            tf.config.experimental_connect_to_cluster(resolver)
            tf.tpu.experimental.initialize_tpu_system(resolver)
        except (ValueError, tf.errors.OpError) as error:
            raise SystemExit(f"--strategy=tpu: found no TPU; {error}") from error
        return _checked(tf.distribute.TPUStrategy(resolver))
    return tf.distribute.get_strategy()


def fits_everywhere(model, distiller=mikd.SelfDistiller):
    """Returns what trains a network alone under every strategy.

    Keras itself does not on several hosts, nor with batches that replicas do not divide evenly, and
    a detector's losses, which are sums, would count once for every replica.
    """
    return model if FLAGS.strategy == "none" else distiller(model, [])


def is_chief():
    """Whether this process writes what the script leaves."""
    return FLAGS.strategy != "multi_worker" or cluster(os.environ["TF_CONFIG"])[1] == 0


def _devices():
    gpus = tf.config.list_logical_devices("GPU")
    return [device.name for device in gpus or tf.config.list_logical_devices("CPU")]


def _checked(strategy):
    replicas = strategy.num_replicas_in_sync
    if FLAGS.batch_size is not None and FLAGS.batch_size < replicas:
        raise SystemExit(
            f"--batch_size: expected an example for each of the {replicas} replicas; got "
            f"{FLAGS.batch_size}"
        )
    return strategy


def cluster(text):
    """Returns the addresses of all workers and the index of this one, from a `TF_CONFIG`."""
    if not text:
        raise SystemExit(
            "--strategy=multi_worker: expected TF_CONFIG in the environment, as launch_workers.py "
            "sets it; got none"
        )
    try:
        config = json.loads(text)
        workers, task = config["cluster"]["worker"], config["task"]
        addresses = all(address.rpartition(":")[2].isdecimal() for address in workers)
        valid = addresses and task["type"] == "worker" and 0 <= task["index"] < len(workers)
    except (AttributeError, KeyError, TypeError, json.JSONDecodeError):
        valid = False
    if not valid:
        raise SystemExit(
            'TF_CONFIG: expected {"cluster": {"worker": ["host:port", ...]}, "task": {"type": '
            f'"worker", "index": k}}}} with a worker of index k; got {text}'
        )
    return workers, task["index"]


@contextlib.contextmanager
def _time_out(workers):
    """Ends this process if the others do not come; TensorFlow itself waits for an hour."""
    sys.stderr.write(
        f"Waiting for the workers {', '.join(workers)}: a time-out after {FLAGS.worker_timeout:g} "
        "s (--worker_timeout) says that not all of them came.\n"
    )
    # TensorFlow waits without releasing Python's lock, so that no thread of Python's could do it.
    faulthandler.dump_traceback_later(FLAGS.worker_timeout, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()

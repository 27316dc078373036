"""What a step sends between replicas and workers, what they cost, and the same on paper.

Measured: the bytes that a replica puts into collectives in one step of `fit`, counted in its graph
(traffic.py) and compared with the least possible, 4 bytes for every weight that is trained and for
every log; and the time of a step of the same global batch. Replicas are logical devices of one CPU
and workers are processes beside one another, so that no replica adds processors: the times say only
what the machinery of replication costs. The ratio is that of the processor time of all replicas,
which other programs disturb less.

On paper: the bytes that a device sends in a ring, the time they take, and the batch per device from
which a step computes for longer than it sends.

    python benchmarks/scaling.py --teacher=resnet20
    python benchmarks/scaling.py --replicas= --workers=             # on paper only
    python benchmarks/scaling.py --bandwidth=25 --devices=8,64,512
"""

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import tensorflow as tf
from absl import app, flags

import keras_mikd as mikd
import reports
import traffic
from keras_mikd import recipes
from methods import METHODS, by_itself, check_names, compiled, info_nce, offline

# TensorFlow mistakes several models for one that is traced again and again, and warns.
tf.get_logger().setLevel("ERROR")

FLAGS = flags.FLAGS
flags.DEFINE_string("teacher", "resnet32x4", "Network of keras_mikd.models.")
flags.DEFINE_string("student", "resnet8x4", "Network of keras_mikd.models.")
flags.DEFINE_integer("image_size", 32, "Height and width of an image.", 8)
flags.DEFINE_list("methods", [], "Names of methods, such as 'KD'; all of them if not given.")
flags.DEFINE_list("replicas", ["1", "2", "4"], "Logical devices under MirroredStrategy.")
flags.DEFINE_list("workers", ["1", "2"], "Processes under MultiWorkerMirroredStrategy.")
flags.DEFINE_integer("batch_size", 64, "Images of all replicas together; on paper, of a device.", 1)
flags.DEFINE_integer("steps", 4, "Steps of an epoch.", 1)
flags.DEFINE_integer("rounds", 5, "Epochs that are timed.", 1)
flags.DEFINE_list("devices", ["8", "256"], "On paper: devices.")
flags.DEFINE_float("bandwidth", 10.0, "On paper: GB/s that a device sends.", 0.0)
flags.DEFINE_float("tflops", 10.0, "On paper: 1e12 operations per second of a device.", 0.0)
flags.DEFINE_enum("child", None, ["mirrored", "multi_worker"], "Used by this script for itself.")
flags.DEFINE_integer("child_replicas", 1, "Likewise.")
flags.DEFINE_string("child_output", None, "Likewise.")
reports.define_output()

MEASURED = {
    "KD": METHODS["KD"],
    "VID": METHODS["VID"],
    "MIMKD": METHODS["MIMKD (no XLA)"],
    "InfoNCE (global)": METHODS["InfoNCE in the batch"],
    "InfoNCE (local)": offline(info_nce, gather=False),
    "MUSE": METHODS["MUSE (self)"],
    "MUSE (negatives of the batch)": by_itself(recipes.muse, negatives_from="batch"),
    "MUSE (local)": by_itself(recipes.muse, gather=False),
    "DML": METHODS["DML (two peers)"],
}
CLASSES = 100
LAUNCHER = Path(__file__).parents[1] / "examples" / "launch_workers.py"


def networks():
    """Returns the functions that make the teacher and the student."""
    shape = (FLAGS.image_size, FLAGS.image_size, 3)
    makers = [getattr(mikd.models, name) for name in (FLAGS.teacher, FLAGS.student)]
    return [lambda maker=maker: maker(CLASSES, shape) for maker in makers]


def chosen_methods():
    names = FLAGS.methods or list(MEASURED)
    check_names("methods", names, MEASURED)
    return {name: MEASURED[name] for name in names}


def weights(variables):
    return sum(math.prod(variable.shape) for variable in variables)


def strategy():
    if FLAGS.child == "multi_worker":
        return tf.distribute.MultiWorkerMirroredStrategy()
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0],
        [tf.config.LogicalDeviceConfiguration()] * FLAGS.child_replicas,
    )
    return tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(FLAGS.child_replicas)])


def measure(method, chosen):
    """Returns what a step of a method sends and takes."""
    keras.utils.set_random_seed(0)
    with chosen.scope():
        model = compiled(method.build(*networks()))
    counted = traffic.Traffic(model)
    shape = (FLAGS.batch_size, FLAGS.image_size, FLAGS.image_size, 3)
    example = keras.random.normal(shape), tf.range(FLAGS.batch_size) % CLASSES
    data = tf.data.Dataset.from_tensor_slices(example)
    data = data.batch(FLAGS.batch_size, drop_remainder=True).repeat(FLAGS.steps)
    history = model.fit(data, shuffle=False, verbose=0).history
    # Every worker has as many devices as this one.
    workers = chosen.num_replicas_in_sync // len(chosen.extended.worker_devices)
    wall, cpu = [], []
    for _ in range(FLAGS.rounds):
        starts = time.perf_counter(), time.process_time()
        model.fit(data, shuffle=False, verbose=0)
        wall.append((time.perf_counter() - starts[0]) * 1000 / FLAGS.steps)
        cpu.append((time.process_time() - starts[1]) * 1000 / FLAGS.steps)
    sent = next(iter(sorted(counted.by_device().items())), (None, []))[1]
    return {
        "weights": weights(model.trainable_variables),
        "teacher": weights(model.teacher.weights) if hasattr(model, "teacher") else 0,
        "logs": len(history),
        "wall_ms": statistics.median(wall),
        "cpu_ms": statistics.median(cpu) * workers,
        **{kind: sum(s.bytes for s in sent if s.kind == kind) for kind in traffic.KINDS},
    }


def child():
    """Measures every method on the devices of this process, and of other workers."""
    chosen = strategy()
    results = {name: measure(method, chosen) for name, method in chosen_methods().items()}
    # The replica, or the worker, that is looked at is the first.
    if FLAGS.child == "mirrored" or chosen.cluster_resolver.task_id == 0:
        Path(FLAGS.child_output).write_text(json.dumps(results))


def start(kind, count):
    """Measures with a number of replicas or workers, in processes of their own."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "results.json"
        command = [__file__, *sys.argv[1:], f"--child={kind}", f"--child_output={output}"]
        if kind == "mirrored":
            command += [f"--child_replicas={count}"]
        else:
            command = [LAUNCHER, f"--workers={count}", f"--output_dir={folder}", "--", *command]
        process = subprocess.run([sys.executable, *command], capture_output=True, text=True)
        if process.returncode:
            raise SystemExit(f"{kind}, {count}: {process.stdout}{process.stderr}")
        return json.loads(output.read_text())


def measured():
    """Prints and returns a row for every kind and number of replicas, and every method."""
    print(
        f"{FLAGS.teacher} -> {FLAGS.student}, {FLAGS.batch_size} images of all replicas together; "
        "bytes of the first replica\n"
        f"{'':20}{'weights':>10}{'reduced':>11}{'of least':>9}{'gathered':>10}{'copied':>8}"
        f"{'ms/step':>9}{'CPU ms':>8}{'of first':>9}"
    )
    rows = []
    for kind, counts in (("mirrored", FLAGS.replicas), ("multi_worker", FLAGS.workers)):
        first = {}
        for count in map(int, counts):
            print(f"{kind}, {count}", flush=True)
            for name, result in start(kind, count).items():
                row = {"kind": kind, "replicas": count, "method": name, **result}
                row["least"] = 4 * (row["weights"] + row["logs"])
                row["cpu_ratio"] = result["cpu_ms"] / first.setdefault(name, result)["cpu_ms"]
                print_row(row)
                rows.append(row)
    return rows


def print_row(row):
    reduced, gathered, copied = (row[kind] for kind in traffic.KINDS)
    print(
        f"  {row['method']:18}{row['weights']:10,}{reduced:11,}{reduced / row['least']:9.3f}"
        f"{gathered:10,}{copied:8,}{row['wall_ms']:9.0f}{row['cpu_ms']:8.0f}{row['cpu_ratio']:9.2f}",
        flush=True,
    )


def put_in(method_weights, channels, batch_size, devices, negatives):
    """Bytes that a device puts into all-reduces and into all-gathers, on paper.

    Negatives of other devices are features of the student, of all images, however many each is
    compared with. For a bound that couples examples, the scores are sent as well. All of that is
    gathered, and the gradients of all that was gathered are reduced.
    """
    numbers = {
        None: 0,
        "all": batch_size * channels,
        "scores": batch_size * (channels + devices * batch_size),
    }[negatives]
    return 4 * (method_weights + devices * numbers), 4 * numbers


def in_a_ring(reduced, gathered, devices):
    """Bytes that each device sends: its share twice around for a sum, its own once for a gather."""
    return 2 * (devices - 1) / devices * reduced + (devices - 1) * gathered


def operations(network):
    """Floating-point operations of the forward pass of one image."""
    step = tf.function(network).get_concrete_function(tf.TensorSpec((1, *network.input_shape[1:])))
    options = tf.compat.v1.profiler.ProfileOptionBuilder.float_operation()
    profile = tf.compat.v1.profiler.profile(step.graph, options={**options, "output": "none"})
    return profile.total_float_ops


def hidden(sent, seconds_per_image):
    """Batches per device, up to 4096, with which a step computes for longer than it sends."""
    fits = [b for b in range(1, 4097) if sent(b) / (1e9 * FLAGS.bandwidth) <= b * seconds_per_image]
    if not fits:
        return "never"
    return f"from {fits[0]}" if fits[-1] == 4096 else f"{fits[0]} to {fits[-1]}"


def on_paper():
    teacher, student = (make() for make in networks())
    # A backward pass is two forward ones: the gradients of the inputs and of the weights.
    of_image = operations(teacher) + 3 * operations(student)
    seconds = of_image / (1e12 * FLAGS.tflops)
    channels = mikd.stages(student)["pooled"].shape[-1]
    critic = METHODS["InfoNCE in the batch"].build(lambda: teacher, lambda: student)
    own, with_critic = weights(student.trainable_variables), weights(critic.trainable_variables)
    kinds = {
        "gradients of the student": (own, None),
        "critic, local negatives": (with_critic, None),
        "critic, global negatives": (with_critic, "all"),
        "the same, all scores sent": (with_critic, "scores"),
    }
    size = FLAGS.batch_size
    print(
        f"\nOn paper: {FLAGS.teacher} -> {FLAGS.student} ({own:,} weights), {channels} channels, "
        f"{size} images per device,\n{of_image / 1e9:.2f}e9 operations per image ("
        f"{1000 * size * seconds:.1f} ms per step at {FLAGS.tflops:g} TFLOP/s), "
        f"{FLAGS.bandwidth:g} GB/s\n"
        f"{'':40}{'MB sent':>9}{'ms':>9}  hidden with images per device"
    )
    rows = []
    for devices in map(int, FLAGS.devices):
        for name, (count, negatives) in kinds.items():

            def sent(batch_size, count=count, negatives=negatives, devices=devices):
                both = put_in(count, channels, batch_size, devices, negatives)
                return in_a_ring(*both, devices)

            row = {"devices": devices, "method": name, "bytes": sent(size)}
            row["milliseconds"] = row["bytes"] / (1e6 * FLAGS.bandwidth)
            row["hidden"] = hidden(sent, seconds)
            print(
                f"{devices:4} devices: {name:26}{row['bytes'] / 1e6:11.1f}"
                f"{row['milliseconds']:9.1f}  {row['hidden']}"
            )
            rows.append(row)
    return rows


def main(argv):
    del argv
    if FLAGS.child:
        return child()
    reports.check_output()
    chosen_methods()
    rows = measured() if FLAGS.replicas or FLAGS.workers else []
    used = FLAGS.get_key_flags_for_module(sys.modules[__name__])
    settings = {flag.name: flag.value for flag in used if "child" not in flag.name}
    reports.write({"settings": settings, "measured": rows, "on_paper": on_paper()})


if __name__ == "__main__":
    app.run(main)

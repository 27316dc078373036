"""Size and latency of the networks of `keras_mikd.models`, as `.tflite` files.

Every network is exported in float32 and in int8. All files are timed on one thread, round by round:
a latency is a file's median over that of the reference in the same round. Weights are random:
neither size nor time depends on them. A phone is another machine.

    python benchmarks/networks.py                          # all of them: about 10 minutes
    python benchmarks/networks.py --networks=resnet8,vgg8 --num_classes=10
"""

import inspect
import os
import statistics
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from absl import app, flags

import keras_mikd as mikd
import reports

FLAGS = flags.FLAGS
flags.DEFINE_list("networks", [], "Networks of keras_mikd.models; all if not given.")
flags.DEFINE_string("reference", "resnet8", "Network whose latency in float32 is 1.")
flags.DEFINE_integer("num_classes", 100, "Number of classes.", 2)
flags.DEFINE_integer("size", 32, "Height and width of an image.", 8)
flags.DEFINE_integer("rounds", 3, "How many times every file is timed.", 1)
flags.DEFINE_string(
    "folder", None, "Where files are kept; those that are there are not made again."
)
reports.define_output()


def classifiers():
    """Returns the names of the networks that classes and the shape of an image describe."""
    return [
        name
        for name, value in vars(mikd.models).items()
        if inspect.isfunction(value)
        and [p.name for p in inspect.signature(value).parameters.values()][:2]
        == ["num_classes", "input_shape"]
    ]


def export(name, folder):
    """Returns the number of weights of a network, and its files by their precision."""
    keras.utils.set_random_seed(0)
    network = getattr(mikd.models, name)(FLAGS.num_classes, (FLAGS.size, FLAGS.size, 3))
    images = np.random.default_rng(0).normal(size=(16, FLAGS.size, FLAGS.size, 3))
    calibrated = {"quantize": "int8", "calibrate_on": images.astype("float32")}
    files = {}
    for precision, options in (("float32", {}), ("int8", calibrated)):
        files[precision] = folder / f"{name}-{FLAGS.num_classes}-{FLAGS.size}-{precision}.tflite"
        if not files[precision].exists():
            mikd.export_tflite(network, files[precision], **options)
    return sum(int(np.prod(weight.shape)) for weight in network.trainable_weights), files


def time_in_turns(files, reference):
    """Returns the latency of every file over that of the reference, the median of all rounds."""
    ratios = {path: [] for path in files}
    for number in range(FLAGS.rounds):
        print(f"Timing {len(files)} files, round {number + 1} of {FLAGS.rounds}", flush=True)
        unit = milliseconds(reference)
        for path in files:
            ratios[path].append(milliseconds(path) / unit)
    return {path: statistics.median(values) for path, values in ratios.items()}


def milliseconds(path):
    (latency,) = mikd.measure_latency(path)
    return latency.median_ms


def measure(names, folder):
    """Returns the rows of the table: weights, sizes and latencies of every network."""
    exported = {}
    for number, name in enumerate(dict.fromkeys([FLAGS.reference, *names]), start=1):
        print(f"[{number}] exports {name}", flush=True)
        exported[name] = export(name, folder)
    paths = [path for name in names for path in exported[name][1].values()]
    latencies = time_in_turns(paths, exported[FLAGS.reference][1]["float32"])
    return [
        {
            "network": name,
            "weights": exported[name][0],
            "kilobytes": {k: path.stat().st_size / 1000 for k, path in exported[name][1].items()},
            "latency": {k: latencies[path] for k, path in exported[name][1].items()},
        }
        for name in names
    ]


def print_table(rows):
    print(f"\nImages of {FLAGS.size} x {FLAGS.size} x 3, {FLAGS.num_classes} classes.")
    print(f"Latency of one image on one thread, over that of {FLAGS.reference} in float32.")
    print(f"{'':18} {'weights':>11} {'float32 kB':>11} {'int8 kB':>9} {'latency':>8} {'int8':>6}")
    for row in rows:
        size, latency = row["kilobytes"], row["latency"]
        print(
            f"{row['network']:18} {row['weights']:>11,} {size['float32']:>11,.0f} "
            f"{size['int8']:>9,.0f} {latency['float32']:>8.2f} {latency['int8']:>6.2f}"
        )


def main(argv):
    del argv
    reports.check_output()
    names = FLAGS.networks or classifiers()
    if unknown := {*names, FLAGS.reference} - set(classifiers()):
        raise SystemExit(f"Expected some of {classifiers()}. Received: {sorted(unknown)}")
    with tempfile.TemporaryDirectory() as temporary:
        rows = measure(names, Path(FLAGS.folder or temporary))
    print_table(rows)
    settings = {"num_classes": FLAGS.num_classes, "size": FLAGS.size, "reference": FLAGS.reference}
    reports.write({**settings, "rows": rows})


if __name__ == "__main__":
    app.run(main)

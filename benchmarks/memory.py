"""Peak memory of training with every method, and the weights that only train.

Every number is the peak (resident set) of a process of its own, which builds the networks, trains a
few steps with `fit` and ends; what the imports alone take is subtracted. The batch grows, and so
does a data set that is generated as it is read: then the peak shall stay where it is, since nothing
is kept of an example after its step.

A method is compared with its reference (methods.py). Here, KD stands for the floor: it holds the
teacher, the student and nothing besides but their logits.

    python benchmarks/memory.py                                  # resnet32x4 -> resnet8x4
    python benchmarks/memory.py --methods="KD,VID" --batch_sizes=256

A process takes half a minute; all of them, most of an hour on two cores.
"""

import concurrent.futures
import multiprocessing
import os
import resource
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import tensorflow as tf
from absl import app, flags

import keras_mikd as mikd
import reports
from methods import EQUAL_SHAPES, FLOOR, METHODS, check_names, compiled, count, extra_weights

FLAGS = flags.FLAGS
flags.DEFINE_string("teacher", "resnet32x4", "Network of keras_mikd.models.")
flags.DEFINE_string("student", "resnet8x4", "Network of keras_mikd.models.")
flags.DEFINE_list("methods", [], "Names of methods, such as 'KD'; all of them if not given.")
flags.DEFINE_list("batch_sizes", ["32", "64", "128"], "Images in a batch.")
flags.DEFINE_integer("steps", 2, "Batches in a data set.", 1)
flags.DEFINE_integer("growth", 8, "How many times as many batches the large data set has.", 2)
flags.DEFINE_bool("quick", False, "Small networks and two methods, to see that everything runs.")
reports.define_output()

ALL = {**METHODS, **EQUAL_SHAPES}
CLASSES = 10
MIB = 2**20


def batches(image_shape, batch_size, steps):
    def batch(index):
        seed = tf.stack([0, index])
        x = tf.random.stateless_normal((batch_size, *image_shape), seed)
        # Every class occurs as soon as there are as many examples as classes; MCMI needs that.
        return x, (index * batch_size + tf.range(batch_size)) % CLASSES

    return tf.data.Dataset.range(steps, output_type="int32").map(batch)


def peak():
    """Most bytes that this process has held so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measure(name, teacher, student, image_shape, batch_size, steps):
    """Trains a few steps; to be called in a process of its own."""
    imports = peak()
    keras.utils.set_random_seed(0)
    networks = [getattr(mikd.models, network) for network in (teacher, student)]
    build = [lambda network=network: network(CLASSES, image_shape) for network in networks]
    model = compiled(ALL[name].build(*build))
    model.fit(batches(image_shape, batch_size, steps), shuffle=False, verbose=0)
    extra = extra_weights(model)
    trained = count(model.trainable_variables) - extra
    return {"weights": trained, "extra": extra, "bytes": peak() - imports, "imports": imports}


def in_new_process(*arguments):
    # Spawned, not forked: a fork has TensorFlow's threads missing and its parent's memory.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(measure, *arguments).result()


def reference(name):
    return "KD" if ALL[name].reference == FLOOR else ALL[name].reference


def print_header(columns):
    cells = [f"{column:>10}" for column in columns]
    print(f"{'':22}{'weights':>11}{'extra':>9}" + "".join(cells), end="")
    print(f"{'growth':>10}" + "".join(cells[:-1]) + "   in its reference")


def print_row(row):
    mib = [f"{value / MIB:10.0f}" for value in row["bytes"].values()]
    ratios = [f"{value:10.2f}" for value in (row["growth"], *row["ratios"].values())]
    print(f"{row['method']:22}{row['weights']:11,}{row['extra']:9,}", end="")
    print("".join(mib + ratios) + f"   {row['reference']}", flush=True)


def chosen_methods():
    names = FLAGS.methods or (["KD", "VID"] if FLAGS.quick else ALL)
    check_names("methods", names, ALL)
    # References first, because the rows of the others are compared with theirs.
    return dict.fromkeys([*map(reference, names), *names])


def main(argv):
    del argv
    reports.check_output()
    networks = (FLAGS.teacher, FLAGS.student, (32, 32, 3))
    sizes = [int(size) for size in FLAGS.batch_sizes]
    if FLAGS.quick:
        networks, sizes = ("resnet14", "digits_cnn", (8, 8, 1)), [16, 32]
    settings = {f"batch {size}": (size, FLAGS.steps) for size in sizes}
    first, large = next(iter(settings)), f"{FLAGS.growth}x data"
    settings[large] = (sizes[0], FLAGS.growth * FLAGS.steps)
    print(
        f"{networks[0]} -> {networks[1]}, images {networks[2]}, {FLAGS.steps} steps; {large}: "
        f"{FLAGS.growth} times as many, {first}. MiB, and growth = {large} / {first}"
    )
    print_header(list(settings))
    rows = {}
    for name in chosen_methods():
        results = {key: in_new_process(name, *networks, *each) for key, each in settings.items()}
        taken = {key: result["bytes"] for key, result in results.items()}
        row = {"method": name, "reference": reference(name), "bytes": taken}
        row |= {key: results[first][key] for key in ("weights", "extra", "imports")}
        row["growth"] = taken[large] / taken[first]
        of_reference = rows.get(row["reference"], row)["bytes"]
        row["ratios"] = {k: taken[k] / of_reference[k] for k in settings if k != large}
        rows[name] = row
        print_row(row)
    reports.write({"networks": networks, "steps": FLAGS.steps, "rows": list(rows.values())})


if __name__ == "__main__":
    app.run(main)

"""Where the time of an epoch of `fit` on the digits goes: reading, computing, Keras and Python.

Every number is of one training step, in milliseconds, the median over rounds in which all take
turns:

    input     reading a batch of the data set, alone
    step      the compiled training step, called with one batch that is in memory
    fit       `fit` over the data set, divided by its steps
    fit by N  the same with `steps_per_execution=N`

What `fit` takes beyond `step` is what a user could save; reading happens meanwhile on another
thread where there is a processor for it.

    python benchmarks/epoch_profile.py

Leave the machine alone meanwhile.
"""

import os
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import tensorflow as tf
from absl import app, flags, logging

import keras_mikd as mikd
import reports
from methods import METHODS, STUDENT, check_names, compiled

# TensorFlow mistakes several models for one that is traced again and again, and warns.
tf.get_logger().setLevel("ERROR")

FLAGS = flags.FLAGS
flags.DEFINE_list(
    "methods", [STUDENT, "KD", "VID", "MIMKD (no XLA)", "MUSE (self)"], "Some of methods.py."
)
flags.DEFINE_integer("steps_per_execution", 9, "Steps that Keras runs in one call.", 2)
flags.DEFINE_integer("batch_size", 25, "Images in a batch.", 1)
flags.DEFINE_integer("rounds", 7, "Epochs of every kind.", 1)
reports.define_output()


def teacher():
    return mikd.models.resnet14(10, (8, 8, 1))


def student():
    return mikd.models.resnet8(10, (8, 8, 1))


def fit(model, data):
    model.fit(data, epochs=1, shuffle=False, verbose=0)


def steps_in_memory(model, data, batch):
    batches = iter(tf.data.Dataset.from_tensors(batch).repeat())
    for _ in range(len(data)):
        model.train_function(batches)
    tf.test.experimental.sync_devices()


def read(data):
    for _ in data:
        pass


def measure(name, data, batch):
    """Returns the row of a method."""
    model, several = (
        compiled(METHODS[name].build(teacher, student), steps)
        for steps in (1, FLAGS.steps_per_execution)
    )
    kinds = {
        "input": lambda: read(data),
        "step": lambda: steps_in_memory(model, data, batch),
        "fit": lambda: fit(model, data),
        "fit by N": lambda: fit(several, data),
    }
    fit(model, data)  # Makes the step function.
    for run in kinds.values():
        run()
    times = {kind: [] for kind in kinds}
    for _ in range(FLAGS.rounds):
        for kind, run in kinds.items():
            start = time.perf_counter()
            run()
            times[kind].append(1000 * (time.perf_counter() - start) / len(data))
    return {kind: statistics.median(values) for kind, values in times.items()}


def main(argv):
    del argv
    logging.set_verbosity(logging.WARNING)  # TensorFlow Datasets tells every read.
    reports.check_output()
    check_names("methods", FLAGS.methods, METHODS)
    keras.utils.set_random_seed(0)
    data = mikd.datasets.load_digits(batch_size=FLAGS.batch_size, seed=0).train
    (batch,) = data.take(1)
    rows = {}
    kinds = ("input", "step", "fit", "fit by N")
    print(f"{'':20}" + "".join(f"{kind:>10}" for kind in kinds) + "  fit / step  by N / step")
    for name in FLAGS.methods:
        rows[name] = row = measure(name, data, batch)
        print(
            f"{name:20}" + "".join(f"{row[kind]:10.2f}" for kind in kinds),
            f" {row['fit'] / row['step']:10.3f} {row['fit by N'] / row['step']:12.3f}",
            flush=True,
        )
    print(
        f"\nMilliseconds of a step; {len(data)} steps of {FLAGS.batch_size} images in an epoch, "
        f"N = {FLAGS.steps_per_execution}."
    )
    reports.write({"steps_per_execution": FLAGS.steps_per_execution, "rows": rows})


if __name__ == "__main__":
    app.run(main)

"""What XLA brings or costs a critic, by kind, batch and width.

Measured alone: the scores, the bound and the gradients of everything that is trained, on two
feature maps of 4 x 4 places and 256 channels. Compiled and plain take turns, so that a machine that
slows down slows both. A ratio below 1 says that compiling makes a step shorter; what the first step
takes longer is the price, which is paid again for every new size of batch.

    python benchmarks/compiled_critics.py
    python benchmarks/compiled_critics.py --batches=64 --widths=128 --rounds=5

Leave the machine alone meanwhile; on two cores it takes minutes.
"""

import os
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import tensorflow as tf
from absl import app, flags

import keras_mikd as mikd
import reports
from keras_mikd.critics.critic import xla_scope

FLAGS = flags.FLAGS
flags.DEFINE_list("batches", ["16", "64", "256"], "Images in a batch.")
flags.DEFINE_list("widths", ["64", "128", "512"], "Widths of a critic.")
flags.DEFINE_integer("rounds", 15, "Steps of either kind.", 1)
reports.define_output()

MAP = (4, 4, 256)
CRITICS = {
    "concat, 1 negative": lambda width: {"critic": mikd.ConcatCritic(width=width)},
    "separable, 1 negative": lambda width: {"critic": mikd.SeparableCritic(width=width)},
    "separable, all negatives": lambda width: {
        "critic": mikd.SeparableCritic(width=width),
        "bound": mikd.bounds.info_nce,
        "negatives": "all",
    },
}


def step_of(options, batch, xla):
    """Returns a function that computes the gradients of a new critic."""
    loss = mikd.JSDCritic(teacher_layer="stage", student_layer="stage", **options)
    loss.build((None, *MAP), (None, *MAP))
    generator = tf.random.Generator.from_seed(0)
    teacher, student = (tf.Variable(generator.normal((batch, *MAP))) for _ in range(2))

    @tf.function
    def step():
        with xla_scope(xla), tf.GradientTape() as tape:
            value = tf.reduce_mean(loss(teacher, student, training=True))
        return tape.gradient(value, [student, *loss.trainable_variables])

    return step


def milliseconds(step):
    start = time.perf_counter()
    step()
    tf.test.experimental.sync_devices()
    return 1000 * (time.perf_counter() - start)


def measure(name, batch, width):
    """Returns the row of one critic at one size."""
    steps = {xla: step_of(CRITICS[name](width), batch, xla) for xla in (False, True)}
    first = {xla: milliseconds(step) for xla, step in steps.items()}
    times = {xla: [] for xla in steps}
    for _ in range(FLAGS.rounds):
        for xla, step in steps.items():
            times[xla].append(milliseconds(step))
    plain, compiled = (statistics.median(times[xla]) for xla in (False, True))
    return {
        "critic": name,
        "batch": batch,
        "width": width,
        "plain_ms": plain,
        "compiled_ms": compiled,
        "ratio": compiled / plain,
        "first_step_extra_s": (first[True] - first[False]) / 1000,
    }


def sizes(flag):
    """Returns the values of a list flag, which have to be integers above 1."""
    values = FLAGS[flag].value
    if not values or not all(value.isdecimal() and int(value) > 1 for value in values):
        raise SystemExit(
            f"Expected --{flag} to be integers above 1. Received: --{flag}={','.join(values)}"
        )
    return [int(value) for value in values]


def main(argv):
    del argv
    reports.check_output()
    batches, widths = sizes("batches"), sizes("widths")
    keras.utils.set_random_seed(0)
    print(
        f"{'critic':25} {'batch':>5} {'width':>5} {'plain ms':>9} {'XLA ms':>9} {'ratio':>6}  first"
    )
    rows = []
    for name in CRITICS:
        for batch in batches:
            for width in widths:
                row = measure(name, batch, width)
                rows.append(row)
                print(
                    f"{name:25} {batch:5} {width:5} {row['plain_ms']:9.2f} "
                    f"{row['compiled_ms']:9.2f} {row['ratio']:6.3f}  "
                    f"{row['first_step_extra_s']:+.1f} s",
                    flush=True,
                )
    print("\nratio: a compiled step over a plain one. first: what its first step takes longer.")
    reports.write({"rows": rows})


if __name__ == "__main__":
    app.run(main)

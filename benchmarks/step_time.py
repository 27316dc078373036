r"""Cost of a training step of every method, as a multiple of what distillation cannot do without.

The floor (1.00) is one hand-written graph: the teacher's forward pass with its stage outputs, and
the student's plain training step (forward, cross-entropy, gradients, SGD with momentum). Every step
is one compiled function called with the same batch in memory. The variants take turns in every
round, so that a machine that slows down slows all of them, and the floor takes part twice: how far
`floor, again` is from 1.00 shows the noise of the run. A method without a teacher is also compared
with the plain step of what it trains: one student, two, or the teacher itself (methods.py). Losses
of tokens are compared with those of the same maps.

    python benchmarks/step_time.py                          # both pairs, every method
    python benchmarks/step_time.py --critics --pair=cifar   # what each design of critic adds
    python benchmarks/step_time.py --losses --pair=cifar    # every other loss with a teacher
    python benchmarks/step_time.py --against=torch --methods=KD,VID --pair=cifar
    python benchmarks/step_time.py --dtype_policy=mixed_bfloat16 --steps_per_execution=8
    python benchmarks/step_time.py --pair=cifar --methods=KD,VID,MIMKD --batch_sizes=64,256,1024 \
        --xla=on                                            # on a GPU: few variants compile faster

The one before the last computes everything, the floor too, in mixed precision, and runs eight steps
in one call of every method; the floor takes its steps one by one. `--xla` decides about the whole
step of every variant, the floor's too; with `auto`, Keras compiles it on a GPU and not on a CPU.
`--against=torch` adds KD and VID as RepDistiller takes their steps (torch_steps.py), run eagerly
and by `torch.compile`, in a process of a Python that has PyTorch, `--torch_python`. Their last
column says how many times longer than ours they take.

Leave the machine alone meanwhile; on two cores it takes minutes.
"""

import contextlib
import functools
import json
import os
import random
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import tensorflow as tf
from absl import app, flags

import keras_mikd as mikd
import reports
from keras_mikd import recipes
from methods import (
    EQUAL_SHAPES,
    FLOOR,
    LOSSES,
    METHODS,
    SAME_CHANNELS,
    STAGES,
    TOKENS,
    check_names,
    compiled,
    extra_weights,
    offline,
)

# TensorFlow mistakes several models for one that is traced again and again, and warns.
tf.get_logger().setLevel("ERROR")

FLAGS = flags.FLAGS
flags.DEFINE_enum("pair", "both", ["digits", "cifar", "both"], "Teacher and student to measure.")
flags.DEFINE_bool("critics", False, "Measure designs of MIMKD's critics instead of methods.")
flags.DEFINE_bool("losses", False, "Measure every other loss with a teacher instead of methods.")
flags.DEFINE_list("methods", [], "Some of methods.py; all of them if not given.")
flags.DEFINE_enum(
    "dtype_policy",
    "float32",
    ["float32", "mixed_float16", "mixed_bfloat16"],
    "Precision of all networks, that of the floor too.",
)
flags.DEFINE_list("batch_sizes", [], "Images in a batch, each in turn; those of the pair if none.")
flags.DEFINE_enum("xla", "auto", ["auto", "on", "off"], "Whether XLA compiles the whole step.")
flags.DEFINE_enum("against", "none", ["none", "torch"], "What else to measure, if it is there.")
flags.DEFINE_string("torch_python", sys.executable, "A Python that has PyTorch.")
flags.DEFINE_integer("steps_per_execution", 1, "Steps in one call of every method.", 1)
flags.DEFINE_integer("rounds", 15, "Rounds, in each of which every variant takes its turn.", 1)
flags.DEFINE_bool("quick", False, "One round of one step, to see that everything runs.")
reports.define_output()

CONTROL = "floor, again"


class Pair(NamedTuple):
    """What is measured: networks, data and the length of a turn."""

    teacher: str
    student: str
    image_shape: tuple
    classes: int
    batch_size: int
    steps: int  # Of a turn; more of them where a step is short.


PAIRS = {
    "digits": Pair("resnet14", "digits_cnn", (8, 8, 1), 10, 50, 20),
    "cifar": Pair("resnet32x4", "resnet8x4", (32, 32, 3), 100, 64, 1),
}


def mimkd(xla=True, **options):
    """The levels of MIMKD whose weights are given."""
    off = {"global_weight": 0.0, "local_weight": 0.0, "feature_weight": 0.0}
    return offline(recipes.mimkd, xla_critics=xla, **{**off, **options})


def critic_designs():
    """Each level of MIMKD alone, then the feature level with one setting changed at a time."""
    variants = {
        "MIMKD": METHODS["MIMKD"],
        "global": mimkd("auto", global_weight=0.2),
        "local": mimkd("auto", local_weight=0.8),
        "feature": mimkd("auto", feature_weight=0.8),
    }
    for name, critic in (("concat", mikd.ConcatCritic), ("separable", mikd.SeparableCritic)):
        designs = [(width, 4, True) for width in (64, 128, 256, 512)]
        designs += [(128, grid, True) for grid in (1, 2, 8, None)] + [(128, 4, False)]
        for width, grid, xla in designs:
            label = f"feature: {name}, width {width}, grid {grid}{'' if xla else ', no XLA'}"
            design = {"make_critic": functools.partial(critic, width=width), "grid": grid}
            variants[label] = mimkd(xla, feature_weight=1.0, **design)
    return variants


def keras_step(model):
    compiled(model, FLAGS.steps_per_execution, _jit_compile()).make_train_function()
    return model.train_function


def _jit_compile():
    return {"auto": "auto", "on": True, "off": False}[FLAGS.xla]


def floor_step(teacher, student):
    outputs = [teacher.get_layer(name).output for name in STAGES]
    teacher = keras.Model(teacher.inputs, [*outputs, teacher.output])
    compiled(student, jit_compile=_jit_compile())
    student.optimizer.build(student.trainable_variables)

    @tf.function(jit_compile=student.jit_compile)
    def train(x, y):
        features = teacher(x, training=False)
        with tf.GradientTape() as tape:
            loss = student.optimizer.scale_loss(student.loss(y, student(x, training=True)))
        gradients = tape.gradient(loss, student.trainable_variables)
        student.optimizer.apply(gradients, student.trainable_variables)
        return loss, features  # What is returned cannot be pruned from the graph.

    @tf.function
    def step(iterator):
        return train(*iterator.get_next())

    return step


def build_steps(pair, variants, other=None):
    """Returns the variants' steps, functions of an iterator, and their losses' own weights.

    Both are dicts by name; the floor has no such weights. Steps of an `InPyTorch` take nothing.
    """

    def teacher():
        return getattr(mikd.models, pair.teacher)(pair.classes, pair.image_shape)

    def student():
        return getattr(mikd.models, pair.student)(pair.classes, pair.image_shape)

    steps = {name: floor_step(teacher(), student()) for name in (FLOOR, CONTROL)}
    extra = {}
    for name, method in variants.items():
        model = method.build(teacher, student)
        steps[name], extra[name] = keras_step(model), extra_weights(model)
    for name, (asked, _) in IN_PYTORCH.items() if other else ():
        steps[name] = functools.partial(other.seconds, asked)
        extra[name] = other.extra_weights(asked)
    return steps, extra


# name -> what torch_steps.py is asked for, and what it is compared with.
IN_PYTORCH = {
    f"{method} in PyTorch, {how}": (f"{method} {how}", reference)
    for method, reference in (("KD", "KD"), ("VID", "VID (RepDistiller's head)"))
    for how in ("eager", "compiled")
}


class InPyTorch:
    """The process of torch_steps.py, for a pair of networks; `with` ends it."""

    def __init__(self, pair):
        script = Path(__file__).with_name("torch_steps.py")
        names = pair.teacher, pair.student
        depths = [re.fullmatch(r"resnet(\d+)x4", name)[1] for name in names]
        self._process = subprocess.Popen(
            [FLAGS.torch_python, script, *depths, str(pair.classes), str(pair.batch_size)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

    def extra_weights(self, asked):
        """Returns how many weights the losses have; the first step compiles."""
        return self._step(asked)[2]

    def seconds(self, asked):
        """Takes a step; returns its wall and processor time."""
        return self._step(asked)[:2]

    def _step(self, asked):
        try:
            print(asked, file=self._process.stdin, flush=True)
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise SystemExit(
                "Expected PyTorch in the Python of --torch_python. "
                f"Received: --torch_python={FLAGS.torch_python}, which stopped; see above."
            )
        return json.loads(answer)


def check_against():
    """Refuses what cannot be measured against PyTorch, and shares the GPU with it."""
    if FLAGS.against == "none":
        return
    if FLAGS.pair != "cifar" or FLAGS.dtype_policy != "float32":
        raise SystemExit(
            "Expected --against=torch with --pair=cifar --dtype_policy=float32. "
            f"Received: --pair={FLAGS.pair} --dtype_policy={FLAGS.dtype_policy}"
        )
    for gpu in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(gpu, True)


def chosen(methods):
    """Returns the methods of `--methods` and what they are compared with."""
    names = [name for name in methods if name in FLAGS.methods or not FLAGS.methods]
    wanted = {*names, *(methods[name].reference for name in names)}
    if FLAGS.against == "torch":
        wanted |= {reference for _, reference in IN_PYTORCH.values()}
    return {name: method for name, method in methods.items() if name in wanted}


def endless_batch(pair):
    generator = tf.random.Generator.from_seed(0)
    x = generator.normal((pair.batch_size, *pair.image_shape))
    y = generator.uniform((pair.batch_size,), 0, pair.classes, "int32")
    return iter(tf.data.Dataset.from_tensors((x, y)).repeat())


def measure(steps, batches, rounds, steps_per_turn):
    """Returns `{name: (wall, CPU) seconds of each step}`, in a new order of turns every round.

    Where a call takes several steps, they share its time.
    """
    times = {name: [] for name in steps}
    turns = list(steps)
    order = random.Random(0)
    for _ in range(rounds):
        order.shuffle(turns)
        for name in turns:
            for _ in range(steps_per_turn):
                times[name].append(timed(name, steps[name], batches))
    return times


def timed(name, step, batches):
    """Returns the wall and the processor time of a step, in seconds."""
    if name in IN_PYTORCH:
        return tuple(step())
    wall, cpu = time.perf_counter(), time.process_time()
    step(batches)
    tf.test.experimental.sync_devices()
    seconds = time.perf_counter() - wall, time.process_time() - cpu
    taken = 1 if name in (FLOOR, CONTROL) else FLAGS.steps_per_execution
    return tuple(each / taken for each in seconds)


def summarize(times, variants, extra):
    """Returns a row for each variant: milliseconds, their ratios to the floor's and its own."""
    rows, medians = [], {}
    for name, pairs in times.items():
        wall, cpu = ([1000 * seconds for seconds in kind] for kind in zip(*pairs, strict=True))
        row = {"median_ms": statistics.median(wall), "min_ms": min(wall)}
        row["cpu_ms"] = statistics.median(cpu)
        floor = rows[0] if rows else row
        ratios = {f"{key}_ratio": value / floor[key] for key, value in row.items()}
        medians[name] = row["median_ms"]
        own = {"steps": len(wall), "extra_weights": extra.get(name, 0)}
        rows.append({"variant": name, **own, **row, **ratios})
    for row in rows:
        name = row["variant"]
        reference = FLOOR
        if name in variants:
            reference = variants[name].reference
        elif name in IN_PYTORCH:
            reference = IN_PYTORCH[name][1]
        row["reference"], row["reference_ratio"] = reference, medians[name] / medians[reference]
    return rows


def run_pair(pair, variants):
    rounds, steps_per_turn = (1, 1) if FLAGS.quick else (FLAGS.rounds, pair.steps)
    print(
        f"\n{pair.teacher} -> {pair.student}, {pair.image_shape}, batch {pair.batch_size}: "
        f"compiling {len(variants) + 2} variants, then {rounds} rounds of {steps_per_turn} steps",
        flush=True,
    )
    with InPyTorch(pair) if FLAGS.against == "torch" else contextlib.nullcontext() as other:
        (steps, extra), batches = build_steps(pair, variants, other), endless_batch(pair)
        for _ in range(1 if FLAGS.quick else 3):
            for name, step in steps.items():
                timed(name, step, batches)
        rows = summarize(measure(steps, batches, rounds, steps_per_turn), variants, extra)
    print_table(rows)
    return {**pair._asdict(), "rounds": rounds, "steps_per_turn": steps_per_turn, "rows": rows}


def print_table(rows):
    width = max(len(row["variant"]) for row in rows)
    print(f"\n{'':{width}} {'milliseconds':>28} {'in floors':>25}")
    names = ("median", "min", "CPU")
    print(f"{'variant':{width}} " + "".join(f"{n:>9}" for n in names) + "  ", end="")
    print("".join(f"{n:>8}" for n in names) + "  median, in its reference")
    for row in rows:
        keys = ("median_ms", "min_ms", "cpu_ms")
        print(f"{row['variant']:{width}} " + "".join(f"{row[key]:9.2f}" for key in keys), end="  ")
        print("".join(f"{row[f'{key}_ratio']:8.3f}" for key in keys), end="  ")
        print(f"{row['reference_ratio']:6.3f}  {row['reference']}")


def sized(name):
    """Returns `{name: Pair}` of a pair with every batch size that was asked for."""
    try:
        sizes = [int(size) for size in FLAGS.batch_sizes]
    except ValueError:
        sizes = [0]
    if any(size < 1 for size in sizes):
        raise SystemExit(f"Expected --batch_sizes=64,256. Received: {FLAGS.batch_sizes}")
    pair = PAIRS[name]
    return {f"{name}, batch {size}": pair._replace(batch_size=size) for size in sizes} or {
        name: pair
    }


def main(argv):
    del argv
    reports.check_output()
    known = {**METHODS, **TOKENS, **EQUAL_SHAPES}
    check_names("methods", FLAGS.methods or known, known)
    if FLAGS.critics + FLAGS.losses + bool(FLAGS.methods) > 1:
        raise SystemExit("Expected one of --critics, --losses and --methods. Received: several")
    check_against()
    pairs = {name: sized(name) for name in PAIRS}
    keras.config.set_dtype_policy(FLAGS.dtype_policy)
    keras.utils.set_random_seed(0)
    results = {}
    for name in PAIRS if FLAGS.pair == "both" else [FLAGS.pair]:
        methods = {**METHODS, **TOKENS, **(EQUAL_SHAPES if name == "cifar" else {})}
        designs = critic_designs() if FLAGS.critics else chosen(methods)
        losses = {**LOSSES, **(SAME_CHANNELS if name == "cifar" else {})}
        variants = losses if FLAGS.losses else designs
        results.update((key, run_pair(pair, variants)) for key, pair in pairs[name].items())
    print(
        "\nmedian, min: wall time of a step. CPU: median of the processor time of all threads, "
        "which other\nprograms disturb less. A method adds its ratio to its reference less 1."
    )
    settings = {name: FLAGS[name].value for name in ("dtype_policy", "xla", "steps_per_execution")}
    reports.write({**settings, "pairs": results})


if __name__ == "__main__":
    app.run(main)

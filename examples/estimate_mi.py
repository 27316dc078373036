"""Estimates mutual information that is known, and prints how far every bound is from it.

The data are two Gaussian vectors, correlated element by element, whose mutual information (MI) has
a closed form. A critic is trained on fresh pairs with the Jensen-Shannon objective and read out, on
pairs it has not seen, with the Donsker-Varadhan (DV) and the NWJ bound; another one is trained and
read out with InfoNCE. The whole table takes about four minutes on two cores:

    python examples/estimate_mi.py

and rows of your own choice, kept with the estimate of every seed:

    python examples/estimate_mi.py --dimensions=20 --nats=5,10 --output=mi.json

A cell is `estimate +- standard error +- spread verdict`, in nats: the mean over the seeds, the
standard error that the finite number of held-out pairs leaves it with, and the standard error seen
between the seeds, training included. The verdicts:

    ok    within 15 % or 0.1 nats of the truth
    low   a lower bound, but a loose one: the critic has not learned the density ratio
    cap   InfoNCE with K negatives never exceeds log(K + 1), and the truth does
    HIGH  above the truth by more than 3 standard errors, which no lower bound should be

Where to expect `low`: at a large MI per dimension (10 nats in dimension 1: this critic cannot draw
so narrow a ridge) and in a high dimension (8 nats in dimension 100: it needs more than 1000 steps).
An estimate near the logarithm of the number of product pairs rests on a handful of them, and
neither it nor its standard error can be relied on: no lower bound can be confirmed far beyond that
(McAllester and Stratos, arXiv:1811.04251).
"""

import json
import math
import os
import statistics
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags
from keras import ops

import keras_mikd as mikd

FLAGS = flags.FLAGS
flags.DEFINE_list("dimensions", "1,5,20", "Elements of each of the two vectors.")
flags.DEFINE_list("nats", "0.5,2,5", "True mutual information.")
flags.DEFINE_integer("steps", 1000, "Training steps of a critic, 128 fresh pairs each.", 1)
flags.DEFINE_integer("seeds", 3, "Critics for every cell: seeds 0, 1, ... of data and weights.", 1)
flags.DEFINE_bool("quick", False, "One row, one seed, 300 steps: shows that it runs.")
flags.DEFINE_string("output", None, "JSON file for the table and the estimate of every seed.")

QUICK = {"dimensions": ["5"], "nats": ["2"], "steps": 300, "seeds": 1}
OBJECTIVES = {"jsd": mikd.bounds.jsd, "info_nce": mikd.bounds.info_nce}
READOUTS = {"jsd": ("DV", "NWJ"), "info_nce": ("InfoNCE",)}
TRAINING_NEGATIVES = 7
HELD_OUT_NEGATIVES = 63
HELD_OUT_BATCHES, HELD_OUT_BATCH_SIZE = 64, 512
CAP = math.log(HELD_OUT_NEGATIVES + 1)


class CriticTraining(keras.Model):
    """Minimises the loss of a `JSDCritic` on the pairs it is called with."""

    def __init__(self, loss):
        super().__init__()
        self.loss_layer = loss

    def call(self, pairs):
        losses = self.loss_layer(*pairs)
        self.add_loss(ops.mean(losses))
        return losses


def draw_pairs(rng, count, dimension, nats):
    """Returns two arrays of shape `(count, dimension)` whose rows share `nats` nats."""
    correlation = mikd.bounds.gaussian_correlation(nats, dimension)
    first, noise = rng.standard_normal((2, count, dimension), dtype="float32")
    return first, correlation * first + math.exp(-nats / dimension) * noise


def train_critic(objective, rng, dimension, nats):
    """Returns a score network that was trained on `FLAGS.steps` batches of fresh pairs."""
    loss = mikd.JSDCritic(
        bound=OBJECTIVES[objective],
        critic=mikd.ConcatCritic(width=64),
        negatives=TRAINING_NEGATIVES,
    )
    model = CriticTraining(loss)
    rate = keras.optimizers.schedules.CosineDecay(5e-3, FLAGS.steps)
    model.compile(keras.optimizers.Adam(rate), steps_per_execution=min(10, FLAGS.steps))
    pairs = draw_pairs(rng, 128 * FLAGS.steps, dimension, nats)
    model.fit(list(pairs), batch_size=128, shuffle=False, verbose=0)
    return loss.critic


def read_out(critic, rng, dimension, nats):
    """Returns `{bound: (estimate, standard error)}` on fresh pairs.

    Batches are independent, so their means give the standard error, although the pairs of a batch
    share examples; that of DV follows by linearising its logarithm.
    """
    donsker_varadhan = mikd.MutualInformation()

    @tf.function
    def batch_means(teacher, student):
        joint, product = critic(teacher, student, first=0, negatives=HELD_OUT_NEGATIVES)
        donsker_varadhan.update_state(joint, product)
        nwj = mikd.bounds.nwj(joint, product, log_ratio=True)
        return [ops.mean(x) for x in (joint, nwj, mikd.bounds.info_nce(joint, product))]

    means = []
    for _ in range(HELD_OUT_BATCHES):
        teacher, student = draw_pairs(rng, HELD_OUT_BATCH_SIZE, dimension, nats)
        means.append(np.array(batch_means(teacher[:, None], student[:, None]), "float64"))
    joint, nwj, info_nce = np.transpose(means)
    exp_product = joint + 1.0 - nwj
    linearised = joint - exp_product / exp_product.mean()
    return {
        "DV": (float(donsker_varadhan.result()), standard_error(linearised)),
        "NWJ": (float(nwj.mean()), standard_error(nwj)),
        "InfoNCE": (float(info_nce.mean()), standard_error(info_nce)),
    }


def standard_error(values):
    return statistics.stdev(map(float, values)) / math.sqrt(len(values))


def estimate(dimension, nats):
    """Returns the cells of a row: `{bound: {"runs": [(estimate, standard error), ...], ...}}`."""
    runs = {bound: [] for bounds in READOUTS.values() for bound in bounds}
    for seed in range(FLAGS.seeds):
        for objective, bounds in READOUTS.items():
            keras.utils.set_random_seed(seed)
            rng = np.random.default_rng(seed)
            critic = train_critic(objective, rng, dimension, nats)
            result = read_out(critic, rng, dimension, nats)
            for bound in bounds:
                runs[bound].append(result[bound])
            keras.utils.clear_session()
    return {bound: summarize(bound, nats, values) for bound, values in runs.items()}


def summarize(bound, truth, runs):
    estimates, errors = zip(*runs, strict=True)
    mean = statistics.fmean(estimates)
    error = math.hypot(*errors) / len(runs)
    return {
        "estimate": mean,
        "standard_error": error,
        "spread": standard_error(estimates) if len(runs) > 1 else None,
        "verdict": judge(bound, truth, mean, error),
        "runs": [list(run) for run in runs],
    }


def judge(bound, truth, value, error):
    if value > truth + 3.0 * error:
        return "HIGH"
    if abs(value - truth) <= max(0.15 * truth, 0.1):
        return "ok"
    return "cap" if bound == "InfoNCE" and truth > CAP else "low"


def show(cell):
    spread = "   -  " if cell["spread"] is None else f"{cell['spread']:.3f}"
    return (
        f"{cell['estimate']:6.3f} +- {cell['standard_error']:.3f} +- {spread} {cell['verdict']:<4}"
    )


def print_header():
    product_pairs = HELD_OUT_BATCHES * HELD_OUT_BATCH_SIZE * HELD_OUT_NEGATIVES
    print(
        f"{FLAGS.steps} training steps, {FLAGS.seeds} seed(s); read out on "
        f"{HELD_OUT_BATCHES * HELD_OUT_BATCH_SIZE:,} held-out true pairs and {product_pairs:,} "
        f"product pairs (logarithm {math.log(product_pairs):.1f})\n"
    )
    titles = ("JSD critic, DV", "JSD critic, NWJ", f"InfoNCE critic, at most {CAP:.2f}")
    print("dim  truth  " + "  ".join(f"{title:<30}" for title in titles).rstrip())


def print_footer(table):
    excess = max(
        (value - row["nats"]) / error
        for row in table
        for bounds in READOUTS.values()
        for bound in bounds
        for value, error in row[bound]["runs"]
    )
    print(f"\nThe highest of all runs, against the truth: {excess:+.1f} of its standard errors")


def check_flags():
    if FLAGS.quick:
        for name, value in QUICK.items():
            if FLAGS[name].present:
                raise SystemExit(f"--{name}: --quick sets it; leave one of the two out")
            FLAGS[name].value = value
    if not FLAGS.dimensions or not all(t.isdecimal() and int(t) > 0 for t in FLAGS.dimensions):
        raise SystemExit(f"--dimensions: expected positive integers; got {FLAGS.dimensions}")
    least = min(map(int, FLAGS.dimensions))
    if not FLAGS.nats or not all(0.0 < to_number(t) <= 10.0 * least for t in FLAGS.nats):
        raise SystemExit(
            "--nats: expected positive numbers, at most 10 per dimension, beyond which float32 "
            f"cannot hold the correlation; got {FLAGS.nats} in dimension {least}"
        )
    if FLAGS.output is not None:
        check_output(Path(FLAGS.output))


def to_number(text):
    try:
        return float(text)
    except ValueError:
        return math.nan


def check_output(path):
    if path.exists():
        raise SystemExit(f"--output: {path} exists and is kept; name another file")
    if not path.parent.is_dir():
        raise SystemExit(f"--output: there is no folder {path.parent}")


def main(argv):
    del argv
    check_flags()
    print_header()
    table = []
    for dimension in map(int, FLAGS.dimensions):
        for nats in map(float, FLAGS.nats):
            cells = estimate(dimension, nats)
            table.append({"dimension": dimension, "nats": nats, **cells})
            row = "  ".join(show(cell) for cell in cells.values())
            print(f"{dimension:3d}  {nats:5.2f}  {row.rstrip()}", flush=True)
    print_footer(table)
    if FLAGS.output is not None:
        flags_used = {name: FLAGS[name].value for name in QUICK}
        Path(FLAGS.output).write_text(json.dumps({"flags": flags_used, "rows": table}, indent=2))


if __name__ == "__main__":
    app.run(main)

"""Estimates mutual information that is known, and prints how far every bound is from it.

The data are two Gaussian vectors, correlated element by element, whose mutual information (MI) has
a closed form. A critic is trained on fresh pairs with the Jensen-Shannon objective. It is read out,
on pairs it has not seen, with the Donsker-Varadhan (DV) and the NWJ bound. Another one is trained
and read out with InfoNCE. The whole table takes about four minutes on two cores:

    python experiments/estimate_mi.py --output_dir=runs/mi

and rows of your own choice:

    python experiments/estimate_mi.py --output_dir=runs/mi --dimensions=20 --nats=5,10

Real features are no correlated Gaussians, and there are only so many of them. The tasks of
known_information.py have other forms, heavy tails and 25 dimensions. A critic learns from half of
the pairs until the information in the other half falls. It is read out, as `<name>_mi_nats` is in
a distiller, on fresh pairs:

    python experiments/estimate_mi.py --output_dir=runs/mi --seeds=1 --tasks=all
    python experiments/estimate_mi.py --output_dir=runs/mi --tasks=student_1,sparse_25

A cell is `estimate +- standard error +- spread verdict`, in nats: the mean over the seeds, the
standard error that the finite number of held-out pairs leaves it with, and the standard error seen
between the seeds, training included. The verdicts:

    ok    within 15 % or 0.1 nats of the truth
    low   a lower bound, but a loose one: the critic has not learned the density ratio
    cap   InfoNCE with K negatives never exceeds log(K + 1), and the truth does
    HIGH  above the truth by more than 3 standard errors, which no lower bound should be

Where to expect `low`: at a large MI per dimension (10 nats in dimension 1: this critic cannot draw
so narrow a ridge) and in a high dimension (8 nats in dimension 100: it needs more than 1000 steps).
An estimate near the logarithm of the number of product pairs rests on a handful of them. Neither it
nor its standard error can be relied on: no lower bound can be confirmed far beyond that
(McAllester and Stratos, arXiv:1811.04251).
"""

import functools
import math
import statistics
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags
from keras import ops

import keras_mikd as mikd
import known_information
import protocol
import results

FLAGS = flags.FLAGS
flags.DEFINE_string("output_dir", None, "Folder for results.json.", required=True)
flags.DEFINE_list("dimensions", "1,5,20", "Elements of each of the two vectors.")
flags.DEFINE_list("nats", "0.5,2,5", "True mutual information, at most 10 per dimension.")
flags.DEFINE_integer("steps", 1000, "Training steps of a critic, 128 fresh pairs each.", 1)
flags.DEFINE_integer("seeds", 3, "Critics for every cell: seeds 0, 1, ... of data and weights.", 1)
flags.DEFINE_list("tasks", [], "Instead of the table, tasks of known_information.py, or `all`.")
flags.DEFINE_integer("pairs", 10_000, "Pairs of a task; half of them end the training.", 256)
flags.DEFINE_integer("fresh_pairs", 128_000, "Pairs that a task is read out on.", 256)

OBJECTIVES = {"jsd": mikd.bounds.jsd, "info_nce": mikd.bounds.info_nce}
READOUTS = {"jsd": ("DV", "NWJ"), "info_nce": ("InfoNCE",)}
BOUNDS = ("DV", "NWJ", "InfoNCE")
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


def train_critic(objective, rng, dimension, nats, steps):
    """Returns a score network that was trained on as many batches of fresh pairs."""
    loss = mikd.JSDCritic(
        bound=OBJECTIVES[objective],
        critic=mikd.ConcatCritic(width=64),
        negatives=TRAINING_NEGATIVES,
    )
    model = CriticTraining(loss)
    rate = keras.optimizers.schedules.CosineDecay(5e-3, steps)
    model.compile(keras.optimizers.Adam(rate), steps_per_execution=min(10, steps))
    pairs = draw_pairs(rng, 128 * steps, dimension, nats)
    model.fit(list(pairs), batch_size=128, shuffle=False, verbose=0)
    return loss.critic


def scores(critic, teacher, student):
    """Returns the scores of the true pairs, and of every teacher with the next students."""
    teacher, student = critic.embed_teacher(teacher), critic.embed_student(student)
    others = [ops.roll(student, -k, axis=0) for k in range(1, HELD_OUT_NEGATIVES + 1)]
    return critic.score(teacher, student), critic.score(teacher[:, None], ops.stack(others, axis=1))


def read_out(critic, rng, dimension, nats):
    """Returns `{bound: (estimate, standard error)}` on fresh pairs.

    Batches are independent, so their means give the standard error, although the pairs of a batch
    share examples; that of DV follows by linearising its logarithm.
    """
    donsker_varadhan = mikd.MutualInformation()

    @tf.function
    def batch_means(teacher, student):
        joint, product = scores(critic, teacher, student)
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


def estimate(steps, folder, dimension, nats, seed):
    """Returns `{bound: [estimate, standard error]}` of one seed."""
    found = {}
    for objective, bounds in READOUTS.items():
        keras.utils.set_random_seed(seed)
        rng = np.random.default_rng(seed)
        critic = train_critic(objective, rng, dimension, nats, steps)
        values = read_out(critic, rng, dimension, nats)
        found |= {bound: list(values[bound]) for bound in bounds}
        keras.utils.clear_session()
    return found


def summarize(bound, truth, runs):
    """Returns the cell of a bound, out of `(estimate, standard error)` of every seed."""
    estimates, errors = zip(*runs, strict=True)
    mean = statistics.fmean(estimates)
    error = math.hypot(*errors) / len(runs)
    return {
        "estimate": mean,
        "standard_error": error,
        "spread": standard_error(estimates) if len(runs) > 1 else None,
        "verdict": judge(bound, truth, mean, error),
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


def print_header(steps, seeds):
    product_pairs = HELD_OUT_BATCHES * HELD_OUT_BATCH_SIZE * HELD_OUT_NEGATIVES
    print(
        f"{steps} training steps, {seeds} seed(s); read out on "
        f"{HELD_OUT_BATCHES * HELD_OUT_BATCH_SIZE:,} held-out true pairs and {product_pairs:,} "
        f"product pairs (logarithm {math.log(product_pairs):.1f})\n"
    )
    titles = ("JSD critic, DV", "JSD critic, NWJ", f"InfoNCE critic, at most {CAP:.2f}")
    print("dim  truth  " + "  ".join(f"{title:<30}" for title in titles).rstrip())


def print_row(dimension, nats, runs):
    cells = (summarize(bound, nats, [run[bound] for run in runs]) for bound in BOUNDS)
    text = "  ".join(map(show, cells))
    print(f"{dimension:3d}  {nats:5.2f}  {text.rstrip()}", flush=True)


def highest(runs):
    """Returns how far the highest estimate is above the truth, in its standard errors."""
    return max(
        (value - run["nats"]) / error for run in runs for value, error in map(run.get, BOUNDS)
    )


def estimate_task(pairs, fresh_pairs, folder, task, seed):
    """Returns the truth, the estimate on fresh pairs, its standard error and its limit."""
    keras.utils.set_random_seed(seed)
    rng, known = np.random.default_rng(seed), known_information.TASKS[task]
    drawn = [x.astype("float32") for x in known.draw(rng, pairs)]
    loss = mikd.JSDCritic(
        critic=mikd.ConcatCritic(width=64), negatives=TRAINING_NEGATIVES, name="critic"
    )
    model = CriticTraining(loss)
    model.compile(keras.optimizers.AdamW(2e-3, weight_decay=1e-2), steps_per_execution=10)
    until_it_falls = keras.callbacks.EarlyStopping(
        "val_critic_mi_nats", mode="max", patience=8, restore_best_weights=True
    )
    model.fit(
        [x[: pairs // 2] for x in drawn],
        batch_size=128,
        epochs=60,
        validation_data=([x[pairs // 2 :] for x in drawn],),
        validation_batch_size=512,
        callbacks=[until_it_falls],
        verbose=0,
    )
    fresh = [x.astype("float32") for x in known.draw(rng, fresh_pairs)]
    seen = model.evaluate(fresh, batch_size=512, verbose=0, return_dict=True)
    keras.utils.clear_session()
    names = {"estimate": "", "standard_error": "_se", "limit": "_limit"}
    read = {key: float(seen[f"critic_mi_nats{end}"]) for key, end in names.items()}
    return {"nats": float(known.nats), **read}


def run_tasks(tasks):
    """Prints every task: its truth, and the mean of the seeds with its standard error."""
    kept = results.Results(
        Path(FLAGS.output_dir) / "tasks", pairs=FLAGS.pairs, fresh_pairs=FLAGS.fresh_pairs
    )
    one = functools.partial(estimate_task, FLAGS.pairs, FLAGS.fresh_pairs)
    print(f"{'task':<16}  truth  estimate +- standard error +- spread of {FLAGS.seeds} seed(s)")
    for task in tasks:
        runs = [kept.run(one, task=task, seed=seed) for seed in range(FLAGS.seeds)]
        cell = summarize(
            "DV", runs[0]["nats"], [(r["estimate"], r["standard_error"]) for r in runs]
        )
        print(f"{task:<16}  {runs[0]['nats']:5.3f}  {show(cell)}", flush=True)
    print(f"\nEvery run: {kept.path}")


def checked_tasks(names):
    tasks = list(known_information.TASKS) if names == ["all"] else names
    if unknown := sorted(set(tasks) - known_information.TASKS.keys()):
        raise SystemExit(
            f"Expected --tasks of {', '.join(known_information.TASKS)}, or all. Received: "
            f"--tasks={','.join(unknown)}"
        )
    return tasks


def check_pairs(dimensions, nats):
    if max(nats) > 10 * min(dimensions):
        raise SystemExit(
            "Expected --nats of at most 10 per dimension, beyond which float32 cannot hold the "
            f"correlation. Received: --nats={max(nats):g} in dimension {min(dimensions)}"
        )


def main(argv):
    del argv
    if FLAGS.tasks:
        run_tasks(checked_tasks(FLAGS.tasks))
        return
    dimensions = protocol.numbers("dimensions", FLAGS.dimensions, int)
    nats = protocol.numbers("nats", FLAGS.nats)
    check_pairs(dimensions, nats)
    kept = results.Results(FLAGS.output_dir, steps=FLAGS.steps)
    print_header(FLAGS.steps, FLAGS.seeds)
    one = functools.partial(estimate, FLAGS.steps)
    table = []
    for row in [{"dimension": d, "nats": n} for d in dimensions for n in nats]:
        runs = [kept.run(one, **row, seed=seed) for seed in range(FLAGS.seeds)]
        print_row(**row, runs=runs)
        table += runs
    excess = highest(table)
    print(f"\nThe highest of all runs, against the truth: {excess:+.1f} of its standard errors")
    print(f"Every run: {kept.path}")


if __name__ == "__main__":
    app.run(main)

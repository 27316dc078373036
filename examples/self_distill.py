r"""Trains a network that teaches its own layers, with every discrepancy, and prints one table.

There is no teacher: a loss draws the early stages of the network to its last layer. With 10
labelled digits per class:

    python examples/self_distill.py --output_dir=runs/self-10 --labels_per_class=10 --seeds=5

The methods:

    plain                the network by itself
    byot                 be your own teacher: classifiers on the early stages
    hint, at, vid        regression, attention maps, Gaussian heads, to the last stage
    jsd                  Jensen-Shannon critics of every stage with the pooled vector: the mutual
                         information of MUSE without its self-information
    muse_additive        MUSE (a reconstruction): mutual plus self-information of every stage
    muse_multiplicative  MUSE (a reconstruction): their product

Every weight is trained; the one that is best on the validation split is reported on the test split.
Writes to `<output_dir>`: `results.json` (every network, after every row) and TensorBoard logs under
`logs/`.
"""

import functools
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
from absl import app, flags, logging

import keras_mikd as mikd
import scripts
import strategies
import students


def plain(network, weight):
    return strategies.fits_everywhere(network)


def byot(network, weight):
    *early, last = students.stages(network)
    loss = mikd.BeYourOwnTeacher(
        teacher_layer=[last, "output"], student_layer=early, weight=weight, name="byot"
    )
    return mikd.SelfDistiller(network, [loss])


def to_last_stage(loss, network, weight, **options):
    """Matches every stage before the last one with it."""
    *early, last = students.stages(network)
    losses = [
        loss(teacher_layer=last, student_layer=place, weight=weight, name=place, **options)
        for place in early
    ]
    return mikd.SelfDistiller(network, losses)


def jsd(network, weight):
    losses = [
        mikd.JSDCritic(
            teacher_layer="pooled",
            student_layer=place,
            critic=mikd.SeparableCritic(),
            negatives_from=FLAGS.negatives_from,
            weight=weight,
            name=place,
        )
        for place in students.stages(network)
    ]
    return mikd.SelfDistiller(network, losses)


def muse(combine, network, weight):
    return mikd.MUSEDistiller(
        network, muse_weight=weight, combine=combine, negatives_from=FLAGS.negatives_from
    )


METHODS = {
    "plain": plain,
    "byot": byot,
    "hint": functools.partial(to_last_stage, mikd.Hint),
    "at": functools.partial(to_last_stage, mikd.AttentionTransfer),
    "vid": functools.partial(to_last_stage, mikd.GaussianVIDHead, initial_variance=0.3),
    "jsd": jsd,
    "muse_additive": functools.partial(muse, "additive"),
    "muse_multiplicative": functools.partial(muse, "multiplicative"),
}
WEIGHTS = {
    "byot": [0.1, 0.3, 1.0],
    "hint": [0.1, 1.0, 10.0],
    "at": [1.0, 10.0, 100.0],
    "vid": [0.1, 0.3, 1.0],
    "jsd": [0.3, 1.0, 3.0],
    "muse_additive": [0.3, 1.0, 3.0],
    "muse_multiplicative": [0.3, 1.0, 3.0],
}

FLAGS = flags.FLAGS
scripts.define_flags()
scripts.define_comparison(METHODS)
flags.DEFINE_enum(
    "negatives_from",
    "other_classes",
    ["other_classes", "batch"],
    "Which images jsd and muse tell an image from: those of other classes, or any others.",
)


def train(protocol, method, weight, seed, logs):
    """Returns the numbers of one network."""
    keras.utils.set_random_seed(seed)
    data = scripts.few_labels(protocol, seed)
    model = METHODS[method](students.new_student(protocol, data), weight)
    optimizer = protocol.optimizer(protocol.learning_rate, protocol.epochs * len(data.train))
    return students.run(model, data, optimizer=optimizer, epochs=protocol.epochs, logs=logs)


def check_flags():
    scripts.check_comparison(METHODS, WEIGHTS)
    contrasting = [m for m in FLAGS.methods if m.startswith(("jsd", "muse"))]
    if FLAGS["negatives_from"].present and not contrasting:
        raise SystemExit("--negatives_from is given and neither jsd nor muse is among --methods")


def main(argv):
    del argv
    logging.set_verbosity(logging.WARNING)  # TensorFlow Datasets tells every read.
    check_flags()
    protocol = scripts.protocol()
    with strategies.chosen().scope():
        run(protocol)


def run(protocol):
    Path(FLAGS.output_dir).mkdir(parents=True, exist_ok=True)
    print(f"{protocol}, {FLAGS.labels_per_class or 'all'} labels per class", flush=True)
    rows = scripts.compare(functools.partial(train, protocol), WEIGHTS)
    scripts.print_comparison(
        rows,
        "plain",
        "gain: points above the plain network. nats, on the validation split: *_mutual_nats and\n"
        "*_self_nats are estimates that cannot exceed *_ceiling_nats; with negatives of other\n"
        "classes neither they nor *_mi_nats are information. MUSE is a reconstruction.",
    )


if __name__ == "__main__":
    app.run(main)

r"""Trains a network that teaches its own layers, with every discrepancy: one table.

There is no teacher: a loss draws the early stages of the network to its last layer. With 10
labelled digits per class:

    python experiments/self_distillation.py --output_dir=runs/self-10 --seeds=5

The methods:

    plain                the network by itself
    byot                 be your own teacher: classifiers on the early stages
    hint, at, vid        regression, attention maps, Gaussian heads, to the last stage
    jsd                  Jensen-Shannon critics of every stage with the pooled vector: the mutual
                         information of MUSE without its self-information
    muse_additive        MUSE (a reconstruction): mutual plus self-information of every stage
    muse_multiplicative  MUSE (a reconstruction): their product

Every weight is trained. The one that is best on the validation split is reported on the test split.
Writes what offline.py writes.
"""

import functools

from absl import app, flags, logging

import keras_mikd as mikd
import protocol
import results
from keras_mikd import recipes

WEIGHTS = {
    "byot": [0.1, 0.3, 1.0],
    "hint": [0.1, 1.0, 10.0],
    "at": [1.0, 10.0, 100.0],
    "vid": [0.1, 0.3, 1.0],
    "jsd": [0.3, 1.0, 3.0],
    "muse_additive": [0.3, 1.0, 3.0],
    "muse_multiplicative": [0.3, 1.0, 3.0],
}
METHODS = ["plain", *WEIGHTS]
NOTE = """\
gain: points above the plain network. weights: the network's, + those that only train.
nats, on the validation split: *_mutual_nats and *_self_nats are estimates that cannot
exceed *_ceiling_nats. With negatives of other classes, neither they nor *_mi_nats are
information. MUSE is a reconstruction."""

FLAGS = flags.FLAGS
protocol.define_flags()
protocol.define_comparison(METHODS)
flags.DEFINE_enum(
    "negatives_from",
    "other_classes",
    ["other_classes", "batch"],
    "Which images jsd and muse tell an image from: those of other classes, or any others.",
)


def losses(method, network, weight, negatives_from):
    """Returns the losses of a method."""
    both = (network, network)
    contrast = {"weight": weight, "negatives_from": negatives_from}
    return {
        "byot": lambda: recipes.be_your_own_teacher(*both, weight=weight),
        "hint": lambda: recipes.hint(*both, weight=weight, pairs=recipes.stage_pairs(*both)),
        "at": lambda: recipes.attention_transfer(*both, weight=weight),
        "vid": lambda: recipes.vid(*both, stage_weight=weight, initial_variance=0.3),
        "jsd": lambda: recipes.stage_critics(*both, **contrast),
        "muse_additive": lambda: recipes.muse(*both, combine="additive", **contrast),
        "muse_multiplicative": lambda: recipes.muse(*both, combine="multiplicative", **contrast),
    }[method]()


def train(settings, negatives_from, folder, method, weight, seed):
    """Returns the numbers of one network."""

    def build(network):
        if method == "plain":
            return protocol.alone(network)
        return mikd.SelfDistiller(network, losses(method, network, weight, negatives_from))

    return protocol.train(build, settings, seed, folder)


def main(argv):
    del argv
    logging.set_verbosity(logging.WARNING)  # TensorFlow Datasets tells every read.
    settings = protocol.chosen(FLAGS, labels_per_class=FLAGS.labels_per_class or None)
    negatives = FLAGS.negatives_from
    rows = protocol.cells(FLAGS.methods, WEIGHTS, METHODS, FLAGS.weights)
    protocol.check_choice(settings, "weights", protocol.most_weights(rows))
    with protocol.STRATEGIES[FLAGS.strategy]().scope():
        kept = results.Results(
            FLAGS.output_dir, protocol=settings.settings(), negatives_from=negatives
        )
        print(f"Networks: {settings}, {FLAGS.labels_per_class or 'all'} labels per class")
        one = functools.partial(train, settings, negatives)
        results.compare(kept, rows, range(FLAGS.seeds), one, "plain", NOTE)


if __name__ == "__main__":
    app.run(main)

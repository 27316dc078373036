r"""Trains networks that teach one another, beside the same ones trained alone: one table.

With 10 labelled digits per class, two networks of one kind:

    python experiments/online.py --output_dir=runs/online-10 --seeds=5

or of different kinds:

    python experiments/online.py --output_dir=runs/peers --student=resnet8 --peer=resnet14

The methods:

    alone     every network by itself
    dml       deep mutual learning: every network learns the predictions of the others
    dml_muse  the same at weight 1, and MUSE (a reconstruction) between their features

The weight, of the predictions or of MUSE, that is best on the validation split is reported on the
test split. Accuracies are means over the networks, milliseconds are of a step of all of them.
Writes to `<output_dir>`: `results.json` (every run, every network) and a folder of TensorBoard logs
for every run.
"""

import functools
import statistics

import keras
from absl import app, flags, logging

import keras_mikd as mikd
import protocol
import results
from keras_mikd import recipes

WEIGHTS = {"dml": [0.3, 1.0, 3.0], "dml_muse": [0.3, 1.0, 3.0]}
METHODS = ["alone", *WEIGHTS]
NOTE = """\
Accuracies are means over the networks. gain: points above the same ones alone.
nats, on the validation split: *_mutual_nats and *_self_nats are estimates that cannot
exceed *_ceiling_nats, and no information: negatives are of other classes.
MUSE is a reconstruction."""

FLAGS = flags.FLAGS
protocol.define_flags()
protocol.define_comparison(METHODS)
flags.DEFINE_multi_enum(
    "peer",
    None,
    protocol.NETWORKS,
    "Network trained with the student, once for each; another of its kind if not given.",
)


def together(method, weight, peers):
    """Returns the distiller of peers that share what the method says."""
    losses = dml(weight if method == "dml" else 1.0)
    if method == "dml_muse":
        fewest_stages = min(peers, key=lambda peer: len(mikd.pair_stages(peer, peer)))
        losses += recipes.muse(fewest_stages, fewest_stages, weight=weight)
    return mikd.MutualDistiller(peers, losses)


def dml(weight):
    return [mikd.SoftTargets(temperature=1.0, weight=weight, name="dml")]


def train(settings, kinds, folder, method, weight, seed):
    """Returns the numbers of the networks of one seed."""
    keras.utils.set_random_seed(seed)
    data = protocol.load_data(settings, seed)
    peers = [protocol.new_student(settings, data, kind) for kind in kinds]
    alone = method == "alone"
    models = [protocol.alone(p) for p in peers] if alone else [together(method, weight, peers)]
    milliseconds = [
        protocol.fit(model, data, settings, folder / f"model{i}")[1]
        for i, model in enumerate(models, start=1)
    ]
    validation, test = (
        [model.evaluate(split, verbose=0, return_dict=True) for model in models]
        for split in (data.validation, data.test)
    )
    weights = sum(peer.count_params() for peer in peers)
    return {
        "validation": statistics.mean(accuracies(validation)),
        "test": statistics.mean(accuracies(test)),
        "test_by_network": accuracies(test),
        "milliseconds": sum(milliseconds),
        "nats": {k: v for k, v in validation[0].items() if k.endswith("_nats")},
        "weights": weights,
        "training_only_weights": sum(model.count_params() for model in models) - weights,
    }


def accuracies(evaluations):
    """Returns the accuracy of every network in per cent, out of what `evaluate` returned."""
    return [100 * v for values in evaluations for k, v in values.items() if k.endswith("accuracy")]


def main(argv):
    del argv
    logging.set_verbosity(logging.WARNING)  # TensorFlow Datasets tells every read.
    settings = protocol.chosen(FLAGS, labels_per_class=FLAGS.labels_per_class or None)
    kinds = [settings.student, *(FLAGS.peer or [settings.student])]
    rows = protocol.cells(FLAGS.methods, WEIGHTS, METHODS, FLAGS.weights)
    protocol.check_choice(settings, "weights", protocol.most_weights(rows))
    with protocol.STRATEGIES[FLAGS.strategy]().scope():
        kept = results.Results(FLAGS.output_dir, protocol=settings.settings(), networks=kinds)
        print(
            f"{' and '.join(kinds)}: {settings}, {FLAGS.labels_per_class or 'all'} labels per class"
        )
        one = functools.partial(train, settings, kinds)
        results.compare(kept, rows, range(FLAGS.seeds), one, "alone", NOTE)


if __name__ == "__main__":
    app.run(main)

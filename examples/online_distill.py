r"""Trains networks that teach one another, and prints one table beside the same ones trained alone.

With 10 labelled digits per class, two networks of one kind:

    python examples/online_distill.py --output_dir=runs/online-10 --labels_per_class=10 --seeds=5

or of different kinds:

    python examples/online_distill.py --output_dir=runs/peers --student=resnet8 --peer=resnet14

The methods:

    alone     every network by itself
    dml       deep mutual learning: every network learns the predictions of the others
    dml_muse  the same at weight 1, and MUSE (a reconstruction) between their features

The weight, of the predictions or of MUSE, that is best on the validation split is reported on the
test split. Accuracies are means over the networks; milliseconds are of a step of all of them.
Writes to `<output_dir>`: `results.json` (every run, every network) and TensorBoard logs under
`logs/`.
"""

import dataclasses
import functools
import os
import statistics
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
from absl import app, flags, logging

import keras_mikd as mikd
import scripts
import strategies
import students

WEIGHTS = {"dml": [0.3, 1.0, 3.0], "dml_muse": [0.3, 1.0, 3.0]}
METHODS = ["alone", *WEIGHTS]

FLAGS = flags.FLAGS
scripts.define_flags()
scripts.define_comparison(METHODS)
flags.DEFINE_list(
    "peer", None, "Network(s) trained with the student; another of its kind if not given."
)


def new_peers(protocol, data):
    """Returns the untrained networks."""
    kinds = [protocol.student, *(FLAGS.peer or [protocol.student])]
    return [
        students.new_student(dataclasses.replace(protocol, student=kind), data) for kind in kinds
    ]


def together(method, weight, peers):
    """Returns the distiller of peers that share what the method says."""
    dml = mikd.SoftTargets(temperature=1.0, weight=weight if method == "dml" else 1.0, name="dml")
    if method == "dml":
        return mikd.MutualDistiller(peers, [dml])
    fewest_stages = min(peers, key=lambda peer: len(students.stages(peer)))
    return mikd.MutualDistiller(peers, [dml, students.muse(fewest_stages, weight)])


def train(protocol, method, weight, seed, logs):
    """Returns the numbers of the networks of one seed."""
    keras.utils.set_random_seed(seed)
    data = scripts.few_labels(protocol, seed)
    peers = new_peers(protocol, data)
    alone = method == "alone"
    models = (
        [strategies.fits_everywhere(peer) for peer in peers]
        if alone
        else [together(method, weight, peers)]
    )
    step_times = [students.StepTime() for _ in models]
    for i, (model, step_time) in enumerate(zip(models, step_times, strict=True), start=1):
        steps = protocol.epochs * len(data.train)
        students.train(
            model,
            data,
            optimizer=protocol.optimizer(protocol.learning_rate, steps),
            epochs=protocol.epochs,
            logs=logs / f"peer{i}" if alone else logs,
            callbacks=[step_time],
        )
    validation, test = (
        [model.evaluate(split, verbose=0, return_dict=True) for model in models]
        for split in (data.validation, data.test)
    )
    return {
        "validation": statistics.mean(accuracies(validation)),
        "test": statistics.mean(accuracies(test)),
        "test_by_network": accuracies(test),
        "milliseconds": sum(step_time.median() for step_time in step_times),
        "nats": {k: v for k, v in validation[0].items() if k.endswith("_nats")},
    }


def accuracies(evaluations):
    """Returns the accuracy of every network in per cent, out of what `evaluate` returned."""
    return [100 * v for values in evaluations for k, v in values.items() if k.endswith("accuracy")]


def check_flags():
    scripts.check_comparison(METHODS, WEIGHTS)
    for network in FLAGS.peer or []:
        if network not in students.NETWORKS:
            raise SystemExit(f"--peer: expected {', '.join(students.NETWORKS)}; got {network!r}")
        scripts.check_network("peer", network)


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
    print(f"trained with {', '.join(FLAGS.peer or ['another of its kind'])}", flush=True)
    rows = scripts.compare(functools.partial(train, protocol), WEIGHTS)
    scripts.print_comparison(
        rows,
        "alone",
        "Accuracies are means over the networks. gain: points above the same ones alone.\n"
        "nats, on the validation split: *_mutual_nats and *_self_nats are estimates that cannot\n"
        "exceed *_ceiling_nats, and no information: negatives are of other classes.\n"
        "MUSE is a reconstruction.",
    )


if __name__ == "__main__":
    app.run(main)

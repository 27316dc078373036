r"""Trains networks that teach one another, and prints one table beside the same ones trained alone.

With 10 labelled digits per class, two networks of one kind, and two of different kinds:

    python examples/online_distill.py --output_dir=runs/online
    python examples/online_distill.py --output_dir=runs/unlike --peers=resnet8,resnet14

The methods:

    alone     every network by itself
    dml       deep mutual learning: every network learns the predictions of the others
    dml_muse  the same, and MUSE (a reconstruction) between their features

Their weights are in `METHODS`. Writes to `<output_dir>`: `results.json`, TensorBoard logs, and
`student.keras`, the network that is best on the validation split.
"""

import json
import os
import statistics
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import tensorflow as tf
from absl import app, flags, logging

import keras_mikd as mikd


def dml(weight):
    return mikd.SoftTargets(temperature=1.0, weight=weight, name="dml")


def muse(peers, weight):
    """MUSE of the stages that all peers have towards the pooled vector of each other one."""
    fewest_stages = min(peers, key=lambda peer: len(mikd.stages(peer)))
    return mikd.recipes.muse(fewest_stages, fewest_stages, weight=weight)


# Each method is a function of the list of networks that returns the models to fit.
METHODS = {
    "alone": lambda peers: [mikd.SelfDistiller(peer, []) for peer in peers],
    "dml": lambda peers: [mikd.MutualDistiller(peers, [dml(3.0)])],
    "dml_muse": lambda peers: [mikd.MutualDistiller(peers, [dml(1.0), *muse(peers, 1.0)])],
}
STRATEGIES = {
    "none": tf.distribute.get_strategy,
    "mirrored": tf.distribute.MirroredStrategy,
    "multi_worker": tf.distribute.MultiWorkerMirroredStrategy,  # See launch_workers.py.
    "tpu": lambda: tf.distribute.TPUStrategy(
        tf.distribute.cluster_resolver.TPUClusterResolver.connect("")
    ),
}

FLAGS = flags.FLAGS
flags.DEFINE_string("output_dir", None, "Folder for everything that is written.", required=True)
flags.DEFINE_string("dataset", "digits", "Digits, or a data set of TFDS, to train on.")
flags.DEFINE_string("data_dir", None, "Folder of TensorFlow Datasets; its default if not given.")
flags.DEFINE_integer("labels_per_class", 10, "Training images of each class; 0 for all.", 0)
flags.DEFINE_list("peers", "resnet8,resnet8", "Networks of keras_mikd.models, at least two.")
flags.DEFINE_list("methods", list(METHODS), "Some of: " + ", ".join(METHODS))
flags.DEFINE_float("learning_rate", 1e-2, "First learning rate; it falls to 0 as a cosine.", 0.0)
flags.DEFINE_integer("epochs", 150, "Epochs of a network.", 1)
flags.DEFINE_integer("batch_size", 25, "Images in a batch.", 1)
flags.DEFINE_integer("seed", 0, "Seed of weights, labels and order, the same for all methods.", 0)
flags.DEFINE_enum("strategy", "none", list(STRATEGIES), "Devices to train on.")


def fit(model, data, learning_rate, epochs, logs):
    rate = keras.optimizers.schedules.CosineDecay(learning_rate, epochs * len(data.train))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate), loss, metrics=["accuracy"])
    model.fit(
        data.train,
        validation_data=data.validation,
        validation_freq=max(1, epochs // 20),
        epochs=epochs,
        shuffle=False,  # The data shuffles itself.
        verbose=0,
        callbacks=[mikd.TensorBoard(logs, write_graph=False)],
    )


def evaluate(models, dataset):
    """Returns the accuracy of every network in per cent, and the read-outs in nats."""
    logs = [model.evaluate(dataset, verbose=0, return_dict=True) for model in models]
    named = [item for each in logs for item in each.items()]
    accuracies = [100 * value for name, value in named if name.endswith("accuracy")]
    return accuracies, {name: value for name, value in named if name.endswith("_nats")}


def print_table(rows, peers):
    means = {row["method"]: statistics.mean(row["test"]) for row in rows}
    names = "".join(f"{peer:>10}" for peer in peers)
    print(f"\nAccuracy on the test split, %\n{'method':10}{names}{'mean':>8}{'gain':>8}")
    for row in rows:
        mean = means[row["method"]]
        cells = "".join(f"{accuracy:10.2f}" for accuracy in row["test"])
        gain = mean - means.get("alone", float("nan"))
        print(f"{row['method']:10}{cells}{mean:8.2f}{gain:+8.2f}")
        for name, nats in row["nats"].items():
            print(f"    {name} {nats:.2f}")


def main(_):
    logging.set_verbosity(logging.WARNING)  # TensorFlow Datasets logs every read.
    output = Path(FLAGS.output_dir)
    for name in ("results.json", "student.keras", "logs"):
        if (output / name).exists():
            raise SystemExit(f"Expected a new --output_dir. Received: {output / name} exists.")
    if not METHODS.keys() >= set(FLAGS.methods):
        raise SystemExit(f"Expected --methods of {list(METHODS)}. Received: {FLAGS.methods}.")
    load = mikd.datasets.loader(FLAGS.dataset)
    options = {"batch_size": FLAGS.batch_size, "seed": FLAGS.seed, "data_dir": FLAGS.data_dir}
    strategy = STRATEGIES[FLAGS.strategy]()
    with strategy.scope():
        rows, networks = [], []
        for method in FLAGS.methods:
            print(f"{method}: {FLAGS.epochs} epochs", flush=True)
            keras.utils.set_random_seed(FLAGS.seed)
            data = load(labels_per_class=FLAGS.labels_per_class or None, **options)
            kinds = [getattr(mikd.models, peer) for peer in FLAGS.peers]
            peers = [kind(data.num_classes, data.image_shape) for kind in kinds]
            models = METHODS[method](peers)
            for i, model in enumerate(models, start=1):
                logs = output / "logs" / method / f"model{i}"
                fit(model, data, FLAGS.learning_rate, FLAGS.epochs, logs)
            validation, nats = evaluate(models, data.validation)
            test, _ = evaluate(models, data.test)
            rows.append({"method": method, "validation": validation, "test": test, "nats": nats})
            networks += zip(validation, peers, strict=True)
    if strategy.cluster_resolver and strategy.cluster_resolver.task_id:
        return  # Of several workers, the first one writes.
    print_table(rows, FLAGS.peers)
    accuracy, best = max(networks, key=lambda each: each[0])
    best.save(output / "student.keras")
    (output / "results.json").write_text(json.dumps(rows, indent=1))
    print(
        f"\nBest on the validation split ({accuracy:.2f} %): {output}/student.keras\n"
        f"Curves: tensorboard --logdir {output}/logs\n"
        f"Next: python examples/export_student.py --student={output}/student.keras"
    )


if __name__ == "__main__":
    app.run(main)

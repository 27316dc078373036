r"""Trains a network that teaches its own layers, with every discrepancy, and prints one table.

There is no teacher: a loss draws the early stages of the network to its last layers. With 10
labelled digits per class:

    python examples/self_distill.py --output_dir=runs/self

The methods:

    plain   the network by itself
    byot    be your own teacher: classifiers on the early stages
    hint    regression of the last stage from each early one
    at      attention maps of the last stage
    vid     Gaussian heads to the last stage
    jsd     Jensen-Shannon critics of every stage with the pooled vector
    muse    MUSE (a reconstruction): the same information times the self-information of each stage

Their weights are in `METHODS`. Writes to `<output_dir>`: `results.json`, TensorBoard logs, and
`student.keras`, the network that is best on the validation split.
"""

import json
import os
from functools import partial
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import tensorflow as tf
from absl import app, flags, logging

import keras_mikd as mikd


def hint(teacher, student):
    pairs = mikd.recipes.stage_pairs(teacher, student)
    return mikd.recipes.hint(teacher, student, weight=1.0, pairs=pairs)


# Each method is a function (teacher, student) -> list of losses; here both are the same network.
METHODS = {
    "plain": lambda teacher, student: [],
    "byot": partial(mikd.recipes.be_your_own_teacher, weight=0.3),
    "hint": hint,
    "at": partial(mikd.recipes.attention_transfer, weight=1.0),
    "vid": partial(mikd.recipes.vid, stage_weight=1.0, initial_variance=0.3),
    "jsd": mikd.recipes.stage_critics,
    "muse": partial(mikd.recipes.muse, combine="multiplicative"),
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
flags.DEFINE_string("student", "resnet8", "Network of keras_mikd.models.")
flags.DEFINE_list("methods", list(METHODS), "Some of: " + ", ".join(METHODS))
flags.DEFINE_float("learning_rate", 1e-2, "First learning rate; it falls to 0 as a cosine.", 0.0)
flags.DEFINE_integer("epochs", 150, "Epochs of a network.", 1)
flags.DEFINE_integer("batch_size", 25, "Images in a batch.", 1)
flags.DEFINE_integer("seed", 0, "Seed of weights, labels and order, the same for all methods.", 0)
flags.DEFINE_enum("strategy", "none", list(STRATEGIES), "Devices to train on.")


def train(model, data, learning_rate, epochs, logs):
    """Trains a self-distiller; returns the numbers of its network."""
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
    validation = model.evaluate(data.validation, verbose=0, return_dict=True)
    return {
        "validation": 100 * validation["accuracy"],
        "test": 100 * model.evaluate(data.test, verbose=0, return_dict=True)["accuracy"],
        "nats": {name: each for name, each in validation.items() if name.endswith("_nats")},
    }


def print_table(rows):
    plain = next((row["test"] for row in rows if row["method"] == "plain"), float("nan"))
    print(f"\n{'method':8}{'test %':>8}{'gain':>8}")
    for row in rows:
        print(f"{row['method']:8}{row['test']:8.2f}{row['test'] - plain:+8.2f}")
        for name, nats in row["nats"].items():
            print(f"    {name} {nats:.2f}")
    print(
        "\nnats are of the validation split. jsd and muse have negatives of other classes: theirs\n"
        "are no information, and muse's are to be compared with their ceiling."
    )


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
            network = getattr(mikd.models, FLAGS.student)(data.num_classes, data.image_shape)
            model = mikd.SelfDistiller(network, METHODS[method](network, network))
            row = train(model, data, FLAGS.learning_rate, FLAGS.epochs, output / "logs" / method)
            rows.append({"method": method, **row})
            networks.append(network)
    if strategy.cluster_resolver and strategy.cluster_resolver.task_id:
        return  # Of several workers, the first one writes.
    print_table(rows)
    best = max(range(len(rows)), key=lambda i: rows[i]["validation"])
    networks[best].save(output / "student.keras")
    (output / "results.json").write_text(json.dumps(rows, indent=1))
    print(
        f"\nBest on the validation split: {rows[best]['method']}, saved as {output}/student.keras\n"
        f"Curves: tensorboard --logdir {output}/logs\n"
        f"Next: python examples/export_student.py --student={output}/student.keras"
    )


if __name__ == "__main__":
    app.run(main)

r"""Trains a small student through a chain of assistants, and prints one table beside other ways.

An assistant stands in size between the teacher and the student (Mirzadeh et al., arXiv:1902.03393).
Needs `<output_dir>/teacher.keras` of train_teacher.py, or another teacher as `--teacher`:

    python examples/assistants.py --output_dir=runs/chain --teacher=runs/digits/teacher.keras

The students:

    alone    has no teacher
    direct   learns from the teacher
    chain    learns from the last assistant, which has learned from the one before it
    all      learns from the teacher and all assistants together (as in arXiv:2009.08825)

All learn soft targets. Started again after a kill, the script goes on where it was. Writes to
`<output_dir>`: `results.json`, TensorBoard logs, and `student.keras`, the student of the chain.
"""

import json
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import tensorflow as tf
from absl import app, flags, logging

import keras_mikd as mikd

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
flags.DEFINE_string("teacher", None, "Saved teacher; <output_dir>/teacher.keras if not given.")
flags.DEFINE_string("dataset", "digits", "Digits, or a data set of TFDS, to train on.")
flags.DEFINE_string("data_dir", None, "Folder of TensorFlow Datasets; its default if not given.")
flags.DEFINE_integer("labels_per_class", 10, "Training images of each class; 0 for all.", 0)
flags.DEFINE_list("chain", "resnet8,digits_cnn", "Networks of keras_mikd.models: the student last.")
flags.DEFINE_float("learning_rate", 1e-2, "First learning rate; it falls to 0 as a cosine.", 0.0)
flags.DEFINE_integer("epochs", 150, "Epochs of a network.", 1)
flags.DEFINE_integer("batch_size", 25, "Images in a batch.", 1)
flags.DEFINE_integer("seed", 0, "Seed of weights, labels and order, the same for all networks.", 0)
flags.DEFINE_enum("strategy", "none", list(STRATEGIES), "Devices to train on.")


def plan(chain):
    """Returns `{name: (network, names of its teachers)}` in the order of training."""
    names = ["teacher", *(f"assistant{i}" for i in range(1, len(chain)))]
    networks = {names[i]: (chain[i - 1], [names[i - 1]]) for i in range(1, len(chain))}
    students = {"alone": [], "direct": names[:1], "chain": names[-1:], "all": names}
    return networks | {name: (chain[-1], teachers) for name, teachers in students.items()}


def train(model, data, learning_rate, epochs, folder, name):
    """Trains a distiller, or restores one that was trained before; returns accuracies."""
    rate = keras.optimizers.schedules.CosineDecay(learning_rate, epochs * len(data.train))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate), loss, metrics=["accuracy"])
    logs = mikd.TensorBoard(folder / "logs" / name, write_graph=False)
    resume = mikd.ExactResume(folder / "resume" / name, verbose=False)
    model.fit(data.train, epochs=epochs, shuffle=False, verbose=0, callbacks=[logs, resume])
    splits = {"validation": data.validation, "test": data.test}
    logs = {name: model.evaluate(x, verbose=0, return_dict=True) for name, x in splits.items()}
    return {name: 100 * each["accuracy"] for name, each in logs.items()}


def main(_):
    logging.set_verbosity(logging.WARNING)  # TensorFlow Datasets logs every read.
    output = Path(FLAGS.output_dir)
    teacher_path = Path(FLAGS.teacher or output / "teacher.keras")
    if not teacher_path.exists():
        raise SystemExit(f"Expected a teacher of train_teacher.py. Received: no {teacher_path}.")
    for name in ("results.json", "student.keras"):
        if (output / name).exists():
            raise SystemExit(f"Expected a new --output_dir. Received: {output / name} exists.")
    load = mikd.datasets.loader(FLAGS.dataset)
    options = {"batch_size": FLAGS.batch_size, "seed": FLAGS.seed, "data_dir": FLAGS.data_dir}
    strategy, rows = STRATEGIES[FLAGS.strategy](), []
    with strategy.scope():
        networks = {"teacher": keras.saving.load_model(teacher_path)}
        for name, (kind, names) in plan(FLAGS.chain).items():
            print(f"{name}: {kind}, taught by {', '.join(names) or 'nobody'}", flush=True)
            keras.utils.set_random_seed(FLAGS.seed)
            data = load(labels_per_class=FLAGS.labels_per_class or None, **options)
            student = getattr(mikd.models, kind)(data.num_classes, data.image_shape)
            model = mikd.SelfDistiller(student, [])
            if teachers := {each: networks[each] for each in names}:
                model = mikd.Distiller(teachers, student, [mikd.SoftTargets(weight=3.0)])
            accuracies = train(model, data, FLAGS.learning_rate, FLAGS.epochs, output, name)
            rows.append({"name": name, "network": kind, "taught_by": names, **accuracies})
            networks[name] = student
    if strategy.cluster_resolver and strategy.cluster_resolver.task_id:
        return  # Of several workers, the first one writes.
    print(f"\n{'name':12}{'network':12}{'validation %':>14}{'test %':>9}")
    for row in rows:
        print(f"{row['name']:12}{row['network']:12}{row['validation']:14.2f}{row['test']:9.2f}")
    networks["chain"].save(output / "student.keras")
    (output / "results.json").write_text(json.dumps(rows, indent=1))
    print(f"\nSaved: {output}/student.keras; curves: tensorboard --logdir {output}/logs")


if __name__ == "__main__":
    app.run(main)

r"""Trains a small student alone and with every method, and prints one table.

Needs `<output_dir>/teacher.keras` of train_teacher.py, or another teacher as `--teacher`. With 10
labelled digits per class:

    python examples/distill.py --output_dir=runs/digits

`METHODS` has weights for the digits; experiments/offline.py trains as the CRD benchmark on CIFAR.
MIMKD is a reconstruction: its critics are not public. Writes to `<output_dir>`: `results.json`,
`comparison.png`, TensorBoard logs, and `student.keras`, the best on the validation split.
"""

import json
import os
from functools import partial
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import tensorflow as tf
from absl import app, flags, logging
from matplotlib.figure import Figure

import keras_mikd as mikd

# Each method is a function (teacher, student) -> list of losses. Lists add up.
METHODS = {
    "student": lambda teacher, student: [],
    "kd": partial(mikd.recipes.kd, weight=3.0),
    "vid": partial(mikd.recipes.vid, stage_weight=3.0, initial_variance=0.3),
    "mimkd": partial(mikd.recipes.mimkd, global_weight=3.0, local_weight=3.0, feature_weight=3.0),
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
flags.DEFINE_string("teacher", None, "Saved teacher; <output_dir>/teacher.keras if not given.")
flags.DEFINE_string("dataset", "digits", "Digits, or a data set of TFDS, to train on.")
flags.DEFINE_string("data_dir", None, "Folder of TensorFlow Datasets; its default if not given.")
flags.DEFINE_integer("labels_per_class", 10, "Training images of each class; 0 for all.", 0)
flags.DEFINE_string("student", "resnet8", "Network of keras_mikd.models.")
flags.DEFINE_list("methods", list(METHODS), "Some of: " + ", ".join(METHODS))
flags.DEFINE_float("learning_rate", 1e-2, "First learning rate; it falls to 0 as a cosine.", 0.0)
flags.DEFINE_integer("epochs", 150, "Epochs of a student.", 1)
flags.DEFINE_integer("batch_size", 25, "Images in a batch.", 1)
flags.DEFINE_integer("seed", 0, "Seed of weights, labels and order, the same for all methods.", 0)
flags.DEFINE_enum("strategy", "none", list(STRATEGIES), "Devices to train on.")


def new_model(method, teacher, student):
    losses = METHODS[method](teacher, student)
    return mikd.Distiller(teacher, student, losses) if losses else mikd.SelfDistiller(student, [])


def train(model, data, learning_rate, epochs, logs):
    """Trains a distiller; returns the numbers of its student."""
    rate = keras.optimizers.schedules.CosineDecay(learning_rate, epochs * len(data.train))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate), loss, metrics=["accuracy"])
    history = model.fit(
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
        "training_only_weights": model.count_params() - model.student.count_params(),
        "nats": {name: each for name, each in validation.items() if name.endswith("_nats")},
        "curve": [100 * each for each in history.history["val_accuracy"]],
    }


def print_table(rows):
    alone = next((row["test"] for row in rows if row["method"] == "student"), float("nan"))
    print(f"\n{'method':8}{'test %':>8}{'gain':>8}{'training-only weights':>23}")
    for row in rows:
        gain, weights = row["test"] - alone, row["training_only_weights"]
        print(f"{row['method']:8}{row['test']:8.2f}{gain:+8.2f}{weights:23,}")
        for name, nats in row["nats"].items():
            print(f"    {name} {nats:.2f}")


def draw(rows, epochs):
    figure = Figure(layout="constrained")
    axes = figure.subplots()
    step = max(1, epochs // 20)
    for row in rows:
        label = f"{row['method']}: {row['test']:.2f} % of the test split"
        axes.plot(range(step, epochs + 1, step), row["curve"], label=label)
    axes.set(xlabel="epoch", ylabel="accuracy on the validation split, %")
    axes.legend()
    return figure


def main(_):
    logging.set_verbosity(logging.WARNING)  # TensorFlow Datasets logs every read.
    output = Path(FLAGS.output_dir)
    teacher_path = Path(FLAGS.teacher or output / "teacher.keras")
    if not teacher_path.exists():
        raise SystemExit(f"Expected a teacher of train_teacher.py. Received: no {teacher_path}.")
    for name in ("results.json", "comparison.png", "student.keras"):
        if (output / name).exists():
            raise SystemExit(f"Expected a new --output_dir. Received: {output / name} exists.")
    if not METHODS.keys() >= set(FLAGS.methods):
        raise SystemExit(f"Expected --methods of {list(METHODS)}. Received: {FLAGS.methods}.")
    load = mikd.datasets.loader(FLAGS.dataset)
    options = {"batch_size": FLAGS.batch_size, "seed": FLAGS.seed, "data_dir": FLAGS.data_dir}
    strategy = STRATEGIES[FLAGS.strategy]()
    with strategy.scope():
        teacher = keras.saving.load_model(teacher_path)
        rows, students = [], []
        for method in FLAGS.methods:
            print(f"{method}: {FLAGS.epochs} epochs", flush=True)
            keras.utils.set_random_seed(FLAGS.seed)
            data = load(labels_per_class=FLAGS.labels_per_class or None, **options)
            student = getattr(mikd.models, FLAGS.student)(data.num_classes, data.image_shape)
            model = new_model(method, teacher, student)
            row = train(model, data, FLAGS.learning_rate, FLAGS.epochs, output / "logs" / method)
            rows.append({"method": method, **row})
            students.append(student)
    if strategy.cluster_resolver and strategy.cluster_resolver.task_id:
        return  # Of several workers, the first one writes.
    print_table(rows)
    best = max(range(len(rows)), key=lambda i: rows[i]["validation"])
    students[best].save(output / "student.keras")
    mikd.figures.save_png(draw(rows, FLAGS.epochs), output / "comparison.png")
    (output / "results.json").write_text(json.dumps(rows, indent=1))
    print(
        f"\nBest on the validation split: {rows[best]['method']}, saved as {output}/student.keras\n"
        f"Figure: {output}/comparison.png; curves: tensorboard --logdir {output}/logs\n"
        f"Next: python examples/export_student.py --student={output}/student.keras"
    )


if __name__ == "__main__":
    app.run(main)

r"""Tunes a copy of a trained teacher for more conditional mutual information (MCMI).

Needs a teacher of train_teacher.py:

    python examples/tune_teacher.py --teacher=runs/digits/teacher.keras --output_dir=runs/mcmi

CIFAR with the authors' rate, and no limit on what the weight may cost
(experiments/tune_teachers.py has all of their settings):

    python examples/tune_teacher.py --dataset=cifar100 --teacher=runs/cifar100/teacher.keras \
        --output_dir=runs/cifar100-mcmi --learning_rate=0.05 --log_likelihood_budget=0

The table shows conditional mutual information (CMI), log-likelihood and accuracy before and after.
Whether a student learns more from the tuned teacher is another question, which distill.py answers.

Writes to `<output_dir>`: the teacher (`weight<weight>.keras`), `results.json`, `trajectory.png`
(CMI over log-likelihood, epoch by epoch), `eigen_cam.png` (where the teacher looks before and
after), and TensorBoard logs.
"""

import json
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
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
flags.DEFINE_string("teacher", None, "Saved teacher to tune a copy of.", required=True)
flags.DEFINE_string("dataset", "digits", "Digits, or a data set of TFDS, to tune on.")
flags.DEFINE_string("data_dir", None, "Folder of TensorFlow Datasets; its default if not given.")
flags.DEFINE_float("weight", 0.25, "Weight of the divergence.")
flags.DEFINE_enum(
    "centroids", "frozen", ["frozen", "epoch", "running"], "How centroids follow the teacher."
)
flags.DEFINE_float("log_likelihood_budget", 0.3, "Nats an example may give up; 0: no limit.", 0.0)
flags.DEFINE_float("learning_rate", 0.0125, "First learning rate; it falls to 0 as a cosine.", 0.0)
flags.DEFINE_integer("epochs", 20, "Epochs.", 1)
flags.DEFINE_integer("batch_size", 64, "Images in a batch.", 1)
flags.DEFINE_integer("seed", 0, "Seed of order and augmentation.", 0)
flags.DEFINE_enum("strategy", "none", list(STRATEGIES), "Devices to train on.")


def measure(teacher, data):
    """Returns CMI, log-likelihood and accuracy on the validation and the test split."""
    splits = {"validation": data.validation, "test": data.test}
    reports = {name: mikd.measure_cmi(teacher, each, verbose=0) for name, each in splits.items()}
    keys = ("cmi", "log_likelihood", "accuracy")
    return {name: {key: getattr(each, key) for key in keys} for name, each in reports.items()}


def tune(model, data, learning_rate, epochs, logs):
    """Returns CMI and log-likelihood on the validation split, epoch by epoch."""
    rate = keras.optimizers.schedules.CosineDecay(learning_rate, epochs * len(data.train))
    model.compile(keras.optimizers.SGD(rate, momentum=0.9))
    history = model.fit(
        data.train,
        validation_data=data.validation,
        epochs=epochs,
        shuffle=False,  # The data shuffles itself.
        verbose=2,
        callbacks=[keras.callbacks.TensorBoard(logs, write_graph=False)],
    ).history
    return {key: history[f"val_{key}"] for key in ("cmi", "log_likelihood")}


def print_table(results):
    print(f"\n{'':8}{'split':12}{'CMI, nats':>10}{'log-likelihood':>16}{'accuracy':>10}")
    for name in ("before", "after"):
        for split, each in results[name].items():
            cmi, likelihood, accuracy = each.values()
            print(f"{name:8}{split:12}{cmi:10.4f}{likelihood:16.4f}{accuracy:10.2%}")


def draw(results, networks, test, place):
    """Returns figures by name."""
    before = {key: [value] for key, value in results["before"]["validation"].items()}
    tuned = {key: before[key] + values for key, values in results["curve"].items()}
    images, labels = (np.concatenate(part) for part in zip(*test, strict=True))
    first = np.unique(labels, return_index=True)[1][:10]  # An image of each class.
    captions = labels[first]
    return {
        "trajectory": mikd.figures.cmi_trajectory({"before": before, "tuned": tuned}),
        "eigen_cam": mikd.figures.eigen_cam_grid(networks, images[first], place, captions=captions),
    }


def main(_):
    logging.set_verbosity(logging.WARNING)  # TensorFlow Datasets logs every read.
    output = Path(FLAGS.output_dir)
    path = output / f"weight{FLAGS.weight:g}.keras"
    if not Path(FLAGS.teacher).exists():
        raise SystemExit(f"Expected a teacher of train_teacher.py. Received: no {FLAGS.teacher}.")
    for name in (path.name, "results.json", "trajectory.png", "eigen_cam.png"):
        if (output / name).exists():
            raise SystemExit(f"Expected a new --output_dir. Received: {output / name} exists.")
    load = mikd.datasets.loader(FLAGS.dataset)
    options = {"batch_size": FLAGS.batch_size, "seed": FLAGS.seed, "data_dir": FLAGS.data_dir}
    strategy = STRATEGIES[FLAGS.strategy]()
    with strategy.scope():
        teacher = keras.saving.load_model(FLAGS.teacher)
        keras.utils.set_random_seed(FLAGS.seed)
        data = load(augment=True, **options)
        model = mikd.MCMITeacher(
            teacher,
            weight=FLAGS.weight,
            centroids=FLAGS.centroids,
            log_likelihood_budget=FLAGS.log_likelihood_budget or None,
        )
        results = {"weight": FLAGS.weight, "before": measure(teacher, data)}
        logs = output / "logs" / path.stem
        results["curve"] = tune(model, data, FLAGS.learning_rate, FLAGS.epochs, logs)
        results["after"] = measure(model.teacher, data)
    if strategy.cluster_resolver and strategy.cluster_resolver.task_id:
        return  # Of several workers, the first one writes.
    print_table(results)
    model.teacher.save(path)
    (output / "results.json").write_text(json.dumps(results, indent=1))
    # The last stage has only 2 x 2 locations of the digits' 8 x 8.
    place = "stage2" if FLAGS.dataset == "digits" else None
    networks = {"before": teacher, f"MCMI {FLAGS.weight:g}": model.teacher}
    for name, figure in draw(results, networks, data.test, place).items():
        mikd.figures.save_png(figure, output / f"{name}.png")
        mikd.figures.log_to_tensorboard(figure, output / "logs" / "figures", name)
    print(
        f"\nTuned teacher: {path}\nFigures: {output}/trajectory.png, {output}/eigen_cam.png; "
        f"curves: tensorboard --logdir {output}/logs\n"
        f"Next: python examples/distill.py --teacher={path} --output_dir={output}/students"
    )


if __name__ == "__main__":
    app.run(main)

"""An epoch from a teacher cache against an epoch that runs the teacher, by size of the teacher.

The floor (1.00) is the student's plain epoch with `keras.Model.fit` on the same batches. The
variants take turns, so that a machine that slows down slows all of them, and the floor takes part
twice. `read alone` is an epoch of the batches without a step: where it is far below 1, the cache
feeds the device in time.

    python benchmarks/teacher_cache.py                       # resnet8x4, images of CIFAR's size
    python benchmarks/teacher_cache.py --teachers=resnet20   # another teacher

Leave the machine alone meanwhile; on two cores it takes minutes.
"""

import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

import keras_mikd as mikd
import reports
from methods import compiled

# TensorFlow mistakes several models for one that is traced again and again, and warns.
tf.get_logger().setLevel("ERROR")

FLAGS = flags.FLAGS
flags.DEFINE_list("teachers", "resnet8x4,resnet32x4", "Networks of keras_mikd.models.")
flags.DEFINE_string("student", "resnet8x4", "Network of keras_mikd.models.")
flags.DEFINE_integer("examples", 512, "Images of 32 x 32 in an epoch.", 1)
flags.DEFINE_integer("batch_size", 64, "Images in a batch.", 1)
flags.DEFINE_integer("rounds", 5, "Epochs of every variant, in turns.", 1)
reports.define_output()

FLOOR = "student alone"
CLASSES = 100


def variants(teacher, images, labels, folder):
    """Returns `{name: (model, batches)}`, and the seconds and bytes of the cache in memory."""

    def student():
        return getattr(mikd.models, FLAGS.student)(CLASSES, images.shape[1:])

    def cache(**options):
        return mikd.TeacherCache(
            teacher, images, labels, batch_size=FLAGS.batch_size, max_bytes=2**33, **options
        )

    start = time.perf_counter()
    logits = cache().build(verbose=0)
    seconds = time.perf_counter() - start
    places = [place for place, _ in mikd.pair_stages(teacher, student())]
    stages = cache(places=places, folder=folder, dtype="float16").build(verbose=0)
    plain = logits.batches(FLAGS.batch_size, with_teacher=False)

    def kd():
        return compiled(mikd.Distiller(teacher, student(), [mikd.SoftTargets()]))

    def vid():
        return compiled(mikd.VIDDistiller(teacher, student()))

    return {
        FLOOR: (compiled(student()), plain),
        f"{FLOOR}, again": (compiled(student()), plain),
        "KD": (kd(), plain),
        "KD, cache in memory": (kd(), logits.batches(FLAGS.batch_size)),
        "VID": (vid(), plain),
        "VID, cache on disk, float16": (vid(), stages.batches(FLAGS.batch_size)),
        "cache in memory, read alone": (None, logits.batches(FLAGS.batch_size)),
        "cache on disk, read alone": (None, stages.batches(FLAGS.batch_size)),
    }, {"build_seconds": seconds, "logit_bytes": logits.nbytes, "stage_bytes": stages.nbytes}


def epoch(model, batches):
    """Returns the seconds of an epoch; of the batches alone without a model."""
    start = time.perf_counter()
    if model is None:
        for _ in batches:
            pass
    else:
        model.fit(batches, epochs=1, shuffle=False, verbose=0)
    return time.perf_counter() - start


def measure(name):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(FLAGS.examples, 32, 32, 3)).astype("float32")
    labels = rng.integers(CLASSES, size=FLAGS.examples)
    teacher = getattr(mikd.models, name)(CLASSES, images.shape[1:])
    with tempfile.TemporaryDirectory() as folder:
        models, costs = variants(teacher, images, labels, Path(folder) / "cache")
        for each in models.values():
            epoch(*each)
        print(f"{name}: compiled, {FLAGS.rounds} rounds", flush=True)
        times = {key: [] for key in models}
        for _ in range(FLAGS.rounds):
            for key, each in models.items():
                times[key].append(epoch(*each))
    floor = statistics.median(times[FLOOR])
    rows = {key: statistics.median(values) / floor for key, values in times.items()}
    costs["build_ratio"] = costs["build_seconds"] / floor
    return {
        "teacher_weights": teacher.count_params(),
        "floor_seconds": floor,
        **costs,
        "rows": rows,
    }


def print_table(results):
    print(f"\n{'epoch, in those of the student':30}" + "".join(f"{name:>14}" for name in results))
    for row in next(iter(results.values()))["rows"]:
        cells = "".join(f"{result['rows'][row]:14.3f}" for result in results.values())
        print(f"{row:30}{cells}")
    for key in ("build_ratio", "teacher_weights", "logit_bytes", "stage_bytes"):
        print(f"{key:30}" + "".join(f"{result[key]:14.5g}" for result in results.values()))


def main(argv):
    del argv
    reports.check_output()
    if FLAGS.batch_size > FLAGS.examples:
        raise SystemExit(
            f"Expected --batch_size of at most {FLAGS.examples}. "
            f"Received: --batch_size={FLAGS.batch_size}"
        )
    keras.utils.set_random_seed(0)
    results = {name: measure(name) for name in FLAGS.teachers}
    print_table(results)
    reports.write(results)


if __name__ == "__main__":
    app.run(main)

"""Compares designs of one method on the validation split of the digits, never on the test split.

No script by itself: `import designs` works where one of the benchmarks is started. The students
(resnet8, 10 labelled images per class) are trained as those of the examples; the seeds are not
those of the published results.
"""

import os
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
from absl import flags, logging

import keras_mikd as mikd
import reports

flags.disclaim_key_flags()
FLAGS = flags.FLAGS


def define_flags():
    flags.DEFINE_integer("seeds", 2, "Students per design: seeds 100, 101, ...", 1)
    flags.DEFINE_integer("epochs", 150, "Epochs of a student; the first is not timed.", 2)
    flags.DEFINE_list(
        "designs", [], "Names of designs, such as 'default'; all of them if not given."
    )
    reports.define_output()


def check_flags(designs):
    logging.set_verbosity(logging.WARNING)
    unknown = [name for name in FLAGS.designs if name not in designs]
    if unknown:
        raise SystemExit(f"--designs: expected some of {list(designs)}; got {unknown}")
    reports.check_output()


def compare(designs):
    """Trains, prints and writes every design: a function from a student to what is fitted."""
    rows = []
    print(f"{'design':38} {'validation %':>15} {'ms/step':>8}")
    for name in FLAGS.designs or designs:
        runs = [_train(designs[name], 100 + seed) for seed in range(FLAGS.seeds)]
        accuracies, milliseconds = zip(*runs, strict=True)
        rows.append({"design": name, "validation": accuracies, "milliseconds": milliseconds})
        values = " ".join(f"{value:.1f}" for value in accuracies)
        spread = f" ± {statistics.stdev(accuracies):.2f}" if len(accuracies) > 1 else ""
        print(
            f"{name:38} {statistics.mean(accuracies):7.2f}{spread:8} "
            f"{statistics.median(milliseconds):8.2f}   ({values})",
            flush=True,
        )
    reports.write({"designs": rows})


class _StepTimes(keras.callbacks.Callback):
    """Milliseconds of every training step after the first epoch."""

    def __init__(self):
        super().__init__()
        self.milliseconds = []
        self.epoch = 0

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        self.start = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        if self.epoch:
            self.milliseconds.append(1000 * (time.perf_counter() - self.start))


def _train(design, seed):
    """Returns validation accuracy in per cent and the median step in milliseconds."""
    keras.utils.set_random_seed(seed)
    digits = mikd.datasets.load_digits(batch_size=25, labels_per_class=10, seed=seed)
    model = design(mikd.models.resnet8(digits.num_classes, digits.image_shape))
    steps = FLAGS.epochs * len(digits.train)
    model.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(1e-2, steps)),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    times = _StepTimes()
    model.fit(digits.train, epochs=FLAGS.epochs, shuffle=False, verbose=0, callbacks=[times])
    logs = model.evaluate(digits.validation, verbose=0, return_dict=True)
    return 100 * logs["accuracy"], statistics.median(times.milliseconds)

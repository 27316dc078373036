"""MIMKD's critics on the digits: validation accuracy and step time of every design.

The defaults of `MIMKDDistiller` were chosen from this table. MIMKD's own critics are not public.

    python examples/train_teacher.py --output_dir=runs/digits
    python benchmarks/critic_designs.py --teacher=runs/digits/teacher.keras

The students (resnet8, 10 labelled images per class) are trained as in examples/distill.py. Only the
validation split is looked at; the seeds are not those of the published results.
"""

import os
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
from absl import app, flags, logging

import keras_mikd as mikd
import reports

FLAGS = flags.FLAGS
flags.DEFINE_string("teacher", None, "Saved teacher of train_teacher.py.", required=True)
flags.DEFINE_integer("seeds", 2, "Students per design: seeds 100, 101, ...", 1)
flags.DEFINE_integer("epochs", 150, "Epochs of a student.", 1)
flags.DEFINE_list("designs", [], "Names of designs, such as 'default'; all of them if not given.")
reports.define_output()

FEATURES_ONLY = {"global_weight": 0.0, "local_weight": 0.0}


def _concat(width):
    return lambda: mikd.ConcatCritic(width=width)


# name -> arguments of MIMKDDistiller; None is the student alone.
DESIGNS = {
    "student alone": None,
    "default": {},
    "weight 1": dict.fromkeys(("global_weight", "local_weight", "feature_weight"), 1.0),
    "weight 10": dict.fromkeys(("global_weight", "local_weight", "feature_weight"), 10.0),
    "global and local only": {"feature_weight": 0.0},
    "features only": FEATURES_ONLY,
    "features only: grid 4": {**FEATURES_ONLY, "grid": 4},
    "features only: 4 negatives": {**FEATURES_ONLY, "negatives": 4},
    "features only: all negatives": {**FEATURES_ONLY, "negatives": "all"},
    "features only: concat 64": {**FEATURES_ONLY, "critic": _concat(64)},
    "features only: concat 128": {**FEATURES_ONLY, "critic": _concat(128)},
    "features only: concat 128 at grid 4": {**FEATURES_ONLY, "critic": _concat(128), "grid": 4},
}


class StepTimes(keras.callbacks.Callback):
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


def train(arguments, teacher, seed):
    """Returns validation accuracy in per cent and the median step in milliseconds."""
    keras.utils.set_random_seed(seed)
    digits = mikd.datasets.load_digits(batch_size=25, labels_per_class=10, seed=seed)
    student = mikd.models.resnet8(digits.num_classes, digits.image_shape)
    model = student if arguments is None else mikd.MIMKDDistiller(teacher, student, **arguments)
    steps = FLAGS.epochs * len(digits.train)
    model.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(1e-2, steps)),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    times = StepTimes()
    model.fit(digits.train, epochs=FLAGS.epochs, shuffle=False, verbose=0, callbacks=[times])
    logs = model.evaluate(digits.validation, verbose=0, return_dict=True)
    return 100 * logs["accuracy"], statistics.median(times.milliseconds)


def main(argv):
    del argv
    logging.set_verbosity(logging.WARNING)
    unknown = [name for name in FLAGS.designs if name not in DESIGNS]
    if unknown:
        raise SystemExit(f"--designs: expected some of {list(DESIGNS)}; got {unknown}")
    reports.check_output()
    teacher = keras.saving.load_model(FLAGS.teacher)
    rows = []
    print(f"{'design':34} {'validation %':>13} {'ms/step':>8}")
    for name in FLAGS.designs or DESIGNS:
        runs = [train(DESIGNS[name], teacher, 100 + seed) for seed in range(FLAGS.seeds)]
        accuracies, milliseconds = zip(*runs, strict=True)
        rows.append({"design": name, "validation": accuracies, "milliseconds": milliseconds})
        values = " ".join(f"{value:.1f}" for value in accuracies)
        print(
            f"{name:34} {statistics.mean(accuracies):13.2f} {statistics.median(milliseconds):8.2f}"
            f"   ({values})",
            flush=True,
        )
    reports.write({"designs": rows})


if __name__ == "__main__":
    app.run(main)

"""Students from few labels: test accuracy of every method on the digits, mean and deviation over seeds.

One teacher sees the whole train split; students see `--labels_per_class` images of each class. Loss
weights are chosen on the validation split, with seeds that the report does not use; the report is on the
test split, at the last epoch.

    python benchmarks/few_labels.py --sweep                 # prints validation accuracy by weight
    python benchmarks/few_labels.py --seeds=5               # prints the table with the chosen weights
"""

import json
import statistics
import time
from pathlib import Path

import keras
from absl import app, flags, logging

import keras_mikd as mikd

FLAGS = flags.FLAGS
flags.DEFINE_integer("labels_per_class", 10, "Labelled training images of each class.", lower_bound=1)
flags.DEFINE_integer("seeds", 5, "Students per method: seeds 0, 1, ...", lower_bound=1)
flags.DEFINE_integer("epochs", 150, "Epochs of a student.", lower_bound=1)
flags.DEFINE_float("learning_rate", 3e-3, "First learning rate of a student.", lower_bound=0.0)
flags.DEFINE_list("methods", "student,kd,vid,vid_logits,mimkd", "Methods to compare.")
flags.DEFINE_bool("sweep", False, "Sweep the loss weights and print validation accuracy instead.")
flags.DEFINE_string("output", None, "JSON file to write the results to; it must not exist.")

SWEEP_SEEDS = (100, 101, 102)


def kd(weight):
    return lambda t, s: mikd.Distiller(t, s, [mikd.SoftTargets(temperature=4.0, weight=weight)])


def vid(weight, logits_weight=0.0):
    return lambda t, s: mikd.VIDDistiller(t, s, stage_weight=weight, logits_weight=logits_weight)


def mimkd(weights):
    names = ("global_weight", "local_weight", "feature_weight")
    return lambda t, s: mikd.MIMKDDistiller(t, s, **dict(zip(names, weights, strict=True)))


# method -> (function of a weight, weights to try on the validation split, weight chosen there)
METHODS = {
    "student": (lambda weight: None, [None], None),
    "kd": (kd, [0.1, 0.3, 1.0, 3.0, 10.0], 1.0),
    "vid": (vid, [0.1, 0.3, 1.0, 3.0, 10.0, 30.0], 1.0),
    "vid_logits": (lambda weight: vid(weight, weight), [0.1, 0.3, 1.0, 3.0, 10.0], 1.0),
    "mimkd": (
        mimkd,
        [(0.2, 0.8, 0.8), (0.5, 1.0, 1.0), (1.0, 2.0, 2.0), (0.2, 0.8, 0.0), (0.0, 0.0, 1.0),
         (1.0, 0.0, 0.0), (0.0, 1.0, 0.0)],
        (0.2, 0.8, 0.8),
    ),
}


def train_teacher():
    keras.utils.set_random_seed(0)
    digits = mikd.datasets.load_digits(batch_size=64, augment=True)
    teacher = mikd.models.resnet14(digits.num_classes, digits.image_shape)
    steps = 40 * len(digits.train)
    teacher.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(3e-3, steps)),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    teacher.fit(digits.train, epochs=40, shuffle=False, verbose=0)
    accuracy = teacher.evaluate(digits.test, verbose=0, return_dict=True)["accuracy"]
    logging.info("teacher: %.2f %% on the test split", 100 * accuracy)
    return teacher


def train_student(make, teacher, seed):
    """Returns accuracies on validation and test of one student, and seconds of training."""
    keras.utils.set_random_seed(seed)
    digits = mikd.datasets.load_digits(
        batch_size=50, labels_per_class=FLAGS.labels_per_class, seed=seed
    )
    student = mikd.models.digits_cnn(digits.num_classes, digits.image_shape)
    model = student if make is None else make(teacher, student)
    steps = FLAGS.epochs * len(digits.train)
    model.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(FLAGS.learning_rate, steps)),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    start = time.monotonic()
    model.fit(digits.train, epochs=FLAGS.epochs, shuffle=False, verbose=0)
    seconds = time.monotonic() - start
    results = {"seconds": seconds}
    for name in ("validation", "test"):
        logs = model.evaluate(getattr(digits, name), verbose=0, return_dict=True)
        results[name] = 100 * logs["accuracy"]
    return results


def main(argv):
    del argv
    unknown = set(FLAGS.methods) - METHODS.keys()
    if unknown:
        raise app.UsageError(f"--methods: expected some of {sorted(METHODS)}, received {unknown}")
    if FLAGS.output and Path(FLAGS.output).exists():
        raise app.UsageError(f"--output: {FLAGS.output} exists; name another file")
    teacher = train_teacher()
    rows = []
    for method in FLAGS.methods:
        make, candidates, chosen = METHODS[method]
        for weight in candidates if FLAGS.sweep else [chosen]:
            seeds = SWEEP_SEEDS if FLAGS.sweep else range(FLAGS.seeds)
            runs = [train_student(make(weight), teacher, seed) for seed in seeds]
            split = "validation" if FLAGS.sweep else "test"
            values = [run[split] for run in runs]
            row = {
                "method": method,
                "weight": weight,
                "split": split,
                "mean": statistics.mean(values),
                "deviation": statistics.stdev(values) if len(values) > 1 else 0.0,
                "seconds": statistics.mean(run["seconds"] for run in runs),
                "values": values,
            }
            rows.append(row)
            print(
                f"{method:12} weight {weight!s:18} {split} {row['mean']:6.2f} +- "
                f"{row['deviation']:.2f} %   {row['seconds']:.1f} s a student", flush=True
            )
    if FLAGS.output:
        Path(FLAGS.output).write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    app.run(main)

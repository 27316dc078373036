r"""Int8 after training, and training for int8: what each costs a distilled student.

    python experiments/quantization.py --teacher=runs/demo/teacher.keras --output_dir=runs/int8

Needs a teacher of examples/train_teacher.py for the same data. A student is distilled in float32.
Then it is trained on for some epochs at a smaller rate, in three ways:

* `float32`: as before, by the same losses. What more epochs give, rounding or not.
* `aware`: `quantization_aware`, by the same losses.
* `aware_alone`: `quantization_aware`, by the task loss alone.

Each gets an int8 file. That of `float32` is quantized after training, and so is one of the student
as it was, `distilled`. All numbers are accuracies of files that LiteRT runs over the whole test
split. On CIFAR-10:

    python experiments/quantization.py --teacher=wrn_40_2.keras --dataset=cifar10 --data_dir=... \
        --student=wrn_16_1 --labels_per_class=50 --batch_size=64 --epochs=40 --views=8 \
        --method=vid --weight=100 --output_dir=runs/int8

A run that is there is not made again. Writes `<output_dir>/results.json`, and every run's network
and files to a folder of its own. At last, files of the first student in every precision are timed.
"""

import json

import keras
import tensorflow as tf
from absl import app, flags, logging

import few_labels
import keras_mikd as mikd
import protocol
from keras_mikd.comparison.methods import METHODS
from results import Results, mean_and_spread, run_name, sweep

FLAGS = flags.FLAGS
few_labels.define_flags(views=1)
flags.DEFINE_string("teacher", None, "Teacher of examples/train_teacher.py.", required=True)
flags.DEFINE_enum("method", "vid", list(METHODS), "What distils.")
flags.DEFINE_float("weight", 1.0, "Its weight.", 0.0)
flags.DEFINE_integer("more_epochs", 10, "Epochs of the second training.", 1)
flags.DEFINE_float("more_learning_rate", 1e-3, "Its first rate of Adam.", 0.0)
flags.DEFINE_integer("calibration_images", 500, "Training images that give the first ranges.", 1)
flags.DEFINE_integer("runs", 50, "How often a file is timed.", 1)

DISTILLED = "distilled"
WAYS = ("float32", "aware", "aware_alone")
PRECISIONS = (None, "float16", "dynamic", "int8", "int16")


class Experiment:
    """What all runs share: data, the teacher, and what it says of every view."""

    def __init__(self, teacher, data, results):
        self.teacher, self.data, self.results = teacher, data, results
        read = [loss.teacher_layer for loss in self.losses(self.new())]
        augmented = {"augment": data.augment, "views": FLAGS.views} if FLAGS.views > 1 else {}
        self.cache = mikd.TeacherCache(
            teacher,
            *data.train,
            list(dict.fromkeys(keras.tree.flatten(read))),
            max_bytes=int(FLAGS.cache_gib * 2**30),
            **augmented,
        )
        self._is_built = False

    def new(self):
        return few_labels.new_network(FLAGS.student, self.data)

    def losses(self, student):
        return METHODS[FLAGS.method].losses(self.teacher, student, FLAGS.weight)

    @property
    def calibration(self):
        return self.data.train[0][: FLAGS.calibration_images]

    def distilled(self, folder, way, seed):
        """Trains a new student in float32."""
        del way
        keras.utils.set_random_seed(seed)
        student = self.new()
        self._train(student, self.losses(student), FLAGS.epochs, FLAGS.learning_rate, seed)
        return self._measured(student, folder)

    def trained_on(self, folder, way, seed):
        """Trains the distilled student of a seed on, in one of the ways."""
        keras.utils.set_random_seed(seed)
        student = self.student(seed)
        if way != "float32":
            student = mikd.quantization_aware(student, calibrate_on=self.calibration)
        losses = [] if way == "aware_alone" else self.losses(student)
        self._train(student, losses, FLAGS.more_epochs, FLAGS.more_learning_rate, seed)
        return self._measured(student, folder)

    def student(self, seed):
        folder = self.results.folder / run_name({"way": DISTILLED, "seed": seed})
        return keras.saving.load_model(folder / "student.keras")

    def exported(self, student, path, quantize):
        """Returns the report of a file over the whole test split."""
        integers = quantize in ("int8", "int16") and not mikd.is_quantization_aware(student)
        return mikd.export_tflite(
            student,
            path,
            quantize=quantize,
            calibrate_on=self.calibration if integers else None,
            check_on=tf.data.Dataset.from_tensor_slices(self.data.test).batch(100),
            overwrite=True,
        )

    def _train(self, student, losses, epochs, rate, seed):
        """Trains a student by the task loss and, if there are any, by distillation losses."""
        if losses and not self._is_built:
            self.cache.build()
            self._is_built = True
        batches = self.cache.batches(FLAGS.batch_size, seed=seed, with_teacher=bool(losses))
        model = (
            mikd.Distiller(self.teacher, student, losses)
            if losses
            else mikd.SelfDistiller(student, [])
        )
        model.compile(
            protocol.adam_with_cosine(rate, epochs * len(batches)),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
        model.fit(batches, epochs=epochs, shuffle=False, verbose=0)

    def _measured(self, student, folder):
        """Saves a network and its int8 file; returns their accuracies, in per cent."""
        folder.mkdir(parents=True)
        student.save(folder / "student.keras")
        report = self.exported(student, folder / "int8.tflite", "int8")
        return {
            "float32": 100 * report.keras_accuracy,
            "int8": 100 * report.accuracy,
            "loss": 100 * (report.keras_accuracy - report.accuracy),
        }


def print_accuracies(results):
    """Prints accuracies by way; the loss is that of float32 less that of the file."""
    print(f"\n{'':<14}{'in Keras':>16}{'int8 file':>16}{'lost by rounding':>20}")
    for row in results.rows("way"):
        cells = [
            mean_and_spread([run[key] for run in row["runs"]])
            for key in ("float32", "int8", "loss")
        ]
        print(f"{row['way']:<14}{cells[0]:>16}{cells[1]:>16}{cells[2]:>20}")


def timed(experiment, folder):
    """Writes the first student in every precision; returns what each file is, and takes."""
    folder.mkdir(parents=True, exist_ok=True)
    student, rows = experiment.student(seed=0), []
    for precision in PRECISIONS:
        name = precision or "float32"
        report = experiment.exported(student, folder / f"{name}.tflite", precision)
        (latency,) = mikd.measure_latency(report.path, runs=FLAGS.runs)
        rows.append(
            {
                "precision": name,
                "bytes": report.size_bytes,
                "accuracy": 100 * report.accuracy,
                "runtime": report.minimum_runtime,
                "median_ms": latency.median_ms,
                "p95_ms": latency.p95_ms,
            }
        )
        print(
            f"{name:<10}{report.size_bytes / 1000:9.1f} kB{100 * report.accuracy:8.2f} %"
            f"{latency.median_ms:8.2f} ms, 95 % below {latency.p95_ms:.2f} ms, LiteRT "
            f"{report.minimum_runtime}",
            flush=True,
        )
    return rows


def main(_):
    logging.set_verbosity(logging.WARNING)  # TensorFlow Datasets tells every read.
    (labels_per_class,) = protocol.numbers("labels_per_class", FLAGS.labels_per_class, int)
    teacher = protocol.load_network(FLAGS.teacher)
    data = few_labels.load(FLAGS.dataset, labels_per_class)
    settings = (
        *("dataset", "student", "epochs", "batch_size", "learning_rate", "views"),
        *("method", "weight", "more_epochs", "more_learning_rate", "calibration_images"),
    )
    results = Results(
        FLAGS.output_dir,
        teacher=protocol.digest(FLAGS.teacher),
        labels_per_class=labels_per_class,
        **{name: FLAGS[name].value for name in settings},
    )
    experiment = Experiment(teacher, data, results)
    seeds = range(FLAGS.seeds)
    sweep(results, [{"way": DISTILLED}], seeds, experiment.distilled, shown="int8")
    sweep(results, [{"way": way} for way in WAYS], seeds, experiment.trained_on, shown="int8")
    print_accuracies(results)
    print("\nThe first student on one thread of this machine:")
    rows = timed(experiment, results.folder / "precisions")
    (results.folder / "precisions.json").write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    app.run(main)

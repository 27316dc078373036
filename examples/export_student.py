r"""Exports a student to TFLite and checks it against Keras on real images.

    python examples/export_student.py --student=runs/digits/student.keras

The file is written only if it gives Keras' answers on the test split. A quantized one rounds, so
that its difference is told and not bounded, unless `--tolerance` says how large it may be:

    python examples/export_student.py --student=runs/digits/student.keras --quantize=int8 \
        --output=runs/digits/student-int8.tflite
"""

import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from absl import app, flags, logging

import keras_mikd as mikd
import scripts
import students

_CALIBRATION_BATCHES = 8

FLAGS = flags.FLAGS
flags.DEFINE_string("student", None, "Saved student (.keras).", required=True)
flags.DEFINE_string("output", None, "File to write; the student's name with .tflite if not given.")
flags.DEFINE_enum("dataset", "digits", ["digits", "cifar10", "cifar100"], "Data to check on.")
flags.DEFINE_string("data_dir", None, "Folder of TensorFlow Datasets; its default if not given.")
flags.DEFINE_float(
    "tolerance",
    None,
    "Largest difference of an output that is accepted; 1e-4 for float32 if not given.",
    0.0,
)
flags.DEFINE_enum(
    "quantize",
    None,
    ["float16", "dynamic", "int8"],
    "Smaller file; int8 takes the ranges of activations from training images.",
)


def check_flags():
    student = Path(FLAGS.student)
    if not student.exists():
        raise SystemExit(f"--student: {student} does not exist; run distill.py first")
    output = Path(FLAGS.output or student.with_suffix(".tflite"))
    if output.exists():
        raise SystemExit(f"--output: {output} exists and is kept; name another file")
    return student, output


def main(argv):
    del argv
    logging.set_verbosity(logging.WARNING)  # TensorFlow Datasets tells every read.
    student, output = check_flags()
    data = students.load_data(FLAGS.dataset, data_dir=FLAGS.data_dir)
    report = mikd.export_tflite(
        scripts.load_network(student),
        output,
        check_on=data.test,
        tolerance=FLAGS.tolerance,
        quantize=FLAGS.quantize,
        calibrate_on=data.train.take(_CALIBRATION_BATCHES) if FLAGS.quantize == "int8" else None,
    )
    print(report)


if __name__ == "__main__":
    app.run(main)

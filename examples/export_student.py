r"""Exports a student to TFLite and checks it against Keras on the images of the test split.

    python examples/export_student.py --student=runs/digits/student.keras

The file is written only if it gives Keras' answers to 1e-4. A quantized file rounds: how far it
differs is reported, and refused only beyond `--tolerance`:

    python examples/export_student.py --student=runs/digits/student.keras --quantize=int8 \
        --output=runs/digits/student-int8.tflite
"""

import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
from absl import app, flags, logging

import keras_mikd as mikd

CALIBRATION_BATCHES = 8

FLAGS = flags.FLAGS
flags.DEFINE_string("student", None, "Saved student (.keras).", required=True)
flags.DEFINE_string("output", None, "File to write; the student's name with .tflite if not given.")
flags.DEFINE_string("dataset", "digits", "Digits, or a data set of TFDS, to check on.")
flags.DEFINE_string("data_dir", None, "Folder of TensorFlow Datasets; its default if not given.")
flags.DEFINE_float("tolerance", None, "Largest difference of an output that is accepted.", 0.0)
flags.DEFINE_enum(
    "quantize", None, ["float16", "dynamic", "int8"], "Smaller file; int8 reads training images."
)


def main(_):
    logging.set_verbosity(logging.WARNING)  # TensorFlow Datasets logs every read.
    student = Path(FLAGS.student)
    output = Path(FLAGS.output or student.with_suffix(".tflite"))
    if not student.exists():
        raise SystemExit(f"Expected a student of distill.py. Received: no {student}.")
    if output.exists():
        raise SystemExit(f"Expected a new --output. Received: {output} exists.")
    data = mikd.datasets.loader(FLAGS.dataset)(data_dir=FLAGS.data_dir)
    report = mikd.export_tflite(
        keras.saving.load_model(student),
        output,
        check_on=data.test,
        tolerance=FLAGS.tolerance,
        quantize=FLAGS.quantize,
        calibrate_on=data.train.take(CALIBRATION_BATCHES) if FLAGS.quantize == "int8" else None,
    )
    print(report)
    print("Next: run the file with ai_edge_litert.interpreter.Interpreter on your device.")


if __name__ == "__main__":
    app.run(main)

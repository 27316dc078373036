r"""Exports a student to TFLite and checks it against Keras on the images of the test split.

    python examples/export_student.py --student=runs/digits/student.keras

The file is written only if it gives Keras' answers to 1e-4. A quantized file rounds: how far it
differs is reported, and refused only beyond `--tolerance`:

    python examples/export_student.py --student=runs/digits/student.keras --quantize=int8 \
        --output=runs/digits/student-int8.tflite --threads=1 --threads=2
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
    "quantize",
    None,
    ["float16", "dynamic", "int8", "int16"],
    "Smaller file; int8 and int16 read training images.",
)
flags.DEFINE_boolean("integer_io", False, "Whether inputs and outputs are integers as well.")
flags.DEFINE_multi_integer("threads", [], "Time the file with so many threads; may be repeated.", 1)


def main(_):
    logging.set_verbosity(logging.WARNING)  # TensorFlow Datasets logs every read.
    student = Path(FLAGS.student)
    output = Path(FLAGS.output or student.with_suffix(".tflite"))
    if not student.exists():
        raise SystemExit(f"Expected a student of distill.py. Received: no {student}.")
    if output.exists():
        raise SystemExit(f"Expected a new --output. Received: {output} exists.")
    network = keras.saving.load_model(student)
    integers = FLAGS.quantize in ("int8", "int16") and not mikd.is_quantization_aware(network)
    data = mikd.datasets.loader(FLAGS.dataset)(data_dir=FLAGS.data_dir)
    report = mikd.export_tflite(
        network,
        output,
        check_on=data.test,
        tolerance=FLAGS.tolerance,
        quantize=FLAGS.quantize,
        calibrate_on=data.train.take(CALIBRATION_BATCHES) if integers else None,
        integer_io=FLAGS.integer_io,
    )
    print(report)
    for latency in mikd.measure_latency(output, threads=FLAGS.threads) if FLAGS.threads else []:
        print(
            f"{latency.threads} threads of this machine: {latency.median_ms:.2f} ms, 95 % of "
            f"{latency.runs} runs below {latency.p95_ms:.2f} ms"
        )
    print("Next: run the file with ai_edge_litert.interpreter.Interpreter on your device.")


if __name__ == "__main__":
    app.run(main)

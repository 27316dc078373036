r"""How many operations XLA makes of a training step, beyond those of what it is compared with.

On a GPU each of them may be a launch of its own, which small networks feel. Counted are the
operations of the compiled program: fusions, products, convolutions, sorts, calls.
Parameters, tuples, constants and copies are left out. Nothing is timed.

    python benchmarks/operations.py
    python benchmarks/operations.py --methods=VID --teacher=resnet32x4 --student=resnet8x4

XLA makes the program for the device at hand: a GPU's has other fusions than a CPU's. How many
operations a loss adds depends on its places and not on the depth of the networks, so the default is
a small pair, which compiles in seconds.
"""

import collections
import os
import re

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import tensorflow as tf
from absl import app, flags

import keras_mikd as mikd
import reports
from methods import FLOOR, METHODS, STUDENT, TEACHER, check_names

# TensorFlow mistakes several models for one that is traced again and again, and warns.
tf.get_logger().setLevel("ERROR")

FLAGS = flags.FLAGS
flags.DEFINE_string("teacher", "resnet8", "Network of keras_mikd.models.")
flags.DEFINE_string("student", "digits_cnn", "Network of keras_mikd.models.")
flags.DEFINE_integer("image_size", 8, "Height and width of an image, of one channel.", 8)
flags.DEFINE_integer("batch_size", 32, "Images in a batch.", 2)
flags.DEFINE_list(
    "methods",
    ["KD", "VID", "VID (no read-outs)", "MIMKD (no XLA)", "MIMKD (no XLA or read-outs)"],
    "Some of methods.py with a teacher.",
)
reports.define_output()

NOT_COUNTED = {
    *("parameter", "get-tuple-element", "tuple", "bitcast", "constant", "copy", "iota"),
    "after-all",
}
_OPERATION = re.compile(r"\s*(?:ROOT )?%?[\w.\-]+ = .*? ([\w\-]+)\(")


def counted(program):
    """Returns `{kind: number}` of the operations of a compiled program, a text in HLO."""
    entry = program[program.index("\nENTRY ") + 1 :].splitlines()[1:]
    kinds = (found[1] for line in entry if (found := _OPERATION.match(line)))
    return collections.Counter(kind for kind in kinds if kind not in NOT_COUNTED)


def of_step(model):
    """Returns the operations of the training step of a model."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), loss, jit_compile=True)
    model.optimizer.build(model.trainable_variables)
    return _compiled(lambda x, y: model.train_step((x, y)))


def of_forward(network):
    """Returns the operations of the forward pass of a network."""
    return _compiled(lambda x, y: network(x, training=False))


def _compiled(function):
    x = tf.zeros((FLAGS.batch_size, FLAGS.image_size, FLAGS.image_size, 1))
    y = tf.zeros(FLAGS.batch_size, "int32")
    compiled = tf.function(function, jit_compile=True)
    return counted(compiled.experimental_get_compiler_ir(x, y)(stage="optimized_hlo"))


def main(argv):
    del argv
    reports.check_output()
    known = [name for name, method in METHODS.items() if method.reference == FLOOR]
    check_names("methods", FLAGS.methods, known)
    shape = (FLAGS.image_size, FLAGS.image_size, 1)

    def teacher():
        return getattr(mikd.models, FLAGS.teacher)(10, shape)

    def student():
        return getattr(mikd.models, FLAGS.student)(10, shape)

    found = {STUDENT: of_step(student()), TEACHER: of_forward(teacher())}
    for name in FLAGS.methods:
        found[name] = of_step(METHODS[name].build(teacher, student))
    floor = found[STUDENT].total() + found[TEACHER].total()
    print(f"{'':30}{'operations':>11}{'beyond the floor':>18}  kinds")
    for name, kinds in found.items():
        beyond = "" if name in (STUDENT, TEACHER) else f"{kinds.total() - floor:+}"
        said = ", ".join(f"{number} {kind}" for kind, number in kinds.most_common())
        print(f"{name:30}{kinds.total():11}{beyond:>18}  {said}", flush=True)
    reports.write({"floor": floor, "operations": found})


if __name__ == "__main__":
    app.run(main)

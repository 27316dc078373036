r"""Where augmentation belongs: in the data that both networks read, in the student, or nowhere.

    python experiments/augmentation.py --teacher=runs/demo/teacher.keras --output_dir=runs/augment

Needs a teacher of examples/train_teacher.py for the same data. A student is trained alone and by
every method, at one weight, in three places of the augmentation:

* `shared`: every image has `--views` augmented views, the same for teacher and student.
* `inside`: the student starts with layers that augment, so that the teacher sees other images.
* `none`: images as they are.

On CIFAR-10, at the weights that compare.py chose with shared views:

    python experiments/augmentation.py --teacher=wrn_40_2.keras --dataset=cifar10 --data_dir=... \
        --student=wrn_16_1 --labels_per_class=50 --batch_size=64 --epochs=40 --views=8 \
        --methods=kd,vid,mimkd --weights=30,100,1 --output_dir=runs/augment

A run that is there is not made again. Writes what `keras_mikd.compare` writes to
`<output_dir>/<place>`.
"""

from pathlib import Path

import keras
from absl import app, flags, logging

import few_labels
import protocol
from keras_mikd.comparison.methods import METHODS, Method

FLAGS = flags.FLAGS
few_labels.define_flags()
few_labels.define_trials()
flags.DEFINE_string("teacher", None, "Teacher of examples/train_teacher.py.", required=True)
flags.DEFINE_list("methods", ["kd", "vid", "mimkd"], "Some of: " + ", ".join(METHODS))
flags.DEFINE_list("weights", ["3", "10", "1"], "A weight for each of them.")
PLACES = ("shared", "inside", "none")


def augmenting(network, dataset):
    """Returns a network that augments its images in training, as the shared views are made."""
    inputs = keras.Input(network.input_shape[1:])
    if dataset.startswith("digits"):
        pixels, fill = 1, "constant"
    else:
        pixels, fill = 4, "reflect"
    share = pixels / network.input_shape[1]
    x = keras.layers.RandomTranslation(share, share, fill_mode=fill, interpolation="nearest")(
        inputs
    )
    if not dataset.startswith("digits"):  # A mirrored digit is no digit.
        x = keras.layers.RandomFlip("horizontal")(x)
    return keras.Model(inputs, network(x), name=network.name)


def comparison(place, teacher, data, methods):
    """Returns the comparison of one place."""

    def new_student():
        network = few_labels.new_network(FLAGS.student, data)
        return augmenting(network, FLAGS.dataset) if place == "inside" else network

    options = {} if place == "shared" else {"augment": None, "views": 1}
    folder = Path(FLAGS.output_dir) / place
    return few_labels.compare(teacher, data, methods, folder, make_student=new_student, **options)


def main(_):
    logging.set_verbosity(logging.WARNING)  # TensorFlow Datasets tells every read.
    protocol.check_names("methods", FLAGS.methods, METHODS)
    numbers = protocol.numbers("weights", FLAGS.weights)
    if len(numbers) != len(FLAGS.methods):
        raise SystemExit(
            f"Expected a weight for each of {FLAGS.methods}. Received: --weights={numbers}"
        )
    (labels_per_class,) = protocol.numbers("labels_per_class", FLAGS.labels_per_class, int)
    teacher = protocol.load_network(FLAGS.teacher)
    data = few_labels.load(FLAGS.dataset, labels_per_class)
    methods = {
        name: Method(METHODS[name].losses, (weight,))
        for name, weight in zip(FLAGS.methods, numbers, strict=True)
    }
    for place in PLACES:
        print(f"\nAugmentation: {place}", flush=True)
        comparison(place, teacher, data, methods)


if __name__ == "__main__":
    app.run(main)

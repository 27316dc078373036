"""What the experiments with few labels share: flags, data, networks, and the call of `compare`.

No script by itself: `import few_labels` works where one of the experiments is started.
"""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from absl import flags

import keras_mikd as mikd
import protocol

FLAGS = flags.FLAGS
# The flags that are defined below belong to the script that asks for them, and show in its help.
flags.disclaim_key_flags()


def define_flags(
    *,
    dataset="digits",
    student="resnet8",
    labels_per_class=("10",),
    epochs=60,
    batch_size=25,
    views=8,
):
    """Defines the data and the training of students, with the defaults of an experiment.

    With `student=None`, the experiment has networks of its own.
    """
    flags.DEFINE_string("output_dir", None, "Folder for everything written.", required=True)
    flags.DEFINE_string(
        "dataset", dataset, "digits, digits0-4 and the like, or an image classifier of TFDS."
    )
    flags.DEFINE_string("data_dir", None, "Folder of TensorFlow Datasets.")
    if student is not None:
        flags.DEFINE_string("student", student, "Network of keras_mikd.models, or mlp_<width>.")
    flags.DEFINE_list(
        "labels_per_class",
        list(labels_per_class),
        "Training images of each class, a table for each.",
    )
    flags.DEFINE_integer("seeds", 3, "Runs at the chosen weight.", 1)
    flags.DEFINE_integer("epochs", epochs, "Epochs of a student.", 1)
    flags.DEFINE_integer("batch_size", batch_size, "Images in a batch.", 1)
    flags.DEFINE_float("learning_rate", 1e-2, "First rate of Adam; it falls to 0 as a cosine.", 0)
    flags.DEFINE_integer("views", views, "Augmented views of every image.", 1)
    flags.DEFINE_integer("validation_images", 2000, "Images to choose weights on.", 1)
    flags.DEFINE_float("cache_gib", 4.0, "Largest memory for the teacher's tensors.", 0.0)


def define_trials():
    """Defines what `compare` asks for beside."""
    flags.DEFINE_integer("trial_seeds", 1, "How many of these seeds weights are tried with.", 1)


class Data(NamedTuple):
    """Splits as arrays `(images, labels)`, and how an image is augmented."""

    train: tuple
    validation: tuple
    test: tuple
    num_classes: int
    image_shape: tuple
    augment: Callable


def crop_and_flip(image, seed):
    """Pads four pixels by reflection, crops a window, and mirrors half of the images."""
    shape = image.shape
    image = tf.pad(image, [[4, 4], [4, 4], [0, 0]], "REFLECT")
    image = tf.image.stateless_random_crop(image, shape, seed)
    return tf.image.stateless_random_flip_left_right(image, seed + 1)


def shift(image, seed):
    """Moves an image by at most a pixel, which leaves a digit what it is."""
    padded = tf.pad(image, [[1, 1], [1, 1], [0, 0]])
    return tf.image.stateless_random_crop(padded, image.shape, seed)


def load(name, labels_per_class=None, *, unlabelled=False, **options):
    """Returns the `Data` of a data set by its name.

    Args:
        name: `"digits"`; `"digits0-4"` for those classes alone, counted from 0; a name in TFDS.
        labels_per_class: Training images of each class that have labels; all if `None`.
        unlabelled: Whether the others stay, labelled -1.
        **options: Other arguments of `load_images`.
    """
    keras.utils.set_random_seed(0)  # The draw and its order are the same in every run.
    chosen = {"labels_per_class": labels_per_class, "data_dir": FLAGS.data_dir}
    digits = re.fullmatch(r"digits(?:(\d)-(\d))?", name)
    if digits:
        splits = mikd.datasets.load_digits(batch_size=1, unlabelled=unlabelled, **chosen)
    else:
        options = {"augment": False, "drop_remainder": False, "batch_size": 10, **options}
        splits = mikd.datasets.load_images(name, unlabelled=unlabelled, **chosen, **options)
    data = Data(
        arrays(splits.train),
        arrays(splits.validation, FLAGS.validation_images),
        arrays(splits.test),
        splits.num_classes,
        splits.image_shape,
        shift if digits else crop_and_flip,
    )
    return only_classes(data, *map(int, digits.groups())) if digits and digits[1] else data


def arrays(batches, most=None):
    """Returns a data set of batches as arrays, at most so many examples."""
    parts = [np.concatenate(part) for part in zip(*batches.as_numpy_iterator(), strict=True)]
    return tuple(part[:most] for part in parts)


def only_classes(data, first, last):
    """Returns the examples of some classes, which are counted from 0 then."""
    if first >= last or last >= data.num_classes:
        raise SystemExit(
            f"Expected two or more of {data.num_classes} classes, such as digits0-4. "
            f"Received: digits{first}-{last}"
        )

    def chosen(split):
        images, labels = split
        kept = (first <= labels) & (labels <= last)
        return images[kept], labels[kept] - first

    splits = {name: chosen(getattr(data, name)) for name in ("train", "validation", "test")}
    return data._replace(num_classes=last - first + 1, **splits)


def new_network(name, data):
    """Returns an untrained network: one of `keras_mikd.models`, or `"mlp_<width>"`."""
    perceptron = re.fullmatch(r"mlp_(\d+)", name)
    if perceptron:
        return mikd.models.mlp(
            width=int(perceptron[1]), num_classes=data.num_classes, input_shape=data.image_shape
        )
    return getattr(mikd.models, name)(data.num_classes, data.image_shape)


def augmented_batches(data):
    """Returns the training images of some data in batches, augmented anew in every epoch."""
    images = tf.data.Dataset.from_tensor_slices(data.train).shuffle(len(data.train[1]))
    seeds = tf.data.Dataset.random(seed=0).batch(2)
    return (
        tf.data.Dataset.zip(images, seeds)
        .map(
            lambda example, seed: (data.augment(example[0], seed), example[1]),
            num_parallel_calls=tf.data.AUTOTUNE,
        )
        .batch(FLAGS.batch_size, drop_remainder=True)
    )


def trained(name, data, epochs, path, new_optimizer=None):
    """Returns a network that is trained on all images of some data, from its file if it is there.

    They are augmented anew in every epoch. `new_optimizer` is a function of the number of steps.
    """
    if path.exists():
        return keras.saving.load_model(path)
    keras.utils.set_random_seed(0)
    network = new_network(name, data)
    batches = augmented_batches(data)
    new_optimizer = new_optimizer or optimizer(FLAGS.learning_rate)
    network.compile(
        new_optimizer(epochs * len(batches)),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    network.fit(batches, epochs=epochs, shuffle=False, verbose=0)
    accuracy = network.evaluate(*data.test, verbose=0, return_dict=True)["accuracy"]
    print(f"{name}, {epochs} epochs: {accuracy:.2%} of its test split", flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    network.save(path)
    return network


def optimizer(learning_rate):
    """Returns what makes the optimizer of a run, a function that knows its rate."""
    return lambda steps: protocol.adam_with_cosine(learning_rate, steps)


def compare(teacher, data, methods, folder, *, make_student=None, **options):
    """Returns the comparison of methods `{name: Method}`, as the flags say.

    `options` are arguments of `keras_mikd.compare`, which stand in for those of the flags.
    """
    of_flags = {
        "seeds": FLAGS.seeds,
        "trial_seeds": FLAGS.trial_seeds,
        "epochs": FLAGS.epochs,
        "batch_size": FLAGS.batch_size,
        "make_optimizer": optimizer(FLAGS.learning_rate),
        "augment": data.augment if FLAGS.views > 1 else None,
        "views": FLAGS.views,
        "max_cache_bytes": int(FLAGS.cache_gib * 2**30),
    }
    return mikd.compare(
        teacher,
        make_student or (lambda: new_network(FLAGS.student, data)),
        data.train,
        data.validation,
        data.test,
        methods={name: method.losses for name, method in methods.items()},
        weights={name: method.weights for name, method in methods.items()},
        folder=Path(folder),
        **{**of_flags, **options},
    )

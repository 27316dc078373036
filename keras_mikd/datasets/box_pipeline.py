"""Batches of images with their boxes, in the form that KerasCV's detectors train on."""

import tensorflow as tf

from keras_mikd.datasets.splits import Splits, check_batch_size
from keras_mikd.datasets.streams import for_evaluation, for_training

BOX_FORMAT = "xyxy"
"""KerasCV's name of the boxes' format: left, top, right, bottom in pixels."""


def targets(objects, shape, max_boxes):
    """Returns the boxes and classes of one image, padded with -1.

    Args:
        objects: `{"bbox": float32 (n, 4), "label": (n,)}` as TFDS has them: (ymin, xmin, ymax,
            xmax) relative to the image.
        shape: Height and width of the image in pixels.
        max_boxes: Boxes to keep: of more, the first are kept; rows of -1 are added to fewer.

    Returns:
        `{"boxes": float32 (max_boxes, 4), "classes": float32 (max_boxes,)}`, `BOX_FORMAT`.
    """
    height, width = (tf.cast(side, tf.float32) for side in (shape[0], shape[1]))
    top, left, bottom, right = tf.unstack(objects["bbox"], axis=-1)
    boxes = tf.stack([left * width, top * height, right * width, bottom * height], axis=-1)
    return {
        "boxes": _padded(boxes, max_boxes),
        "classes": _padded(tf.cast(objects["label"], tf.float32), max_boxes),
    }


def build_splits(
    builder, train, validation, test, *, prepare, image_shape, batch_size, seed, shuffle_buffer
):
    """Returns a `Splits` of data sets of known cardinality, whose examples are tuples.

    Args:
        builder: The TFDS builder that the examples are of.
        train: Training examples.
        validation: Validation examples, or None.
        test: Test examples.
        prepare: Function `(*example, seed=None) -> (image, targets)`; `seed` is a new integer
            scalar for every training example and epoch, and None in evaluation.
        image_shape: Shape of the images that `prepare` returns.
        batch_size: Images in a batch.
        seed: Seed of the order and of what `prepare` draws. TensorFlow mixes its global seed in.
        shuffle_buffer: Training examples among which the next one is drawn.
    """
    check_batch_size(batch_size, len(train))

    def evaluated(examples):
        return for_evaluation(examples, prepare, batch_size=batch_size)

    return Splits(
        train=for_training(
            train, prepare, batch_size=batch_size, seed=seed, shuffle_buffer=shuffle_buffer
        ),
        validation=evaluated(validation) if validation else None,
        test=evaluated(test),
        num_classes=builder.info.features["objects"]["label"].num_classes,
        image_shape=image_shape,
        num_train=len(train),
        num_validation=len(validation) if validation else 0,
        num_test=len(test),
    )


def _padded(values, length):
    missing = tf.maximum(length - tf.shape(values)[0], 0)
    edges = [[0, missing]] + [[0, 0]] * (len(values.shape) - 1)
    padded = tf.pad(values[:length], edges, constant_values=-1)
    return tf.ensure_shape(padded, (length, *values.shape[1:]))

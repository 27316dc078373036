"""Checks of the data before the first step."""

import contextlib

import keras
import numpy as np
import tensorflow as tf

from keras_mikd.cache.batches import take_apart
from keras_mikd.cache.teacher_cache import TeacherCache
from keras_mikd.keras_internals import layers_of


def checked_data(argument, data, *, models, loss, output):
    """Returns `data`, after a `ValueError` if it cannot be what the networks are to be trained on.

    `data` is `x` or a tuple `(x, y, ...)`; `models`, `{name: model}`, take `x`, and `output` is the
    symbolic output that the labels are for. Arrays are checked here. A `tf.data.Dataset` is not
    read, which would change the order of its shuffling: it comes back with a check of the labels of
    every batch (see `told_labels`). Other sources are not checked.
    """
    if isinstance(data, tf.data.Dataset):
        return _checked_dataset(argument, data, models, loss, output)
    if isinstance(data[0] if isinstance(data, tuple) else data, TeacherCache):
        raise ValueError(
            f"Expected batches as `{argument}`. Received: a TeacherCache; pass "
            "cache.batches(batch_size)."
        )
    x, y = (*data, None)[:2] if isinstance(data, tuple) else (data, None)
    if isinstance(x, tf.data.Dataset):
        return (_checked_dataset(argument, x, models, loss, output), *data[1:])
    arrays = keras.tree.flatten(x)
    if not all(hasattr(array, "shape") and hasattr(array, "dtype") for array in arrays):
        return data
    for array in arrays:
        _check_images(models, argument, array)
    _check_names(argument, y, loss, output)
    classes = _num_classes(loss, output, y)
    if classes is not None:
        _check_indices(argument, np.shape(y), output)
        values = np.asarray(y)
        values = values[values != getattr(loss, "ignore_class", None)]
        if values.size and not 0 <= values.min() <= values.max() < classes:
            raise ValueError(
                f"{_labels_message(argument, classes)} Received: labels from {values.min()} to "
                f"{values.max()}."
            )
    return data


def _checked_dataset(argument, dataset, models, loss, output):
    if dataset.cardinality() == 0:
        raise ValueError(f"Expected a batch. Received: `{argument}` is an empty data set.")
    batch = take_apart(dataset.element_spec)
    for spec in keras.tree.flatten(batch.x):
        _check_images(models, argument, spec)
    _check_names(argument, batch.y, loss, output)
    classes = _num_classes(loss, output, batch.y)
    if classes is None:
        return dataset
    _check_indices(argument, batch.y.shape, output)
    ignored = getattr(loss, "ignore_class", None)
    message = _labels_message(argument, classes)

    def check(*data):
        data = data if len(data) > 1 else data[0]
        labels = take_apart(data).y
        fits = tf.logical_and(labels >= 0, labels < tf.cast(classes, labels.dtype))
        if ignored is not None:
            fits = tf.logical_or(fits, labels == tf.cast(ignored, labels.dtype))
        with tf.control_dependencies([tf.debugging.Assert(tf.reduce_all(fits), [message])]):
            return tf.nest.map_structure(tf.identity, data)

    checked = dataset.map(check)
    if argument == "validation_data":  # Reading it disturbs no training and saves an epoch.
        with told_labels(output):
            next(iter(checked), None)
    return checked


@contextlib.contextmanager
def told_labels(output):
    """Raises a `ValueError` where a checked data set meets labels that do not fit `output`."""
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        classes = None if keras.tree.is_nested(output) else output.shape[-1]
        for argument in ("x", "validation_data"):
            message = _labels_message(argument, classes)
            if message in str(error):
                raise ValueError(f"{message} Received: labels outside that range.") from None
        raise


def _labels_message(argument, classes):
    last = None if classes is None else classes - 1
    return (
        f"Expected the labels in `{argument}` to be integers from 0 to {last}, one for every output"
        " of the network."
    )


def _check_images(models, argument, array):
    if array.shape[0] == 0:
        raise ValueError(
            f"Expected at least one example, but `{argument}` is empty. Received: "
            f"shape={tuple(array.shape)}"
        )
    dtype = keras.backend.standardize_dtype(array.dtype)
    if len(array.shape) != 4 or "int" not in dtype:
        return
    for name, model in models.items():
        if not _accepts_integers(model):
            raise ValueError(
                f"Expected floats such as x / 255: `{argument}` holds integer images, and the "
                f"{name} takes floats and has no Rescaling layer. Received: dtype={dtype}. Cast "
                "images to float32 if the networks rescale in another way."
            )


def _accepts_integers(model):
    inputs = getattr(model, "inputs", None) or []
    if not inputs or any("int" in tensor.dtype for tensor in inputs):
        return True
    rescaling = (keras.layers.Rescaling, keras.layers.Normalization)
    return any(isinstance(layer, rescaling) for layer in layers_of(model))


def _check_names(argument, labels, loss, output):
    """Refuses labels by name for an only output, which Keras hands to the loss as they are."""
    if loss is not None and isinstance(labels, dict) and not keras.tree.is_nested(output):
        raise ValueError(
            f"Expected the labels in `{argument}` as one array, since the network has one output. "
            f"Received: labels by name, {sorted(labels)}. Pass the array itself, or let the network"
            " put out a dict of these names."
        )


def _check_indices(argument, shape, output):
    """Refuses distributions over the classes, such as those of mixed images, as class indices."""
    classes = output.shape[-1]
    if len(shape) == len(output.shape) and shape[-1] == classes and classes > 1:
        raise ValueError(
            f"Expected integer labels of shape (batch,) in `{argument}`, since the task loss is a "
            f"sparse cross-entropy. Received: labels of shape {tuple(shape)}, one number for each "
            f"of {classes} classes, which are for keras.losses.CategoricalCrossentropy."
        )


def _num_classes(loss, output, labels):
    """Returns the number of classes that labels must stay below; `None` if it is unknown."""
    single = labels is not None and not keras.tree.is_nested(output)
    if not single or keras.tree.is_nested(labels) or not _is_sparse_cross_entropy(loss):
        return None
    return output.shape[-1]


def _is_sparse_cross_entropy(loss):
    if isinstance(loss, str):
        loss = keras.losses.get(loss)
    sparse = keras.losses.SparseCategoricalCrossentropy
    return isinstance(loss, sparse) or loss is keras.losses.sparse_categorical_crossentropy

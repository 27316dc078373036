"""A look at the data before the first step."""

import keras
import numpy as np
import tensorflow as tf


def check_data(distiller, output, argument, data):
    """Raises a `ValueError` if the data cannot be what the distiller is to be trained on.

    Args:
        distiller: A compiled `Distiller`.
        output: `KerasTensor` of the student's output, or a structure of them.
        argument: Name of the argument of `fit`, for the message.
        data: `x`, or a tuple `(x, y, ...)`. `x` is an array, a nested structure of arrays, or a
            `tf.data.Dataset`, of which one batch is read. Other sources are not looked into.
    """
    x, y = (*data, None)[:2] if isinstance(data, tuple) else (data, None)
    if isinstance(x, tf.data.Dataset):
        batch = next(iter(x.take(1)), None)
        if batch is None:
            raise ValueError(f"`{argument}` is an empty data set. Expected at least one batch.")
        x, y, _ = keras.utils.unpack_x_y_sample_weight(batch)
    arrays = keras.tree.flatten(x)
    if not all(hasattr(array, "shape") and hasattr(array, "dtype") for array in arrays):
        return
    for array in arrays:
        _check_images(distiller, argument, array)
    if y is not None:
        _check_labels(distiller.loss, output, argument, y)


def _check_images(distiller, argument, array):
    if array.shape[0] == 0:
        raise ValueError(
            f"`{argument}` is empty. Expected at least one example. Received: shape="
            f"{tuple(array.shape)}"
        )
    dtype = keras.backend.standardize_dtype(array.dtype)
    if len(array.shape) != 4 or "int" not in dtype:
        return
    for name, model in (("teacher", distiller.teacher), ("student", distiller.student)):
        if not _accepts_integers(model):
            raise ValueError(
                f"`{argument}` holds integer images, and the {name} takes floats and has no "
                "Rescaling layer. Expected the floats that the teacher was trained on, such as "
                "x / 255; cast them to float32 if the networks rescale in another way. "
                f"Received: dtype={dtype}"
            )


def _accepts_integers(model):
    inputs = getattr(model, "inputs", None) or []
    if not inputs or any("int" in tensor.dtype for tensor in inputs):
        return True
    rescaling = (keras.layers.Rescaling, keras.layers.Normalization)
    return any(isinstance(layer, rescaling) for layer in model._flatten_layers())


def _check_labels(loss, output, argument, labels):
    if not _is_sparse_cross_entropy(loss):
        return
    if keras.tree.is_nested(output) or keras.tree.is_nested(labels) or output.shape[-1] is None:
        return
    classes = output.shape[-1]
    values = np.asarray(labels)
    values = values[values != getattr(loss, "ignore_class", None)]
    if values.size and (values.min() < 0 or values.max() >= classes):
        raise ValueError(
            f"Expected the labels in `{argument}` to be integers from 0 to {classes - 1}, since "
            f"the student has {classes} outputs. Received labels from {values.min()} to "
            f"{values.max()}."
        )


def _is_sparse_cross_entropy(loss):
    if isinstance(loss, str):
        loss = keras.losses.get(loss)
    sparse = keras.losses.SparseCategoricalCrossentropy
    return isinstance(loss, sparse) or loss is keras.losses.sparse_categorical_crossentropy

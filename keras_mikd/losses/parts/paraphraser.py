"""The first stage of factor transfer: an autoencoder of the teacher's maps."""

import keras
import numpy as np
import tensorflow as tf
from keras import ops

_RATE, _FIRST, _SECOND = 1e-3, 0.9, 0.999  # Adam's.
_BATCH = 32


def fitted(encoder, maps, *, steps, squared):
    """Trains an encoder beside a decoder that is thrown away.

    Weights are plain tensors here, so that it makes no difference under which strategy this runs.

    Args:
        encoder: List of `(kernel, bias)` of three convolutions with LeakyReLU, to start from.
        maps: The teacher's maps `(examples, height, width, channels)`.
        steps: Number of steps of Adam, on 32 examples each.
        squared: Whether the error is squared, or absolute.

    Returns:
        The encoder's weights, likewise, and the mean squared error in units of the variance.
    """
    weights = [ops.convert_to_tensor(weight) for pair in encoder for weight in pair]
    weights += _decoder(encoder)
    # Teachers differ in scale; the first kernel takes it in, the last layer's output is scaled.
    scale = ops.maximum(ops.std(maps), 1e-6)
    maps = maps / scale
    moments = [[ops.zeros_like(w), ops.zeros_like(w)] for w in weights]
    rng, order = np.random.default_rng(0), []
    for step in range(1, steps + 1):
        order = order if len(order) else rng.permutation(len(maps))
        batch, order = ops.take(maps, order[:_BATCH], axis=0), order[_BATCH:]
        weights, moments = _step(weights, moments, batch, tf.constant(step, "float32"), squared)
    error = _errors(weights, maps, squared=True) / ops.maximum(ops.var(maps), 1e-12)
    kernel, *rest = weights[: 2 * len(encoder)]
    return list(_pairs([kernel / scale, *rest])), error


def _decoder(encoder):
    """Returns the decoder's weights, as large as the encoder's, and in reverse."""
    draw = keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform", seed=0)
    weights = []
    for taken, _ in reversed(encoder):
        rows, columns, inputs, outputs = taken.shape
        # Keras would follow `floatx`.
        kernel = draw((rows, columns, outputs, inputs), dtype="float32")
        weights += [kernel, ops.zeros((inputs,), dtype="float32")]
    return weights


@tf.function(autograph=False)
def _step(weights, moments, batch, step, squared):
    with tf.GradientTape() as tape:
        tape.watch(weights)
        error = _errors(weights, batch, squared)
    new_weights, new_moments = [], []
    for weight, (first, second), slope in zip(
        weights, moments, tape.gradient(error, weights), strict=True
    ):
        first = _FIRST * first + (1 - _FIRST) * slope
        second = _SECOND * second + (1 - _SECOND) * ops.square(slope)
        size = ops.sqrt(second / (1 - _SECOND**step)) + 1e-7
        new_weights.append(weight - _RATE * first / (1 - _FIRST**step) / size)
        new_moments.append([first, second])
    return new_weights, new_moments


def _errors(weights, maps, squared):
    rebuilt = maps
    for kernel, bias in _pairs(weights):
        rebuilt = ops.conv(rebuilt, kernel, padding="same", data_format="channels_last") + bias
        rebuilt = ops.leaky_relu(rebuilt, negative_slope=0.1)
    return ops.mean(ops.square(rebuilt - maps) if squared else ops.abs(rebuilt - maps))


def _pairs(weights):
    return zip(weights[::2], weights[1::2], strict=True)

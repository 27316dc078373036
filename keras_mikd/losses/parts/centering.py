"""Deviations from a mean and their length, with a gradient where nothing deviates."""

import tensorflow as tf
from keras import ops

SHORTEST = 1e-2  # As that of the critics: what is shorter has its own gradient.
_ROUNDING = 1e-6  # What deviates by less, relative to the largest value, is float32's own noise.


def deviations(x, axis, left_out=None):
    """Returns `x` less its mean over `axis`; zeros without a gradient where it is constant there.

    The mean of equal numbers is rounded. A small denominator would magnify what is left, and the
    gradient with it. What is `left_out`, booleans like `x`, counts for nothing and deviates by 0.
    """
    if left_out is None:
        mean = ops.mean(x, axis=axis, keepdims=True)
    else:
        x = ops.where(left_out, 0.0, x)
        mean = ops.sum(x, axis=axis, keepdims=True) / number_left(left_out, axis)
    deviation = x - mean if left_out is None else ops.where(left_out, 0.0, x - mean)
    largest = ops.max(ops.abs(x), axis=axis, keepdims=True)
    # Asked so that NaN is no constant.
    constant = ops.max(ops.abs(deviation), axis=axis, keepdims=True) <= _ROUNDING * largest
    return ops.where(constant, 0.0, deviation)


def number_left(left_out, axis):
    """Returns how many are not left out over `axis`, which stays; 1 where all are."""
    number = ops.sum(ops.cast(ops.logical_not(left_out), "float32"), axis=axis, keepdims=True)
    return ops.maximum(number, 1.0)


def length(x, axis):
    """Returns the Euclidean length over `axis`, which stays. Its gradient at zeros is 0."""
    square = ops.sum(ops.square(x), axis=axis, keepdims=True)
    positive = square > 0.0
    return ops.where(positive, ops.sqrt(ops.where(positive, square, 1.0)), 0.0)


def gently(x, size, shortest=SHORTEST):
    """Returns `x`, to be divided by its `size`, with a gradient that float16 can hold.

    That of a quotient is the inverse of the size, and huge where a network has hardly any activity:
    steps of mixed precision are skipped then. What is smaller than `shortest` gets the gradient of
    what is as large; what is much larger, its own.
    """
    share = size / ops.maximum(ops.sqrt(ops.square(size) + shortest**2), 1e-30)
    share = ops.stop_gradient(share)
    return tf.custom_gradient(lambda x: (ops.copy(x), lambda upstream: upstream * share))(x)

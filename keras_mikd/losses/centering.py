"""Deviations from a mean and their length, with a gradient where nothing deviates."""

from keras import ops

_ROUNDING = 1e-6  # What deviates by less, relative to the largest value, is float32's own noise.


def deviations(x, axis):
    """Returns `x` less its mean over `axis`; zeros without a gradient where it is constant there.

    The mean of equal numbers is rounded. A small denominator would magnify what is left, and the
    gradient with it.
    """
    deviation = x - ops.mean(x, axis=axis, keepdims=True)
    largest = ops.max(ops.abs(x), axis=axis, keepdims=True)
    varies = ops.max(ops.abs(deviation), axis=axis, keepdims=True) > _ROUNDING * largest
    return ops.where(varies, deviation, 0.0)


def length(x, axis):
    """Returns the Euclidean length over `axis`, which stays. Its gradient at zeros is 0."""
    square = ops.sum(ops.square(x), axis=axis, keepdims=True)
    positive = square > 0.0
    return ops.where(positive, ops.sqrt(ops.where(positive, square, 1.0)), 0.0)

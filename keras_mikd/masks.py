"""Sums over the real tokens of padded sequences, which more padding does not change.

A mask is a bool tensor `(batch, tokens)`, true where a token is real. The kernels of a CPU compute
the last few elements of a tensor by other instructions than the rest, and order a sum by its
length. So sequences are brought to whole `_LANES`, and summed lane by lane: on a CPU, a batch with
more padding gives the same value, to the bit.
"""

import inspect

from keras import ops

_LANES = 16


def takes(function, argument):
    """Whether a function has an argument that says which tokens are padded."""
    return argument in inspect.signature(function).parameters


def compared(pairs):
    """Returns where an example is compared: its own pair counts, and that of a negative.

    `pairs` has the shape `(batch, 1 + negatives, tokens)`, the result `(batch, tokens)`.
    """
    return ops.logical_and(pairs[:, 0], ops.any(pairs[:, 1:], axis=1))


def in_lanes(x):
    """Pads `(batch, tokens, ...)` with zeros, or a mask with false, to a multiple of `_LANES`."""
    if isinstance(x.shape[1], int) and x.shape[1] % _LANES == 0:
        return x
    batch, tokens, *rest = ops.shape(x)
    zeros = ops.zeros((batch, -tokens % _LANES, *rest), dtype=x.dtype)
    return ops.concatenate([x, zeros], axis=1)


def only_real(x, mask):
    """Returns `(batch, tokens, ...)` with zeros instead of padded tokens, whatever these hold."""
    return ops.where(ops.reshape(mask, (*ops.shape(mask), *[1] * (len(x.shape) - 2))), x, 0)


def total(x):
    """Sums `(batch, tokens, ...)` over its tokens, of which the padded ones are 0."""
    x = in_lanes(x)
    batch, tokens, *rest = ops.shape(x)
    return ops.sum(
        ops.sum(ops.reshape(x, (batch, tokens // _LANES, _LANES, *rest)), axis=1), axis=1
    )


def mean(x, mask):
    """Averages `(batch, tokens, ...)` over the real tokens of an example; 0 where it has none."""
    count = ops.maximum(number(mask, x.dtype), 1)
    return total(only_real(x, mask)) / ops.reshape(count, (-1, *[1] * (len(x.shape) - 2)))


def number(mask, dtype="float32"):
    """Returns how many tokens of every example are real, shape `(batch,)`."""
    return ops.sum(ops.cast(mask, dtype), axis=1)

"""Checks of arguments and labels: each returns what is kept, or says what was expected."""

import math
import numbers

import keras
import numpy as np
from keras import ops


def number(argument, value, *, at_least=None, above=None, at_most=None, below=None, optional=False):
    """Returns `value` as a float.

    Args:
        argument: Name of the argument, for the message.
        value: What the caller gave.
        at_least: Smallest number that is allowed, or `None`.
        above: Number that has to be exceeded, or `None`.
        at_most: Largest number that is allowed, or `None`.
        below: Number that must not be reached, or `None`.
        optional: Whether `None` is allowed, and returned.

    Raises:
        ValueError: If `value` is not a finite number in that range.
    """
    if optional and value is None:
        return None
    limits = {"of at least": at_least, "above": above, "of at most": at_most, "below": below}
    real = isinstance(value, numbers.Real) and not isinstance(value, (bool, np.bool_))
    fits = real and math.isfinite(value)
    fits = fits and (at_least is None or value >= at_least) and (above is None or value > above)
    if (
        not fits
        or (at_most is not None and value > at_most)
        or (below is not None and value >= below)
    ):
        bounds = " and ".join(
            f"{word} {limit:g}" for word, limit in limits.items() if limit is not None
        )
        raise ValueError(_message(argument, f"a finite number {bounds}".strip(), value, optional))
    return float(value)


def integer(argument, value, *, at_least=None, at_most=None, optional=False):
    """Returns `value` as an int; arguments and errors are those of `number`."""
    if optional and value is None:
        return None
    fits = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    fits = fits and (at_least is None or value >= at_least)
    if not fits or (at_most is not None and value > at_most):
        limits = {"of at least": at_least, "of at most": at_most}
        bounds = " and ".join(
            f"{word} {limit}" for word, limit in limits.items() if limit is not None
        )
        raise ValueError(_message(argument, f"an int {bounds}".strip(), value, optional))
    return int(value)


def one_of(argument, value, choices):
    """Returns `value`, if it is one of `choices`."""
    if not any(
        value is choice or (type(value) is type(choice) and value == choice) for choice in choices
    ):
        allowed = ", ".join(map(repr, choices[:-1])) + f" or {choices[-1]!r}"
        raise ValueError(_message(argument, allowed, value))
    return value


def temperature(value):
    """Returns a temperature as a float, if it is a finite number above 0."""
    return number("temperature", value, above=0)


def class_indices(labels):
    """Returns labels as the class of every example, int32 of shape `(batch,)`.

    Args:
        labels: Integers, or floats that hold integers, of shape `(batch,)` or `(batch, 1)`.

    Raises:
        ValueError: If they have another shape, as one-hot and soft labels have.
    """
    if labels is None or keras.tree.is_nested(labels):
        raise ValueError(
            "Expected integer labels in the data, one class for every example. "
            f"Received: labels={labels!r}"
        )
    labels = ops.convert_to_tensor(labels)
    shape = tuple(labels.shape)
    if len(shape) not in (1, 2) or (len(shape) == 2 and shape[1] != 1):
        raise ValueError(
            "Expected integer labels of shape (batch,), one class for every example. Received: "
            f"labels of shape {shape}. One-hot labels become integers with "
            "ops.argmax(labels, axis=-1); soft labels are not supported."
        )
    return ops.cast(ops.reshape(labels, (-1,)), "int32")


def _message(argument, expected, value, optional=False):
    expected += " or None" if optional else ""
    return f"Expected `{argument}` to be {expected}. Received: {argument}={value!r}"

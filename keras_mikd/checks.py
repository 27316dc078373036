"""Checks of arguments and labels: each returns what is kept, or says what was expected."""

import contextlib
import math
import numbers
import os
from collections.abc import Iterable

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
        *others, last = map(repr, choices)
        allowed = f"{', '.join(others)} or {last}" if others else last
        raise ValueError(_message(argument, allowed, value))
    return value


def boolean(argument, value):
    """Returns `value`, if it is `True` or `False`; a text is neither."""
    return one_of(argument, value, (True, False))


def temperature(argument, value):
    """Returns a temperature as a float: a number above 0 whose square stays within float32."""
    return number(argument, value, at_least=1e-12, at_most=1e12)


def class_indices(labels, *, one_hot=False, dtype="int32", hint=""):
    """Returns the class of every example, a tensor of shape `(batch,)`.

    Args:
        labels: Indices of shape `(batch,)` or `(batch, 1)`.
        one_hot: Whether rows over the classes, `(batch, classes)`, are taken as well; their class
            is that of the largest number.
        dtype: What indices are cast to; with `None`, floats stay what they are.
        hint: What else can be done where labels do not fit, for the message.

    Raises:
        ValueError: If there are no labels, or they have another shape.
    """
    several = keras.tree.is_nested(labels) and any(
        len(getattr(x, "shape", ())) for x in keras.tree.flatten(labels)
    )
    received = "labels=None"
    if several or isinstance(labels, dict):
        shapes = keras.tree.map_structure(lambda x: tuple(getattr(x, "shape", ())), labels)
        received = f"labels of shape {shapes}"
    elif labels is not None:
        labels = ops.convert_to_tensor(labels)
        columns = labels.shape[1] if len(labels.shape) == 2 else 1
        if len(labels.shape) in (1, 2) and (one_hot or columns == 1):
            classes = ops.reshape(labels, (-1,)) if columns == 1 else ops.argmax(labels, axis=1)
            floats = "float" in keras.backend.standardize_dtype(classes.dtype)
            return classes if floats and dtype is None else ops.cast(classes, dtype or "int32")
        received = f"labels of shape {tuple(labels.shape)}"
    kinds = "indices (batch,) or one-hot (batch, classes)" if one_hot else "integers (batch,)"
    raise ValueError(
        f"Expected labels in the data, the class of every example as {kinds}. Received: "
        f"{received}. {hint or 'One-hot labels become integers with ops.argmax(labels, axis=-1).'}"
    )


def model(argument, value):
    """Returns `value`, if it is a model of Keras 3 that has its weights.

    Raises:
        ValueError: If it is something else; the message says how to get a model from it.
    """
    any_model(argument, value)
    if isinstance(value, keras.Sequential) and not value.built:
        raise ValueError(
            f"Expected `{argument}` to have its weights. Received: the Sequential {value.name!r} "
            "without an input. Put keras.Input(shape) first, or call its `build`."
        )
    return value


def any_model(argument, value):
    """Returns `value`, if it is a model of Keras 3, with weights or without; errors as `model`."""
    is_distiller = hasattr(value, "distillation_losses")
    if not isinstance(value, keras.Model) or is_distiller:
        received = f"the distiller {value.name!r}" if is_distiller else f"{argument}={value!r}"
        raise ValueError(
            f"Expected `{argument}` to be a keras.Model. Received: {received}. "
            f"{instead_of_model(value)}"
        )
    return value


def without_nan(argument, value):
    """Returns `value`, a model, if none of its weights is NaN.

    What it puts out does not tell: on a CPU, the compiled relu makes 0 of NaN.

    Raises:
        ValueError: If one is; the message names it.
    """
    for weight in value.weights:
        floats = "float" in keras.backend.standardize_dtype(weight.dtype)
        if floats and bool(ops.any(ops.isnan(weight))):
            raise ValueError(
                f"Expected `{argument}` to have numbers as weights. Received: {value.name!r}, "
                f"whose {weight.path!r} has NaN. Load a checkpoint from before its training "
                "diverged."
            )
    return value


def instead_of_model(value):
    """Says how to get a model from what is none."""
    package = type(value).__module__.partition(".")[0]
    if hasattr(value, "distillation_losses"):
        own = [name for name in ("student", "peers", "teacher") if hasattr(value, name)]
        return f"Pass its network: `distiller.{own[0]}{'[0]' if own[0] == 'peers' else ''}`."
    if isinstance(value, (str, os.PathLike)):
        return "Load the file with keras.saving.load_model."
    if package in ("tf_keras", "keras_core"):
        return (
            f"It is a model of {package}, not of Keras 3: build the network with Keras 3, and "
            "give it the weights with set_weights(old.get_weights())."
        )
    if isinstance(value, keras.layers.Layer):
        return "Wrap a layer: keras.Sequential([keras.Input(shape), layer])."
    return "Call a function or class that makes a model, and pass what it returns."


class Settled:
    """Mixin of layers and models: arguments that a compiled step has taken in stay as they are."""

    _settled = frozenset()

    def settle(self, names: Iterable[str] | None = None) -> None:
        """Refuses assignments to the attributes from now on; by default those of `get_config`."""
        names = names or set(self.get_config()) - {"name", "trainable", "dtype"}
        self._settled = self._settled | frozenset(names)

    def __setattr__(self, name, value):
        if name in self._settled:
            raise AttributeError(
                f"Expected `{name}` of {self.name!r} to stay as it is: a compiled step has taken "
                f"it in, and would not see another value. Received: {value!r}. {self._how(name)}"
            )
        super().__setattr__(name, value)

    def _how(self, name):
        if name.endswith("weight"):
            return (
                "A weight that changes in training is a keras.optimizers.schedules."
                "LearningRateSchedule, given at construction."
            )
        return "Make another object with this value, and another distiller of the same networks."


@contextlib.contextmanager
def extra(name):
    """Imports in this context raise an ImportError that names the extra to install."""
    try:
        yield
    except ImportError as error:
        raise ImportError(
            f"Expected the package `{error.name}` to be installed. "
            f'Run: pip install "keras_mikd[{name}]"'
        ) from error


def listed(names, most):
    """Returns names for a message, the first `most` of them and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _message(argument, expected, value, optional=False):
    expected += " or None" if optional else ""
    return f"Expected `{argument}` to be {expected}. Received: {argument}={value!r}"

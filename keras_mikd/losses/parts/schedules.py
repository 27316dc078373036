"""Numbers that can change in training: weights and temperatures, constant or by a schedule."""

import contextlib
import contextvars

import keras
import tensorflow as tf
from keras import ops

from keras_mikd import checks

_STEP = contextvars.ContextVar("step_of_schedules", default=0)


@contextlib.contextmanager
def step_scope(step):
    """Within this scope, schedules are read at the optimizer's iteration `step`."""
    token = _STEP.set(step)
    try:
        yield
    finally:
        _STEP.reset(token)


def now(value):
    """Returns a number at the iteration of `step_scope`, outside of one at iteration 0."""
    return value_at(value, _STEP.get())


def value_at(value, step):
    """Returns a number at an optimizer's iteration, a float or a float32 scalar tensor."""
    return ops.cast(value(step), "float32") if is_schedule(value) else value


def checked_weight(argument, weight):
    """Returns a weight: a finite number of at least 0 as a float, or a schedule of such numbers."""
    for number in _numbers(weight):
        checks.number(argument, number, at_least=0)
    return weight if is_schedule(weight) else float(weight)


def checked_temperature(argument, temperature):
    """Returns a temperature: a number above 0 as a float, or a schedule of such numbers."""
    for number in _numbers(temperature):
        checks.temperature(argument, number)
    return temperature if is_schedule(temperature) else float(temperature)


def _numbers(value):
    """Returns a number, or those of a schedule at its start, on its way and far beyond its end."""
    if not is_schedule(value):
        return [value]
    with tf.init_scope():  # A distiller may be made while something is traced.
        return [float(value(step)) for step in (0, 1000, 10**9)]


def serialized(value):
    """Returns a number or schedule as a configuration holds it."""
    return keras.saving.serialize_keras_object(value) if is_schedule(value) else value


def is_schedule(value):
    """Whether a number is given by a schedule."""
    return isinstance(value, keras.optimizers.schedules.LearningRateSchedule)

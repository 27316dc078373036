"""Numbers that can change in training: weights and temperatures, constant or by a schedule."""

import contextlib
import contextvars

import keras
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
    """Returns a weight: a schedule, or a finite number of at least 0 as a float."""
    return weight if is_schedule(weight) else checks.number(argument, weight, at_least=0)


def checked_temperature(temperature):
    """Returns a temperature: a schedule, or a number above 0 as a float."""
    return temperature if is_schedule(temperature) else checks.temperature(temperature)


def serialized(value):
    """Returns a number or schedule as a configuration holds it."""
    return keras.saving.serialize_keras_object(value) if is_schedule(value) else value


def deserialized(value):
    """Returns what `serialized` was made from."""
    return keras.saving.deserialize_keras_object(value) if isinstance(value, dict) else value


def is_schedule(value):
    """Whether a number is given by a schedule."""
    return isinstance(value, keras.optimizers.schedules.LearningRateSchedule)

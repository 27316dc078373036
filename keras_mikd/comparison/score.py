"""What students are compared by: accuracy in per cent, or a metric of the user's own."""

import math
import re
from typing import NamedTuple

import keras

from keras_mikd import checks
from keras_mikd.distillers.checks import task_losses

ACCURACY = "accuracy"

_LESS_IS_BETTER = (
    keras.metrics.MeanSquaredError,
    keras.metrics.RootMeanSquaredError,
    keras.metrics.MeanAbsoluteError,
    keras.metrics.MeanAbsolutePercentageError,
    keras.metrics.MeanSquaredLogarithmicError,
    keras.metrics.LogCoshError,
    keras.metrics.KLDivergence,
    keras.metrics.Poisson,
    keras.metrics.BinaryCrossentropy,
    keras.metrics.CategoricalCrossentropy,
    keras.metrics.SparseCategoricalCrossentropy,
    keras.metrics.Hinge,
    keras.metrics.SquaredHinge,
    keras.metrics.CategoricalHinge,
)


class Score(NamedTuple):
    """Name of a metric, whether more of it is better, and the function that makes it.

    Without a function it is the accuracy of the task.
    """

    name: str = ACCURACY
    mode: str = "max"
    make: object = None

    def metric(self, loss):
        """Returns a new metric for `compile`, beside the task's loss."""
        return _accuracy(loss) if self.make is None else self.make()

    def of(self, logs):
        """Returns the value in what `evaluate` returns; what is named accuracy in per cent."""
        return logs[self.name] * (100 if self.name == ACCURACY else 1)

    def worth(self, value):
        """Returns a number that is the larger, the better a value is; NaN is the worst."""
        if math.isnan(value):
            return -math.inf
        return value if self.mode == "max" else -value


def checked_score(metric, mode):
    """Returns the `Score` of the arguments of `compare`.

    Raises:
        ValueError: If `metric` is no function that makes a Keras metric, or makes one of Keras'
            errors, of which less is better, with `mode="max"`.
    """
    checks.one_of("mode", mode, ("max", "min"))
    if metric is None:
        if mode != "max":
            raise ValueError('Expected mode="max" for accuracy. Received: mode="min"')
        return Score()
    made = metric() if callable(metric) and not isinstance(metric, keras.metrics.Metric) else None
    if not isinstance(made, keras.metrics.Metric):
        raise ValueError(
            "Expected `metric` to be a function of no arguments that makes a Keras metric, since "
            f"every evaluation has its own. Received: metric={metric!r}. Pass, for example, "
            "`lambda: keras.metrics.AUC(from_logits=True)`."
        )
    if mode == "max" and isinstance(made, _LESS_IS_BETTER):
        raise ValueError(
            f'Expected mode="min" with the metric {type(made).__name__}, of which less is better. '
            'Received: mode="max", the default'
        )
    numbered = made.name != metric().name  # By Keras, for want of a name.
    return Score(re.sub(r"_\d+$", "", made.name) if numbered else made.name, mode, metric)


def written(name, value):
    """Returns a value of a metric as text: accuracy has two digits behind the point."""
    return f"{value:.2f}" if name == ACCURACY else f"{value:.4g}"


def _accuracy(loss):
    """Returns the accuracy of a task; Keras' own takes the logit of two classes for a share."""
    if not task_losses.is_binary(loss) or not task_losses.expects_logits(loss):
        return ACCURACY

    def share(labels, logits):
        labels = keras.ops.reshape(keras.ops.cast(labels, "float32"), keras.ops.shape(logits))
        return keras.ops.cast((labels > 0.5) == (logits > 0.0), "float32")

    return keras.metrics.MeanMetricWrapper(share, name=ACCURACY)

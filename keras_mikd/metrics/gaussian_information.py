"""How much of the teacher a Gaussian head predicts from the student, in nats."""

import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_mikd import masks
from keras_mikd.metrics.sums import Sums


@keras.saving.register_keras_serializable("keras_mikd")
class GaussianInformation(Sums):
    """Estimate of the information that the student has about the teacher, in nats per channel.

    With `q(t | s)` the head's Gaussian and `g` the best Gaussian that ignores the student (mean and
    variance of each channel over the examples since the last reset), the value is

        mean over channels of  E log q(t | s) - E log g(t),

    with the expectation over examples and, in feature maps, over positions. A head that explains
    the fraction `R^2` of the variance gets `-log(1 - R^2) / 2`: 0 nats for nothing, 0.35 for half,
    2.3 for 99 %; one that predicts worse than a constant gets a negative value. A constant channel
    counts as 0.

    It is a lower bound on the information about a channel, `I(t_c; s)`, averaged over channels,
    **only if every channel of the teacher is Gaussian**: in general `g` overstates the entropy of
    `t`. Channels repeat each other, so do not multiply the value by their number.

    Args:
        num_channels: Size of the last axis of the teacher's tensor.
        name: Name of the metric.
        dtype: Precision of the sums; a variance is the small difference of large sums.

    References:
        Barber and Agakov, The IM algorithm, NIPS 2003, for the bound. The reference `g` is this
        library's.
    """

    def __init__(
        self, num_channels: int, name: str = "gaussian_information", dtype: str = "float64"
    ) -> None:
        super().__init__(name=name, dtype=dtype)
        self.num_channels = num_channels
        self.count = self._add_sum("count", ())
        self.sum = self._add_sum("sum", (num_channels,))
        self.sum_of_squares = self._add_sum("sum_of_squares", (num_channels,))
        self.log_likelihood = self._add_sum("log_likelihood", (num_channels,))

    def update_state(
        self,
        target: tf.Tensor | np.ndarray,
        mean: tf.Tensor | np.ndarray,
        variance: tf.Tensor | np.ndarray,
        mask: tf.Tensor | np.ndarray | None = None,
    ) -> None:
        """Adds a batch.

        Args:
            target: The teacher's tensor, shape `(batch, ..., num_channels)`.
            mean: The head's prediction of it, same shape.
            variance: The head's variance of each channel, shape `(num_channels,)`.
            mask: Which positions count, of a target `(batch, tokens, num_channels)`: bool of shape
                `(batch, tokens)`; all if `None`.
        """
        target, mean, variance = (ops.convert_to_tensor(x) for x in (target, mean, variance))

        def summed(x):
            if mask is None:
                return ops.sum(x, axis=tuple(range(len(target.shape) - 1)))
            return ops.sum(masks.total(masks.only_real(x, mask)), axis=0)

        positions = ops.prod(ops.shape(target)[:-1]) if mask is None else ops.count_nonzero(mask)
        count = self._cast(positions)
        # A replica may have no examples in the last batch: it adds 0, not 0 / 0.
        at_least_one = ops.cast(ops.maximum(count, 1), target.dtype)
        batch_mean = summed(target) / at_least_one
        spread = summed(ops.square(target - batch_mean))
        error = summed(ops.square(target - mean))
        batch_mean, spread, error, variance = map(self._cast, (batch_mean, spread, error, variance))
        log_likelihood = -0.5 * (error / variance + count * ops.log(2.0 * math.pi * variance))
        self.count.assign_add(count)
        self.sum.assign_add(count * batch_mean)
        self.sum_of_squares.assign_add(spread + count * ops.square(batch_mean))
        self.log_likelihood.assign_add(log_likelihood)

    def result(self) -> tf.Tensor:
        mean = ops.divide_no_nan(self.sum, self.count)
        square = ops.divide_no_nan(self.sum_of_squares, self.count)
        variance = square - ops.square(mean)
        # Float32 features cannot tell a smaller spread from rounding: log g would be arbitrary.
        varies = variance > 1e-12 * square
        log_g = -0.5 * (ops.log(2.0 * math.pi * ops.where(varies, variance, 1.0)) + 1.0)
        log_q = ops.divide_no_nan(self.log_likelihood, self.count)
        return ops.cast(ops.mean(ops.where(varies, log_q - log_g, 0.0)), "float32")

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "num_channels": self.num_channels}

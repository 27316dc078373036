"""The read-outs of a critic: mutual information in nats, its standard error, and its limit."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_mikd import masks
from keras_mikd.metrics.sums import Sums

# A sum of exponentials is kept as one float64 for every stretch of so many nats, relative to its
# middle: nothing overflows, and the sums of replicas add up. A running maximum would not.
_STRETCH = 500.0
_LARGEST_SCORE = 100_000.0
_MIDDLES = np.arange(-_LARGEST_SCORE, _LARGEST_SCORE + 1.0, _STRETCH)


class ReadOut(Sums):
    """Base class of estimates in nats that know how far they can be trusted.

    Args:
        name: Name of the metric.
        dtype: Precision of the sums, `"float64"`.

    Raises:
        ValueError: If `dtype` is another one.
    """

    of_epoch = True
    """Whether a distiller shows it in the logs of an epoch alone, and not in those of a step."""

    def __init__(self, name: str = "mi_nats", dtype: str = "float64") -> None:
        if dtype != "float64":
            raise ValueError(
                "Expected `dtype` to be 'float64', since sums of exponentials leave other ranges. "
                f"Received: dtype={dtype!r}"
            )
        super().__init__(name=name, dtype=dtype)

    def companions(self) -> list[keras.metrics.Metric]:
        """Returns metrics `<name>_se`, the standard error, and `<name>_limit`, to log beside it."""
        return [
            _Companion(self.standard_error, f"{self.name}_se"),
            _Companion(self.limit, f"{self.name}_limit"),
        ]

    def load_own_variables(self, store: Any) -> None:
        # The sums are those of one epoch. What an earlier version added up has another form.
        shapes = [tuple(store[key].shape) for key in store.keys()]
        if shapes == [tuple(variable.shape) for variable in self.variables]:
            super().load_own_variables(store)


@keras.saving.register_keras_serializable("keras_mikd")
class MutualInformation(ReadOut):
    """Donsker-Varadhan lower bound on mutual information, over all pairs since the last reset.

    `I(t; s) >= mean f(joint pairs) - log mean exp f(product pairs)`, in nats, for any score
    function f. The logarithm is taken once, of the sums since the last reset: a mean of batchwise
    logarithms would be biased upwards.

    Trust it on pairs that the critic was not trained on, `val_..._mi_nats`: a critic over-fits a
    few hundred training examples and overstates. The bound cannot tell more than `limit()`, the
    logarithm of the number of product pairs; within about 2 nats of it, neither the value nor
    `standard_error()` can be relied on. Scores beyond +-100,000, which float32 rounds to 0.01 nats,
    count as that, in both terms.

    Args:
        name: Name of the metric.
        dtype: Precision of the sums, `"float64"`.

    Example:
        >>> metric = keras_mikd.MutualInformation()
        >>> metric.update_state(joint=[1.0, 1.0], product=[[0.0], [0.0]])
        >>> float(metric.result())
        1.0

    References:
        Donsker and Varadhan (1983); Belghazi et al., MINE (arXiv:1801.04062), eq. 6.
    """

    def __init__(self, name: str = "mi_nats", dtype: str = "float64") -> None:
        super().__init__(name=name, dtype=dtype)
        # Examples, product pairs, joint scores and their squares.
        self.sums = self._add_sum("sums", (4,))
        # Exponentials of an example's product scores; their squares; they times its joint score.
        self.exponentials = self._add_sum("exponentials", (3, len(_MIDDLES)))

    def update_state(
        self,
        joint: tf.Tensor | np.ndarray,
        product: tf.Tensor | np.ndarray,
        mask: tf.Tensor | np.ndarray | None = None,
    ) -> None:
        """Adds the scores of true pairs and of pairs of different examples.

        A batch without the latter, such as a batch of one, is skipped.

        Args:
            joint: Scores, shape `(batch, ...)`.
            product: Scores, shape `(batch, negatives, ...)`.
            mask: Which pairs count, as in `bounds`: bool of shape `(batch, 1 + negatives, tokens)`.
        """
        joint, product = (
            ops.clip(ops.cast(x, "float32"), -_LARGEST_SCORE, _LARGEST_SCORE)
            for x in (joint, product)
        )
        if mask is None:
            pairs = self._cast(ops.size(product))
            counts = ops.minimum(pairs, 1.0)
            joint = counts * self._cast(ops.mean(joint, axis=tuple(range(1, len(joint.shape)))))
            log_sums = ops.logsumexp(product, axis=tuple(range(1, len(product.shape))))
        else:
            compared = masks.compared(mask)
            counted = ops.logical_and(mask[:, 1:], compared[:, None])
            pairs = ops.sum(self._cast(counted))
            counts = self._cast(ops.any(compared, axis=1))
            joint = self._cast(masks.mean(joint, compared))
            log_sums = _log_sums(product, counted)
        log_sums = self._cast(log_sums)
        self.sums.assign_add(_sums_of(joint, counts, pairs))
        highest = ops.max(log_sums, initial=-_LARGEST_SCORE)
        highest = ops.clip(highest, -_LARGEST_SCORE, _LARGEST_SCORE)
        stretch = ops.round((highest + _LARGEST_SCORE) / _STRETCH)
        exponentials = ops.exp(log_sums + _LARGEST_SCORE - stretch * _STRETCH)
        sums = [exponentials, ops.square(exponentials), joint * exponentials]
        where = ops.one_hot(ops.cast(stretch, "int32"), len(_MIDDLES), dtype=self.dtype)
        self.exponentials.assign_add(ops.sum(ops.stack(sums), axis=1)[:, None] * where)

    def result(self) -> tf.Tensor:
        """Returns the bound in nats, a scalar; 0 before any pair."""
        examples, pairs, joint, _ = ops.unstack(self.sums)
        log_mean = self._log_sum(0) - ops.log(ops.maximum(pairs, 1.0))
        return _float(ops.where(pairs > 0, ops.divide_no_nan(joint, examples) - log_mean, 0.0))

    def standard_error(self) -> tf.Tensor:
        """Returns the standard error of the bound in nats, a scalar; 0 before any pair.

        That of a mean over examples, with the logarithm linearised.
        """
        examples, pairs, joint, squares = ops.unstack(self.sums)
        mean, log_sum = ops.divide_no_nan(joint, examples), self._log_sum(0)
        # The product term of an example, relative to its mean, has this square and covariance.
        square = examples * ops.exp(self._log_sum(1) - 2.0 * log_sum)
        used = self.exponentials[0] > 0
        shares = ops.where(used, ops.exp(ops.where(used, _MIDDLES - log_sum, 0.0)), 0.0)
        covariance = ops.sum(self.exponentials[2] * shares) - mean
        variance = ops.divide_no_nan(squares, examples) - ops.square(mean)
        variance = variance - 2.0 * covariance + square - 1.0
        return _standard_error(ops.where(pairs > 0, variance, 0.0), examples)

    def limit(self) -> tf.Tensor:
        """Returns the logarithm of the number of product pairs, a scalar; 0 before any pair."""
        return _float(ops.log(ops.maximum(self.sums[1], 1.0)))

    def _log_sum(self, power):
        """The logarithm of the sum of the exponentials, or with `power` 1 of their squares."""
        return ops.logsumexp(ops.log(self.exponentials[power]) + (power + 1.0) * _MIDDLES)


@keras.saving.register_keras_serializable("keras_mikd")
class BoundInformation(ReadOut):
    """Mean of a bound on mutual information over the examples since the last reset, in nats.

    For critics that only their own bound reads out: that of InfoNCE is the log density ratio plus
    any function of the teacher's example, which other bounds take for information, or for its lack.
    `limit()` is the ceiling of the bound, such as the logarithm of the pairs of an example; a value
    near it says that the pairs are told apart, not how much more information there is.

    Args:
        name: Name of the metric.
        dtype: Precision of the sums, `"float64"`.
    """

    def __init__(self, name="mi_nats", dtype="float64"):
        super().__init__(name=name, dtype=dtype)
        self.sums = self._add_sum("sums", (4,))  # Examples, ceilings, values, their squares.

    def update_state(self, values, ceiling):
        """Adds the bound of every example, shape `(batch,)`, and the most that it can be.

        That is one number for all of them, or one for each.
        """
        values, ceiling = self._cast(values), self._cast(ceiling)
        counts = self._cast(ceiling > 0)  # Without negatives there is nothing to tell apart.
        ceilings = (
            ops.sum(ceiling) if len(ceiling.shape) else ceiling * self._cast(ops.size(values))
        )
        self.sums.assign_add(_sums_of(counts * values, counts, ceilings))

    def result(self):
        """Returns the mean in nats, a scalar; 0 before any example."""
        examples, _, values, _ = ops.unstack(self.sums)
        return _float(ops.divide_no_nan(values, examples))

    def standard_error(self):
        """Returns the standard error of the mean in nats, a scalar; 0 before any example."""
        examples, _, values, squares = ops.unstack(self.sums)
        mean = ops.divide_no_nan(values, examples)
        return _standard_error(ops.divide_no_nan(squares, examples) - ops.square(mean), examples)

    def limit(self):
        """Returns the mean ceiling in nats, a scalar; 0 before any example."""
        return _float(ops.divide_no_nan(self.sums[1], self.sums[0]))


class _Companion(keras.metrics.Metric):
    """A number that a read-out has beside its value. It keeps nothing itself."""

    of_epoch = True

    def __init__(self, value, name):
        super().__init__(name=name)
        self.result = value

    def update_state(self):
        """The read-out is updated."""

    def load_own_variables(self, store):
        """There are none, and the files of earlier versions do not have the metric."""


def _sums_of(values, counts, second):
    """`values` of examples that count or do not: their number, `second`, their sum, squares.

    `counts` is one number for all of them, or one for each.
    """
    number = (
        ops.sum(counts) if len(counts.shape) else counts * ops.cast(ops.size(values), values.dtype)
    )
    return ops.stack([number, second, ops.sum(values), ops.sum(ops.square(values))])


def _log_sums(product, mask):
    """The logarithm of the sum of the exponentials of an example's pairs that count."""
    scores = ops.where(mask, product, -_LARGEST_SCORE)
    highest = ops.max(scores, axis=(1, 2), initial=-_LARGEST_SCORE)  # There may be none.
    exponentials = ops.exp(scores - highest[:, None, None]) * ops.cast(mask, scores.dtype)
    sums = masks.total(ops.sum(exponentials, axis=1))
    return ops.where(sums > 0, highest + ops.log(ops.maximum(sums, 1e-30)), -2 * _LARGEST_SCORE)


def _standard_error(variance, examples):
    return _float(ops.sqrt(ops.maximum(variance, 0.0) / ops.maximum(examples - 1.0, 1.0)))


def _float(x):
    return ops.cast(x, "float32")

"""Score networks: how well two features fit together."""

import contextlib
import contextvars
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from keras_mikd import checks, masks

_SMALLEST_VARIANCE = 1e-6  # Relative to the mean square: float32 cannot tell less from rounding.
_TAIL = 2.0  # Standard deviations from which on a feature counts logarithmically.
_SHORTEST = 1e-2  # Embedding whose direction has its own gradient, at most the inverse of this.

_BY_XLA = contextvars.ContextVar("critics_by_xla", default=False)


@contextlib.contextmanager
def xla_scope(enabled):
    """Within this scope, XLA compiles a step's critics on their own, if `enabled`."""
    token = _BY_XLA.set(enabled)
    try:
        yield
    finally:
        _BY_XLA.reset(token)


def compiled(function):
    """Returns a critic's arithmetic on tensors, which XLA compiles in an enabled `xla_scope`."""
    by_xla = tf.function(function, jit_compile=True)
    return lambda *tensors: (by_xla if _BY_XLA.get() else function)(*tensors)


class Critic(checks.Settled, keras.layers.Layer):
    """Base class of score networks `f(t, s)` over the locations of two features.

    A subclass embeds each side once (`embed_teacher`, `embed_student`) and scores embeddings that
    broadcast against each other (`score`), so every negative reuses the embeddings of the positive.
    `Negatives` decides which pairs are scored.

    Args:
        width: Number of units of every hidden layer, at least 1.
        dtype: Precision of the weights and of the scores. Keep `"float32"`.
        **kwargs: Arguments of `keras.layers.Layer`.

    Call arguments:
        teacher: Tensor of shape `(batch, locations or 1, teacher channels)`.
        student: Tensor of shape `(batch, locations or 1, student channels)`.

    Returns:
        Scores of the pairs, a tensor of shape `(batch, locations)`.
    """

    def __init__(
        self, *, width: int = 512, dtype: str | dict | keras.DTypePolicy = "float32", **kwargs: Any
    ) -> None:
        super().__init__(dtype=dtype, **kwargs)
        self.width = checks.integer("width", width, at_least=1)

    def embed_teacher(self, teacher: tf.Tensor) -> tf.Tensor:
        """Maps `(batch, locations, channels)` to embeddings `(batch, locations, units)`."""
        raise NotImplementedError

    def embed_student(self, student: tf.Tensor) -> tf.Tensor:
        """Maps `(pool, locations, channels)` to embeddings `(pool, locations, units)`."""
        raise NotImplementedError

    def observe(
        self, teacher: tf.Tensor, student: tf.Tensor, weights: tf.Tensor | None = None
    ) -> None:
        """Sees the features of a training step before they are scored, to measure them.

        `weights`, of shape `(batch, locations)`, are the share of each location in a mean: 0 for
        padded tokens, together 1 on the average of the replicas. `None` for equal ones.
        """

    def score(self, teacher: tf.Tensor, student: tf.Tensor) -> tf.Tensor:
        """Scores embeddings that broadcast to `(..., locations, units)`: `(..., locations)`."""
        raise NotImplementedError

    def score_all(self, teacher: tf.Tensor, student: tf.Tensor) -> tf.Tensor:
        """Scores every teacher embedding with every student's: `(batch, pool, locations)`."""
        return self.score(teacher[:, None], student[None])

    def call(self, teacher: tf.Tensor, student: tf.Tensor) -> tf.Tensor:
        return self.score(self.embed_teacher(teacher), self.embed_student(student))

    def multiplications(self, locations: int, pairs: int) -> int:
        """Returns about how many multiplications one example takes, with `pairs` at a location."""
        return self.count_params() * locations * pairs

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "width": self.width}


@keras.saving.register_keras_serializable("keras_mikd")
class ConcatCritic(Critic):
    """Multi-layer perceptron on the joined features at every location, as in Deep InfoMax.

    `f(t, s) = W3 relu(W2 relu(W1 [t; s]))`. The first layer is split, `W1 [t; s] = W1t t + W1s s`,
    so that each side passes it once however many pairs are scored; every pair pays for the second
    layer.

    Features come in every scale. Those of the first training batch decide how each channel is
    centred and scaled; what is some standard deviations away counts logarithmically,
    `2 asinh(x / 2)`, so that no outlier is scored out of proportion. The critic of an earlier
    version's file takes features as they are.

    Args:
        width: Number of units of both hidden layers, at least 1.
        **kwargs: Arguments of `keras.layers.Layer`.

    References:
        Hjelm et al. (arXiv:1808.06670). Its use in MIMKD is a reconstruction.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.standardizes = True

    def build(
        self, teacher_shape: Sequence[int | None], student_shape: Sequence[int | None]
    ) -> None:
        dense = _dense_factory(self)
        self.teacher_layer = dense(self.width, "teacher", teacher_shape, use_bias=False)
        self.student_layer = dense(self.width, "student", student_shape)
        self.teacher_moments = self._add_moments("teacher_moments", teacher_shape[-1])
        self.student_moments = self._add_moments("student_moments", student_shape[-1])
        hidden_shape = (*student_shape[:-1], self.width)
        self.hidden_layer = dense(self.width, "hidden", hidden_shape, activation="relu")
        self.score_layer = dense(1, "score", hidden_shape)

    def observe(
        self, teacher: tf.Tensor, student: tf.Tensor, weights: tf.Tensor | None = None
    ) -> None:
        if self.standardizes:
            _measure_once(self.teacher_moments, teacher, weights)
            _measure_once(self.student_moments, student, weights)

    def embed_teacher(self, teacher: tf.Tensor) -> tf.Tensor:
        return self.teacher_layer(self._standardized(teacher, self.teacher_moments))

    def embed_student(self, student: tf.Tensor) -> tf.Tensor:
        return self.student_layer(self._standardized(student, self.student_moments))

    def score(self, teacher: tf.Tensor, student: tf.Tensor) -> tf.Tensor:
        return ops.squeeze(self.score_layer(self.hidden_layer(ops.relu(teacher + student))), -1)

    def save_own_variables(self, store: Any) -> None:
        if self.standardizes:
            super().save_own_variables(store)

    def load_own_variables(self, store: Any) -> None:
        self.standardizes = len(store.keys()) > 0
        if self.standardizes:
            super().load_own_variables(store)

    def _add_moments(self, name, channels):
        # Mean and mean square of signed roots, both of which replicas can average.
        return self.add_weight(
            shape=(2, channels), initializer="zeros", trainable=False, aggregation="mean", name=name
        )

    def _standardized(self, feature, moments):
        if not self.standardizes:
            return feature
        mean, square = ops.unstack(moments)
        smallest = _SMALLEST_VARIANCE * ops.mean(square)
        spread = ops.sqrt(ops.maximum(square - ops.square(mean), smallest))
        # Of the root back to the feature: d(r |r|) = 2 |r| dr.
        scale = spread * (2.0 * ops.abs(mean) + spread)
        scale = ops.where(scale > 0, scale, 1.0)
        return _TAIL * _asinh((feature - mean * ops.abs(mean)) / (_TAIL * scale))


@keras.saving.register_keras_serializable("keras_mikd")
class SeparableCritic(Critic):
    """Two linear towers and an inner product at every location.

    `f(t, s) = <g(t), h(s)> / temperature + bias` with linear maps `g`, `h` scaled to unit length,
    and a trainable bias. All pairs of a batch cost one matrix product.

    Args:
        width: Number of units of the embeddings, at least 1.
        temperature: Scale of the scores, above 0; they stay within `bias +- 1 / temperature`.
        **kwargs: Arguments of `keras.layers.Layer`.

    Raises:
        ValueError: If an argument is out of range.

    References:
        The embedding is that of Tian et al., Contrastive representation distillation
        (arXiv:1910.10699). Its use in MIMKD is a reconstruction.
    """

    def __init__(self, *, width: int = 64, temperature: float = 0.1, **kwargs: Any) -> None:
        super().__init__(width=width, **kwargs)
        self.temperature = checks.temperature("temperature", temperature)

    def build(
        self, teacher_shape: Sequence[int | None], student_shape: Sequence[int | None]
    ) -> None:
        dense = _dense_factory(self)
        self.teacher_layer = dense(self.width, "teacher", teacher_shape, use_bias=False)
        self.student_layer = dense(self.width, "student", student_shape, use_bias=False)
        self.bias = self.add_weight(shape=(), initializer="zeros", name="bias")

    def embed_teacher(self, teacher: tf.Tensor) -> tf.Tensor:
        return _unit_length(self.teacher_layer(teacher))

    def embed_student(self, student: tf.Tensor) -> tf.Tensor:
        return _unit_length(self.student_layer(student))

    def score(self, teacher: tf.Tensor, student: tf.Tensor) -> tf.Tensor:
        return ops.sum(teacher * student, axis=-1) / self.temperature + self.bias

    def multiplications(self, locations: int, pairs: int) -> int:
        return (self.count_params() + self.width * pairs) * locations

    def score_all(self, teacher: tf.Tensor, student: tf.Tensor) -> tf.Tensor:
        locations = ops.maximum(ops.shape(teacher)[1], ops.shape(student)[1])
        teacher, student = (
            ops.broadcast_to(x, (ops.shape(x)[0], locations, self.width))
            for x in (teacher, student)
        )
        return ops.einsum("bld,pld->bpl", teacher, student) / self.temperature + self.bias

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "temperature": self.temperature}


@tf.custom_gradient
def _unit_length(x):
    """Returns `x` at length 1, whatever its scale, with a gradient that float16 can hold.

    That of a direction is the inverse of the length, and infinite at zeros. A short vector gets the
    gradient of a longer one, and one of zeros, which has no direction, gets none.
    """
    square = ops.sum(ops.square(x), axis=-1, keepdims=True)

    def gradient(upstream):
        inverse = ops.where(square > 0, ops.rsqrt(square + _SHORTEST**2), 0.0)
        unit = x * inverse
        return inverse * (upstream - unit * ops.sum(unit * upstream, axis=-1, keepdims=True))

    return x * ops.rsqrt(square + 1e-24), gradient


@tf.custom_gradient
def _asinh(x):
    # To 5e-7, in a third of the time of ops.arcsinh on a CPU; a gradient of its own is exact at 0.
    size = ops.abs(x)
    root = ops.sqrt(1.0 + ops.square(size))
    return ops.sign(x) * ops.log(size + root), lambda upstream: upstream / root


def _measure_once(moments, feature, weights):
    """Keeps the moments of the first batch whose features are not all the same."""
    root = ops.sign(feature) * ops.sqrt(ops.abs(feature))  # Outliers weigh less.
    found = _means([root, ops.abs(feature)], weights)
    mean, square = ops.unstack(moments)
    varies = square - ops.square(mean) > _SMALLEST_VARIANCE * ops.mean(square)
    moments.assign(ops.where(ops.any(varies), moments, ops.stack(found)))


def _means(features, weights):
    """Returns the means over examples and locations; `weights` are those of tokens."""
    first = features[0]
    if weights is not None and first.shape[1] != 1:
        return [ops.sum(masks.total(x * weights[:, :, None]), axis=0) for x in features]
    count = ops.cast(ops.maximum(ops.shape(first)[0] * ops.shape(first)[1], 1), first.dtype)
    return [ops.sum(x, axis=(0, 1)) / count for x in features]


def _dense_factory(critic):
    def dense(units, name, shape, **kwargs):
        layer = keras.layers.Dense(units, name=name, dtype=critic.dtype_policy, **kwargs)
        layer.build(shape)
        return layer

    return dense

"""Score networks: how well two features fit together, in true pairs and in pairs by chance."""

import math

import keras
from keras import ops


class Critic(keras.layers.Layer):
    """Base class of score networks `f(t, s)` over the locations of two features.

    A subclass embeds each side once (`embed_teacher`, `embed_student`) and scores embeddings that
    broadcast against one another (`score`). Pairing is done here, on embeddings, so that every
    negative reuses what was computed for the positive: the negatives of example `i` are the
    student features of the examples `i + 1`, ..., `i + negatives` of the batch (cyclic), never of
    example `i` itself.

    Args:
        width: Number of units of every hidden layer.
        dtype: Precision of the weights and of the scores. Keep `"float32"`.
        **kwargs: Arguments of `keras.layers.Layer`.

    Call arguments:
        teacher: Tensor of shape `(batch, locations or 1, teacher channels)`.
        student: Tensor of shape `(pool, locations or 1, student channels)`; `pool` is `batch`, or
            the global batch where there are several replicas.
        first: Index in `student` of the partner of the teacher's first example, an integer scalar;
            `None` for 0.
        negatives: Negatives for every example: a positive int, at most `pool - 1` of which are
            used, or `None` for every other example of the pool.
        classes: Class of every student of the pool, a tensor of shape `(pool,)`: examples
            of other classes come first as negatives then, and those of the same class only where
            there are not enough others. `None` to ignore classes.
        following: Students of the examples that come after the last one of `student` in the global
            batch, of shape `(at most negatives, locations or 1, student channels)`; as many
            negatives are used. `None` if the first one comes after the last one.

    Returns:
        `(joint, product)`: scores of shapes `(batch, locations)` and `(batch, negatives,
        locations)`.
    """

    def __init__(self, *, width=512, dtype="float32", **kwargs):
        super().__init__(dtype=dtype, **kwargs)
        if not isinstance(width, int) or width < 1:
            raise ValueError(f"Expected `width` to be a positive int. Received: width={width!r}")
        self.width = width

    def embed_teacher(self, teacher):
        """Maps `(batch, locations, channels)` to embeddings `(batch, locations, units)`."""
        raise NotImplementedError

    def embed_student(self, student):
        """Maps `(pool, locations, channels)` to embeddings `(pool, locations, units)`."""
        raise NotImplementedError

    def score(self, teacher, student):
        """Scores embeddings that broadcast to `(..., locations, units)`: `(..., locations)`."""
        raise NotImplementedError

    def score_all(self, teacher, student):
        """Scores every teacher embedding with every student's: `(batch, pool, locations)`."""
        return self.score(teacher[:, None], student[None])

    def call(self, teacher, student, first, negatives, classes=None, following=None):
        available = ops.shape(student)[0] - 1
        if following is not None:
            available = ops.shape(following)[0]
            student = ops.concatenate([student, following], axis=0)
        teacher, student = self.embed_teacher(teacher), self.embed_student(student)
        if first is not None:
            student = ops.roll(student, -first, axis=0)
            classes = None if classes is None else ops.roll(classes, -first, axis=0)
        if negatives is None:
            return _diagonal_and_rest(self.score_all(teacher, student))
        batch = ops.shape(teacher)[0]
        if classes is not None:
            others = ops.take(student, _others_first(classes, batch)[:, :negatives], axis=0)
            joint = self.score(teacher, student[:batch])
            return joint, self.score(teacher[:, None], others)
        offsets = range(1, negatives + 1)
        partners = [student[:batch]] + [ops.roll(student, -k, axis=0)[:batch] for k in offsets]
        scores = self.score(teacher[:, None], ops.stack(partners, axis=1))
        return scores[:, 0], scores[:, 1 : ops.minimum(negatives, available) + 1]

    def get_config(self):
        return {**super().get_config(), "width": self.width}


@keras.saving.register_keras_serializable("keras_mikd")
class ConcatCritic(Critic):
    """Multi-layer perceptron on the joined features, at every location (1x1 convolutions on maps).

    `f(t, s) = W3 relu(W2 relu(W1 [t; s]))`, the Deep InfoMax family. The first layer is split,
    `W1 [t; s] = W1t t + W1s s`, so that each side passes it once however many pairs are scored; the
    second layer is paid for every pair.

    Args:
        width: Number of units of both hidden layers.
        **kwargs: Arguments of `keras.layers.Layer`.

    References:
        Hjelm et al., Learning deep representations by mutual information estimation and
        maximization (arXiv:1808.06670). That MIMKD uses it is a reconstruction.
    """

    def build(self, teacher_shape, student_shape):
        dense = _dense_factory(self)
        self.teacher_layer = dense(self.width, "teacher", teacher_shape, use_bias=False)
        self.student_layer = dense(self.width, "student", student_shape)
        hidden_shape = (*student_shape[:-1], self.width)
        self.hidden_layer = dense(self.width, "hidden", hidden_shape, activation="relu")
        self.score_layer = dense(1, "score", hidden_shape)

    def embed_teacher(self, teacher):
        return self.teacher_layer(teacher)

    def embed_student(self, student):
        return self.student_layer(student)

    def score(self, teacher, student):
        return ops.squeeze(self.score_layer(self.hidden_layer(ops.relu(teacher + student))), -1)


@keras.saving.register_keras_serializable("keras_mikd")
class SeparableCritic(Critic):
    """Two linear towers and an inner product, at every location.

    `f(t, s) = <g(t), h(s)> / temperature + bias` with linear maps `g`, `h` whose results have unit
    length, and a trainable bias. All pairs of a batch cost one matrix product.

    Args:
        width: Number of units of the embeddings.
        temperature: Scale of the scores, above 0; they stay within `bias +- 1 / temperature`.
        **kwargs: Arguments of `keras.layers.Layer`.

    Raises:
        ValueError: If an argument is out of range.

    References:
        The embedding is that of Tian et al., Contrastive representation distillation
        (arXiv:1910.10699). That MIMKD uses one like it is a reconstruction.
    """

    def __init__(self, *, width=64, temperature=0.1, **kwargs):
        super().__init__(width=width, **kwargs)
        if not isinstance(temperature, (int, float)) or not 0 < temperature < math.inf:
            raise ValueError(
                f"Expected `temperature` to be a finite number above 0. Received: {temperature=}"
            )
        self.temperature = temperature

    def build(self, teacher_shape, student_shape):
        dense = _dense_factory(self)
        self.teacher_layer = dense(self.width, "teacher", teacher_shape, use_bias=False)
        self.student_layer = dense(self.width, "student", student_shape, use_bias=False)
        self.bias = self.add_weight(shape=(), initializer="zeros", name="bias")

    def embed_teacher(self, teacher):
        return _unit_length(self.teacher_layer(teacher))

    def embed_student(self, student):
        return _unit_length(self.student_layer(student))

    def score(self, teacher, student):
        return ops.sum(teacher * student, axis=-1) / self.temperature + self.bias

    def score_all(self, teacher, student):
        locations = ops.maximum(ops.shape(teacher)[1], ops.shape(student)[1])
        teacher, student = (
            ops.broadcast_to(x, (ops.shape(x)[0], locations, self.width))
            for x in (teacher, student)
        )
        return ops.einsum("bld,pld->bpl", teacher, student) / self.temperature + self.bias

    def get_config(self):
        return {**super().get_config(), "temperature": self.temperature}


def _unit_length(x):
    # Not ops.normalize: its gradient at a vector of zeros is not a number.
    return x * ops.rsqrt(ops.sum(ops.square(x), axis=-1, keepdims=True) + 1e-12)


def _dense_factory(critic):
    def dense(units, name, shape, **kwargs):
        layer = keras.layers.Dense(units, name=name, dtype=critic.dtype_policy, **kwargs)
        layer.build(shape)
        return layer

    return dense


def _others_first(classes, batch):
    """Indices `(batch, pool - 1)` of the other examples, those of other classes in front."""
    pool = ops.shape(classes)[0]
    rows, offsets = ops.arange(batch)[:, None], ops.arange(1, pool)[None]
    partners = ops.mod(rows + offsets, pool)
    same = ops.equal(ops.take(classes, partners, axis=0), classes[:batch, None])
    order = ops.argsort(offsets + pool * ops.cast(same, offsets.dtype), axis=1)
    return ops.take_along_axis(partners, order, axis=1)


def _diagonal_and_rest(scores):
    batch, pool = ops.shape(scores)[0], ops.shape(scores)[1]
    rows = ops.arange(batch)[:, None]
    columns = ops.arange(pool - 1)[None]
    others = columns + ops.cast(columns >= rows, columns.dtype)
    joint = ops.take_along_axis(scores, rows[:, :, None], axis=1)
    return joint[:, 0], ops.take_along_axis(scores, others[:, :, None], axis=1)

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
        **kwargs: Arguments of `keras.layers.Layer`.

    Call arguments:
        teacher: Tensor of shape `(batch, locations or 1, teacher channels)`.
        student: Tensor of shape `(pool, locations or 1, student channels)`; `pool` is `batch`, or
            the global batch where there are several replicas.
        first: Index in `student` of the partner of the teacher's first example, an integer scalar.
        negatives: Negatives for every example: a positive int, at most `pool - 1` of which are
            used, or `None` for every other example of the pool.

    Returns:
        `(joint, product)`: scores of shapes `(batch, locations)` and `(batch, negatives,
        locations)`.
    """

    def __init__(self, *, width=512, **kwargs):
        super().__init__(**kwargs)
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

    def call(self, teacher, student, first, negatives):
        teacher = self.embed_teacher(teacher)
        student = ops.roll(self.embed_student(student), -first, axis=0)
        if negatives is None:
            return _diagonal_and_rest(self.score_all(teacher, student))
        batch, pool = ops.shape(teacher)[0], ops.shape(student)[0]
        partners = [ops.roll(student, -offset, axis=0)[:batch] for offset in range(negatives + 1)]
        scores = self.score(teacher[:, None], ops.stack(partners, axis=1))
        return scores[:, 0], scores[:, 1 : ops.minimum(negatives + 1, pool)]

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
    """Two towers and an inner product, at every location.

    `f(t, s) = <g(t), h(s)> / sqrt(width)`; each tower adds a linear shortcut to a perceptron of one
    hidden layer and ends with layer normalisation: the encode-and-dot-product family of Deep
    InfoMax. All pairs of a batch cost one matrix product.

    Args:
        width: Number of units of the hidden layers and of the embeddings.
        **kwargs: Arguments of `keras.layers.Layer`.

    References:
        Hjelm et al., Learning deep representations by mutual information estimation and
        maximization (arXiv:1808.06670). That MIMKD uses it is a reconstruction.
    """

    def build(self, teacher_shape, student_shape):
        self.teacher_tower = self._tower("teacher", teacher_shape)
        self.student_tower = self._tower("student", student_shape)

    def _tower(self, side, shape):
        dense = _dense_factory(self)
        hidden_shape = (*shape[:-1], self.width)
        norm = keras.layers.LayerNormalization(name=f"{side}_norm", dtype=self.dtype_policy)
        norm.build(hidden_shape)
        return [
            dense(self.width, f"{side}_shortcut", shape, use_bias=False),
            dense(self.width, f"{side}_hidden", shape, activation="relu"),
            dense(self.width, f"{side}_out", hidden_shape),
            norm,
        ]

    def embed_teacher(self, teacher):
        return _climb(self.teacher_tower, teacher)

    def embed_student(self, student):
        return _climb(self.student_tower, student)

    def score(self, teacher, student):
        return ops.sum(teacher * student, axis=-1) / math.sqrt(self.width)

    def score_all(self, teacher, student):
        if teacher.shape[1] != student.shape[1]:
            shape = (ops.shape(teacher)[0], ops.shape(student)[1], self.width)
            if teacher.shape[1] == 1:
                teacher = ops.broadcast_to(teacher, shape)
            else:
                shape = (ops.shape(student)[0], ops.shape(teacher)[1], self.width)
                student = ops.broadcast_to(student, shape)
        return ops.einsum("bld,pld->bpl", teacher, student) / math.sqrt(self.width)


def _dense_factory(critic):
    def dense(units, name, shape, **kwargs):
        layer = keras.layers.Dense(units, name=name, dtype=critic.dtype_policy, **kwargs)
        layer.build(shape)
        return layer

    return dense


def _climb(tower, feature):
    shortcut, hidden, out, norm = tower
    return norm(shortcut(feature) + out(hidden(feature)))


def _diagonal_and_rest(scores):
    batch, pool = ops.shape(scores)[0], ops.shape(scores)[1]
    rows = ops.arange(batch)[:, None]
    columns = ops.arange(pool - 1)[None]
    others = columns + ops.cast(columns >= rows, columns.dtype)
    joint = ops.take_along_axis(scores, rows[:, :, None], axis=1)
    return joint[:, 0], ops.take_along_axis(scores, others[:, :, None], axis=1)

"""A memory of what two networks said about every training example."""

import contextlib
import contextvars
import math

import keras
import tensorflow as tf
from keras import ops

from keras_mikd import checks
from keras_mikd.distribution import replicas
from keras_mikd.losses.parts.similarities import directions

_INDEX = contextvars.ContextVar("index_of_the_examples", default=None)


@contextlib.contextmanager
def index_scope(index):
    """Within this scope, the examples of a step are those of `index` in the training data."""
    token = _INDEX.set(index)
    try:
        yield
    finally:
        _INDEX.reset(token)


class MemoryBank(keras.layers.Layer):
    """Embeddings at length 1 of all training examples, moving averages of when they were seen.

    It begins with random numbers, as in RepDistiller. All replicas hold the whole of it.

    Args:
        examples: Number of training examples.
        width: Number of units of an embedding.
        momentum: Share of the old embedding in the new one, from 0 to below 1.
        **kwargs: Arguments of `keras.layers.Layer`.
    """

    def __init__(self, examples, width, momentum, **kwargs):
        super().__init__(**kwargs)
        self.examples = checks.integer("bank", examples, at_least=2)
        self.momentum = checks.number("momentum", momentum, at_least=0, below=1)
        limit = math.sqrt(3.0 / width)
        embeddings = {
            "shape": (self.examples, width),
            "initializer": keras.initializers.RandomUniform(-limit, limit),
        }
        self.teacher = self._add("teacher", **embeddings)
        self.student = self._add("student", **embeddings)
        # As floats, which GPUs scatter; exact up to 2^24. None is known in the beginning.
        self.classes = self._add(
            "classes", shape=(self.examples,), initializer=keras.initializers.Constant(-1.0)
        )
        self.built = True

    @property
    def nbytes(self):
        """Bytes of the memory on every replica."""
        return sum(4 * math.prod(variable.shape) for variable in self.variables)

    def index(self, name):
        """Returns the index of this replica's examples, int32; `name` is that of the loss.

        Raises:
            ValueError: If the batches have none.
        """
        if _INDEX.get() is None:
            raise ValueError(
                f"Expected batches with the index of every example, since {name!r} keeps a memory "
                "of all training examples. Received: batches without. Pass "
                "`keras_mikd.with_index(batches)` to `fit`, or leave out `bank`."
            )
        return ops.cast(_INDEX.get(), "int32")

    def holds(self, index):
        """Returns whether there are such examples, booleans of the shape of `index`."""
        return ops.logical_and(index >= 0, index < self.examples)

    def read(self, rows):
        """Returns the embeddings by teacher and student, `(rows, width)`, and the classes."""
        rows = ops.clip(rows, 0, self.examples - 1)
        return tuple(ops.take(v, rows, axis=0) for v in (self.teacher, self.student, self.classes))

    def update(self, index, teacher, student, classes=None):
        """Moves the embeddings of these examples, of all replicas, towards new ones."""
        index = replicas.gather(ops.clip(index, 0, self.examples - 1))
        old = self.read(index)
        for variable, before, new in (
            (self.teacher, old[0], teacher),
            (self.student, old[1], student),
        ):
            new = replicas.gather(ops.stop_gradient(new))
            moved = self.momentum * before + (1.0 - self.momentum) * new
            _scatter(variable, index, directions(moved))
        if classes is not None:
            _scatter(self.classes, index, replicas.gather(ops.cast(classes, "float32")))

    def _add(self, name, **kwargs):
        # Every replica makes the same update for itself, so that no memory is sent.
        return self.add_weight(name=name, trainable=False, **kwargs)


def _scatter(variable, index, rows):
    """Overwrites rows of a variable in place: an assignment would copy all of it in every step."""
    variable.value.scatter_update(tf.IndexedSlices(rows, index))

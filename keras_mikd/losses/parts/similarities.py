"""What losses share that compare the examples of a batch with one another."""

import math

import keras
from keras import ops

from keras_mikd.distribution import replicas
from keras_mikd.losses.parts.centering import SHORTEST, gently, length


def flattened(feature):
    """Returns features of any shape as vectors: `(batch, numbers)`."""
    return ops.reshape(feature, (-1, math.prod(feature.shape[1:])))


def whole_batch(feature, gather):
    """Returns the rows of all replicas, to which gradients flow, or without `gather` the own."""
    return replicas.gather(feature) if gather else feature


def is_itself(feature, gather):
    """Returns where an example of this replica meets itself: booleans `(own, whole batch)`."""
    own = positions(feature, gather)
    everyone = ops.shape(feature)[0]
    if gather and replicas.count() > 1:
        everyone = ops.sum(replicas.batch_sizes(feature)[0])
    return own[:, None] == ops.arange(everyone, dtype="int32")[None]


def positions(feature, gather):
    """Returns the places of this replica's examples in the whole batch, an int32 vector."""
    own = ops.arange(ops.shape(feature)[0], dtype="int32")  # Keras would follow `floatx`.
    return own + replicas.first_index(feature) if gather and replicas.count() > 1 else own


def size(batch):
    """Returns the number of rows as float32, at least 1, to divide by."""
    return ops.cast(ops.maximum(ops.shape(batch)[0], 1), "float32")


def embedding(shape, width, dtype):
    """Returns a built linear layer on the flattened features of a shape."""
    layer = keras.layers.Dense(width, dtype=dtype)
    layer.build((None, math.prod(shape[1:])))
    return layer


def directions(x, *, at_least=1e-12, added=0.0, shortest=SHORTEST):
    """Returns `x / (max(length, at_least) + added)`, over the last axis.

    What is not longer than `at_least` has no direction and gets no gradient, which would be huge.
    What is shorter than `shortest` gets that of a longer one (`gently`).
    """
    x = gently(x, length(x, axis=-1), shortest)
    size_of_each = length(x, axis=-1)
    x = ops.where(size_of_each > at_least, x, ops.stop_gradient(x))
    return x / (ops.maximum(size_of_each, at_least) + added)

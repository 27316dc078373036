"""What losses share that compare the examples of a batch with one another."""

import math

from keras import ops

from keras_mikd.distribution import replicas


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


def lengths(x):
    """Returns Euclidean lengths over the last axis, which is kept; one of 0 has no gradient."""
    square = ops.sum(ops.square(x), axis=-1, keepdims=True)
    return ops.where(square > 0, ops.sqrt(ops.where(square > 0, square, 1.0)), 0.0)


def directions(x, *, at_least=1e-12, added=0.0):
    """Returns `x / (max(length, at_least) + added)`, over the last axis.

    What is not longer than `at_least` has no direction and gets no gradient, which would be huge.
    """
    length = lengths(x)
    x = ops.where(length > at_least, x, ops.stop_gradient(x))
    return x / (ops.maximum(length, at_least) + added)

"""Logits taken apart: one class of every example, and all others."""

from keras import ops


def is_class(classes, logits):
    """Returns which logit `(batch, classes)` is that of the class of its example, as booleans."""
    return ops.expand_dims(classes, -1) == ops.arange(logits.shape[-1], dtype=classes.dtype)


def against_rest(logits, chosen):
    """Returns logits `(batch, 2)` of one class, the chosen one, and of all others together.

    Their softmax is the probability of that class and one less it, without a difference of the two.
    """
    own = ops.sum(ops.where(chosen, logits, 0.0), axis=-1)
    rest = ops.logsumexp(without(logits, chosen), axis=-1)
    return ops.stack([own, rest], axis=-1)


def without(logits, left_out):
    """Returns logits in which some classes have no probability."""
    return ops.where(left_out, -float("inf"), logits)

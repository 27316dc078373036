"""Logits taken apart: one class of every example, and all others."""

from keras import ops

from keras_mikd.losses.parts.centering import number_left
from keras_mikd.losses.parts.divergence import beside_zero, softened_divergence


def is_class(classes, logits):
    """Returns which logit `(batch, classes)` is that of the class of its example, as booleans."""
    return ops.expand_dims(classes, -1) == ops.arange(logits.shape[-1], dtype=classes.dtype)


def divergence_of_one(teacher, student, temperature, *, of_teacher, of_student):
    """Returns KL between the probabilities of one class and of all others together, in nats.

    `of_teacher` and `of_student` choose the class in each network, see `is_class`. Of logits
    `(batch, classes)` at a temperature, as float32 of shape `(batch,)`.
    """
    teacher, others = _against_rest(teacher, of_teacher, temperature)
    student, of_its_own = _against_rest(student, of_student, temperature)
    # 0, unless one of the networks masks more classes than the other.
    student = student + beside_zero(of_its_own - others)
    return softened_divergence(teacher, student, 1.0, log_sizes=beside_zero(others))


def _against_rest(logits, chosen, temperature):
    """Returns logits `(batch, 2)` of one class and of the average other, and `log(others)`.

    With that logarithm on the second, their softmax is the probability of the class and one less
    it, without a difference of the two. At a high temperature all logits are small beside it, so
    that a sum would keep few of their digits.
    """
    # What all classes share has no place in the digits either.
    largest = ops.stop_gradient(ops.max(logits, axis=-1, keepdims=True))
    logits = (logits - largest) / temperature
    own = ops.sum(ops.where(chosen, logits, 0.0), axis=-1)
    left_out = ops.logical_or(chosen, logits == -float("inf"))
    number = number_left(left_out, axis=-1)
    mean = ops.sum(ops.where(left_out, 0.0, logits), axis=-1, keepdims=True) / number
    deviation = ops.where(left_out, 0.0, logits - mean)
    close = ops.max(ops.abs(deviation), axis=-1, keepdims=True) < _CLOSE
    close = ops.logical_and(close, ops.logical_not(ops.all(left_out, axis=-1, keepdims=True)))
    # log mean exp(x) = mean + log(1 + mean of expm1(x - mean)).
    beyond = ops.sum(ops.expm1(ops.where(close, deviation, 0.0)), axis=-1, keepdims=True)
    of_close = mean + ops.log1p(beyond / number)
    number = ops.log(number)
    far = ops.logsumexp(without(logits, left_out), axis=-1, keepdims=True) - number
    rest = ops.squeeze(ops.where(close, of_close, far), axis=-1)
    return ops.stack([own, rest], axis=-1), ops.squeeze(number, axis=-1)


def without(logits, left_out):
    """Returns logits in which some classes have no probability."""
    return ops.where(left_out, -float("inf"), logits)


_CLOSE = 1.0  # Up to here the mean of expm1 is far from -1, and log1p of it is stable.

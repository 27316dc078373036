"""The divergence of two softened distributions, exact where they nearly agree."""

from keras import ops

_CLOSE = 0.25  # Up to here the series of exp(-u) - 1 + u is right to 2e-5.


def softened_divergence(teacher, student, temperature, log_sizes=None):
    """Returns `KL(softmax(teacher / temperature) || softmax(student / temperature))` in nats.

    Of logits `(batch, ..., classes)`, as float32 of shape `(batch, ...)`. A class that the teacher
    masks by `-inf` counts for nothing. `log_sizes` are of classes that stand for several: both
    networks have them on their logits, after the temperature, and do not differ by them.
    """
    teacher, student = teacher / temperature, student / temperature
    log_sizes = 0.0 if log_sizes is None else log_sizes
    log_p = ops.log_softmax(teacher + log_sizes, axis=-1)
    log_q = ops.log_softmax(student + log_sizes, axis=-1)
    p = ops.exp(log_p)
    direct = ops.sum(p * ops.where(p > 0.0, log_p - log_q, 0.0), axis=-1)
    # Where the networks are close, log p and log q differ by less than either is rounded to. There
    # KL = log E[exp(-u)] = log(1 + E[exp(-u) - 1 + u]), with u = teacher - student less its mean
    # under p. A class that both mask has no gap; one that only one masks is not close.
    masked = ops.logical_and(teacher == -float("inf"), student == -float("inf"))
    u = ops.where(masked, 0.0, ops.clip(teacher - student, -1e3, 1e3))
    u = u - ops.sum(p * u, axis=-1, keepdims=True)
    close = ops.max(ops.abs(u), axis=-1) < _CLOSE
    u = ops.where(close[..., None], u, 0.0)
    beyond_linear = u * u * (1 / 2 - u * (1 / 6 - u * (1 / 24 - u / 120)))
    return ops.where(close, ops.log1p(ops.sum(p * beyond_linear, axis=-1)), direct)


def beside_zero(x):
    """Returns logits `(..., 2)` of no and yes from those of yes, `(...)`, as a sigmoid has them."""
    return ops.stack([ops.zeros_like(x), x], axis=-1)

"""Knowledge distillation with softened class probabilities."""

import keras
from keras import ops

from keras_mikd import checks
from keras_mikd.losses.distillation_loss import DistillationLoss
from keras_mikd.losses.shape_checks import check_pair


@keras.saving.register_keras_serializable("keras_mikd")
class SoftTargets(DistillationLoss):
    """Divergence of the student's class probabilities from the teacher's, both softened.

        loss = T^2 * KL(softmax(teacher / T) || softmax(student / T)),

    summed over the classes, in nats times `T^2`. The factor keeps the size of the gradient about
    the same for every temperature `T`. Both networks give logits of shape `(batch, classes)`.

    Args:
        temperature: `T`, a finite float above 0. Most comparisons on CIFAR-100 use 4.
        **kwargs: `weight` and other arguments of `DistillationLoss`.

    Raises:
        ValueError: If `temperature` is not a finite number above 0; in `build`, if the tensors are
            not logits of the same two or more classes.

    References:
        Hinton et al., Distilling the knowledge in a neural network (arXiv:1503.02531), section 2.
    """

    expects_logits = True

    def __init__(self, *, temperature=4.0, **kwargs):
        super().__init__(**kwargs)
        self.temperature = checks.temperature(temperature)

    def build(self, teacher_shape, student_shape):
        check_pair(teacher_shape, student_shape, ranks=(2,))
        received = f"Received: teacher_shape={teacher_shape}, student_shape={student_shape}"
        if teacher_shape[-1] != student_shape[-1]:
            raise ValueError(
                f"Expected teacher and student to have the same classes. {received}. Give the "
                "student a second output with the teacher's classes, or match features instead."
            )
        if teacher_shape[-1] < 2:
            raise ValueError(
                "Expected logits of at least two classes: the softmax of one is always 1, so that "
                f"the loss would always be 0. {received}. Train networks with one logit per class."
            )

    def call(self, teacher, student, labels=None, training=None):
        return self.temperature**2 * softened_divergence(teacher, student, self.temperature)

    def get_config(self):
        return {**super().get_config(), "temperature": self.temperature}


def softened_divergence(teacher, student, temperature):
    """Returns `KL(softmax(teacher / temperature) || softmax(student / temperature))` in nats.

    Of logits `(batch, classes)`, as float32 of shape `(batch,)`. A class that the teacher masks by
    `-inf` counts for nothing.
    """
    log_teacher = ops.log_softmax(teacher / temperature, axis=-1)
    log_student = ops.log_softmax(student / temperature, axis=-1)
    p = ops.exp(log_teacher)
    masked = p == 0
    direct = ops.where(masked, 0.0, log_teacher) - ops.where(masked, 0.0, log_student)
    # Where the networks are close, log p and log q differ by less than either is rounded to. There
    # KL = log E[exp(-u)] = log(1 + E[exp(-u) - 1 + u]), with u = (teacher - student) / temperature
    # less its mean under p.
    of_both = ops.logical_and(ops.isfinite(teacher), ops.isfinite(student))
    of_none = ops.logical_and(ops.isinf(teacher), ops.isinf(student))
    u = (ops.where(of_both, teacher, 0.0) - ops.where(of_both, student, 0.0)) / temperature
    u = ops.where(of_both, u - ops.sum(p * u, axis=-1, keepdims=True), 0.0)
    close = ops.all(ops.logical_or(of_none, of_both), axis=-1)
    close = ops.logical_and(close, ops.max(ops.abs(u), axis=-1) < _CLOSE)
    u = ops.where(close[:, None], u, 0.0)
    of_close = ops.log1p(ops.sum(p * _exp_beyond_linear(-u), axis=-1))
    return ops.where(close, of_close, ops.sum(p * direct, axis=-1))


_CLOSE = 0.5


def _exp_beyond_linear(x):
    """Returns `exp(x) - 1 - x` of small numbers, by its series."""
    total = ops.zeros_like(x)
    for power in range(9, 1, -1):
        total = (total + 1.0) * x / power
    return total * x

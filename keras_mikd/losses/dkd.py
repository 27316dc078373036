"""Decoupled knowledge distillation: the target class and the others, weighted apart."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
from keras.optimizers.schedules import LearningRateSchedule

from keras_mikd import checks
from keras_mikd.losses.distillation_loss import DistillationLoss
from keras_mikd.losses.parts import schedules
from keras_mikd.losses.parts.divergence import softened_divergence
from keras_mikd.losses.parts.one_class import divergence_of_one, is_class, without
from keras_mikd.losses.parts.shape_checks import check_logits


@keras.saving.register_keras_serializable("keras_mikd")
class DKD(DistillationLoss):
    """Soft targets in two parts, for the class of the label and for the other classes (DKD).

        loss = T^2 * (alpha * KL(b_teacher || b_student) + beta * KL(q_teacher || q_student)).

    `b` is the probability of the label's class and of all others together, `q` the probabilities of
    the others among themselves, both of logits divided by `T`. With `alpha=1` and `beta` equal to
    the teacher's total probability of the other classes, this equals `SoftTargets`. KL is in nats.
    With two classes there is only one other, so `q` says nothing and the second part is 0.

    The authors' code removes the label's class by adding -1000 to its logit; here it is left out.
    Their weight rises from 0 over the first 20 epochs: a schedule, see docs/methods/logits.md.

    Args:
        alpha: Factor of the part of the target class, a finite float of at least 0.
        beta: Factor of the part of the other classes, likewise; the authors take 2 to 8.
        temperature: `T`, a finite float above 0, or a schedule like that of a weight.
        **kwargs: `weight` and other arguments of `DistillationLoss`.

    Raises:
        ValueError: If an argument is out of range; in `build`, if the tensors are not logits of the
            same two or more classes; in `call`, if there are no labels.

    References:
        Zhao et al., Decoupled knowledge distillation (arXiv:2203.08679), section 3;
        megvii-research/mdistiller, distillers/DKD.py. Published CIFAR-100 top-1: resnet32x4 to
        resnet8x4 76.32 %, resnet56 to resnet20 71.97 %.
    """

    expects_logits = True
    reads_classes = True

    def __init__(
        self,
        *,
        alpha: float = 1.0,
        beta: float = 8.0,
        temperature: float | LearningRateSchedule = 4.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.alpha = checks.number("alpha", alpha, at_least=0)
        self.beta = checks.number("beta", beta, at_least=0)
        self.temperature = schedules.checked_temperature("temperature", temperature)

    def build(
        self, teacher_shape: Sequence[int | None], student_shape: Sequence[int | None]
    ) -> None:
        check_logits(teacher_shape, student_shape)

    def call(
        self,
        teacher: tf.Tensor,
        student: tf.Tensor,
        labels: tf.Tensor | None = None,
        training: bool | None = None,
    ) -> tf.Tensor:
        temperature = schedules.now(self.temperature)
        target = is_class(checks.class_indices(labels, one_hot=True), student)
        of_target = divergence_of_one(
            teacher, student, temperature, of_teacher=target, of_student=target
        )
        of_others = softened_divergence(
            without(teacher, target), without(student, target), temperature
        )
        return temperature**2 * (self.alpha * of_target + self.beta * of_others)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "alpha": self.alpha,
            "beta": self.beta,
            "temperature": schedules.serialized(self.temperature),
        }

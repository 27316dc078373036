"""Refined logit distillation: what the label refutes in the teacher's logits is left out."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from keras_mikd import checks
from keras_mikd.losses.distillation_loss import DistillationLoss
from keras_mikd.losses.parts import schedules
from keras_mikd.losses.parts.divergence import softened_divergence
from keras_mikd.losses.parts.one_class import divergence_of_one, is_class, without
from keras_mikd.losses.parts.shape_checks import check_logits


@keras.saving.register_keras_serializable("keras_mikd")
class RLD(DistillationLoss):
    """Soft targets from which the label takes what is wrong (refined logit distillation, RLD).

        loss = alpha * C^2 * KL(b_teacher || b_student) + beta * T^2 * KL(q_teacher || q_student).

    `b_teacher` is the teacher's largest probability and the rest, `b_student` the student's
    probability of the label's class and the rest, at temperature `C`: the student is to be as sure
    of the label as the teacher is of its answer, right or wrong. `q` are the probabilities, at
    temperature `T`, of the classes whose teacher logit is below that of the label's class. Where no
    class is below, the second part is 0. KL is in nats.

    The authors' code has a `C` of 1 and an option for the value of `T`, which their examples use.
    Their weight rises from 0 over the first 20 epochs: a schedule, see docs/methods/logits.md.

    Args:
        alpha: Factor of the first part, a finite float of at least 0.
        beta: Factor of the second part, likewise.
        temperature: `T`, a finite float above 0, or a schedule like that of a weight.
        confidence_temperature: `C`, likewise; `None` for the value of `T`.
        **kwargs: `weight` and other arguments of `DistillationLoss`.

    Raises:
        ValueError: If an argument is out of range; in `build`, if the tensors are not logits of the
            same two or more classes; in `call`, if there are no labels.

    References:
        Sun et al., Knowledge distillation with refined logits (arXiv:2408.07703);
        zju-SWJ/RLD, mdistiller/distillers/RLD.py.
    """

    expects_logits = True
    reads_classes = True

    def __init__(
        self,
        *,
        alpha: float = 1.0,
        beta: float = 8.0,
        temperature: float | LearningRateSchedule = 4.0,
        confidence_temperature: float | LearningRateSchedule | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.alpha = checks.number("alpha", alpha, at_least=0)
        self.beta = checks.number("beta", beta, at_least=0)
        self.temperature = schedules.checked_temperature("temperature", temperature)
        if confidence_temperature is not None:
            confidence_temperature = schedules.checked_temperature(
                "confidence_temperature", confidence_temperature
            )
        self.confidence_temperature = confidence_temperature

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
        target = is_class(checks.class_indices(labels, one_hot=True), student)
        temperature = confidence = schedules.now(self.temperature)
        if self.confidence_temperature is not None:
            confidence = schedules.now(self.confidence_temperature)
        answer = is_class(ops.argmax(teacher, axis=-1), teacher)
        of_confidence = divergence_of_one(
            teacher, student, confidence, of_teacher=answer, of_student=target
        )
        of_target = ops.sum(ops.where(target, teacher, 0.0), axis=-1, keepdims=True)
        refuted = teacher >= of_target
        # Where nothing is left, both are uniform and differ by nothing.
        nothing_left = ops.all(refuted, axis=-1, keepdims=True)
        of_order = softened_divergence(
            *(
                ops.where(nothing_left, 0.0, without(logits, refuted))
                for logits in (teacher, student)
            ),
            temperature,
        )
        return self.alpha * confidence**2 * of_confidence + self.beta * temperature**2 * of_order

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "alpha": self.alpha,
            "beta": self.beta,
            "temperature": schedules.serialized(self.temperature),
            "confidence_temperature": schedules.serialized(self.confidence_temperature),
        }

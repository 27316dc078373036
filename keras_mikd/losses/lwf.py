"""Learning without forgetting: a second head of the student, for the teacher's classes."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
from keras.optimizers.schedules import LearningRateSchedule

from keras_mikd import masks
from keras_mikd.losses.distillation_loss import DistillationLoss
from keras_mikd.losses.parts import schedules
from keras_mikd.losses.parts.divergence import softened_divergence
from keras_mikd.losses.parts.shape_checks import compared_logits


@keras.saving.register_keras_serializable("keras_mikd")
class LwF(DistillationLoss):
    """Divergence of a second head of the student from a teacher of other classes (LwF).

        loss = KL(softmax(teacher / T) || softmax(head(s) / T)),

    in nats, where `s` is a feature of the student, and the head a dense layer with a column for
    each class of the teacher. It is trained with the student, saved with the distiller, and no part
    of the student. The modified cross-entropy of the paper is this plus the entropy of the softened
    teacher, which is constant: gradients are the same. As there, no factor `T^2`. On maps the head
    is a 1x1 convolution, and the loss the mean over the positions of the smaller grid; on sequences
    it is the mean over tokens that are not padded.

    The paper starts from the old network and its old head. Here the student is another network, and
    the head starts at random, as where VID's authors compare with it.

    Args:
        teacher_layer: Place of the teacher's logits, `(batch, classes)` or `(batch, ..., classes)`.
        student_layer: Place of the student's feature, `(batch, channels)`, or
            `(batch, ..., channels)` for a dense output.
        temperature: `T`, a finite float above 0, or a schedule like that of a weight. The paper
            has 2.
        **kwargs: `weight` and other arguments of `DistillationLoss`; the paper has a weight of 1.

    Raises:
        ValueError: If `temperature` is out of range; in `build`, if the tensors have other ranks
            or positions, or the teacher has one class.

    References:
        Li and Hoiem, Learning without forgetting (arXiv:1606.09282), section 3, eqs. 2 to 4.
    """

    expects_logits = "teacher"

    def __init__(
        self,
        *,
        teacher_layer: str | None = None,
        student_layer: str | None = "pooled",
        temperature: float | LearningRateSchedule = 2.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(teacher_layer=teacher_layer, student_layer=student_layer, **kwargs)
        if self._has_default_name:
            self.name = self.name.replace("lw_f", "lwf")
        self.temperature = schedules.checked_temperature("temperature", temperature)

    def build(
        self, teacher_shape: Sequence[int | None], student_shape: Sequence[int | None]
    ) -> None:
        self.compared = compared_logits(teacher_shape, student_shape)
        self.head = keras.layers.Dense(teacher_shape[-1], dtype=self.dtype_policy)
        self.head.build(tuple(student_shape))

    def call(
        self,
        teacher: tf.Tensor,
        student: tf.Tensor,
        labels: Any = None,
        training: bool | None = None,
        teacher_mask: tf.Tensor | None = None,
        student_mask: tf.Tensor | None = None,
    ) -> tf.Tensor:
        teacher, student, mask = self.compared(teacher, student, teacher_mask, student_mask)
        temperature = schedules.now(self.temperature)
        divergence = softened_divergence(teacher, self.head(student), temperature)
        return masks.mean_of_positions(divergence, mask)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "temperature": schedules.serialized(self.temperature)}

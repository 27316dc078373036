"""Attention transfer: the student looks where the teacher looks."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from keras_mikd import checks, masks
from keras_mikd.features.grids import Alignment
from keras_mikd.losses.distillation_loss import DistillationLoss
from keras_mikd.losses.parts.shape_checks import check_pair


@keras.saving.register_keras_serializable("keras_mikd")
class AttentionTransfer(DistillationLoss):
    """Squared difference of the attention maps of teacher and student.

        attention(F) = normalized(mean over channels of |F|^power),
        loss = mean over positions of (attention(teacher) - attention(student))^2,

    where `normalized` divides a flattened map by its Euclidean length. Feature maps of different
    sizes are averaged to the smaller grid first; the numbers of channels may differ. Positions can
    be tokens, see docs/tokens.md. Nothing is trained. This is the form of the authors' code and of
    RepDistiller, whose weight is 1000.

    Args:
        power: Exponent of the activations, a finite float of at least 1.
        **kwargs: `teacher_layer`, `student_layer`, `weight` and others of `DistillationLoss`.

    Raises:
        ValueError: If `power` is out of range; in `build`, if the tensors are not two feature maps
            or sequences of tokens, or there is a single position.

    References:
        Zagoruyko and Komodakis, Paying more attention to attention (arXiv:1612.03928), section 3.1.
    """

    def __init__(self, *, power: float = 2.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.power = checks.number("power", power, at_least=1)

    def build(
        self, teacher_shape: Sequence[int | None], student_shape: Sequence[int | None]
    ) -> None:
        check_pair(teacher_shape, student_shape, ranks=(3, 4))
        self.compared = Alignment(teacher_shape, student_shape, image_size=self.image_size)
        self.grid = self.compared.student.grid
        if self.compared.places == 1:
            raise ValueError(
                "Expected attention maps of more than one position: normalized, a single one is "
                f"always 1. Received: teacher_shape={teacher_shape}, student_shape={student_shape}"
            )

    def call(
        self,
        teacher: tf.Tensor,
        student: tf.Tensor,
        labels: Any = None,
        training: bool | None = None,
        teacher_mask: tf.Tensor | None = None,
        student_mask: tf.Tensor | None = None,
    ) -> tf.Tensor:
        teacher, student, mask = self.compared.at_locations(
            teacher, student, teacher_mask, student_mask
        )
        square = ops.square(self._attention(teacher, mask) - self._attention(student, mask))
        return ops.mean(square, axis=-1) if mask is None else masks.mean(square, mask)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "power": self.power}

    def _attention(self, features, mask):
        attention = ops.mean(ops.abs(features) ** self.power, axis=-1)
        square = ops.square(attention)
        if mask is None:
            square = ops.sum(square, axis=-1, keepdims=True)
        else:  # At padded tokens it is 0.
            square = masks.total(square)[:, None]
        # Not ops.normalize: the gradient of its rsqrt is NaN for a map of zeros.
        return attention * ops.rsqrt(ops.maximum(square, 1e-24))

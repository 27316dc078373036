"""Attention transfer: the student looks where the teacher looks."""

import math

import keras
from keras import ops

from keras_mikd import checks
from keras_mikd.features.grids import common_grid, pool_to
from keras_mikd.losses.distillation_loss import DistillationLoss
from keras_mikd.losses.shape_checks import check_pair


@keras.saving.register_keras_serializable("keras_mikd")
class AttentionTransfer(DistillationLoss):
    """Squared difference of the attention maps of teacher and student.

        attention(F) = normalized(mean over channels of |F|^power),
        loss = mean over positions of (attention(teacher) - attention(student))^2,

    where `normalized` divides a flattened map by its Euclidean length. Feature maps of different
    sizes are averaged to the smaller grid first; the numbers of channels may differ. Nothing is
    trained. This is the form of the authors' code and of RepDistiller, whose weight is 1000.

    Args:
        power: Exponent of the activations, a finite float of at least 1.
        **kwargs: `teacher_layer`, `student_layer`, `weight` and others of `DistillationLoss`.

    Raises:
        ValueError: If `power` is out of range; in `build`, if the tensors are not two feature maps
            or their common grid has a single position.

    References:
        Zagoruyko and Komodakis, Paying more attention to attention (arXiv:1612.03928), section 3.1.
    """

    def __init__(self, *, power=2.0, **kwargs):
        super().__init__(**kwargs)
        self.power = checks.number("power", power, at_least=1)

    def build(self, teacher_shape, student_shape):
        check_pair(teacher_shape, student_shape, ranks=(4,))
        self.grid = common_grid(teacher_shape, student_shape)
        if self.grid == (1, 1):
            raise ValueError(
                "Expected attention maps of more than one position: normalized, a single one is "
                f"always 1. Received: teacher_shape={teacher_shape}, student_shape={student_shape}"
            )

    def call(self, teacher, student, labels=None, training=None):
        difference = self._attention(teacher) - self._attention(student)
        return ops.mean(ops.square(difference), axis=-1)

    def get_config(self):
        return {**super().get_config(), "power": self.power}

    def _attention(self, feature_map):
        activity = ops.abs(pool_to(feature_map, self.grid)) ** self.power
        attention = ops.reshape(ops.mean(activity, axis=-1), (-1, math.prod(self.grid)))
        square = ops.sum(ops.square(attention), axis=-1, keepdims=True)
        # Not ops.normalize: the gradient of its rsqrt is NaN for a map of zeros.
        return attention * ops.rsqrt(ops.maximum(square, 1e-24))

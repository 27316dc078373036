"""Correlation congruence (CC): the correlations between examples."""

import math
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from keras_mikd import checks
from keras_mikd.losses.distillation_loss import DistillationLoss
from keras_mikd.losses.parts.shape_checks import check_known
from keras_mikd.losses.parts.similarities import (
    directions,
    embedding,
    flattened,
    positions,
    size,
    whole_batch,
)

_GAMMA = 0.4  # Of the paper's kernel.


@keras.saving.register_keras_serializable("keras_mikd")
class CorrelationCongruence(DistillationLoss):
    """Correlations between the examples of a batch (CC), in the released or the published form.

        "repdistiller":  mean over i of <d_i, d_(i+1)>,   d_i = |a(t_i) - b(s_i)|,
        "paper":         mean over i, j of (k(t_i, t_j) - k(s_i, s_j))^2.

    The code that the authors gave to RepDistiller multiplies the absolute differences of an example
    and the next one in the batch, after linear maps `a` and `b` that are trained. The paper
    compares Gaussian kernels of features at length 1, `exp(-gamma |x - y|^2)` with gamma 0.4, by
    their Taylor series up to the second power of `<x, y>`; it trains nothing. The two have little
    in common, and a weight belongs to one of them. Features are flattened.

    Args:
        variant: `"repdistiller"` or `"paper"`.
        width: Number of units of the two maps of `"repdistiller"`, at least 1.
        gather: As in `SimilarityPreserving`.
        **kwargs: `teacher_layer`, `student_layer`, `weight` and others of `DistillationLoss`.

    Raises:
        ValueError: If an argument is out of range; in `build`, if there is not one tensor of known
            size for each network.

    References:
        Peng et al., Correlation congruence for knowledge distillation (arXiv:1904.01802), section
        3; HobbitLong/RepDistiller, distiller_zoo/CC.py, on the pooled vectors with a weight of
        0.02. There wrn_40_2 teaches wrn_16_2 73.56 % on CIFAR-100 (alone: 73.26; KD: 74.92).
    """

    compares_examples = True

    def __init__(
        self, *, variant: str = "repdistiller", width: int = 128, gather: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.variant = checks.one_of("variant", variant, ("repdistiller", "paper"))
        self.width = checks.integer("width", width, at_least=1)
        self.gather = checks.boolean("gather", gather)

    def build(
        self, teacher_shape: Sequence[int | None], student_shape: Sequence[int | None]
    ) -> None:
        check_known(teacher_shape, student_shape)
        if self.variant == "repdistiller":
            self.embeddings = [
                embedding(shape, self.width, self.dtype_policy)
                for shape in (teacher_shape, student_shape)
            ]

    def call(
        self,
        teacher: tf.Tensor,
        student: tf.Tensor,
        labels: Any = None,
        training: bool | None = None,
    ) -> tf.Tensor:
        teacher, student = flattened(teacher), flattened(student)
        if self.variant == "paper":
            difference = self._kernels(teacher) - self._kernels(student)
            return ops.mean(ops.square(difference), axis=-1)
        of_teacher, of_student = self.embeddings
        difference = ops.abs(of_teacher(teacher) - of_student(student))
        everyone = whole_batch(difference, self.gather)
        following = positions(difference, self.gather) + 1
        # The last one has no next; the mean is over those that have.
        has_next = ops.cast(following < ops.shape(everyone)[0], "float32")
        neighbours = ops.take(ops.roll(everyone, -1, axis=0), following - 1, axis=0)
        factor = size(everyone) / ops.maximum(size(everyone) - 1.0, 1.0)
        return factor * has_next * ops.sum(difference * neighbours, axis=-1)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "variant": self.variant,
            "width": self.width,
            "gather": self.gather,
        }

    def _kernels(self, feature):
        unit = directions(feature)
        products = ops.matmul(unit, ops.transpose(whole_batch(unit, self.gather)))
        x = 2.0 * _GAMMA * products
        # Not as powers: the gradient of 0^0 is not a number.
        return math.exp(-2.0 * _GAMMA) * (1.0 + x + x * x / 2.0)

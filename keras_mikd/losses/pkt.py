"""Probabilistic knowledge transfer (PKT): how likely examples are neighbours."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from keras_mikd import checks
from keras_mikd.losses.distillation_loss import DistillationLoss
from keras_mikd.losses.parts.shape_checks import check_known
from keras_mikd.losses.parts.similarities import directions, flattened, whole_batch

_EPSILON = 1e-7  # Of the lengths and of the probabilities, as in the authors' code.


@keras.saving.register_keras_serializable("keras_mikd")
class PKT(DistillationLoss):
    """Divergence of the probabilities with which examples of a batch pick their neighbours (PKT).

        loss of example i = mean over j of p_t[i, j] * log(p_t[i, j] / p_s[i, j]),
        p[i, j] = k[i, j] / sum over j of k[i, j],   k[i, j] = (1 + cosine(f_i, f_j)) / 2.

    An example counts among its own neighbours. The paper sums over the neighbours; the authors'
    code takes the mean, which is what stands here and makes the weight as large as it is. Features
    are flattened; teacher's and student's may have different shapes. Nothing is trained.

    Args:
        gather: As in `SimilarityPreserving`.
        **kwargs: `teacher_layer`, `student_layer`, `weight` and others of `DistillationLoss`.

    Raises:
        ValueError: In `build`, if there is not one tensor of known size for each network.

    References:
        Passalis and Tefas, Learning deep representations with probabilistic knowledge transfer
        (arXiv:1803.10837), with the cosine kernel; HobbitLong/RepDistiller, distiller_zoo/PKT.py,
        on the pooled vectors with a weight of 30000. There wrn_40_2 teaches wrn_16_2 74.54 % on
        CIFAR-100 (alone: 73.26; KD: 74.92).
    """

    compares_examples = True

    def __init__(self, *, gather: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.gather = checks.boolean("gather", gather)

    def build(
        self, teacher_shape: Sequence[int | None], student_shape: Sequence[int | None]
    ) -> None:
        check_known(teacher_shape, student_shape)

    def call(
        self,
        teacher: tf.Tensor,
        student: tf.Tensor,
        labels: Any = None,
        training: bool | None = None,
    ) -> tf.Tensor:
        p, q = self._neighbours(teacher), self._neighbours(student)
        return ops.mean(p * ops.log((p + _EPSILON) / (q + _EPSILON)), axis=-1)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "gather": self.gather}

    def _neighbours(self, feature):
        unit = directions(flattened(feature), at_least=0.0, added=_EPSILON)
        kernel = ops.matmul(unit, ops.transpose(whole_batch(unit, self.gather)))
        kernel = (kernel + 1.0) / 2.0
        return kernel / ops.sum(kernel, axis=-1, keepdims=True)

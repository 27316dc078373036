"""Similarity-preserving distillation (SP): examples alike for the teacher are for the student."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from keras_mikd import checks
from keras_mikd.losses.distillation_loss import DistillationLoss
from keras_mikd.losses.parts.centering import SHORTEST
from keras_mikd.losses.parts.shape_checks import check_known
from keras_mikd.losses.parts.similarities import directions, flattened, whole_batch


@keras.saving.register_keras_serializable("keras_mikd")
class SimilarityPreserving(DistillationLoss):
    """Squared error of the similarities between the examples of a batch (SP).

        loss of example i = mean over j of (G_t[i, j] - G_s[i, j])^2,

    where the row `G[i]` has the inner products of example i with all examples of the batch, at
    Euclidean length 1. The mean over the batch is the published `|G_t - G_s|^2 / batch^2`. Features
    may have any shape, and those of teacher and student different ones. Nothing is trained.

    Args:
        gather: Whether the batch is that of all replicas, so that any number of replicas gives the
            update of one, or a replica's own, without communication.
        **kwargs: `teacher_layer`, `student_layer`, `weight` and others of `DistillationLoss`.

    Raises:
        ValueError: In `build`, if there is not one tensor of known size for each network.

    References:
        Tung and Mori, Similarity-preserving knowledge distillation (arXiv:1907.09682), section
        2; HobbitLong/RepDistiller, distiller_zoo/SP.py, with a weight of 3000 on the last stage.
        There wrn_40_2 teaches wrn_16_2 73.83 % on CIFAR-100 (alone: 73.26; KD: 74.92).
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
        difference = self._similarities(teacher) - self._similarities(student)
        return ops.mean(ops.square(difference), axis=-1)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "gather": self.gather}

    def _similarities(self, feature):
        feature = flattened(feature)
        everyone = whole_batch(feature, self.gather)
        # A product of two features is as short as the square of one.
        return directions(ops.matmul(feature, ops.transpose(everyone)), shortest=SHORTEST**2)

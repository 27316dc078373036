"""Neuron selectivity transfer (NST): channels look at the same places."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from keras_mikd.features.grids import Alignment
from keras_mikd.losses.distillation_loss import DistillationLoss
from keras_mikd.losses.parts.shape_checks import check_pair
from keras_mikd.losses.parts.similarities import directions


@keras.saving.register_keras_serializable("keras_mikd")
class NST(DistillationLoss):
    """Maximum mean discrepancy of the channels of two feature maps, as maps of positions (NST).

        loss = mean over channels c, d of k(t_c, t_d) + k(s_c, s_d) - 2 k(t_c, s_d),

    each mean over the channels that it is about, with the kernel `k(x, y) = <x, y>^2` and every
    channel's map at Euclidean length 1. Maps of different sizes are averaged to the smaller grid
    first; the numbers of channels may differ. Nothing is trained. A step holds the kernel of
    all pairs of channels for every example.

    Args:
        **kwargs: `teacher_layer`, `student_layer`, `weight` and others of `DistillationLoss`.

    Raises:
        ValueError: In `build`, if the tensors are not two feature maps or their common grid has a
            single position.

    References:
        Huang and Wang, Like what you like: knowledge distill via neuron selectivity transfer
        (arXiv:1707.01219), section 4, polynomial kernel of degree 2 without a constant;
        HobbitLong/RepDistiller, distiller_zoo/NST.py, on all stages with a weight of 50. There
        wrn_40_2 teaches wrn_16_2 73.68 % on CIFAR-100 (alone: 73.26; KD: 74.92). Like that code, no
        factor 1/2 stands before the sum.
    """

    def build(
        self, teacher_shape: Sequence[int | None], student_shape: Sequence[int | None]
    ) -> None:
        check_pair(teacher_shape, student_shape, ranks=(4,))
        self.compared = Alignment(teacher_shape, student_shape)
        if self.compared.places == 1:
            raise ValueError(
                "Expected feature maps of more than one position: normalized, a single one is "
                f"always 1 or -1. Received: teacher_shape={teacher_shape}, "
                f"student_shape={student_shape}. Choose earlier places."
            )

    def call(
        self,
        teacher: tf.Tensor,
        student: tf.Tensor,
        labels: Any = None,
        training: bool | None = None,
    ) -> tf.Tensor:
        teacher, student, _ = self.compared.at_locations(teacher, student)
        teacher, student = _channels(teacher), _channels(student)
        own = _mean_kernel(teacher, teacher) + _mean_kernel(student, student)
        return own - 2.0 * _mean_kernel(teacher, student)


def _channels(locations):
    """Returns the map of every channel at length 1: `(batch, channels, positions)`."""
    return directions(ops.transpose(locations, (0, 2, 1)))


def _mean_kernel(first, second):
    products = ops.matmul(first, ops.transpose(second, (0, 2, 1)))
    return ops.mean(ops.square(products), axis=(1, 2))

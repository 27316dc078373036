"""Flow of the solution procedure (FSP): how channels of one stage go with those of the next."""

import itertools
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from keras_mikd.features.grids import Alignment
from keras_mikd.losses.distillation_loss import DistillationLoss


@keras.saving.register_keras_serializable("keras_mikd")
class FSP(DistillationLoss):
    """Squared error of the products of channels of one stage and of the next (FSP).

        loss = sum over pairs of consecutive places of
               mean over c, d of (G_t[c, d] - G_s[c, d])^2,
        G[c, d] = mean over positions of first map[c] * second map[d],

    where the two maps of a pair are averaged to the smaller grid of the two first. The networks may
    have different grids; their channels have to agree. Nothing is trained. The paper sums over `c`
    and `d`; the mean is that of RepDistiller.

    Args:
        teacher_layer: List of two or more places of feature maps, in order.
        student_layer: Likewise, as many.
        **kwargs: `weight`, `name` and other arguments of `DistillationLoss`.

    Raises:
        ValueError: In `build`, if the tensors are not two equally long lists of two or more feature
            maps of known size, or the channels of a pair of networks differ.

    References:
        Yim et al., A gift from knowledge distillation (CVPR 2017), section 3;
        HobbitLong/RepDistiller, distiller_zoo/FSP.py. Both train the student on this loss alone
        before the task; schedules of `weight` and `task_loss_weight` do so. There wrn_40_2 teaches
        wrn_16_2 72.91 % on CIFAR-100 (alone: 73.26; KD: 74.92).
    """

    def __init__(
        self,
        *,
        teacher_layer: Sequence[str | None] = ("stage1", "stage2"),
        student_layer: Sequence[str | None] = ("stage1", "stage2"),
        **kwargs: Any,
    ) -> None:
        super().__init__(teacher_layer=teacher_layer, student_layer=student_layer, **kwargs)

    def build(
        self,
        teacher_shape: Sequence[Sequence[int | None]],
        student_shape: Sequence[Sequence[int | None]],
    ) -> None:
        _check_shapes(teacher_shape, student_shape)
        self.compared = [
            [Alignment(*pair) for pair in itertools.pairwise(shapes)]
            for shapes in (teacher_shape, student_shape)
        ]

    def call(
        self,
        teacher: list[tf.Tensor],
        student: list[tf.Tensor],
        labels: Any = None,
        training: bool | None = None,
    ) -> tf.Tensor:
        teacher, student = _flows(teacher, self.compared[0]), _flows(student, self.compared[1])
        errors = [
            ops.mean(ops.square(t - s), axis=(1, 2)) for t, s in zip(teacher, student, strict=True)
        ]
        return sum(errors)


def _flows(feature_maps, compared):
    """Returns the products of the channels of every pair: `(batch, channels, next channels)`."""
    flows = []
    for pair, each in zip(itertools.pairwise(feature_maps), compared, strict=True):
        first, second, _ = each.at_locations(*pair)
        flows.append(ops.matmul(ops.transpose(first, (0, 2, 1)), second) / each.places)
    return flows


def _check_shapes(teacher_shape, student_shape):
    received = f"Received: teacher_shape={teacher_shape}, student_shape={student_shape}"
    both = teacher_shape, student_shape
    lists = all(isinstance(shape[0], (list, tuple)) for shape in both)
    maps = lists and all(
        len(size) == 4 and None not in size[1:] for shape in both for size in shape
    )
    if not maps or len(teacher_shape) != len(student_shape) or len(teacher_shape) < 2:
        raise ValueError(
            "Expected lists of two or more places for `teacher_layer` and as many for "
            "`student_layer`, all of feature maps (batch, height, width, channels) of known size. "
            f"{received}"
        )
    if any(t[-1] != s[-1] for t, s in zip(teacher_shape, student_shape, strict=True)):
        raise ValueError(
            f"Expected the same channels at a place of the teacher and of the student. {received}. "
            "Choose networks of the same width, or SimilarityPreserving, which takes any."
        )

"""ReviewKD: deep features of the student, fused into earlier ones, learn the teacher's stages."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_mikd import checks
from keras_mikd.distribution import replicas
from keras_mikd.features.grids import pool_to
from keras_mikd.losses.distillation_loss import DistillationLoss
from keras_mikd.losses.parts.connectors import batch_norm, maps_like_ours


@keras.saving.register_keras_serializable("keras_mikd")
class ReviewKD(DistillationLoss):
    """Squared errors of the teacher's features, level by level, from fused ones of the student.

    From the deepest place to the first, attention based fusion (ABF) brings the student's map to
    `channels` by a 1x1 convolution and BatchNorm, adds the fusion of the level above, enlarged to
    its size, with two weights from 0 to 1 for each location, resizes the sum to the teacher's map,
    and regresses that by a 3x3 convolution and BatchNorm. The loss is the sum over the levels of
    the hierarchical context loss (HCL),

        (MSE(t, s) + sum over g = 4, 2, 1 of w_g MSE(pooled t, pooled s)) / (1 + sum of w_g),

    with averages over `g x g` cells, for grids smaller than the map only, whose weights are 1/2,
    1/4, ... in their order.
    MSE is the mean over elements. Vectors are maps of 1 x 1. Sizes change to the nearest neighbour.

    Args:
        teacher_layer: List of places, from early to late: the stages and the pooled vector. The
            authors read the stages before their last ReLU.
        student_layer: List of as many places of the student.
        channels: Channels of the fused maps; `None` is the student's last number, at most 512.
        **kwargs: `weight`, `name` and other arguments of `DistillationLoss`. The authors' weight is
            0.6 to 8 and rises from 0 over the first 20 epochs; see docs/methods/logits.md.

    Raises:
        ValueError: If an argument is out of range; in `build`, if the lists differ in length or a
            tensor is neither a vector nor a map of known size.

    References:
        Chen et al., Distilling knowledge via knowledge review (arXiv:2104.09044), section 3;
        dvlab-research/ReviewKD, CIFAR-100/model/reviewkd.py. Published CIFAR-100 top-1:
        resnet32x4 to resnet8x4 75.63 %, resnet56 to resnet20 71.89 %.
    """

    def __init__(
        self,
        *,
        teacher_layer: Sequence[str | None] = ("stage1", "stage2", "stage3", "pooled"),
        student_layer: Sequence[str | None] = ("stage1", "stage2", "stage3", "pooled"),
        channels: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(teacher_layer=teacher_layer, student_layer=student_layer, **kwargs)
        self.channels = checks.integer("channels", channels, at_least=1, optional=True)

    def build(
        self,
        teacher_shape: Sequence[Sequence[int | None]],
        student_shape: Sequence[Sequence[int | None]],
    ) -> None:
        _check_shapes(teacher_shape, student_shape)
        levels = [_as_map_shape(shape) for shape in student_shape]
        middle = self.channels or min(512, levels[-1][3])
        self.narrow = [self._fully_connected(shape[3], middle) for shape in levels]
        self.narrow_norms = [self._norm(middle) for _ in levels]
        self.attention = [
            self._fully_connected(2 * middle, 2, activation="sigmoid") for _ in levels[:-1]
        ]
        self.widen = [self._convolution(middle, shape[-1]) for shape in teacher_shape]
        self.widen_norms = [self._norm(shape[-1]) for shape in teacher_shape]

    def call(
        self,
        teacher: list[tf.Tensor],
        student: list[tf.Tensor],
        labels: Any = None,
        training: bool | None = None,
    ) -> tf.Tensor:
        total, fused = 0.0, None
        for level in reversed(range(len(self.narrow))):
            wanted, own = _as_map(teacher[level]), _as_map(student[level])
            own = self.narrow_norms[level](self.narrow[level](own), training=training)
            if fused is not None:
                above = _nearest(fused, own.shape[1:3])
                share = self.attention[level](ops.concatenate([own, above], axis=-1))
                own = own * share[..., :1] + above * share[..., 1:]
            fused = _nearest(own, wanted.shape[1:3])
            regressed = replicas.run_network(self.widen[level], fused)
            regressed = self.widen_norms[level](regressed, training=training)
            total = total + _hierarchical_context(wanted, regressed)
        return total

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "channels": self.channels}

    def _fully_connected(self, width, units, activation=None):
        # Over the last axis of a map this is a 1x1 convolution.
        layer = keras.layers.Dense(
            units,
            activation=activation,
            use_bias=activation is not None,
            kernel_initializer=keras.initializers.VarianceScaling(
                1 if activation is None else 1 / 3, "fan_in", "uniform"
            ),
            dtype=self.dtype_policy,
        )
        layer.build((None, width))
        return layer

    def _convolution(self, width, filters):
        layer = keras.layers.Conv2D(
            filters,
            3,
            padding="same",
            use_bias=False,
            kernel_initializer=keras.initializers.VarianceScaling(1, "fan_in", "uniform"),
            **maps_like_ours(self.dtype_policy),
        )
        layer.build((None, None, None, width))
        return layer

    def _norm(self, channels):
        norm = batch_norm(self.dtype_policy)
        norm.build((None, None, None, channels))
        return norm


def _hierarchical_context(teacher, student):
    """Returns the error at the full size and on coarser grids, averaged, shape `(batch,)`."""
    errors, weights = [_mean_square(teacher - student)], [1.0]
    for cells in (4, 2, 1):
        if cells < min(teacher.shape[1:3]):
            # The average of a difference is the difference of the averages.
            errors.append(_mean_square(pool_to(teacher - student, (cells, cells))))
            weights.append(weights[-1] / 2)
    return sum(w * e for w, e in zip(weights, errors, strict=True)) / sum(weights)


def _mean_square(error):
    return ops.mean(ops.square(error), axis=(1, 2, 3))


def _nearest(feature_map, size):
    """Resizes a map to its nearest neighbours, those of PyTorch: where a location begins."""
    for axis, wanted in enumerate(size, start=1):
        present = feature_map.shape[axis]
        if present != wanted:
            feature_map = ops.take(feature_map, np.arange(wanted) * present // wanted, axis=axis)
    return feature_map


def _as_map(tensor):
    return tensor[:, None, None] if len(tensor.shape) == 2 else tensor


def _as_map_shape(shape):
    return (shape[0], 1, 1, shape[1]) if len(shape) == 2 else tuple(shape)


def _check_shapes(teacher_shape, student_shape):
    shapes = teacher_shape, student_shape
    lists = all(each and isinstance(each[0], (list, tuple)) for each in shapes)
    if not lists or len(teacher_shape) != len(student_shape):
        expected = "lists of as many places of the teacher as of the student"
    elif any(len(s) not in (2, 4) or None in s[1:] for each in shapes for s in each):
        expected = (
            "vectors (batch, channels) or maps (batch, height, width, channels) of known size"
        )
    else:
        return
    raise ValueError(
        f"Expected {expected}, since stages are compared one by one. Received: teacher_shape="
        f"{teacher_shape}, student_shape={student_shape}. Set `teacher_layer` and `student_layer`, "
        "as recipes.review_kd does."
    )

"""FitNets' hints: regression of the teacher's features on the student's."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from keras_mikd import checks, masks
from keras_mikd.distribution import replicas
from keras_mikd.features.grids import Alignment
from keras_mikd.losses.distillation_loss import DistillationLoss
from keras_mikd.losses.parts.centering import deviations, length
from keras_mikd.losses.parts.connectors import batch_norm, repdistiller_convolutions, run
from keras_mikd.losses.parts.orthogonal_projection import OrthogonalProjection
from keras_mikd.losses.parts.shape_checks import check_pair


@keras.saving.register_keras_serializable("keras_mikd")
class Hint(DistillationLoss):
    """Squared error of a regression of the teacher's features on the student's (FitNets).

        loss = mean over elements of (t - r(s))^2,

    where the regressor `r` is trained. `"linear"` is a 1x1 convolution with bias (for vectors, a
    dense layer), on maps that are averaged to the smaller grid first, or on tokens, see
    docs/tokens.md. `"repdistiller"` is that of the CRD benchmark: a convolution to the teacher's
    size, BatchNorm and ReLU. The convolution is 1x1 for equal sizes, 3x3 with stride 2 for a
    student of twice the size, a transposed 4x4 with stride 2 for one of half the size, and
    otherwise as large as it takes without padding. The mean, with a weight of about 100 beside the
    task, is that of the benchmark; FitNets halves the sum and trains on the hint before the task.

    `"orthogonal"` is VkD: `loss = mean of smooth_l1(normalized(t) - P s)`, where `smooth_l1(d)` is
    `d^2 / 2` up to 1 and `|d| - 1/2` beyond, and `P` is a trained linear map without bias whose
    rows or columns are orthonormal: it rotates the student's features without distorting them. The
    grid is that of `"linear"`.

    Args:
        regressor: `"linear"`, `"repdistiller"`, which is for feature maps, or `"orthogonal"`.
        normalization: Of the teacher's features, with `"orthogonal"` only: `"layer"`, every vector
            over its channels, as in the authors' code for ImageNet, or `"batch"`, every channel
            over all vectors of the batch of all replicas.
        **kwargs: `teacher_layer`, `student_layer`, `weight` and others of `DistillationLoss`.

    Raises:
        ValueError: If an argument is not one of these; in `build`, if the tensors are not two
            vectors, maps or sequences of tokens, or the regressor does not lead from the one to the
            other.

    References:
        Romero et al., FitNets: hints for thin deep nets (arXiv:1412.6550), section 2.2;
        HobbitLong/RepDistiller, models/util.py, whose convolution has a bias, which BatchNorm
        takes away again. Miles et al., VkD: improving knowledge distillation using orthogonal
        projections (arXiv:2403.06213); roymiles/VkD, engine.py. Published: DeiT-Ti on ImageNet
        78.3 %, on top of soft targets.
    """

    def __init__(
        self, *, regressor: str = "linear", normalization: str = "layer", **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        kinds = ("linear", "repdistiller", "orthogonal")
        self.kind = checks.one_of("regressor", regressor, kinds)
        self.normalization = checks.one_of("normalization", normalization, ("layer", "batch"))
        if self.normalization != "layer" and self.kind != "orthogonal":
            raise ValueError(
                'Expected `normalization` with regressor="orthogonal" only. Received: '
                f"normalization={normalization!r}, regressor={regressor!r}. Leave it out."
            )

    @property
    def compares_examples(self) -> bool:
        """Whether the loss of an example depends on others: by the statistics of the batch."""
        return self.normalization == "batch"

    def build(
        self, teacher_shape: Sequence[int | None], student_shape: Sequence[int | None]
    ) -> None:
        check_pair(teacher_shape, student_shape)
        if self.kind == "repdistiller":
            self.regressor = self._repdistiller(tuple(teacher_shape), tuple(student_shape))
        else:
            self.compared = Alignment(teacher_shape, student_shape, image_size=self.image_size)
            self.grid = self.compared.student.grid
            # Over the last axis: on a feature map this is a 1x1 convolution.
            linear = OrthogonalProjection if self.kind == "orthogonal" else keras.layers.Dense
            self.regressor = linear(teacher_shape[-1], dtype=self.dtype_policy)
        self.regressor.build(tuple(student_shape))

    def call(
        self,
        teacher: tf.Tensor,
        student: tf.Tensor,
        labels: Any = None,
        training: bool | None = None,
        teacher_mask: tf.Tensor | None = None,
        student_mask: tf.Tensor | None = None,
    ) -> tf.Tensor:
        mask = None
        if self.kind != "repdistiller":
            teacher, student, mask = self.compared(teacher, student, teacher_mask, student_mask)
        orthogonal = self.kind == "orthogonal"
        teacher = self._normalized(teacher, mask) if orthogonal else teacher
        error = teacher - self._regressed(student, training)
        error = _smooth_l1(error) if orthogonal else ops.square(error)
        if mask is not None:
            return masks.mean(ops.mean(error, axis=-1), mask)
        return ops.mean(error, axis=tuple(range(1, len(error.shape))))

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "regressor": self.kind,
            "normalization": self.normalization,
        }

    def _regressed(self, student, training):
        if self.kind != "repdistiller":
            return self.regressor(student)
        return run(self.regressor.layers, student, training)

    def _repdistiller(self, teacher_shape, student_shape):
        convolutions = repdistiller_convolutions(
            teacher_shape,
            student_shape,
            dtype=self.dtype_policy,
            instead='Take regressor="linear".',
        )
        relu = keras.layers.ReLU(dtype=self.dtype_policy)
        return keras.Sequential([*convolutions, batch_norm(self.dtype_policy), relu])

    def _normalized(self, teacher, mask):
        """Returns the teacher's features with a mean of 0 and a variance of 1."""
        if self.normalization == "layer":
            deviation = teacher - ops.mean(teacher, axis=-1, keepdims=True)
            variance = ops.mean(ops.square(deviation), axis=-1, keepdims=True)
            return deviation * ops.rsqrt(variance + 1e-5)
        if mask is not None:
            raise ValueError(
                f"Expected sequences without padded tokens for {self.name!r}, since they would "
                'count in the moments of the batch. Received: a mask, and normalization="batch". '
                'Take normalization="layer".'
            )
        batch = replicas.gather(teacher)
        axes = tuple(range(len(batch.shape) - 1))
        deviation = deviations(batch, axes)
        # One less than the number of vectors, as PyTorch divides by.
        divisor = ops.cast(ops.size(batch) // batch.shape[-1], "float32") - 1.0
        scale = length(deviation, axes) / ops.sqrt(ops.maximum(divisor, 1.0))
        return replicas.own_part(deviation / ops.where(scale > 0.0, scale, 1.0), of=teacher)


def _smooth_l1(error):
    size = ops.abs(error)
    return ops.where(size < 1.0, 0.5 * ops.square(error), size - 0.5)

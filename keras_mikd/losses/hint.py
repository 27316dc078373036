"""FitNets' hints: regression of the teacher's features on the student's."""

import keras
from keras import ops

from keras_mikd.features.grids import common_grid, pool_to
from keras_mikd.losses.distillation_loss import DistillationLoss
from keras_mikd.losses.shape_checks import check_pair


@keras.saving.register_keras_serializable("keras_mikd")
class Hint(DistillationLoss):
    """Squared error of a linear regression of the teacher's features on the student's (FitNets).

        loss = mean over elements of (t - r(s))^2,

    where `r` is a trainable 1x1 convolution with bias (for vectors, a dense layer). Feature maps of
    different sizes are averaged to the smaller grid first. The mean, with a weight of about 100
    beside the task, is that of common comparisons; FitNets halves the sum and trains on the hint
    before the task.

    Args:
        **kwargs: `teacher_layer`, `student_layer`, `weight` and others of `DistillationLoss`.

    Raises:
        ValueError: If, in `build`, the tensors are not two vectors or two feature maps.

    References:
        Romero et al., FitNets: hints for thin deep nets (arXiv:1412.6550), section 2.2.
    """

    def build(self, teacher_shape, student_shape):
        check_pair(teacher_shape, student_shape)
        maps = len(teacher_shape) == 4
        self.grid = common_grid(teacher_shape, student_shape) if maps else None
        # Over the last axis: on a feature map this is a 1x1 convolution.
        self.regressor = keras.layers.Dense(teacher_shape[-1], dtype=self.dtype_policy)
        self.regressor.build(student_shape)

    def call(self, teacher, student, labels=None, training=None):
        if self.grid is not None:
            teacher, student = pool_to(teacher, self.grid), pool_to(student, self.grid)
        error = ops.square(teacher - self.regressor(student))
        return ops.mean(error, axis=tuple(range(1, len(error.shape))))

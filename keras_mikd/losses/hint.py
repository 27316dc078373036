"""FitNets' hints: regression of the teacher's features on the student's."""

import keras
from keras import ops

from keras_mikd import checks, masks
from keras_mikd.distribution import replicas
from keras_mikd.features.grids import Comparison, common_grid
from keras_mikd.losses.distillation_loss import DistillationLoss
from keras_mikd.losses.shape_checks import check_pair


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

    Args:
        regressor: `"linear"` or `"repdistiller"`, which is for feature maps.
        **kwargs: `teacher_layer`, `student_layer`, `weight` and others of `DistillationLoss`.

    Raises:
        ValueError: If `regressor` is another; in `build`, if the tensors are not two vectors, maps
            or sequences of tokens, or the regressor does not lead from the one to the other.

    References:
        Romero et al., FitNets: hints for thin deep nets (arXiv:1412.6550), section 2.2;
        HobbitLong/RepDistiller, models/util.py, whose convolution has a bias, which BatchNorm
        takes away again.
    """

    def __init__(self, *, regressor="linear", **kwargs):
        super().__init__(**kwargs)
        self.kind = checks.one_of("regressor", regressor, ("linear", "repdistiller"))

    def build(self, teacher_shape, student_shape):
        check_pair(teacher_shape, student_shape)
        if self.kind == "repdistiller":
            self.regressor = self._repdistiller(tuple(teacher_shape), tuple(student_shape))
        else:
            self.compared = Comparison(teacher_shape, student_shape, image_size=self.image_size)
            self.grid = self.compared.student.grid
            # Over the last axis: on a feature map this is a 1x1 convolution.
            self.regressor = keras.layers.Dense(teacher_shape[-1], dtype=self.dtype_policy)
        self.regressor.build(tuple(student_shape))

    def call(
        self,
        teacher,
        student,
        labels=None,
        training=None,
        teacher_mask=None,
        student_mask=None,
    ):
        mask = None
        if self.kind == "linear":
            teacher, student, mask = self.compared(teacher, student, teacher_mask, student_mask)
        error = ops.square(teacher - self._regressed(student, training))
        if mask is not None:
            return masks.mean(ops.mean(error, axis=-1), mask)
        return ops.mean(error, axis=tuple(range(1, len(error.shape))))

    def get_config(self):
        return {**super().get_config(), "regressor": self.kind}

    def _regressed(self, student, training):
        if self.kind == "linear":
            return self.regressor(student)
        *convolutions, norm, relu = self.regressor.layers
        for layer in convolutions:
            student = replicas.run_network(layer, student)
        return relu(norm(student, training=training))

    def _repdistiller(self, teacher_shape, student_shape):
        common_grid(teacher_shape, student_shape)  # Refuses vectors and unknown sizes.
        options = {
            "use_bias": False,
            "kernel_initializer": keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform"),
            "dtype": self.dtype_policy,
        }
        channels, sizes, wanted = teacher_shape[3], student_shape[1:3], teacher_shape[1:3]
        pairs = list(zip(sizes, wanted, strict=True))
        if all(size == 2 * target for size, target in pairs):
            layers = [
                # "same" would pad an even map at the bottom right only.
                keras.layers.ZeroPadding2D(1, dtype=self.dtype_policy),
                keras.layers.Conv2D(channels, 3, strides=2, **options),
            ]
        elif all(2 * size == target for size, target in pairs):
            layers = [
                keras.layers.Conv2DTranspose(channels, 4, strides=2, padding="same", **options)
            ]
        elif all(size >= target for size, target in pairs):
            kernel = [1 + size - target for size, target in pairs]
            layers = [keras.layers.Conv2D(channels, kernel, **options)]
        else:
            raise ValueError(
                "Expected a student's map of half the size of the teacher's, or of at least its "
                f'size, for regressor="repdistiller". Received: teacher_shape={teacher_shape}, '
                f'student_shape={student_shape}. Take regressor="linear".'
            )
        norm = keras.layers.BatchNormalization(
            momentum=0.9, epsilon=1e-5, synchronized=True, dtype=self.dtype_policy
        )
        return keras.Sequential([*layers, norm, keras.layers.ReLU(dtype=self.dtype_policy)])

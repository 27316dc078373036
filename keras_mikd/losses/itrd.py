"""Information-theoretic representation distillation (ITRD): correlations and a Gram matrix."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from keras_mikd import checks
from keras_mikd.losses.distillation_loss import DistillationLoss
from keras_mikd.losses.parts.centering import length
from keras_mikd.losses.parts.shape_checks import check_pair
from keras_mikd.losses.parts.similarities import directions, size, whole_batch

_SMALLEST = 1e-12  # Of a trace and of a sum whose logarithm is taken.
_ROUNDING = 1e-6  # Relative to the channel: float32 cannot tell less from a constant.


@keras.saving.register_keras_serializable("keras_mikd")
class ITRD(DistillationLoss):
    """Correlation and mutual information of two vectors by a Renyi-like entropy, without negatives.

        loss = correlation_weight * log2(sum over channels of |c - 1|^(2 alpha))
             + mutual_weight * sum over i, j of (G_s[i, j]^2 - G_st[i, j]^2).

    `c` is the correlation over the batch of a channel of the teacher with that channel of `r(s)`,
    a trained linear map of the student's vector. `G_s` has the cosines between the examples of the
    batch for `r(s)`, or for `s` itself where it has as many channels as the teacher; `G_st` has
    their products with the teacher's cosines; both are divided by their trace. The first term is
    one number for the batch and the same for all of its examples. It is in bits and falls below 0.

    Args:
        correlation_weight: Factor of the correlations, a finite float of at least 0.
        mutual_weight: Factor of the Gram matrices, likewise; the code's default is 0.05.
        alpha: Order, a finite float of at least 1; the code's default is 1.5.
        gather: As in `SimilarityPreserving`.
        **kwargs: `teacher_layer`, `student_layer`, `weight` and others of `DistillationLoss`.

    Raises:
        ValueError: If an argument is out of range; in `build`, if the tensors are not two vectors.

    References:
        Miles, Lopez-Rodriguez, Mikolajczyk, Information theoretic representation distillation
        (arXiv:2112.00459), section 3; roymiles/ITRD, distiller_zoo/IT.py, on the pooled vectors
        with the weights that are the defaults here. There wrn_40_2 teaches wrn_16_2 76.12 % on
        CIFAR-100 (alone: 73.26; KD: 74.92). As there, standard deviations are those of a sample,
        and `c` divides by the number of examples. A channel that is constant in the batch is not a
        number there; here its `c` is 0.
    """

    compares_examples = True

    def __init__(
        self,
        *,
        correlation_weight: float = 2.0,
        mutual_weight: float = 1.0,
        alpha: float = 1.01,
        gather: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        weights = {"correlation_weight": correlation_weight, "mutual_weight": mutual_weight}
        weights = {name: checks.number(name, value, at_least=0) for name, value in weights.items()}
        self.correlation_weight, self.mutual_weight = weights.values()
        self.alpha = checks.number("alpha", alpha, at_least=1)
        self.gather = checks.boolean("gather", gather)

    def build(
        self, teacher_shape: Sequence[int | None], student_shape: Sequence[int | None]
    ) -> None:
        check_pair(teacher_shape, student_shape, ranks=(2,))
        self.same_channels = teacher_shape[-1] == student_shape[-1]
        self.regressor = keras.layers.Dense(teacher_shape[-1], dtype=self.dtype_policy)
        self.regressor.build(student_shape)

    def call(
        self,
        teacher: tf.Tensor,
        student: tf.Tensor,
        labels: Any = None,
        training: bool | None = None,
    ) -> tf.Tensor:
        regressed = self.regressor(student)
        correlation = self._correlation(teacher, regressed)
        mutual = self._mutual(teacher, student if self.same_channels else regressed)
        return self.correlation_weight * correlation + self.mutual_weight * mutual

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "correlation_weight": self.correlation_weight,
            "mutual_weight": self.mutual_weight,
            "alpha": self.alpha,
            "gather": self.gather,
        }

    def _correlation(self, teacher, student):
        teacher, student = (whole_batch(x, self.gather) for x in (teacher, student))
        correlations = ops.sum(_standardized(teacher) * _standardized(student), axis=0)
        distances = ops.square(correlations / size(teacher) - 1.0)
        return ops.log2(ops.maximum(ops.sum(distances**self.alpha), _SMALLEST))

    def _mutual(self, teacher, student):
        """Returns the contributions of the own examples, times the size of the batch."""
        teacher, student = directions(teacher), directions(student)
        teachers, students = (whole_batch(x, self.gather) for x in (teacher, student))
        of_student = ops.matmul(student, ops.transpose(students))
        of_both = of_student * ops.matmul(teacher, ops.transpose(teachers))
        squares = [ops.sum(ops.square(x), axis=-1) for x in (students, teachers)]
        traces = ops.sum(squares[0]), ops.sum(squares[0] * squares[1])
        first, second = (
            ops.sum(ops.square(gram / ops.maximum(trace, _SMALLEST)), axis=-1)
            for gram, trace in zip((of_student, of_both), traces, strict=True)
        )
        return size(students) * (first - second)


def _standardized(x):
    """Returns channels of mean 0 and standard deviation 1 over the batch; constant ones as 0."""
    channels = ops.transpose(x)
    deviations = channels - ops.sum(channels, axis=-1, keepdims=True) / size(x)
    varies = length(deviations, axis=-1) > _ROUNDING * length(channels, axis=-1)
    units = directions(ops.where(varies, deviations, 0.0))
    return ops.sqrt(ops.maximum(size(x) - 1.0, 1.0)) * ops.transpose(units)

"""DIST: correlations of probabilities, over the classes and over the examples."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from keras_mikd import checks
from keras_mikd.distribution import replicas
from keras_mikd.losses.distillation_loss import DistillationLoss
from keras_mikd.losses.parts import schedules
from keras_mikd.losses.parts.centering import SHORTEST, deviations, gently, length
from keras_mikd.losses.parts.shape_checks import check_logits
from keras_mikd.losses.parts.similarities import whole_batch


@keras.saving.register_keras_serializable("keras_mikd")
class DIST(DistillationLoss):
    """One minus Pearson's correlation of the two networks' probabilities (DIST).

        loss = T^2 * (inter * (1 - mean over examples of corr(y_t[i], y_s[i]))
                      + intra * (1 - mean over classes of corr(y_t[:, c], y_s[:, c]))),

    where `y = softmax(logits / T)` and `corr(a, b) = <a, b> / (|a| |b| + 1e-8)` of deviations from
    the mean. The second term compares the examples of a batch, of all replicas. An example's loss
    holds its own part of it, so that the mean is the published value. In a batch of one there is
    nothing to correlate: the term is its constant 1, without a gradient. Of two classes a row has
    the correlation 1 or -1, and only the second term teaches. Rows and columns that are constant up
    to float32's rounding have the correlation 0 and no gradient; where deviations are about a
    hundredth of the probabilities, as before training at a high `T`, it is smaller than published.

    Args:
        inter: Factor of the first term, between the classes of an example; at least 0.
        intra: Factor of the second term, within a class, between examples; at least 0.
        temperature: `T`, a finite float above 0, or a schedule like that of a weight. The authors
            take 4 on CIFAR-100 and 1 on ImageNet.
        gather: Whether the examples of all replicas are compared.
        **kwargs: `weight` and other arguments of `DistillationLoss`; the authors' weight is 2.

    Raises:
        ValueError: If an argument is out of range; in `build`, if the tensors are not logits of the
            same two or more classes.

    References:
        Huang et al., Knowledge distillation from a stronger teacher (arXiv:2205.10536), section 4;
        hunto/image_classification_sota, lib/models/losses/dist_kd.py. Published CIFAR-100 top-1:
        resnet32x4 to resnet8x4 76.31 %, resnet56 to resnet20 71.75 %.
    """

    expects_logits = True
    compares_examples = True

    def __init__(
        self,
        *,
        inter: float = 1.0,
        intra: float = 1.0,
        temperature: float | LearningRateSchedule = 4.0,
        gather: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.inter = checks.number("inter", inter, at_least=0)
        self.intra = checks.number("intra", intra, at_least=0)
        self.temperature = schedules.checked_temperature("temperature", temperature)
        self.gather = checks.boolean("gather", gather)

    def build(
        self, teacher_shape: Sequence[int | None], student_shape: Sequence[int | None]
    ) -> None:
        check_logits(teacher_shape, student_shape)

    def call(
        self,
        teacher: tf.Tensor,
        student: tf.Tensor,
        labels: Any = None,
        training: bool | None = None,
    ) -> tf.Tensor:
        temperature = schedules.now(self.temperature)
        teacher = ops.softmax(teacher / temperature, axis=-1)
        student = ops.softmax(student / temperature, axis=-1)
        of_classes = ops.sum(_correlation_terms(teacher, student, axis=1), axis=-1)
        both = whole_batch(ops.stack([teacher, student], axis=1), self.gather)
        terms = _correlation_terms(both[:, 0], both[:, 1], axis=0)
        of_examples = ops.mean(terms, axis=-1) * ops.cast(ops.shape(terms)[0], "float32")
        if self.gather:
            of_examples = replicas.own_part(of_examples, of=student)
        total = self.inter * (1.0 - of_classes) + self.intra * (1.0 - of_examples)
        return temperature**2 * total

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "inter": self.inter,
            "intra": self.intra,
            "temperature": schedules.serialized(self.temperature),
            "gather": self.gather,
        }


def _correlation_terms(first, second, axis):
    """Returns the terms whose sum over `axis` is Pearson's correlation along it."""
    first, second = (_deviations(x, axis) for x in (first, second))
    return first * second / (length(first, axis) * length(second, axis) + 1e-8)


def _deviations(probabilities, axis):
    deviation = deviations(probabilities, axis)
    # Of many classes, all probabilities are small: short is what deviates little from them.
    shortest = SHORTEST * length(probabilities, axis)
    return gently(deviation, length(deviation, axis), shortest)

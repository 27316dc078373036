"""Weighted transformed teacher matching: a power of the teacher's probabilities."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from keras_mikd import checks
from keras_mikd.losses.distillation_loss import DistillationLoss
from keras_mikd.losses.parts.divergence import softened_divergence
from keras_mikd.losses.parts.shape_checks import check_logits


@keras.saving.register_keras_serializable("keras_mikd")
class WTTM(DistillationLoss):
    """Divergence of the student from a power of the teacher's probabilities (TTM, WTTM).

        loss = w * KL(p^gamma / u || softmax(student)),  p = softmax(teacher),  u = sum of p^gamma.

    The power is a temperature of `1 / gamma` for the teacher alone; the student has none, which
    adds the student's Renyi entropy to the soft targets. The weight `w = u` of an example goes
    from 1 for a teacher that is certain to `classes^(1 - gamma)` for one that knows nothing: with a
    `gamma` below 1, smooth targets count more. KL is in nats and summed over the classes. There is
    no factor `T^2`.

    Args:
        gamma: Exponent, a float above 0; below 1 it smooths. The authors' examples
            on CIFAR-100 have 0.1 for TTM and 0.2 for WTTM.
        weighted: Whether examples have the weight `u` (WTTM), or all the weight 1 (TTM).
        **kwargs: `weight` and other arguments of `DistillationLoss`.

    Raises:
        ValueError: If `gamma` is out of range; in `build`, if the tensors are not logits of the
            same two or more classes.

    References:
        Zheng and Yang, Knowledge distillation based on transformed teacher matching
        (arXiv:2402.11148); zkxufo/TTM, distiller_zoo/wttm.py. Published CIFAR-100 top-1: resnet32x4
        to resnet8x4 76.06 %, resnet56 to resnet20 71.92 %.
    """

    expects_logits = True

    def __init__(self, *, gamma: float = 0.2, weighted: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.gamma = checks.number("gamma", gamma, above=0)
        self.weighted = checks.boolean("weighted", weighted)

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
        log_power = self.gamma * ops.log_softmax(teacher, axis=-1)
        divergence = softened_divergence(log_power, student, 1.0)
        if not self.weighted:
            return divergence
        return ops.exp(ops.logsumexp(log_power, axis=-1)) * divergence

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "gamma": self.gamma, "weighted": self.weighted}

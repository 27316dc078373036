"""Activation boundaries: the student's neurons are active where the teacher's are."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from keras_mikd import checks
from keras_mikd.losses.distillation_loss import DistillationLoss
from keras_mikd.losses.parts.connectors import batch_norm, repdistiller_convolutions, run
from keras_mikd.losses.parts.shape_checks import check_pair


@keras.saving.register_keras_serializable("keras_mikd")
class ActivationBoundary(DistillationLoss):
    """Squared hinge that lets the student's neurons have the signs of the teacher's (AB).

        loss = scale * sum over elements of ( (s + margin)^2  where t <= 0 and s > -margin,
                                              (s - margin)^2  where t > 0 and s <= margin ),

    where `s` is a connector of the student's map. Equal shapes have none; otherwise it is the
    convolution of `Hint(regressor="repdistiller")` and BatchNorm. The maps are meant before their
    ReLU. The teacher's may be after it, which leaves its signs; a student's without a connector
    would never get below 0. Read-out: `<name>_agreement`, the share of neurons that are active in
    both or in none.

    The authors and RepDistiller train the student on this loss first, and then on labels. Here it
    stands beside the task. A weight that a schedule sets to 0 after some steps is nearest to them.

    Args:
        margin: How far from 0 a neuron has to be, a finite float of at least 0.
        scale: Factor of the sum, a float above 0. The published one is 0.003 for the last of three
            stages, and for each before it half of the next one's.
        **kwargs: `teacher_layer`, `student_layer`, `weight` and others of `DistillationLoss`.

    Raises:
        ValueError: If an argument is out of range; in `build`, if the tensors are not feature maps
            of known size, or no connector leads from the one to the other.

    References:
        Heo et al., Knowledge transfer via distillation of activation boundaries formed by hidden
        neurons (arXiv:1811.03233), section 3; bhheo/AB_distillation; HobbitLong/RepDistiller,
        distiller_zoo/AB.py. Published CIFAR-100 top-1 (RepDistiller): resnet56 to resnet20 69.47 %,
        vgg13 to MobileNetV2 66.06 %.
    """

    def __init__(self, *, margin: float = 1.0, scale: float = 0.003, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.margin = checks.number("margin", margin, at_least=0)
        self.scale = checks.number("scale", scale, above=0)

    def build(
        self, teacher_shape: Sequence[int | None], student_shape: Sequence[int | None]
    ) -> None:
        check_pair(teacher_shape, student_shape, ranks=(4,))
        self.connector = []
        if tuple(teacher_shape[1:]) != tuple(student_shape[1:]) or None in student_shape[1:]:
            convolutions = repdistiller_convolutions(
                tuple(teacher_shape),
                tuple(student_shape),
                dtype=self.dtype_policy,
                instead="Take a place of the student whose map is larger.",
            )
            self.connector = [*convolutions, batch_norm(self.dtype_policy)]
        shape = tuple(student_shape)
        for layer in self.connector:
            layer.build(shape)
            shape = layer.compute_output_shape(shape)
        self.agreement = keras.metrics.Mean(name=f"{self.name}_agreement")

    def call(
        self,
        teacher: tf.Tensor,
        student: tf.Tensor,
        labels: Any = None,
        training: bool | None = None,
    ) -> tf.Tensor:
        student = run(self.connector, student, training)
        active = teacher > 0.0
        axes = (1, 2, 3)
        agrees = ops.cast(active == (student > 0.0), "float32")
        self.read_out(self.agreement, ops.mean(agrees, axis=axes))
        # At the margin itself both forms of the hinge, and their gradients, are 0.
        short = ops.where(active, self.margin - student, self.margin + student)
        return self.scale * ops.sum(ops.square(ops.relu(short)), axis=axes)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "margin": self.margin, "scale": self.scale}

"""Knowledge distillation with softened class probabilities."""

import keras
from keras import ops

from keras_mikd import checks
from keras_mikd.losses.distillation_loss import DistillationLoss
from keras_mikd.losses.shape_checks import check_pair


@keras.saving.register_keras_serializable("keras_mikd")
class SoftTargets(DistillationLoss):
    """Divergence of the student's class probabilities from the teacher's, both softened.

        loss = T^2 * KL(softmax(teacher / T) || softmax(student / T)),

    summed over the classes, in nats times `T^2`. The factor keeps the size of the gradient about
    the same for every temperature `T`. Both networks give logits of shape `(batch, classes)`.

    Args:
        temperature: `T`, a finite float above 0. Most comparisons on CIFAR-100 use 4.
        **kwargs: `weight` and other arguments of `DistillationLoss`.

    Raises:
        ValueError: If `temperature` is not a finite number above 0; in `build`, if the tensors are
            not logits of the same two or more classes.

    References:
        Hinton et al., Distilling the knowledge in a neural network (arXiv:1503.02531), section 2.
    """

    expects_logits = True

    def __init__(self, *, temperature=4.0, **kwargs):
        super().__init__(**kwargs)
        self.temperature = checks.temperature(temperature)

    def build(self, teacher_shape, student_shape):
        check_pair(teacher_shape, student_shape, ranks=(2,))
        received = f"Received: teacher_shape={teacher_shape}, student_shape={student_shape}"
        if teacher_shape[-1] != student_shape[-1]:
            raise ValueError(
                f"Expected teacher and student to have the same classes. {received}. Give the "
                "student a second output with the teacher's classes, or match features instead."
            )
        if teacher_shape[-1] < 2:
            raise ValueError(
                "Expected logits of at least two classes: the softmax of one is always 1, so that "
                f"the loss would always be 0. {received}. Train networks with one logit per class."
            )

    def call(self, teacher, student, labels=None, training=None):
        teacher = ops.log_softmax(teacher / self.temperature, axis=-1)
        student = ops.log_softmax(student / self.temperature, axis=-1)
        divergence = ops.sum(ops.exp(teacher) * (teacher - student), axis=-1)
        return self.temperature**2 * divergence

    def get_config(self):
        return {**super().get_config(), "temperature": self.temperature}

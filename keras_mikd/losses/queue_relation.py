"""The queue relation: which of the teacher's last examples an example is similar to."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from keras_mikd import checks
from keras_mikd.losses.distillation_loss import DistillationLoss
from keras_mikd.losses.parts.shape_checks import check_pair
from keras_mikd.losses.parts.similarities import directions, whole_batch


@keras.saving.register_keras_serializable("keras_mikd")
class QueueRelation(DistillationLoss):
    """Cross-entropy of the similarities to a queue of the teacher's embeddings, without labels.

        loss = -sum over the queue Q of p_t * log p_s,
        p_t = softmax(<t, Q> / teacher_temperature),
        p_s = softmax(<r(s), Q> / student_temperature),

    with all vectors at length 1 and a trained linear map `r` to the teacher's channels. `Q` is the
    batch of all replicas and what was kept of earlier ones; in training the batch enters the queue,
    and the oldest examples leave it. What it lacks in the first steps counts for nothing. The value
    is at least the entropy of `p_t`. The queue takes `4 * size * channels` bytes on every replica
    and is saved with the distiller.

    Args:
        size: Number of embeddings in the queue, an int of at least 2.
        teacher_temperature: A float from 1e-6 to 1e6.
        student_temperature: Likewise.
        **kwargs: `teacher_layer`, `student_layer`, `weight` and others of `DistillationLoss`.

    Raises:
        ValueError: If an argument is out of range; in `build`, if the tensors are not two vectors.

    References:
        Fang et al., SEED (arXiv:2101.04731), section 3, after training without labels: 67.6 % on
        ImageNet with a linear classifier for EfficientNet-B0 (alone: 42.2). Its code has 65,536
        embeddings, temperatures of 0.0001 and 0.2, and compares an example with earlier batches and
        itself. Giakoumoglou and Stathaki, Relational representation distillation
        (arXiv:2407.12073), beside labels: its temperatures, size and order are those here; its code
        maps the teacher to 128 channels by a random matrix first.
    """

    compares_examples = True

    def __init__(
        self,
        *,
        size: int = 16384,
        teacher_temperature: float = 0.02,
        student_temperature: float = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.size = checks.integer("size", size, at_least=2)
        self.teacher_temperature = _temperature("teacher_temperature", teacher_temperature)
        self.student_temperature = _temperature("student_temperature", student_temperature)

    def build(
        self, teacher_shape: Sequence[int | None], student_shape: Sequence[int | None]
    ) -> None:
        check_pair(teacher_shape, student_shape, ranks=(2,))
        channels = teacher_shape[-1]
        self.regressor = keras.layers.Dense(channels, dtype=self.dtype_policy)
        self.regressor.build(student_shape)
        # Every replica keeps the same queue for itself, so that none is sent.
        self.queue = self.add_weight(
            shape=(self.size, channels), initializer="zeros", trainable=False, name="queue"
        )

    def call(
        self,
        teacher: tf.Tensor,
        student: tf.Tensor,
        labels: Any = None,
        training: bool | None = None,
    ) -> tf.Tensor:
        teacher = ops.stop_gradient(directions(teacher))
        newest_first = [whole_batch(teacher, gather=True), ops.convert_to_tensor(self.queue)]
        queue = ops.concatenate(newest_first, axis=0)[: self.size]
        if training is not False:
            self.queue.assign(queue)
        p = ops.softmax(_logits(teacher, queue, self.teacher_temperature), axis=-1)
        student = directions(self.regressor(student))
        log_q = ops.log_softmax(_logits(student, queue, self.student_temperature), axis=-1)
        return -ops.sum(p * log_q, axis=-1)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "size": self.size,
            "teacher_temperature": self.teacher_temperature,
            "student_temperature": self.student_temperature,
        }


def _logits(x, queue, temperature):
    is_there = ops.any(queue != 0.0, axis=-1)
    return ops.where(is_there, ops.matmul(x, ops.transpose(queue)) / temperature, -1e9)


def _temperature(argument, value):
    # Scores stay far above that of an empty row.
    return checks.number(argument, value, at_least=1e-6, at_most=1e6)

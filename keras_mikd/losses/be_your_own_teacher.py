"""Be your own teacher: classifiers on the stages, taught by labels and by the last layer."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from keras_mikd import checks
from keras_mikd.features.feature_taps import output_at
from keras_mikd.losses.distillation_loss import DistillationLoss
from keras_mikd.losses.parts import schedules
from keras_mikd.losses.parts.connectors import batch_norm, maps_like_ours, run
from keras_mikd.losses.parts.divergence import softened_divergence


@keras.saving.register_keras_serializable("keras_mikd")
class BeYourOwnTeacher(DistillationLoss):
    """Deep supervision with self-distillation (BYOT): heads on the stages learn from the last one.

    Every stage gets a head that belongs to this loss: a bottleneck (convolutions of 1x1, of k x k
    with stride k down to the size of the last map, and of 1x1, each with BatchNorm and ReLU), its
    average over the locations as the feature `f_i`, and a linear classifier on that feature. With
    the average `f_M` of the last map and the logits of the network, the loss of an example is

        sum_i (1 - alpha) * CE(labels, head_i) + alpha * KL(softmax(logits / T) || softmax(head_i /
        T)) + feature_weight * |f_i - f_M|^2.

    `alpha`, `T` and no factor `T^2` are as in the authors' code. Its 0.03 weighs another distance:
    not squared, over the whole batch, after a linear layer, without the first head. The heads and
    the squared distance follow the paper and public re-implementations.

    Args:
        teacher_layer: List of two places: the last feature map `(batch, height, width, channels)`
            and the logits `(batch, classes)`.
        student_layer: List of the places of the maps that get a head.
        alpha: Share of the divergence from the logits in a head's loss, from 0 to 1.
        temperature: `T`, a finite float above 0, or a schedule like that of a weight.
        feature_weight: Factor of the distance between features, a finite float of at least 0.
        **kwargs: `weight`, `name` and other arguments of `DistillationLoss`.

    Raises:
        ValueError: If an argument is out of range, a tensor is not what is named above, or the data
            has no labels.

    References:
        Zhang et al., Be Your Own Teacher (arXiv:1905.08094), eqs. 1 to 4.
    """

    expects_logits = "teacher"
    reads_classes = True

    def __init__(
        self,
        *,
        teacher_layer: Sequence[str | None] = ("stage3", "output"),
        student_layer: Sequence[str | None] = ("stage1", "stage2"),
        alpha: float = 0.3,
        temperature: float | LearningRateSchedule = 3.0,
        feature_weight: float = 0.03,
        **kwargs: Any,
    ) -> None:
        super().__init__(teacher_layer=teacher_layer, student_layer=student_layer, **kwargs)
        if not self.student_layer:
            raise ValueError("Expected `student_layer` to name a stage. Received: student_layer=[]")
        self.alpha = checks.number("alpha", alpha, at_least=0, at_most=1)
        self.temperature = schedules.checked_temperature("temperature", temperature)
        self.feature_weight = checks.number("feature_weight", feature_weight, at_least=0)

    def build(
        self,
        teacher_shape: Sequence[Sequence[int | None]],
        student_shape: Sequence[Sequence[int | None]],
    ) -> None:
        _check_shapes(teacher_shape, student_shape)
        (_, height, width, channels), (_, classes) = teacher_shape
        self.bottlenecks, self.classifiers = [], []
        for shape in student_shape:
            stride = max(1, shape[1] // height), max(1, shape[2] // width)
            bottleneck = self._bottleneck(channels, stride)
            bottleneck.build(tuple(shape))
            classifier = keras.layers.Dense(classes, dtype=self.dtype_policy)
            classifier.build((None, channels))
            self.bottlenecks.append(bottleneck)
            self.classifiers.append(classifier)

    def call(
        self,
        teacher: list[tf.Tensor],
        student: list[tf.Tensor],
        labels: tf.Tensor | None = None,
        training: bool | None = None,
    ) -> tf.Tensor:
        if labels is None:
            raise ValueError(
                "Expected labels in the data. Received: labels=None. The classifiers of "
                f"{self.name!r} learn from labels."
            )
        labels = self._own_labels(labels)
        last_map, logits = teacher
        last_feature = ops.mean(last_map, axis=(1, 2))
        total = ops.zeros_like(logits[:, 0])
        temperature = schedules.now(self.temperature)
        for feature_map, bottleneck, classifier in zip(
            student, self.bottlenecks, self.classifiers, strict=True
        ):
            feature = ops.mean(run(bottleneck.layers, feature_map, training), axis=(1, 2))
            head = classifier(feature)
            divergence = softened_divergence(logits, head, temperature)
            distance = ops.sum(ops.square(feature - last_feature), axis=-1)
            total = total + (1.0 - self.alpha) * _cross_entropy(labels, head)
            total = total + self.alpha * divergence + self.feature_weight * distance
        return total

    def _own_labels(self, labels):
        """Returns the labels of the output that the heads learn from, of those by name."""
        if not keras.tree.is_nested(labels):
            return labels
        leaves = keras.tree.flatten(labels)
        return leaves[0] if len(leaves) == 1 else output_at(labels, self.teacher_layer[1])

    def _bottleneck(self, channels, stride):
        middle = max(1, channels // 4)
        layers = []
        for filters, size in ((middle, (1, 1)), (middle, stride), (channels, (1, 1))):
            layers += [
                keras.layers.Conv2D(
                    filters,
                    size,
                    strides=size,
                    use_bias=False,
                    kernel_initializer="he_normal",
                    **maps_like_ours(self.dtype_policy),
                ),
                batch_norm(self.dtype_policy),
                keras.layers.ReLU(dtype=self.dtype_policy),
            ]
        return keras.Sequential(layers)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "alpha": self.alpha,
            "temperature": schedules.serialized(self.temperature),
            "feature_weight": self.feature_weight,
        }


def _cross_entropy(labels, logits):
    shape = getattr(labels, "shape", ())
    if len(shape) == 2 and shape[1] == logits.shape[1]:
        return keras.losses.categorical_crossentropy(labels, logits, from_logits=True)
    hint = f"One-hot labels need a column for each of the {logits.shape[1]} classes."
    classes = checks.class_indices(labels, hint=hint)
    return keras.losses.sparse_categorical_crossentropy(classes, logits, from_logits=True)


def _check_shapes(teacher_shape, student_shape):
    lists = all(isinstance(shape[0], (list, tuple)) for shape in (teacher_shape, student_shape))
    ranks = [len(shape) for shape in teacher_shape] if lists else []
    maps = [teacher_shape[0], *student_shape] if lists else []
    if ranks != [4, 2] or any(len(shape) != 4 or None in shape[1:] for shape in maps):
        raise ValueError(
            "Expected two places as `teacher_layer`, the last feature map and the logits, and a "
            "list of feature maps (batch, height, width, channels) of known size as "
            f"`student_layer`. Received: teacher_shape={teacher_shape}, "
            f"student_shape={student_shape}"
        )
    if teacher_shape[1][1] < 2:
        raise ValueError(
            "Expected logits of at least two classes, since the heads are trained with a softmax. "
            f"Received: teacher_shape={teacher_shape}. Put out one logit per class."
        )

"""Adapts the distillation losses of Keras for a distiller."""

import copy
import warnings
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from keras_mikd.features.places import OUTPUT
from keras_mikd.losses.distillation_loss import DistillationLoss


@keras.saving.register_keras_serializable("keras_mikd")
class KerasLossAdapter(DistillationLoss):
    """Adapts a `keras.distillation.DistillationLoss` for the list of a distiller.

    Keras' losses give one number for a batch, and every example gets that number. The mean is
    right, but `sample_weight` **cannot weigh the examples inside it**: it only scales the term by
    the mean weight. `FeatureDistillation` with a student layer alone, which Keras ignores, is an
    error here. `LogitsDistillation` warns where it hands raw logits to a loss that expects
    probabilities, as it does by default. The distiller divides by the number of replicas, so a
    class of your own must not.

    ```python
    keras_loss = keras.distillation.FeatureDistillation(
        loss="mse", teacher_layer_name="pool", student_layer_name="pool"
    )
    loss = keras_mikd.KerasLossAdapter(keras_loss, weight=0.5)
    ```

    Args:
        keras_loss: The loss. Its weights, if it has any, would not be trained: derive such a loss
            from `keras_mikd.DistillationLoss` instead.
        teacher_layer: Place to read in the teacher, if `keras_loss` has no `teacher_layer_name`;
            for several losses a list, by default of the outputs that they are for.
        student_layer: Place to read in the student, likewise.
        **kwargs: `weight` and other arguments of `DistillationLoss`.

    Raises:
        TypeError: If `keras_loss` is not a Keras distillation loss.
        ValueError: If `keras_loss` has weights or sums over the batch, a student's layer stands
            alone, or a layer gets two different names; in `build`, if tensors that Keras' two
            classes compare differ in shape.
    """

    def __init__(
        self,
        keras_loss: keras.distillation.DistillationLoss,
        *,
        teacher_layer: str | Sequence[str | None] | None = None,
        student_layer: str | Sequence[str | None] | None = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(keras_loss, keras.distillation.DistillationLoss):
            raise TypeError(
                "Expected `keras_loss` to be a keras.distillation.DistillationLoss. "
                f"Received: keras_loss={keras_loss!r}"
            )
        _refuse_weights(keras_loss)
        teacher_layer = _place("teacher_layer", teacher_layer, keras_loss)
        student_layer = _place("student_layer", student_layer, keras_loss)
        if teacher_layer is None and getattr(keras_loss, "student_layer_name", None) is not None:
            raise ValueError(
                "Expected the teacher's layer beside a `student_layer_name`. Received: "
                f"student_layer_name={student_layer!r}, teacher_layer_name=None. The teacher's "
                "output is `teacher_layer='output'`."
            )
        super().__init__(
            teacher_layer=teacher_layer or _outputs(keras_loss),
            student_layer=student_layer or _outputs(keras_loss),
            **kwargs,
        )
        self.keras_loss = keras_loss
        self.expects_logits = isinstance(keras_loss, keras.distillation.LogitsDistillation)
        if self.expects_logits:
            _warn_of_raw_logits(keras_loss)
        self._keras_loss = _unscaled(keras_loss)

    def build(
        self,
        teacher_shape: Sequence[int | None] | Sequence[Sequence[int | None]],
        student_shape: Sequence[int | None] | Sequence[Sequence[int | None]],
    ) -> None:
        if not isinstance(self.keras_loss, _KERAS_CLASSES):
            self.keras_loss.validate_outputs(_tensors(teacher_shape), _tensors(student_shape))
            return
        name = type(self.keras_loss).__name__
        received = f"Received: teacher_shape={teacher_shape}, student_shape={student_shape}"
        teacher, student = _shapes(teacher_shape), _shapes(student_shape)
        # Not validate_outputs: FeatureDistillation reports a mismatch by an AttributeError.
        if not len(teacher) == len(student) == len(keras.tree.flatten(self.keras_loss.loss)):
            raise ValueError(
                f"Expected one place in each network for every `loss` of {name}. {received}, "
                f"loss={self.keras_loss.loss}"
            )
        if any(t[1:] != s[1:] for t, s in zip(teacher, student, strict=True)):
            raise ValueError(
                f"Expected tensors of one shape for {name}. {received}. A loss that adapts the "
                "student, such as keras_mikd.Hint, takes different ones."
            )

    def call(
        self,
        teacher: tf.Tensor | list[tf.Tensor],
        student: tf.Tensor | list[tf.Tensor],
        labels: Any = None,
        training: bool | None = None,
    ) -> tf.Tensor:
        if isinstance(self.keras_loss, _KERAS_CLASSES) and isinstance(teacher, list):
            structure = self.keras_loss.loss
            teacher = keras.tree.pack_sequence_as(structure, teacher)
            student = keras.tree.pack_sequence_as(structure, student)
        loss = ops.cast(self._keras_loss.compute_loss(teacher, student), "float32")
        return ops.broadcast_to(loss, ops.shape(keras.tree.flatten(student)[0])[:1])

    def get_config(self) -> dict[str, Any]:
        keras_loss = keras.saving.serialize_keras_object(self.keras_loss)
        return {**super().get_config(), "keras_loss": keras_loss}


_KERAS_CLASSES = (keras.distillation.LogitsDistillation, keras.distillation.FeatureDistillation)


def _place(argument, place, keras_loss):
    name = getattr(keras_loss, f"{argument}_name", None)
    if name is None or place in (None, name):
        return name or place
    raise ValueError(
        f"Expected the place once: in `{argument}_name` of the Keras loss or in `{argument}`. "
        f"Received: {argument}_name={name!r}, {argument}={place!r}"
    )


def _outputs(keras_loss):
    """Returns the outputs of a network that the losses are for, or `None` for a single one."""
    losses = getattr(keras_loss, "loss", None)
    if not isinstance(keras_loss, _KERAS_CLASSES) or not keras.tree.is_nested(losses):
        return None
    paths = [path for path, _ in keras.tree.flatten_with_path(losses)]
    return ["/".join((OUTPUT, *map(str, path))) for path in paths]


def _refuse_weights(keras_loss):
    trainable = keras.layers.Layer, keras.Variable
    parts = keras.tree.flatten(list(vars(keras_loss).values()))
    if any(isinstance(part, trainable) for part in [keras_loss, *parts]):
        raise ValueError(
            "Expected `keras_loss` without layers or variables, which would not be trained: derive "
            f"it from keras_mikd.DistillationLoss. Received: keras_loss={keras_loss!r}"
        )


def _warn_of_raw_logits(keras_loss):
    functions = keras.losses.kl_divergence, keras.losses.categorical_crossentropy
    for loss in keras.tree.flatten(keras_loss.loss):
        if loss in functions or isinstance(loss, keras.losses.CategoricalCrossentropy):
            warnings.warn(
                "LogitsDistillation hands raw logits to this loss, which expects probabilities: "
                f"{loss!r}. Only an instance of keras.losses.KLDivergence gets them. Use "
                f"keras_mikd.SoftTargets(temperature={keras_loss.temperature}) instead.",
                UserWarning,
                stacklevel=3,
            )


def _unscaled(keras_loss):
    """Returns a copy whose inner losses leave the mean to it; they would divide by replicas."""
    if not isinstance(keras_loss, _KERAS_CLASSES):
        return keras_loss
    unscaled = copy.copy(keras_loss)
    unscaled.loss = keras.tree.map_structure(_unreduced, keras_loss.loss)
    return unscaled


def _unreduced(loss):
    if not isinstance(loss, keras.losses.Loss):
        return loss
    if loss.reduction == "sum":
        raise ValueError(
            "Expected a Keras loss that is a mean over the batch. Received: one that sums, "
            f"{loss!r}. Leave its `reduction` at the default."
        )
    loss = copy.copy(loss)
    loss.reduction = "none"
    return loss


def _shapes(shape):
    many = isinstance(shape[0], (list, tuple))
    return [tuple(one) for one in shape] if many else [tuple(shape)]


def _tensors(shape):
    tensors = [keras.KerasTensor(one) for one in _shapes(shape)]
    return tensors if isinstance(shape[0], (list, tuple)) else tensors[0]

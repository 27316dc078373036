"""The contract of everything that is matched between a teacher and a student."""

import inspect
import re
from collections.abc import Sequence
from typing import Any, Self

import keras
import tensorflow as tf
from keras.optimizers.schedules import LearningRateSchedule

from keras_mikd import checks
from keras_mikd.features.places import OUTPUT
from keras_mikd.keras_internals import layers_of
from keras_mikd.losses.parts import readouts, schedules


class DistillationLoss(checks.Settled, keras.layers.Layer):
    """Base class of what is matched between a teacher and a student.

    A distillation loss is a Keras layer: its critic, head or regressor are ordinary weights,
    trained with the student, saved with the distiller and never exported. A subclass creates them
    in `build` and returns the loss of every example from `call`. Tensors arrive as float32,
    whatever the dtype policy of the networks.

    ```python
    class Cosine(keras_mikd.DistillationLoss):
        def call(self, teacher, student, labels=None, training=None):
            return keras.losses.cosine_similarity(teacher, student)  # -1 where they agree.
    ```

    A loss that reports an estimate creates a metric `<name>_<what>` in `build` and updates it at
    the end of `call` by `self.read_out(metric, ...)`; the distiller logs it.

    Args:
        teacher_layer: Place to read in the teacher (see `FeatureTaps`): `None` for its output, a
            layer name, `"stage2"`, `"pooled"`, ...; a list of places where a method needs several
            tensors.
        student_layer: Place to read in the student, likewise.
        teacher_mask_layer: Place of the mask `(batch, tokens)` of what is read in the teacher: not
            0 where a token is real. `None` for Keras' own mask at the place, or the input named
            `padding_mask`, if there is one.
        student_mask_layer: Place of the mask of what is read in the student, likewise.
        weight: Factor of this loss in the total: a finite float of at least 0, or a
            `keras.optimizers.schedules.LearningRateSchedule` of the optimizer's iterations, whose
            values are checked at a few steps.
        teacher: Name of the teacher to read, in a `Distiller` of several. A loss of logits without
            one reads all of them, together.
        dtype: Precision of the weights and of the arithmetic. Keep `"float32"`.
        **kwargs: `name` and other arguments of `keras.layers.Layer`. Logs show the loss under its
            name, by default that of the class and of a place inside the student, such as
            `"hint_stage2"`; further losses of that name in a distiller are numbered from 2.

    Raises:
        ValueError: If `weight` is negative, not finite or not a number, a place or `teacher` is not
            a name, or a list names a place twice.
    """

    expects_logits = False
    """Whether places must hold logits, `True` or only the teacher's, `"teacher"` (of a list, the
    last one); the distiller refuses probabilities then."""

    exclusive_classes = True
    """Whether the classes of these logits exclude each other, as those of a softmax."""

    compares_examples = False
    """Whether the loss of an example depends on others in its batch."""

    multiplications = None
    """How many multiplications a critic makes for one example, if it says so after `build`."""

    image_size = None
    """`(height, width)` of the images that both networks read, of which tokens are patches.

    The distiller sets it before `build`; `None` for other inputs.
    """

    reads_classes = False
    """Whether labels are the classes of the examples; several for one example are refused then."""

    teacher_classes = None
    """For each class of the student the teacher's class, or a list of them; `None`: the same."""

    def __init__(
        self,
        *,
        teacher_layer: str | Sequence[str | None] | None = None,
        student_layer: str | Sequence[str | None] | None = None,
        teacher_mask_layer: str | None = None,
        student_mask_layer: str | None = None,
        weight: float | LearningRateSchedule = 1.0,
        teacher: str | None = None,
        dtype: str | dict | keras.DTypePolicy = "float32",
        **kwargs: Any,
    ) -> None:
        teacher_layer = _places("teacher_layer", teacher_layer)
        student_layer = _places("student_layer", student_layer)
        has_default_name = kwargs.get("name") is None
        if has_default_name:
            kwargs["name"] = _default_name(type(self).__name__, student_layer)
        super().__init__(dtype=dtype, **kwargs)
        self.teacher_layer = teacher_layer
        self.student_layer = student_layer
        self.teacher_mask_layer = _mask_place("teacher_mask_layer", teacher_mask_layer)
        self.student_mask_layer = _mask_place("student_mask_layer", student_mask_layer)
        self.weight = schedules.checked_weight("weight", weight)
        if teacher is not None and not isinstance(teacher, str):
            raise ValueError(
                "Expected `teacher` to be None or the name of a teacher of the distiller. "
                f"Received: teacher={teacher!r}"
            )
        self.teacher = teacher
        self._has_default_name = has_default_name
        self._joined = False

    def build(self, teacher_shape: Any, student_shape: Any) -> None:
        """Creates every weight.

        Args:
            teacher_shape: Shape of the teacher's tensor; a list of shapes for a list of places.
            student_shape: Shape of the student's tensor, likewise.
        """

    def call(
        self, teacher: Any, student: Any, labels: Any = None, training: bool | None = None
    ) -> tf.Tensor:
        """Compares the two networks on a batch.

        A loss of padded sequences has two more arguments, `teacher_mask=None` and
        `student_mask=None`: bool tensors `(batch, tokens)`, true where a token is real; for a list
        of places a dict `{place: mask}`. They are given where something is padded. A distiller
        refuses padded sequences for a loss without these arguments.

        Args:
            teacher: Tensor of shape `(batch, ...)`; a list for a list of places. No gradient flows
                into it, but with `SelfDistiller(stop_gradient=False)`.
            student: Tensor of shape `(batch, ...)`, likewise.
            labels: Targets of the batch, or `None`.
            training: Whether the student is being trained.

        Returns:
            The loss of every example, to be minimised: float32 of shape `(batch,)`.
        """
        raise NotImplementedError(
            "Expected `call(teacher, student, labels=None, training=None)` to return a loss of "
            f"shape (batch,). Received: {type(self).__name__} without a `call` of its own."
        )

    @property
    def waits_for_examples(self) -> bool:
        """Whether weights have yet to be measured on examples, by `look_at`."""
        return False

    def look_at(self, teacher: Any, student: Any) -> None:
        """Measures weights on the first examples, before the first step; tensors as in `call`."""

    @property
    def takes_masks(self) -> bool:
        """Whether `call` leaves padded tokens out."""
        return {"teacher_mask", "student_mask"} <= set(inspect.signature(self.call).parameters)

    def compute_mask(self, inputs: Any, previous_mask: Any) -> None:
        """Returns no mask: there is one loss for each example, without tokens."""
        return None

    def number(self, position: int) -> None:
        """Numbers the default name of this loss, the `position`-th of that name in a distiller.

        A name that the caller gave stays, and so does one under which weights exist.
        """
        if position > 1 and self._has_default_name and not self.built:
            self.name = f"{self.name}_{position}"

    @property
    def joined(self) -> bool:
        """Whether this loss belongs to a distiller, which trains its weights."""
        return self._joined

    def join(self) -> None:
        """Makes this loss part of a distiller, for good: it stays as it is, its weights train."""
        self._joined = True
        for layer in layers_of(self):
            if isinstance(layer, checks.Settled):
                layer.settle()

    def read_out(self, metric: keras.metrics.Metric, *args: Any, **kwargs: Any) -> None:
        """Updates a metric of this loss, in the steps in which read-outs are due.

        Args:
            metric: One that `build` has made.
            *args: Arguments of its `update_state`.
            **kwargs: Likewise.
        """
        if readouts.are_due():
            metric.update_state(*args, **kwargs)

    def weight_at(self, step: int | tf.Tensor | keras.Variable) -> float | tf.Tensor:
        """Returns the factor at optimizer iteration `step`, a float or a float32 scalar tensor."""
        return schedules.value_at(self.weight, step)

    def compute_output_shape(
        self, teacher_shape: Sequence, student_shape: Sequence
    ) -> tuple[int | None, ...]:
        first = teacher_shape[0]
        return (first[0] if isinstance(first, (list, tuple)) else first,)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "teacher_layer": self.teacher_layer,
            "student_layer": self.student_layer,
            "weight": schedules.serialized(self.weight),
            "teacher": self.teacher,
            **{name: place for name, place in self._mask_places().items() if place is not None},
        }

    def get_build_config(self) -> dict[str, Any] | None:
        config = super().get_build_config()
        return {**config, "image_size": self.image_size} if config and self.image_size else config

    def build_from_config(self, config: dict[str, Any]) -> None:
        self.image_size = config.get("image_size")
        super().build_from_config({k: v for k, v in config.items() if k != "image_size"})

    def _mask_places(self):
        names = "teacher_mask_layer", "student_mask_layer"
        return {name: getattr(self, name) for name in names}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Returns a loss of a configuration, with its schedules, critics and the like."""
        return cls(**{name: _object(value) for name, value in config.items()})


def _object(value):
    serialized = isinstance(value, dict) and {"class_name", "config"} <= value.keys()
    return keras.saving.deserialize_keras_object(value) if serialized else value


def _places(argument, places):
    many = isinstance(places, (list, tuple))
    if many and len({str(place or OUTPUT) for place in places}) < len(places):
        raise ValueError(
            f"Expected `{argument}` to name no place twice. Received: {argument}={places!r}"
        )
    for place in places if many else [places]:
        if place is not None and not isinstance(place, str):
            raise ValueError(
                f"Expected `{argument}` to be None, the name of a place, or a list of names. "
                f"Received: {argument}={places!r}"
            )
    if many:
        return [OUTPUT if place is None else place for place in places]
    return OUTPUT if places is None else places


def _mask_place(argument, place):
    if place is not None and not isinstance(place, str):
        raise ValueError(
            f"Expected `{argument}` to be None or the name of a place. Received: "
            f"{argument}={place!r}"
        )
    return place


def _default_name(class_name, place):
    """Returns a name that is the same in every run; Keras would count how often a cell was run."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", class_name.lstrip("_"))
    words = words.lower()
    inner = isinstance(place, str) and place != OUTPUT
    return f"{words}_{place}".replace("/", "_") if inner else words

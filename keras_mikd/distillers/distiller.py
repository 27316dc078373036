"""Offline distillation: fixed teachers, a student, and a list of what is matched between them."""

import contextlib
import os
import types
from collections.abc import Callable, Sequence
from typing import Any, Self

import keras
from keras.optimizers.schedules import LearningRateSchedule

from keras_mikd import checks
from keras_mikd.checkpoints import fingerprints
from keras_mikd.distillers import combined_logits, teachers
from keras_mikd.distillers.base_distiller import BaseDistiller
from keras_mikd.distillers.checks import loss_checks, network_checks
from keras_mikd.distillers.networks import Networks
from keras_mikd.features.inputs import TeacherInputs
from keras_mikd.losses.distillation_loss import DistillationLoss


@keras.saving.register_keras_serializable("keras_mikd")
class Distiller(BaseDistiller):
    """Trains a student on its task and on what it shares with a fixed teacher, or with several.

    `total = task_loss_weight * task loss + sum over losses of weight * mean(loss per example)
    + regularizers and add_loss terms of the student`.

    When it is called, evaluated, used to predict or exported, a distiller is its student. A step
    runs each network once; the teacher runs in inference mode, gets no gradient and stays as it
    was. A `.keras` file holds everything that further training needs, optionally without the
    teacher; weight files leave the teacher out. `ExactResume` lets a killed `fit` continue. Logs
    show every loss under its name, and `task_loss` and the total, `loss`.

    With several teachers, a loss reads the one that it names with `teacher=`. A loss of logits that
    names none gets the logits of all of them as one target, see `combine`.

    Args:
        teacher: Trained Keras model; a subclassed one needs `teacher_features` where a loss reads
            inside it. Several are a dict `{name: model}`, or a list, whose names are `"teacher1"`,
            `"teacher2"`, ...
        student: Keras model with the same inputs, unless `teacher_inputs` makes those of the
            teacher; a subclassed one likewise needs `student_features`.
        distillation_losses: List of `DistillationLoss`; a `keras.distillation` loss is adapted.
        task_loss_weight: Factor of the compiled loss, a float of at least 0 or a schedule.
        balance: `"gradient"`: weights, of the task too, are ratios of the norms of the terms'
            gradients on the student: with weights of 1, all pull alike. `None`: weights multiply
            the losses as they are.
        balance_every: Number of steps from one measurement of these norms to the next.
        readout_every: Number of training steps from one update of the read-outs (`<loss>_..._nats`)
            to the next, starting with the first step of each epoch; `None`: in validation only.
        xla_critics: Whether XLA compiles the arithmetic of the critics on its own: `True`, `False`,
            or `"auto"`, which means `True` on a machine with an accelerator. It matters where the
            step is neither run eagerly nor compiled as a whole, which is Keras' default on one
            accelerator.
        teacher_features: Function `(model, x, training) -> {place: tensor}` for a subclassed
            teacher; of several teachers, a dict by their names.
        student_features: Likewise for the student.
        teacher_inputs: What turns the batch into the teacher's input: a layer, such as
            `keras.layers.Resizing(96, 96)`, a function `x -> the teacher's x`, or a list of these,
            in order; of several teachers, a dict by their names. It runs in inference mode and is
            not trained.
        combine: How the logits of several teachers become one target: `"mean"`; or `"confidence"`,
            weighted for every example by how well each teacher predicts the label (Zhang et al.,
            arXiv:2201.00007).
        save_teacher: Whether a `.keras` file holds the teachers. With `False` it holds fingerprints
            of them, which takes little room. To load it, give the teachers, by name:
            `keras.saving.load_model(path, custom_objects={"teacher": teacher})`.
        **kwargs: `name` and other arguments of `keras.Model`.

    Raises:
        ValueError: Before any training, if a place is unknown, the networks do not take the same
            inputs and `teacher_inputs` does not make them, probabilities stand where logits are
            expected, there are no losses, two share a name, a loss of features names none of
            several teachers, or a weight is not a finite number of at least 0. While a file without
            teachers is loaded, if none is given, or another one than its own.

    Example:
        ```python
        distiller = keras_mikd.Distiller(teacher, student, [keras_mikd.SoftTargets(weight=0.9)])
        distiller.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        distiller.fit(train, validation_data=validation, epochs=60)
        distiller.student.save("student.keras")
        ```
    """

    arguments_of_step = (*BaseDistiller.arguments_of_step, "teacher_inputs", "combine")
    save_teacher = True
    _teacher_hidden = False

    def __init__(
        self,
        teacher: keras.Model | Sequence[keras.Model] | dict[str, keras.Model],
        student: keras.Model,
        distillation_losses: Sequence[DistillationLoss | keras.distillation.DistillationLoss],
        *,
        task_loss_weight: float | LearningRateSchedule = 1.0,
        balance: str | None = None,
        balance_every: int = 16,
        readout_every: int | None = 1,
        xla_critics: bool | str = "auto",
        teacher_features: Callable | dict[str, Callable] | None = None,
        student_features: Callable[[keras.Model, Any, bool], dict[str, Any]] | None = None,
        teacher_inputs: Callable | Sequence[Callable] | dict[str, Any] | None = None,
        combine: str = "mean",
        save_teacher: bool = True,
        **kwargs: Any,
    ) -> None:
        named = teachers.by_name(teacher)
        names = list(named)
        losses = loss_checks.checked_losses(distillation_losses, teachers=names)
        features = teachers.of_each("teacher_features", teacher_features, names)
        inputs = teachers.of_each("teacher_inputs", teacher_inputs, names)
        models = {**named, "student": student}
        network_checks.check_networks(models, converted=inputs)
        super().__init__(**{"dtype": network_checks.policy([student]), **kwargs})
        self.student = student
        self.teacher_features = teacher_features
        self.student_features = student_features
        self.combine = checks.one_of("combine", combine, combined_logits.COMBINATIONS)
        self.save_teacher = checks.boolean("save_teacher", save_teacher)
        networks = Networks(
            models,
            teachers.terms(losses, names),
            fixed=names,
            features={**features, "student": student_features},
            converts={name: TeacherInputs(steps) for name, steps in inputs.items()},
            combine=combine,
        )
        teachers.check_combined(networks, combine)
        # A mapping of its own, since Keras would track the layers in it.
        self._teacher_inputs = types.MappingProxyType({"given": teacher_inputs})
        self._set_up(
            networks,
            task_loss_weight=task_loss_weight,
            balance=balance,
            balance_every=balance_every,
            readout_every=readout_every,
            xla_critics=xla_critics,
        )
        self._unset = []

    @property
    def teachers(self) -> dict[str, keras.Model]:
        """The teachers by name: the caller's own objects."""
        return {name: self._networks.models[name] for name in self._networks.fixed}

    @property
    def teacher(self) -> keras.Model:
        """The teacher, if there is one: the caller's own object."""
        if len(self._networks.fixed) > 1:
            raise AttributeError(
                f"Expected one teacher. This distiller has {list(self._networks.fixed)}, in "
                "`distiller.teachers`."
            )
        return next(iter(self.teachers.values()))

    @property
    def teacher_inputs(self) -> Any:
        """What makes the inputs of the teachers, as it was given."""
        return self._teacher_inputs["given"]

    def __dir__(self):
        """Names the attributes whose weights Keras writes to a file, or looks for in one."""
        left_out = set() if self.save_teacher else {"teacher", "teachers"}
        if self._teacher_hidden:
            left_out = {"teacher", "teachers", "teacher_inputs"}
        return [name for name in super().__dir__() if name not in left_out]

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        return self.student(inputs, training=training)

    def export(self, filepath: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """Exports the student, like `keras.Model.export`."""
        return self.student.export(filepath, *args, **kwargs)

    def summary(self, *args: Any, **kwargs: Any) -> None:
        """Prints the student and the losses, like `keras.Model.summary`, and then the teachers."""
        super().summary(*args, **kwargs)
        show = kwargs.get("print_fn") or print
        for name, teacher in self.teachers.items():
            title = "Teacher" if name == teachers.ONE else f"Teacher {name!r}"
            weights = f"{teacher.count_params():,} weights"
            show(f"{title}, not trained: {teacher.name!r}, {weights}")

    def save_weights(self, filepath: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """Saves the weights of the student, the losses and the optimizers, not of teachers."""
        with self._without_teacher():
            return super().save_weights(filepath, *args, **kwargs)

    def load_weights(self, filepath: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """Loads what `save_weights` saved."""
        with self._without_teacher():
            return super().load_weights(filepath, *args, **kwargs)

    def make_train_function(self, force: bool = False) -> None:
        self._check_teacher()
        return super().make_train_function(force)

    def make_test_function(self, force: bool = False) -> None:
        self._check_teacher()
        return super().make_test_function(force)

    def load_own_variables(self, store: Any) -> None:
        super().load_own_variables(store)
        if not self._teacher_hidden:  # A `.keras` file, in which the teachers' weights come next.
            self._unset = []

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        kept = config.get("teacher_fingerprints")
        if kept is None:
            distiller = super().from_config(config)
        else:
            rest = {name: v for name, v in config.items() if name != "teacher_fingerprints"}
            rest = {name: keras.saving.deserialize_keras_object(v) for name, v in rest.items()}
            distiller = cls(teachers.given_beside_file(kept), **rest)
        distiller._doubt_teacher(given=kept is not None)
        return distiller

    def _doubt_teacher(self, given):
        """Keeps in mind what nobody has given weights yet; a file or the user may."""
        known = list(self.teachers.values()) if given else []
        # Names alone, since Keras would track the models.
        self._unset = [
            None if any(each is model for model in known) else fingerprints.of_model(each)
            for each in self._not_trained()
        ]

    def _check_teacher(self):
        """Refuses a teacher that has the weights with which a configuration was made a model."""
        for each, fingerprint in zip(self._not_trained(), self._unset, strict=False):
            if fingerprint == fingerprints.of_model(each):
                raise ValueError(
                    "Expected a teacher with trained weights. Received: a distiller out of a "
                    "configuration (clone_model, model_from_json, an .h5 file), whose teacher has "
                    f"the weights that it was initialised with (in {each.name!r}), since "
                    "configurations and weight files hold none for it. Load a '.keras' file, call "
                    "distiller.teacher.load_weights, or make a new distiller with a trained "
                    "teacher."
                )
        self._unset = []

    def _not_trained(self):
        """Returns the teachers, and the layers that make their inputs, as far as they have weights.

        None of them is in a weight file.
        """
        taps = self._networks.taps.values()
        steps = [layer for each in taps if each.convert for layer in each.convert.layers]
        return [each for each in (*self.teachers.values(), *steps) if each.weights]

    @contextlib.contextmanager
    def _without_teacher(self):
        self._teacher_hidden = True
        try:
            yield
        finally:
            self._teacher_hidden = False

    def get_config(self) -> dict[str, Any]:
        serialize = keras.saving.serialize_keras_object
        return {
            **super().get_config(),
            **self._teacher_config(),
            "balance": self.balance,
            "balance_every": self.balance_every,
            "readout_every": self.readout_every,
            "student": serialize(self.student),
            "distillation_losses": loss_checks.serialized_losses(self.distillation_losses),
            "teacher_features": _serialized(self.teacher_features),
            "student_features": _serialized(self.student_features),
            "teacher_inputs": _serialized(self.teacher_inputs),
            "combine": self.combine,
            "save_teacher": self.save_teacher,
        }

    def _teacher_config(self):
        if not self.save_teacher:
            return {"teacher_fingerprints": teachers.fingerprints_of(self.teachers)}
        serialize = keras.saving.serialize_keras_object
        models = {name: serialize(model) for name, model in self.teachers.items()}
        return {"teacher": models[teachers.ONE] if list(models) == [teachers.ONE] else models}


def _serialized(functions):
    """Returns a function or layer, or lists and dicts of these, as a file holds them."""
    if isinstance(functions, dict):
        return {name: _serialized(each) for name, each in functions.items()}
    if isinstance(functions, (list, tuple)):
        return [_serialized(each) for each in functions]
    return loss_checks.serialized_features(functions)

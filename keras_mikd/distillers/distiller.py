"""Offline distillation: a fixed teacher, a student, and a list of what is matched between them."""

import contextlib

import keras

from keras_mikd.cache import fingerprints
from keras_mikd.distillers import loss_checks, network_checks
from keras_mikd.distillers.base_distiller import BaseDistiller
from keras_mikd.distillers.networks import Networks, Term


@keras.saving.register_keras_serializable("keras_mikd")
class Distiller(BaseDistiller):
    """Trains a student on its task and on what it shares with a fixed teacher.

    `total = task_loss_weight * task loss + sum over losses of weight * mean(loss per example)
    + regularizers and add_loss terms of the student`.

    Called, evaluated, predicted with and exported, a distiller is its student. A step runs each
    network once; the teacher runs in inference mode, gets no gradient and stays as it was. A
    `.keras` file holds everything that further training needs; weight files leave the teacher out.
    `ExactResume` lets a killed `fit` go on. Logs show every loss under its name, and `task_loss`
    and the total, `loss`.

    Args:
        teacher: Trained Keras model; a subclassed one needs `teacher_features`.
        student: Keras model with the same inputs; a subclassed one needs `student_features`.
        distillation_losses: List of `DistillationLoss`; a `keras.distillation` loss is adapted.
        task_loss_weight: Factor of the compiled loss, a float of at least 0 or a schedule.
        balance: `"gradient"`: weights, of the task too, are ratios of the norms of the terms'
            gradients on the student: with weights of 1, all pull alike. `None`: factors of losses.
        balance_every: After how many steps these norms are measured; see `GradientBalance`.
        xla_critics: Whether XLA compiles the arithmetic of the critics on its own, in a step that
            is neither compiled as a whole nor run eagerly: `True`, `False`, or `"auto"`, which
            means `True` on a machine with an accelerator.
        teacher_features: Function `(model, x, training) -> {place: tensor}` for a subclassed
            teacher.
        student_features: Likewise for the student.
        **kwargs: `name` and other arguments of `keras.Model`.

    Raises:
        ValueError: Before any training, if a place is unknown, the networks do not take the same
            inputs, probabilities stand where logits are expected, there are no losses, two share a
            name, or a weight is not a finite number of at least 0.

    Example:
        ```python
        distiller = keras_mikd.Distiller(teacher, student, [keras_mikd.SoftTargets(weight=0.9)])
        distiller.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        distiller.fit(train, validation_data=validation, epochs=60)
        distiller.student.save("student.keras")
        ```
    """

    def __init__(
        self,
        teacher,
        student,
        distillation_losses,
        *,
        task_loss_weight=1.0,
        balance=None,
        balance_every=16,
        xla_critics="auto",
        teacher_features=None,
        student_features=None,
        **kwargs,
    ):
        losses = loss_checks.checked_losses(distillation_losses)
        models = {"teacher": teacher, "student": student}
        network_checks.check_networks(models)
        super().__init__(**{"dtype": network_checks.policy([student]), **kwargs})
        self.student = student
        self.teacher_features = teacher_features
        self.student_features = student_features
        networks = Networks(
            models,
            [Term(loss, "teacher", "student") for loss in losses],
            fixed=("teacher",),
            features={"teacher": teacher_features, "student": student_features},
        )
        self._set_up(
            networks,
            task_loss_weight=task_loss_weight,
            balance=balance,
            balance_every=balance_every,
            xla_critics=xla_critics,
        )
        self._teacher_hidden = False
        self._unset_teacher = None

    @property
    def teacher(self):
        """The teacher: the caller's own object."""
        if self._teacher_hidden:
            raise AttributeError("The teacher is left out of weight files.")
        return self._networks.models["teacher"]

    def call(self, inputs, training=None):
        return self.student(inputs, training=training)

    def export(self, filepath, *args, **kwargs):
        """Exports the student, like `keras.Model.export`."""
        return self.student.export(filepath, *args, **kwargs)

    def summary(self, *args, **kwargs):
        """Prints the student and the losses, like `keras.Model.summary`, and then the teacher."""
        super().summary(*args, **kwargs)
        show = kwargs.get("print_fn") or print
        show(
            f"Teacher, not trained: {self.teacher.name!r}, {self.teacher.count_params():,} weights"
        )

    def save_weights(self, filepath, *args, **kwargs):
        """Saves the weights of the student, the losses and the optimizers, not the teacher's."""
        with self._without_teacher():
            return super().save_weights(filepath, *args, **kwargs)

    def load_weights(self, filepath, *args, **kwargs):
        """Loads what `save_weights` saved."""
        with self._without_teacher():
            return super().load_weights(filepath, *args, **kwargs)

    def make_train_function(self, force=False):
        self._check_teacher()
        return super().make_train_function(force)

    def make_test_function(self, force=False):
        self._check_teacher()
        return super().make_test_function(force)

    def load_own_variables(self, store):
        super().load_own_variables(store)
        if not self._teacher_hidden:  # A `.keras` file, in which the teacher's weights come next.
            self._unset_teacher = None

    @classmethod
    def from_config(cls, config):
        distiller = super().from_config(config)
        distiller.doubt_teacher()
        return distiller

    def doubt_teacher(self):
        """Keeps in mind that nobody has given the teacher weights yet; a file or the user may."""
        if self.teacher.weights:
            self._unset_teacher = fingerprints.of_model(self.teacher)

    def _check_teacher(self):
        """Refuses a teacher that has the weights with which a configuration was made a model."""
        if self._unset_teacher is None:
            return
        if self._unset_teacher == fingerprints.of_model(self.teacher):
            raise ValueError(
                "Expected a teacher with trained weights. Received: a distiller out of a "
                "configuration (clone_model, model_from_json, an .h5 file), whose teacher has the "
                "weights that it was initialised with, since configurations and weight files hold "
                "none for it. Load a '.keras' file, call distiller.teacher.load_weights, or make a "
                "new distiller with a trained teacher."
            )
        self._unset_teacher = None

    @contextlib.contextmanager
    def _without_teacher(self):
        self._teacher_hidden = True
        try:
            yield
        finally:
            self._teacher_hidden = False

    def get_config(self):
        serialize = keras.saving.serialize_keras_object
        return {
            **super().get_config(),
            "balance": self.balance,
            "balance_every": self.balance_every,
            "teacher": serialize(self.teacher),
            "student": serialize(self.student),
            "distillation_losses": [serialize(loss) for loss in self.distillation_losses],
            "teacher_features": loss_checks.serialized_features(self.teacher_features),
            "student_features": loss_checks.serialized_features(self.student_features),
        }

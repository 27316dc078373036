"""Self-distillation: one network whose early layers learn from its last ones."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras.optimizers.schedules import LearningRateSchedule

from keras_mikd import checks
from keras_mikd.distillers.base_distiller import BaseDistiller
from keras_mikd.distillers.checks import loss_checks, network_checks
from keras_mikd.distillers.networks import Networks, Term
from keras_mikd.losses.distillation_loss import DistillationLoss


@keras.saving.register_keras_serializable("keras_mikd")
class SelfDistiller(BaseDistiller):
    """Trains a network on its task and on what its own layers share, without a teacher.

    `total = task_loss_weight * task loss + sum over losses of weight * mean(loss per example)
    + regularizers and add_loss terms of the network`.

    Any `DistillationLoss` can compare two places of the network, both read in the same forward pass
    of a step. When it is called, evaluated, used to predict or exported, a distiller is its
    network, with exactly the weights of the plain architecture: critics, regressors and heads
    belong to the losses.

    Args:
        model: Keras model to train; a subclassed one needs `features` where a loss reads inside it.
        distillation_losses: List of `DistillationLoss`; a `keras.distillation` loss is adapted. An
            empty one trains the network on its task alone, on several hosts too, where Keras itself
            cannot.
        stop_gradient: Whether no gradient flows into the tensors at `teacher_layer`, as in the
            literature. With `False` both ends of a loss move, and a loss that is smallest for a
            constant target (`Hint`, `GaussianVIDHead`, `AttentionTransfer`) can collapse its
            target.
        task_loss_weight: Factor of the compiled loss, a float of at least 0 or a schedule.
        balance: As in `Distiller`.
        balance_every: As in `Distiller`.
        readout_every: As in `Distiller`.
        xla_critics: As in `Distiller`.
        features: Function `(model, x, training) -> {place: tensor}` for a subclassed model.
        **kwargs: `name` and other arguments of `keras.Model`.

    Raises:
        ValueError: Before any training, if a place is unknown, a loss would compare a tensor with
            itself, probabilities stand where logits are expected, two losses share a name, or a
            weight is not a finite number of at least 0.

    Example:
        ```python
        hint = keras_mikd.Hint(teacher_layer="stage3", student_layer="stage1", weight=0.1)
        distiller = keras_mikd.SelfDistiller(model, [hint])
        distiller.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        distiller.fit(train, validation_data=validation, epochs=60)
        distiller.student.save("student.keras")  # The model itself.
        ```
    """

    def __init__(
        self,
        model: keras.Model,
        distillation_losses: Sequence[DistillationLoss | keras.distillation.DistillationLoss],
        *,
        stop_gradient: bool = True,
        task_loss_weight: float | LearningRateSchedule = 1.0,
        balance: str | None = None,
        balance_every: int = 16,
        readout_every: int | None = 1,
        xla_critics: bool | str = "auto",
        features: Callable[[keras.Model, Any, bool], dict[str, Any]] | None = None,
        **kwargs: Any,
    ) -> None:
        losses = loss_checks.checked_losses(distillation_losses, optional=True)
        network_checks.check_networks({"model": model})
        super().__init__(**{"dtype": network_checks.policy([model]), **kwargs})
        self.student = model
        self.features = features
        self.stop_gradient = checks.boolean("stop_gradient", stop_gradient)
        networks = Networks(
            {"student": model},
            [Term(loss, "student", "student", stop_gradient=stop_gradient) for loss in losses],
            features={"student": features},
        )
        for loss in losses:
            loss_checks.check_different_tensors(loss, networks.taps["student"].specs)
        self._set_up(
            networks,
            task_loss_weight=task_loss_weight,
            balance=balance,
            balance_every=balance_every,
            readout_every=readout_every,
            xla_critics=xla_critics,
        )

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        return self.student(inputs, training=training)

    def export(self, filepath: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """Exports the network, like `keras.Model.export`."""
        return self.student.export(filepath, *args, **kwargs)

    def get_config(self) -> dict[str, Any]:
        serialize = keras.saving.serialize_keras_object
        return {
            **super().get_config(),
            "balance": self.balance,
            "balance_every": self.balance_every,
            "readout_every": self.readout_every,
            "model": serialize(self.student),
            "distillation_losses": loss_checks.serialized_losses(self.distillation_losses),
            "stop_gradient": self.stop_gradient,
            "features": loss_checks.serialized_features(self.features),
        }

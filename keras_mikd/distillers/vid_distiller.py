"""Variational information distillation, assembled."""

from collections.abc import Sequence
from typing import Any

import keras
from keras.optimizers.schedules import LearningRateSchedule

from keras_mikd.distillers import recipes, teachers
from keras_mikd.distillers.checks import loss_checks
from keras_mikd.distillers.distiller import Distiller
from keras_mikd.losses.distillation_loss import DistillationLoss


@keras.saving.register_keras_serializable("keras_mikd")
class VIDDistiller(Distiller):
    """A `Distiller` with Gaussian heads on the pairs of stages (VID-I) and on the logits (VID-L).

    `total = task loss + stage_weight * sum over stage pairs of -log q(t | s)
    + logits_weight * -log q(teacher logits | student's pooled vector)` (arXiv:1904.05835).

    Args:
        teacher: Trained Keras model with stages or blocks, see `stages`.
        student: Likewise, with the same inputs.
        distillation_losses: Losses to use instead of those assembled here. The arguments for the
            latter then keep their defaults.
        stage_weight: Factor of every stage pair's loss, a float or a schedule; 0 leaves them out.
            With `balance="gradient"`, 1 serves without a search.
        logits_weight: Factor of the logits pair's loss, likewise.
        soft_targets: A `SoftTargets` to add (`+KD`), or `None`.
        variant: See `GaussianVIDHead`.
        initial_variance: See `GaussianVIDHead`; for short runs, take `"auto"`.
        reduction: See `GaussianVIDHead`.
        raw: Whether to read wide ResNets before the BatchNorm and ReLU that follow a stage, as the
            released codes do.
        **kwargs: Arguments of `Distiller`.

    Raises:
        ValueError: As `Distiller`, or if no stages are found, there are several teachers without
            losses, or arguments of the heads come with losses.

    Example:
        ```python
        distiller = keras_mikd.VIDDistiller(
            teacher, student, initial_variance="auto", balance="gradient"
        )
        distiller.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        distiller.fit(train, validation_data=validation, epochs=60)
        ```
    """

    def __init__(
        self,
        teacher: keras.Model | Sequence[keras.Model] | dict[str, keras.Model],
        student: keras.Model,
        distillation_losses: Sequence[DistillationLoss | keras.distillation.DistillationLoss]
        | None = None,
        *,
        stage_weight: float | LearningRateSchedule = 1.0,
        logits_weight: float | LearningRateSchedule = 0.0,
        soft_targets: DistillationLoss | None = None,
        variant: str = "official",
        initial_variance: float | str | None = None,
        reduction: str = "mean",
        raw: bool = False,
        **kwargs: Any,
    ) -> None:
        head = {"variant": variant, "initial_variance": initial_variance, "reduction": reduction}
        options = {"stage_weight": stage_weight, "logits_weight": logits_weight, "raw": raw, **head}
        loss_checks.check_unused(self, VIDDistiller, distillation_losses, options)
        if distillation_losses is None:
            teachers.check_one(VIDDistiller, teacher)
            distillation_losses = recipes.vid(teacher, student, **options)
        if soft_targets is not None:
            distillation_losses = [soft_targets, *distillation_losses]
        super().__init__(teacher, student, distillation_losses, **kwargs)

"""MUSE self-distillation, assembled."""

from collections.abc import Sequence
from typing import Any

import keras
from keras.optimizers.schedules import LearningRateSchedule

from keras_mikd.distillers import recipes
from keras_mikd.distillers.checks import loss_checks
from keras_mikd.distillers.self_distiller import SelfDistiller
from keras_mikd.losses.distillation_loss import DistillationLoss


@keras.saving.register_keras_serializable("keras_mikd")
class MUSEDistiller(SelfDistiller):
    """A `SelfDistiller` with mutual and self-information of all stages of the network.

    `total = task loss + muse_weight * MUSE(stages; pooled vector)`.

    A *reconstruction* of arXiv:2110.12606: the combination of mutual and self-information of
    layers, as a sum or a product, is the paper's. Its equations, estimator, layers and weights are
    not public. Those here were chosen on the validation split of the digits (docs/results/muse.md).

    Args:
        model: Keras model with stages or blocks, see `stages`.
        distillation_losses: Losses to use instead of the one assembled here. `muse_weight`,
            `combine`, `negatives_from` and `gather` then keep their defaults. A subclassed model
            needs them.
        muse_weight: Factor of the loss, a float or a schedule. Larger ones cost accuracy where
            labels are few, see docs/results/muse.md.
        combine: `"additive"` or `"multiplicative"`, see `MUSE`.
        negatives_from: `"other_classes"` or `"batch"` (needs no labels), see `MUSE`.
        gather: See `MUSE`.
        deep_supervision: A `BeYourOwnTeacher` to add, or `None`.
        **kwargs: Arguments of `SelfDistiller`.

    Raises:
        ValueError: As `SelfDistiller`, or if no stages are found, or arguments of MUSE come with
            losses.
    """

    def __init__(
        self,
        model: keras.Model,
        distillation_losses: Sequence[DistillationLoss | keras.distillation.DistillationLoss]
        | None = None,
        *,
        muse_weight: float | LearningRateSchedule = 0.03,
        combine: str = "multiplicative",
        negatives_from: str = "other_classes",
        gather: bool = True,
        deep_supervision: DistillationLoss | None = None,
        **kwargs: Any,
    ) -> None:
        own = {
            "muse_weight": muse_weight,
            "combine": combine,
            "negatives_from": negatives_from,
            "gather": gather,
        }
        loss_checks.check_unused(self, MUSEDistiller, distillation_losses, own)
        if distillation_losses is None:
            weight = own.pop("muse_weight")
            distillation_losses = recipes.muse(model, model, weight=weight, **own)
        if deep_supervision is not None:
            distillation_losses = [*distillation_losses, deep_supervision]
        super().__init__(model, distillation_losses, **kwargs)

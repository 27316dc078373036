"""Mutual-information maximisation for knowledge distillation, assembled."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf
from keras.optimizers.schedules import LearningRateSchedule

from keras_mikd import bounds
from keras_mikd.critics.critic import Critic, SeparableCritic
from keras_mikd.distillers import recipes, teachers
from keras_mikd.distillers.checks import loss_checks
from keras_mikd.distillers.distiller import Distiller
from keras_mikd.losses.distillation_loss import DistillationLoss


@keras.saving.register_keras_serializable("keras_mikd")
class MIMKDDistiller(Distiller):
    """A `Distiller` with Jensen-Shannon critics at the global, local and feature level.

    `total = task loss - global_weight * JSD(teacher pooled; student pooled)
    - local_weight * JSD(teacher pooled; student's last map, location by location)
    - feature_weight * sum over stage pairs of JSD(teacher map; student map, location by location)`.

    A *reconstruction* of arXiv:2110.15946: the three levels, the Jensen-Shannon estimator and one
    negative are the paper's. Its critics, layers and weights are not public. Those here were chosen
    on the validation split of the digits, by accuracy against cost (docs/results/information.md).

    Args:
        teacher: Trained Keras model with stages or blocks, see `stages`.
        student: Likewise, with the same inputs.
        distillation_losses: Losses to use instead of those assembled here. The arguments for the
            latter then keep their defaults.
        global_weight: Factor of the global level, a float or a schedule; 0 leaves it out.
        local_weight: Factor of the local level, likewise.
        feature_weight: Factor of every stage pair of the feature level, likewise.
        soft_targets: A `SoftTargets` to add (`+KD`), or `None`.
        bound: Bound that the critics maximise, see `JSDCritic`. On photographs with few labels,
            `bounds.info_nce` with `negatives="all"` gained more than the paper's
            (docs/results/cifar10.md).
        make_critic: Function of no arguments that makes the score network of a level.
        negatives: See `JSDCritic`.
        grid: See `JSDCritic`.
        gather: See `JSDCritic`.
        **kwargs: Arguments of `Distiller`.

    Raises:
        ValueError: As `Distiller`, or if no stages are found, there are several teachers without
            losses, `make_critic` is a layer, or arguments of the critics come with losses.
    """

    def __init__(
        self,
        teacher: keras.Model | Sequence[keras.Model] | dict[str, keras.Model],
        student: keras.Model,
        distillation_losses: Sequence[DistillationLoss | keras.distillation.DistillationLoss]
        | None = None,
        *,
        global_weight: float | LearningRateSchedule = 3.0,
        local_weight: float | LearningRateSchedule = 3.0,
        feature_weight: float | LearningRateSchedule = 3.0,
        soft_targets: DistillationLoss | None = None,
        bound: Callable[..., tf.Tensor] = bounds.jsd,
        make_critic: Callable[[], Critic] = SeparableCritic,
        negatives: int | str = 1,
        grid: int | None = 8,
        gather: bool = True,
        **kwargs: Any,
    ) -> None:
        if isinstance(make_critic, keras.layers.Layer):
            raise ValueError(
                "Expected `make_critic` to be a function that makes a critic, since every level "
                "needs its own, such as keras_mikd.ConcatCritic. Received: "
                f"make_critic={make_critic!r}"
            )
        own = {
            "global_weight": global_weight,
            "local_weight": local_weight,
            "feature_weight": feature_weight,
            "bound": bound,
            "make_critic": make_critic,
            "negatives": negatives,
            "grid": grid,
            "gather": gather,
        }
        loss_checks.check_unused(self, MIMKDDistiller, distillation_losses, own)
        if distillation_losses is None:
            teachers.check_one(MIMKDDistiller, teacher)
            distillation_losses = recipes.mimkd(teacher, student, **own)
        if soft_targets is not None:
            distillation_losses = [soft_targets, *distillation_losses]
        super().__init__(teacher, student, distillation_losses, **kwargs)

"""Mutual-information maximisation for knowledge distillation, assembled."""

import keras

from keras_mikd.distillers.distiller import Distiller
from keras_mikd.estimators.critics import ConcatCritic, SeparableCritic
from keras_mikd.estimators.jsd_critic import JSDCritic
from keras_mikd.stages import pair_stages


@keras.saving.register_keras_serializable("keras_mikd")
class MIMKDDistiller(Distiller):
    """A `Distiller` with Jensen-Shannon critics at the global, local and feature level.

    `total = task loss - global_weight * JSD(teacher pooled; student pooled)
    - local_weight * JSD(teacher pooled; student's last map, location by location)
    - feature_weight * sum over stage pairs of JSD(teacher map; student map, location by location)`.

    A *reconstruction*: that there are three levels, the Jensen-Shannon estimator and one negative
    are the paper's; the critics, layers and weights are not public and are ours.

    Args:
        teacher: Trained convolutional Keras model.
        student: Convolutional Keras model with the same inputs.
        distillation_losses: Losses to use in place of those assembled here.
        global_weight: Factor of the global level, a float or a schedule; 0 leaves it out.
        local_weight: Factor of the local level, likewise.
        feature_weight: Factor of every stage pair of the feature level, likewise.
        soft_targets: A `SoftTargets` to add (`+KD`), or `None`.
        critic_width: Hidden units of the concat critics of the global and local level.
        feature_grid: Most rows and columns on which maps are compared.
        feature_width: Units of the separable critics of the feature level.
        negatives: Negatives for every positive, see `JSDCritic`.
        **kwargs: Arguments of `Distiller`.

    Raises:
        ValueError: As `Distiller`, or if no stages are found.

    References:
        Shrivastava, Qi, Ordonez, Estimating and Maximizing Mutual Information for Knowledge
        Distillation (arXiv:2110.15946).
    """

    def __init__(
        self,
        teacher,
        student,
        distillation_losses=None,
        *,
        global_weight=0.2,
        local_weight=0.8,
        feature_weight=0.8,
        soft_targets=None,
        critic_width=512,
        feature_grid=4,
        feature_width=128,
        negatives=1,
        **kwargs,
    ):
        if distillation_losses is None:
            pairs = pair_stages(teacher, student)
            last = pairs[-1][1]
            distillation_losses = [] if soft_targets is None else [soft_targets]
            levels = [
                ("jsd_global", "pooled", "pooled", global_weight, ConcatCritic, critic_width),
                ("jsd_local", "pooled", last, local_weight, ConcatCritic, critic_width),
            ] + [
                (
                    f"jsd_{place}",
                    teacher_place,
                    place,
                    feature_weight,
                    SeparableCritic,
                    feature_width,
                )
                for teacher_place, place in pairs
            ]
            distillation_losses += [
                JSDCritic(
                    teacher_layer=teacher_place,
                    student_layer=student_place,
                    weight=weight,
                    critic=critic(width=width),
                    negatives=negatives,
                    grid=feature_grid,
                    name=name,
                )
                for name, teacher_place, student_place, weight, critic, width in levels
                if weight
            ]
        super().__init__(teacher, student, distillation_losses, **kwargs)

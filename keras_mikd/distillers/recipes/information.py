"""Recipes of the methods of mutual information."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf
from keras.optimizers.schedules import LearningRateSchedule

from keras_mikd import bounds
from keras_mikd.critics.critic import Critic, SeparableCritic
from keras_mikd.distillers.recipes.places import at_stages, named, stage_pairs
from keras_mikd.features.places import OUTPUT
from keras_mikd.features.probabilities import holds_probabilities
from keras_mikd.features.stages import POOLED, pair_stages
from keras_mikd.losses.distillation_loss import DistillationLoss
from keras_mikd.losses.gaussian_vid_head import GaussianVIDHead
from keras_mikd.losses.jsd_critic import JSDCritic
from keras_mikd.losses.muse import MUSE


def vid(
    teacher: keras.Model,
    student: keras.Model,
    *,
    stage_weight: float | LearningRateSchedule = 1.0,
    logits_weight: float | LearningRateSchedule = 0.0,
    pairs: Sequence[tuple[str, str]] | None = None,
    raw: bool = False,
    **head: Any,
) -> list[DistillationLoss]:
    """Gaussian heads on the pairs of stages and on the logits (VID, arXiv:1904.05835).

    Args:
        teacher: Network with stages.
        student: Likewise, or the teacher itself.
        stage_weight: Factor of every stage pair's loss, `"vid_<place>"`; 0 leaves them out.
        logits_weight: Factor of the loss of the teacher's logits, `"vid_logits"`, likewise.
        pairs: List of `(teacher's place, student's place)` instead of the pairs of stages, as for a
            perceptron: `[("stage1", "hidden1"), ...]`.
        raw: As in `attention_transfer`.
        **head: `variant`, `initial_variance` and `reduction` of `GaussianVIDHead`.

    Raises:
        ValueError: If `logits_weight` is given and the teacher puts out probabilities.
    """
    losses = []
    if stage_weight:
        head_options = {"weight": stage_weight, "pairs": pairs, "raw": raw, **head}
        losses += at_stages(GaussianVIDHead, "vid", teacher, student, **head_options)
    if logits_weight:
        if holds_probabilities(teacher):
            raise ValueError(
                "Expected a teacher that puts out logits with `logits_weight`. Received: "
                f"{teacher.name!r}, which ends with a softmax or sigmoid. Build it without the "
                "final activation."
            )
        places = {"teacher_layer": OUTPUT, "student_layer": POOLED}
        losses.append(GaussianVIDHead(**places, weight=logits_weight, name="vid_logits", **head))
    return losses


def mimkd(
    teacher: keras.Model,
    student: keras.Model,
    *,
    global_weight: float | LearningRateSchedule = 3.0,
    local_weight: float | LearningRateSchedule = 3.0,
    feature_weight: float | LearningRateSchedule = 3.0,
    bound: Callable[..., tf.Tensor] = bounds.jsd,
    make_critic: Callable[[], Critic] = SeparableCritic,
    negatives: int | str = 1,
    grid: int | None = 8,
    gather: bool = True,
) -> list[DistillationLoss]:
    """Jensen-Shannon critics at three levels (MIMKD, arXiv:2110.15946): a reconstruction.

    Args:
        teacher: Network with stages.
        student: Network with stages.
        global_weight: Factor of `"jsd_global"`, the pooled vectors; 0 leaves it out.
        local_weight: Factor of `"jsd_local"`, the teacher's pooled vector and the student's last
            map, likewise.
        feature_weight: Factor of `"jsd_<place>"`, every pair of stages, likewise.
        bound: Bound that the critics maximise, see `JSDCritic`; the paper's if not given.
        make_critic: Function of no arguments that makes the score network of a level.
        negatives: Negatives for every positive, see `JSDCritic`.
        grid: Most rows and columns on which maps are compared, see `JSDCritic`.
        gather: Whether negatives come from the batch of all replicas, see `JSDCritic`.
    """
    pairs = pair_stages(teacher, student)
    levels = [
        ("jsd_global", POOLED, POOLED, global_weight),
        ("jsd_local", POOLED, pairs[-1][1], local_weight),
        *((named("jsd", place, own), place, own, feature_weight) for place, own in pairs),
    ]
    return [
        JSDCritic(
            teacher_layer=teacher_place,
            student_layer=student_place,
            weight=weight,
            bound=bound,
            critic=make_critic(),
            negatives=negatives,
            grid=grid,
            gather=gather,
            name=name,
        )
        for name, teacher_place, student_place, weight in levels
        if weight
    ]


def info_nce(
    teacher: keras.Model,
    student: keras.Model,
    *,
    weight: float | LearningRateSchedule = 1.0,
    grid: int | None = 8,
    gather: bool = True,
) -> list[DistillationLoss]:
    """InfoNCE critics on the pairs of stages, `"nce_<place>"`, against all of the batch.

    Args:
        teacher: Network with stages.
        student: Likewise, or the teacher itself.
        weight: Factor of every loss.
        grid: Most rows and columns on which maps are compared, see `JSDCritic`.
        gather: Whether negatives come from the batch of all replicas, see `JSDCritic`.
    """
    options = {"bound": bounds.info_nce, "negatives": "all", "grid": grid, "gather": gather}
    return [
        JSDCritic(
            teacher_layer=teacher_place,
            student_layer=student_place,
            critic=SeparableCritic(),
            weight=weight,
            name=named("nce", teacher_place, student_place),
            **options,
        )
        for teacher_place, student_place in stage_pairs(teacher, student)
    ]


def muse(
    teacher: keras.Model,
    student: keras.Model,
    *,
    weight: float | LearningRateSchedule = 0.03,
    **options: Any,
) -> list[DistillationLoss]:
    """MUSE of all stages towards the pooled vector, `"muse"` (arXiv:2110.12606): a reconstruction.

    Args:
        teacher: Network with a pooled vector; the student itself for self-distillation.
        student: Network with stages.
        weight: Factor of the loss; larger ones can cost accuracy, see `MUSEDistiller`.
        **options: Other arguments of `MUSE`; negatives are of other classes if not given.
    """
    options = {"negatives_from": "other_classes", **options}
    places = [place for place, _ in pair_stages(student, student)]
    return [MUSE(teacher_layer=POOLED, student_layer=places, weight=weight, name="muse", **options)]


def stage_critics(
    teacher: keras.Model,
    student: keras.Model,
    *,
    weight: float | LearningRateSchedule = 0.03,
    negatives_from: str = "other_classes",
) -> list[DistillationLoss]:
    """The mutual term of MUSE by itself, `"jsd_<place>"`: every stage with the pooled vector.

    Args:
        teacher: Network with a pooled vector; the student itself for self-distillation.
        student: Network with stages.
        weight: Factor of every loss; larger ones can cost accuracy.
        negatives_from: See `JSDCritic`.
    """
    return [
        JSDCritic(
            teacher_layer=POOLED,
            student_layer=place,
            critic=SeparableCritic(),
            negatives_from=negatives_from,
            weight=weight,
            name=named("jsd", place, place),
        )
        for place, _ in pair_stages(student, student)
    ]

"""Recipes of losses that compare features of an example."""

from collections.abc import Sequence
from typing import Any

import keras
from keras.optimizers.schedules import LearningRateSchedule

from keras_mikd.distillers.recipes.places import at_stages, named, stage_pairs
from keras_mikd.features.places import OUTPUT
from keras_mikd.features.stages import POOLED, pair_stages, raw_places, unactivated_places
from keras_mikd.losses.activation_boundary import ActivationBoundary
from keras_mikd.losses.attention_transfer import AttentionTransfer
from keras_mikd.losses.be_your_own_teacher import BeYourOwnTeacher
from keras_mikd.losses.distillation_loss import DistillationLoss
from keras_mikd.losses.factor_transfer import FactorTransfer
from keras_mikd.losses.fsp import FSP
from keras_mikd.losses.hint import Hint
from keras_mikd.losses.nst import NST
from keras_mikd.losses.review_kd import ReviewKD


def attention_transfer(
    teacher: keras.Model,
    student: keras.Model,
    *,
    weight: float | LearningRateSchedule = 10.0,
    raw: bool = False,
) -> list[DistillationLoss]:
    """Attention maps of every pair of stages, `"at_<place>"` (arXiv:1612.03928).

    Args:
        teacher: Network with stages.
        student: Likewise, or the teacher itself.
        weight: Factor of every loss. RepDistiller has 1000, which hurt students of few images
            (docs/results/defaults.md).
        raw: Whether to read wide ResNets before the BatchNorm and ReLU that follow a stage, as
            RepDistiller does.
    """
    return at_stages(AttentionTransfer, "at", teacher, student, raw=raw, weight=weight)


def hint(
    teacher: keras.Model,
    student: keras.Model,
    *,
    weight: float | LearningRateSchedule = 100.0,
    pairs: Sequence[tuple[str, str]] | None = None,
    raw: bool = False,
    regressor: str = "linear",
) -> list[DistillationLoss]:
    """Regression of the teacher's features, `"hint_<place>"` (FitNets, arXiv:1412.6550).

    Args:
        teacher: Network with stages.
        student: Likewise, or the teacher itself.
        weight: Factor of every loss; 100 is that of RepDistiller, whose regressor is another.
        pairs: List of `(teacher's place, student's place)`; the pair of stages in the middle if
            `None`.
        raw: As in `attention_transfer`.
        regressor: `"linear"`, `"repdistiller"` or `"orthogonal"`, see `Hint`.
    """
    if pairs is None:
        found = stage_pairs(teacher, student)
        pairs = [found[len(found) // 2]]
    options = {"weight": weight, "regressor": regressor}
    return at_stages(Hint, "hint", teacher, student, pairs=pairs, raw=raw, **options)


def vkd(
    teacher: keras.Model, student: keras.Model, *, weight: float | LearningRateSchedule = 1.0
) -> list[DistillationLoss]:
    """Orthogonal projection of the pooled vectors, `"vkd"` (arXiv:2403.06213).

    Args:
        teacher: Network with a pooled vector.
        student: Likewise.
        weight: Factor of the loss.
    """
    places = {"teacher_layer": POOLED, "student_layer": POOLED}
    return [Hint(regressor="orthogonal", weight=weight, name="vkd", **places)]


def activation_boundary(
    teacher: keras.Model, student: keras.Model, *, weight: float | LearningRateSchedule = 1.0
) -> list[DistillationLoss]:
    """Signs before the ReLU of every pair of stages, `"ab_<place>"` (arXiv:1811.03233).

    Args:
        teacher: Network with stages.
        student: Likewise, or the teacher itself.
        weight: Factor of every loss. In the losses themselves, the last pair counts as published,
            and each before it half of the next one.
    """
    pairs = stage_pairs(teacher, student)
    before = [unactivated_places(model) for model in (teacher, student)]
    return [
        ActivationBoundary(
            teacher_layer=before[0][place],
            student_layer=before[1][own],
            scale=0.003 * 0.5 ** (len(pairs) - position),
            weight=weight,
            name=named("ab", place, own),
        )
        for position, (place, own) in enumerate(pairs, start=1)
    ]


def factor_transfer(
    teacher: keras.Model,
    student: keras.Model,
    *,
    weight: float | LearningRateSchedule = 200.0,
    raw: bool = False,
    **options: Any,
) -> list[DistillationLoss]:
    """Factors of the last stages, `"ft_<place>"` (arXiv:1802.04977).

    Args:
        teacher: Network with stages.
        student: Likewise.
        weight: Factor of the loss; 200 is that of RepDistiller.
        raw: As in `attention_transfer`.
        **options: `variant`, `rate` and `paraphraser_steps` of `FactorTransfer`.
    """
    pairs = stage_pairs(teacher, student)[-1:]
    options = {"weight": weight, **options}
    return at_stages(FactorTransfer, "ft", teacher, student, pairs=pairs, raw=raw, **options)


def review_kd(
    teacher: keras.Model, student: keras.Model, *, weight: float | LearningRateSchedule = 5.0
) -> list[DistillationLoss]:
    """Fused features of all stages and of the pooled vectors, `"review_kd"` (arXiv:2104.09044).

    Args:
        teacher: Network with stages, read before their last ReLU, and a pooled vector.
        student: Likewise, read after it.
        weight: Factor of the loss; the authors' is 5 for most pairs on CIFAR-100, and rises from 0
            over the first 20 epochs.
    """
    pairs, before = pair_stages(teacher, student), unactivated_places(teacher)
    return [
        ReviewKD(
            teacher_layer=[*(before[place] for place, _ in pairs), POOLED],
            student_layer=[*(own for _, own in pairs), POOLED],
            weight=weight,
            name="review_kd",
        )
    ]


def nst(
    teacher: keras.Model,
    student: keras.Model,
    *,
    weight: float | LearningRateSchedule = 50.0,
    raw: bool = False,
) -> list[DistillationLoss]:
    """Selectivity of the neurons of every pair of stages, `"nst_<place>"` (arXiv:1707.01219).

    Args:
        teacher: Network with stages.
        student: Likewise, or the teacher itself.
        weight: Factor of every loss; 50 is that of RepDistiller.
        raw: As in `attention_transfer`.
    """
    return at_stages(NST, "nst", teacher, student, raw=raw, weight=weight)


def fsp(
    teacher: keras.Model,
    student: keras.Model,
    *,
    weight: float | LearningRateSchedule = 1.0,
    raw: bool = False,
) -> list[DistillationLoss]:
    """Flow between consecutive stages, `"fsp"` (Yim et al., CVPR 2017), for equal channels.

    RepDistiller has one flow more, from the first convolution to the first stage.

    Args:
        teacher: Network with two or more stages.
        student: Another one, as wide.
        weight: Factor of the loss. RepDistiller and the paper train on it alone, before the task.
        raw: As in `attention_transfer`.
    """
    pairs = stage_pairs(teacher, student)
    of_teacher, of_student = (raw_places(m) if raw else {} for m in (teacher, student))
    places = {
        "teacher_layer": [of_teacher.get(place, place) for place, _ in pairs],
        "student_layer": [of_student.get(own, own) for _, own in pairs],
    }
    return [FSP(**places, weight=weight, name="fsp")]


def be_your_own_teacher(
    teacher: keras.Model, student: keras.Model, *, weight: float | LearningRateSchedule = 1.0
) -> list[DistillationLoss]:
    """Classifiers on the early stages, `"byot"` (arXiv:1905.08094), for a `SelfDistiller`.

    Args:
        teacher: Network whose last stage and logits the classifiers learn from.
        student: The same network.
        weight: Factor of the loss.
    """
    *early, last = [place for place, _ in pair_stages(student, student)]
    heads = BeYourOwnTeacher(
        teacher_layer=[last, OUTPUT], student_layer=early, weight=weight, name="byot"
    )
    return [heads]

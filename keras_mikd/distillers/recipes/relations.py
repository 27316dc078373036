"""Recipes of losses that compare how examples lie to one another."""

from typing import Any

import keras
from keras.optimizers.schedules import LearningRateSchedule

from keras_mikd.distillers.recipes.places import at_stages, of_pooled, stage_pairs
from keras_mikd.losses.correlation_congruence import CorrelationCongruence
from keras_mikd.losses.crd import CRD
from keras_mikd.losses.distillation_loss import DistillationLoss
from keras_mikd.losses.itrd import ITRD
from keras_mikd.losses.pkt import PKT
from keras_mikd.losses.queue_relation import QueueRelation
from keras_mikd.losses.rkd import RKD
from keras_mikd.losses.similarity_preserving import SimilarityPreserving


def similarity_preserving(
    teacher: keras.Model,
    student: keras.Model,
    *,
    weight: float | LearningRateSchedule = 3000.0,
    raw: bool = False,
) -> list[DistillationLoss]:
    """Similarities between examples at the last pair of stages, `"sp_<place>"` (arXiv:1907.09682).

    Args:
        teacher: Network with stages.
        student: Likewise, or the teacher itself.
        weight: Factor of the loss; 3000 is that of RepDistiller.
        raw: As in `attention_transfer`.
    """
    pairs = stage_pairs(teacher, student)[-1:]
    options = {"pairs": pairs, "raw": raw, "weight": weight}
    return at_stages(SimilarityPreserving, "sp", teacher, student, **options)


def rkd(
    teacher: keras.Model,
    student: keras.Model,
    *,
    weight: float | LearningRateSchedule = 1.0,
    **options: Any,
) -> list[DistillationLoss]:
    """Distances and angles between pooled vectors, `"rkd"` (arXiv:1904.05068).

    Args:
        teacher: Network with a pooled vector.
        student: Another one.
        weight: Factor of the loss; 1 is that of RepDistiller.
        **options: Other arguments of `RKD`.
    """
    return of_pooled(RKD, "rkd", weight=weight, **options)


def pkt(
    teacher: keras.Model,
    student: keras.Model,
    *,
    weight: float | LearningRateSchedule = 30000.0,
    **options: Any,
) -> list[DistillationLoss]:
    """Probabilities of being neighbours between pooled vectors, `"pkt"` (arXiv:1803.10837).

    Args:
        teacher: Network with a pooled vector.
        student: Another one.
        weight: Factor of the loss; 30000 is that of RepDistiller.
        **options: Other arguments of `PKT`.
    """
    return of_pooled(PKT, "pkt", weight=weight, **options)


def correlation_congruence(
    teacher: keras.Model,
    student: keras.Model,
    *,
    weight: float | LearningRateSchedule = 0.02,
    **options: Any,
) -> list[DistillationLoss]:
    """Correlations between pooled vectors, `"cc"` (arXiv:1904.01802).

    Args:
        teacher: Network with a pooled vector.
        student: Another one.
        weight: Factor of the loss; 0.02 is that of RepDistiller, and belongs to its variant.
        **options: Other arguments of `CorrelationCongruence`.
    """
    return of_pooled(CorrelationCongruence, "cc", weight=weight, **options)


def crd(
    teacher: keras.Model,
    student: keras.Model,
    *,
    weight: float | LearningRateSchedule = 0.8,
    **options: Any,
) -> list[DistillationLoss]:
    """Contrast of pooled vectors, `"crd"` (arXiv:1910.10699), in the batch if not told otherwise.

    Args:
        teacher: Network with a pooled vector.
        student: Another one.
        weight: Factor of the loss; 0.8 is that of RepDistiller, with `bank` and other classes.
        **options: Other arguments of `CRD`.
    """
    return of_pooled(CRD, "crd", weight=weight, **options)


def queue_relation(
    teacher: keras.Model,
    student: keras.Model,
    *,
    weight: float | LearningRateSchedule = 1.0,
    **options: Any,
) -> list[DistillationLoss]:
    """Similarities to a queue of the teacher's pooled vectors, `"queue"` (arXiv:2101.04731).

    Args:
        teacher: Network with a pooled vector.
        student: Another one.
        weight: Factor of the loss.
        **options: Other arguments of `QueueRelation`.
    """
    return of_pooled(QueueRelation, "queue", weight=weight, **options)


def itrd(
    teacher: keras.Model,
    student: keras.Model,
    *,
    weight: float | LearningRateSchedule = 1.0,
    **options: Any,
) -> list[DistillationLoss]:
    """Correlation and mutual information of pooled vectors, `"itrd"` (arXiv:2112.00459).

    Args:
        teacher: Network with a pooled vector.
        student: Another one.
        weight: Factor of the loss, beside those of its two terms.
        **options: Other arguments of `ITRD`.
    """
    return of_pooled(ITRD, "itrd", weight=weight, **options)

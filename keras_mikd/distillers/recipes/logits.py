"""Recipes of losses that compare logits."""

from typing import Any

import keras
from keras.optimizers.schedules import LearningRateSchedule

from keras_mikd.losses.dist import DIST
from keras_mikd.losses.distillation_loss import DistillationLoss
from keras_mikd.losses.dkd import DKD
from keras_mikd.losses.lwf import LwF
from keras_mikd.losses.rld import RLD
from keras_mikd.losses.soft_targets import SoftTargets
from keras_mikd.losses.wttm import WTTM


def kd(
    teacher: keras.Model,
    student: keras.Model,
    *,
    weight: float | LearningRateSchedule = 0.9,
    temperature: float | LearningRateSchedule = 4.0,
    binary: bool = False,
) -> list[DistillationLoss]:
    """Soft targets, `"kd"` (Hinton et al., arXiv:1503.02531).

    Args:
        teacher: Network whose logits are the target.
        student: Network that learns them.
        weight: Factor of the loss.
        temperature: See `SoftTargets`.
        binary: See `SoftTargets`; for the logits of a sigmoid.
    """
    return [SoftTargets(temperature=temperature, weight=weight, binary=binary, name="kd")]


def lskd(
    teacher: keras.Model,
    student: keras.Model,
    *,
    weight: float | LearningRateSchedule = 9.0,
    temperature: float | LearningRateSchedule = 2.0,
) -> list[DistillationLoss]:
    """Soft targets of z-scored logits, `"lskd"` (arXiv:2403.01427).

    Args:
        teacher: Network whose logits are the target.
        student: Network that learns them.
        weight: Factor of the loss; 9 is that of the authors on CIFAR-100, beside the labels' 1.
        temperature: See `SoftTargets`.
    """
    options = {"temperature": temperature, "weight": weight, "name": "lskd"}
    return [SoftTargets(standardize=True, **options)]


def dkd(
    teacher: keras.Model,
    student: keras.Model,
    *,
    weight: float | LearningRateSchedule = 1.0,
    **options: Any,
) -> list[DistillationLoss]:
    """Soft targets of the label's class and of the others apart, `"dkd"` (arXiv:2203.08679).

    Args:
        teacher: Network whose logits are the target.
        student: Network that learns them.
        weight: Factor of the loss; the authors' rises from 0 to 1 over the first 20 epochs.
        **options: `alpha`, `beta` and `temperature` of `DKD`.
    """
    return [DKD(weight=weight, name="dkd", **options)]


def rld(
    teacher: keras.Model,
    student: keras.Model,
    *,
    weight: float | LearningRateSchedule = 1.0,
    **options: Any,
) -> list[DistillationLoss]:
    """Soft targets of what the label does not refute, `"rld"` (arXiv:2408.07703).

    Args:
        teacher: Network whose logits are the target.
        student: Network that learns them.
        weight: Factor of the loss; the authors' rises from 0 to 1 over the first 20 epochs.
        **options: `alpha`, `beta`, `temperature` and `confidence_temperature` of `RLD`.
    """
    return [RLD(weight=weight, name="rld", **options)]


def dist(
    teacher: keras.Model,
    student: keras.Model,
    *,
    weight: float | LearningRateSchedule = 2.0,
    temperature: float | LearningRateSchedule = 4.0,
) -> list[DistillationLoss]:
    """Correlations over classes and over examples, `"dist"` (arXiv:2205.10536).

    Args:
        teacher: Network whose logits are the target.
        student: Network that learns them.
        weight: Factor of the loss; 2 is that of the authors, beside the labels' 1.
        temperature: See `DIST`.
    """
    return [DIST(temperature=temperature, weight=weight, name="dist")]


def wttm(
    teacher: keras.Model,
    student: keras.Model,
    *,
    weight: float | LearningRateSchedule = 4.0,
    gamma: float = 0.2,
) -> list[DistillationLoss]:
    """A power of the teacher's probabilities, `"wttm"` (arXiv:2402.11148).

    Args:
        teacher: Network whose logits are the target.
        student: Network that learns them.
        weight: Factor of the loss; 4, with this `gamma`, is that of the authors' example.
        gamma: See `WTTM`.
    """
    return [WTTM(gamma=gamma, weight=weight, name="wttm")]


def lwf(
    teacher: keras.Model,
    student: keras.Model,
    *,
    weight: float | LearningRateSchedule = 1.0,
    temperature: float | LearningRateSchedule = 2.0,
) -> list[DistillationLoss]:
    """A second head for the classes of another teacher, `"lwf"` (LwF, arXiv:1606.09282).

    Args:
        teacher: Network whose logits are the target.
        student: Network with a pooled vector, which the head reads.
        weight: Factor of the loss.
        temperature: See `LwF`.
    """
    return [LwF(temperature=temperature, weight=weight, name="lwf")]

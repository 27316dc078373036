"""The methods of the papers as lists of losses, for any distiller.

A recipe is a function `(teacher, student, ...) -> list of losses`. One that reads stages finds them
by itself, or the blocks of transformers, which stand for stages in all that is said here, and
raises a `ValueError` where there are none, see `stages`. Weights are floats or schedules. Where the
student may be "the teacher itself", one network stands in both places: its early stages learn from
its last one, for a `SelfDistiller`. Lists add up:
`recipes.vid(teacher, student) + recipes.kd(teacher, student)`.
"""

from keras_mikd.distillers.recipes.features import (
    activation_boundary,
    attention_transfer,
    be_your_own_teacher,
    factor_transfer,
    fsp,
    hint,
    nst,
    review_kd,
    vkd,
)
from keras_mikd.distillers.recipes.information import info_nce, mimkd, muse, stage_critics, vid
from keras_mikd.distillers.recipes.logits import dist, dkd, kd, lskd, lwf, rld, wttm
from keras_mikd.distillers.recipes.places import from_teacher, stage_pairs
from keras_mikd.distillers.recipes.relations import (
    correlation_congruence,
    crd,
    itrd,
    pkt,
    queue_relation,
    rkd,
    similarity_preserving,
)

__all__ = [
    "activation_boundary",
    "attention_transfer",
    "be_your_own_teacher",
    "factor_transfer",
    "fsp",
    "hint",
    "nst",
    "review_kd",
    "vkd",
    "info_nce",
    "mimkd",
    "muse",
    "stage_critics",
    "vid",
    "dist",
    "dkd",
    "kd",
    "lskd",
    "lwf",
    "rld",
    "wttm",
    "from_teacher",
    "stage_pairs",
    "correlation_congruence",
    "crd",
    "itrd",
    "pkt",
    "queue_relation",
    "rkd",
    "similarity_preserving",
]

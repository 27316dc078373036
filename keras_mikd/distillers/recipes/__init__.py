"""The methods of the papers as lists of losses, for any distiller.

A recipe is a function `(teacher, student, ...) -> list of losses`. It finds the stages of both
networks by itself, or the blocks of transformers, which stand for stages in all that is said here.
It raises a `ValueError` where there are none, see `stages`. Weights are floats or schedules. With
one network in both places, its early stages learn from its last one, for a `SelfDistiller`. Lists
add up: `recipes.vid(teacher, student) + recipes.kd(teacher, student)`.
"""

from keras_mikd.distillers.recipes.features import activation_boundary as activation_boundary
from keras_mikd.distillers.recipes.features import attention_transfer as attention_transfer
from keras_mikd.distillers.recipes.features import be_your_own_teacher as be_your_own_teacher
from keras_mikd.distillers.recipes.features import factor_transfer as factor_transfer
from keras_mikd.distillers.recipes.features import fsp as fsp
from keras_mikd.distillers.recipes.features import hint as hint
from keras_mikd.distillers.recipes.features import nst as nst
from keras_mikd.distillers.recipes.features import review_kd as review_kd
from keras_mikd.distillers.recipes.features import vkd as vkd
from keras_mikd.distillers.recipes.information import info_nce as info_nce
from keras_mikd.distillers.recipes.information import mimkd as mimkd
from keras_mikd.distillers.recipes.information import muse as muse
from keras_mikd.distillers.recipes.information import stage_critics as stage_critics
from keras_mikd.distillers.recipes.information import vid as vid
from keras_mikd.distillers.recipes.logits import dist as dist
from keras_mikd.distillers.recipes.logits import dkd as dkd
from keras_mikd.distillers.recipes.logits import kd as kd
from keras_mikd.distillers.recipes.logits import lskd as lskd
from keras_mikd.distillers.recipes.logits import lwf as lwf
from keras_mikd.distillers.recipes.logits import rld as rld
from keras_mikd.distillers.recipes.logits import wttm as wttm
from keras_mikd.distillers.recipes.places import from_teacher as from_teacher
from keras_mikd.distillers.recipes.places import stage_pairs as stage_pairs
from keras_mikd.distillers.recipes.relations import correlation_congruence as correlation_congruence
from keras_mikd.distillers.recipes.relations import crd as crd
from keras_mikd.distillers.recipes.relations import itrd as itrd
from keras_mikd.distillers.recipes.relations import pkt as pkt
from keras_mikd.distillers.recipes.relations import queue_relation as queue_relation
from keras_mikd.distillers.recipes.relations import rkd as rkd
from keras_mikd.distillers.recipes.relations import similarity_preserving as similarity_preserving

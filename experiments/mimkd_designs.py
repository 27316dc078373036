"""Designs of MIMKD for compare.py. MIMKD's own critics, levels and weights are not public.

No script by itself: `python experiments/compare.py --methods=mimkd,mimkd_all,...`.
"""

import functools

import keras_mikd as mikd
from keras_mikd.comparison.methods import Method

WEIGHTS = (0.1, 1.0, 10.0)

_FEATURES = {"global_weight": 0.0, "local_weight": 0.0}
_INFO_NCE = {"bound": mikd.bounds.info_nce, "negatives": "all"}

# name -> arguments of recipes.mimkd; a level that is not named gets the weight that is tried.
_DESIGNS = {
    "mimkd_vectors": {"feature_weight": 0.0},
    "mimkd_maps": _FEATURES,
    "mimkd_8": {"negatives": 8},
    "mimkd_all": {"negatives": "all"},
    "mimkd_concat": {"make_critic": functools.partial(mikd.ConcatCritic, width=512)},
    "mimkd_nwj": {"bound": mikd.bounds.nwj, "negatives": "all"},
    "mimkd_nce": _INFO_NCE,
    "mimkd_nce_maps": {**_INFO_NCE, **_FEATURES},
}


def _losses(options, teacher, student, weight):
    levels = dict.fromkeys(("global_weight", "local_weight", "feature_weight"), weight)
    return mikd.recipes.mimkd(teacher, student, **{**levels, **options})


DESIGNS = {
    name: Method(functools.partial(_losses, options), WEIGHTS) for name, options in _DESIGNS.items()
}

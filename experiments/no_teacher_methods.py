"""Methods without a teacher for compare.py: a network by itself, and beside a peer of its kind.

No script by itself: `python experiments/compare.py --methods=self_muse,dml,...`. What
self_distillation.py and online.py train on the digits, as rows beside the methods with a teacher.
MUSE is a reconstruction.
"""

import functools

import keras

import keras_mikd as mikd
from keras_mikd import recipes
from keras_mikd.comparison.methods import Method

# A decade apart where a loss may do harm.
CRITIC_WEIGHTS = (0.03, 0.3, 3.0)
PREDICTION_WEIGHTS = (0.3, 1.0, 3.0)


def _alone(recipe, options, teacher, student, weight):
    """Returns the distiller of a network that learns from its own last layer."""
    del teacher
    return mikd.SelfDistiller(student, recipe(student, student, weight=weight, **options))


def _beside_a_peer(between_features, teacher, student, weight):
    """Returns the distiller of a network and a new one of its kind; the first is evaluated."""
    del teacher
    losses = [mikd.SoftTargets(temperature=1.0, weight=1.0 if between_features else weight)]
    if between_features:
        losses += recipes.muse(student, student, weight=weight)
    peer = keras.models.clone_model(student)
    return mikd.MutualDistiller([student, peer], losses)


# name -> recipe from a network to its own layers, its other arguments, weights to try.
_ALONE = {
    "byot": (recipes.be_your_own_teacher, {}, (0.1, 0.3, 1.0)),
    "self_jsd": (recipes.stage_critics, {}, CRITIC_WEIGHTS),
    "self_muse": (recipes.muse, {"combine": "multiplicative"}, CRITIC_WEIGHTS),
    "self_muse_additive": (recipes.muse, {"combine": "additive"}, CRITIC_WEIGHTS),
}
# name -> whether MUSE stands between features too, weights to try.
_PEERS = {"dml": (False, PREDICTION_WEIGHTS), "dml_muse": (True, CRITIC_WEIGHTS)}

NO_TEACHER_METHODS = {
    name: Method(functools.partial(_alone, recipe, options), weights)
    for name, (recipe, options, weights) in _ALONE.items()
} | {
    name: Method(functools.partial(_beside_a_peer, between_features), weights)
    for name, (between_features, weights) in _PEERS.items()
}

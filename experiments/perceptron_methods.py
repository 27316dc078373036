"""Methods for students without maps, for compare.py: from a CNN to a perceptron, as in VID.

No script by itself: `python experiments/compare.py --student=mlp_1024 --methods=kd,vid_unfolded`.
"""

import keras

import keras_mikd as mikd
from keras_mikd.comparison.methods import METHODS, Method


def pairs_in_order(teacher, student):
    """Pairs the last stages of a CNN with the last hidden vectors of a perceptron, in order."""
    maps = [place for place in mikd.stages(teacher) if place.startswith("stage")]
    vectors = [layer.name for layer in student.layers if isinstance(layer, keras.layers.ReLU)]
    count = min(len(maps), len(vectors))
    return list(zip(maps[-count:], vectors[-count:], strict=True))


def _vid(teacher, student, weight):
    pairs = pairs_in_order(teacher, student)
    head = {"variant": "repdistiller", "initial_variance": "auto"}
    return mikd.recipes.vid(teacher, student, stage_weight=weight, pairs=pairs, **head)


def _hint(teacher, student, weight):
    return mikd.recipes.hint(teacher, student, weight=weight, pairs=[("pooled", "pooled")])


PERCEPTRON_METHODS = {
    "vid_unfolded": Method(_vid, METHODS["vid"].weights),
    "hint_pooled": Method(_hint, METHODS["hint"].weights),
}

"""Tells from its layers whether a place of a network holds probabilities."""

import re

import keras

from keras_mikd.features.feature_taps import output_at
from keras_mikd.features.layer_graph import LayerGraph, ends, has_graph
from keras_mikd.features.places import OUTPUT, is_output, resolve

_PROBABILITIES = {"softmax", "sigmoid", "hard_sigmoid", "hardsigmoid", "sparsemax"}
_SAME_VALUES = {
    *("Activation", "Cast", "Flatten", "Identity", "Reshape", "Squeeze"),
    # Of a map, these keep, repeat or average the values of its positions.
    *("Cropping2D", "Resize", "Resizing", "UpSampling2D"),
    "FakeQuantize",  # Of a student of `quantization_aware`.
}
# Of probabilities, these make probabilities, or a multiple of them that is no logit either.
_MERGES = {
    *("Add", "Average", "Clip", "Divide", "Maximum", "Mean", "Minimum", "Multiply", "Rescaling"),
    *("Stack", "TrueDivide"),
}


def holds_probabilities(model, place=OUTPUT):
    """Whether the tensor at a place holds probabilities: softmax or sigmoid was applied last.

    What follows and keeps them probabilities does not matter: a reshape, a cast, a linear
    activation, another resolution, an average of several, a factor, a clip.

    Returns:
        `True` (of several outputs: if one of them does), `False`, or `None` if the model hides its
        layers because it is subclassed or not built.
    """
    if not has_graph(model):
        return None
    graph = LayerGraph(model)
    if is_output(place):
        outputs = keras.tree.pack_sequence_as(ends(model)[1], graph.outputs)
        positions = keras.tree.flatten(output_at(outputs, place))
    else:
        positions = graph.names[resolve(model, [place])[place]]
    return any(_is_probability(graph, position) for position in positions)


def _is_probability(graph, position):
    call = graph.calls[position]
    layer = type(call.layer).__name__
    activation = getattr(call.layer, "activation", None)
    function = getattr(activation, "__name__", type(activation).__name__)
    if isinstance(activation, str):
        function = activation
    if _plain(layer) in _PROBABILITIES or _plain(function) in _PROBABILITIES:
        return True
    passes = layer in _SAME_VALUES and function in ("linear", "NoneType")
    merges = layer in _MERGES and len(call.parents) > 0
    return (passes or merges) and all(_is_probability(graph, p) for p in call.parents)


def _plain(name):
    """Returns the name of an operation without its version, such as that of `softmax_v2`."""
    return re.sub(r"_v\d+$", "", name.lower())

"""Tells from its layers whether a place of a network holds probabilities."""

import re

import keras

from keras_mikd.features.feature_taps import output_at
from keras_mikd.features.layer_graph import LayerGraph, ends, has_graph
from keras_mikd.features.places import OUTPUT, is_output, resolve

_PROBABILITIES = {"softmax", "sigmoid", "hard_sigmoid", "hardsigmoid", "sparsemax"}
_KERNEL_LAYERS = (keras.layers.Dense, keras.layers.EinsumDense, keras.layers.Conv2D)
_KEPT = {
    *("Activation", "Cast", "Dropout", "Flatten", "Identity", "Reshape", "Squeeze"),
    "FakeQuantize",  # Of a student of `quantization_aware`.
}
# Of a map, the others keep, repeat or average the values of its positions.
_SAME_VALUES = _KEPT | {"Cropping2D", "Resize", "Resizing", "UpSampling2D"}
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
    graph, positions = _at(model, place)
    return any(_is_probability(graph, position) for position in positions)


def ends_linear(model, place=OUTPUT):
    """Whether the tensors at a place come out of linear layers, so that they are certainly logits.

    What follows and keeps the values does not matter, as in `holds_probabilities`.
    """
    if not has_graph(model):
        return False
    graph, positions = _at(model, place)
    return all(_comes_out_of_kernel(graph, position) for position in positions)


def _at(model, place):
    """Returns the graph of a model and the positions of a place in it."""
    graph = LayerGraph(model)
    if is_output(place):
        outputs = keras.tree.pack_sequence_as(ends(model)[1], graph.outputs)
        return graph, keras.tree.flatten(output_at(outputs, place))
    return graph, graph.names[resolve(model, [place])[place]]


def _comes_out_of_kernel(graph, position):
    call = graph.calls[position]
    function = _function(call.layer)
    if isinstance(call.layer, _KERNEL_LAYERS):
        return function == "linear"
    passes = type(call.layer).__name__ in _KEPT and function in ("linear", "NoneType")
    return passes and all(_comes_out_of_kernel(graph, parent) for parent in call.parents)


def _is_probability(graph, position):
    call = graph.calls[position]
    layer, function = type(call.layer).__name__, _function(call.layer)
    if _plain(layer) in _PROBABILITIES or _plain(function) in _PROBABILITIES:
        return True
    passes = layer in _SAME_VALUES and function in ("linear", "NoneType")
    merges = layer in _MERGES and len(call.parents) > 0
    return (passes or merges) and all(_is_probability(graph, p) for p in call.parents)


def _function(layer):
    """Returns the name of a layer's activation, "NoneType" if it has none."""
    activation = getattr(layer, "activation", None)
    if isinstance(activation, str):
        return activation
    return getattr(activation, "__name__", type(activation).__name__)


def _plain(name):
    """Returns the name of an operation without its version, such as that of `softmax_v2`."""
    return re.sub(r"_v\d+$", "", name.lower())

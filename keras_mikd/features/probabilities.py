"""Tells from its layers whether a place of a network holds probabilities."""

import keras

from keras_mikd.features.feature_taps import output_at
from keras_mikd.features.layer_graph import LayerGraph, ends, has_graph
from keras_mikd.features.places import OUTPUT, is_output, resolve

_PROBABILITIES = {"softmax", "sigmoid", "hard_sigmoid", "hardsigmoid", "sparsemax"}
_SAME_VALUES = {"Activation", "Cast", "Flatten", "Identity", "Reshape", "Squeeze"}


def holds_probabilities(model, place=OUTPUT):
    """Whether the tensor at a place holds probabilities: softmax or sigmoid was applied last.

    Layers after it that keep its values (reshape, flatten, cast, linear activation) do not matter.

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
    if layer.lower() in _PROBABILITIES or function.lower() in _PROBABILITIES:
        return True
    passes = layer in _SAME_VALUES and function in ("linear", "NoneType")
    return passes and _is_probability(graph, call.parents[0])

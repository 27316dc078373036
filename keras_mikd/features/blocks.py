"""Finds the blocks of a transformer in its graph."""

import itertools

import keras

from keras_mikd.features.encoder_layers import attends
from keras_mikd.keras_internals import layers_of


def find_blocks(graph, learned):
    """Returns the positions in `graph.calls` where the blocks of a transformer end, in order.

    A block begins with an attention and ends before the next one. Its end is the residual stream:
    the last sum, or the last layer that holds layers, of the shape that the attention leaves. In
    post-norm networks, where the sum with the attention is normalized too, it is the normalization
    of that sum.

    Args:
        graph: `LayerGraph`.
        learned: Whether the result of each call depends on a kernel.
    """
    parents = [_followed(call, learned) for call in graph.calls]
    runs = []  # The trunk from an attention to the next.
    for before, position in itertools.pairwise(graph.trunk(parents)):
        if _attends_between(graph, before, position):
            runs.append([])
        if runs:
            runs[-1].append(position)
    return [_end(graph, parents, run) for run in runs if _is_stream(graph.calls[run[0]])]


def _followed(call, learned):
    """Returns the parents of a call that carry the stream: not masks, positions or biases.

    What no kernel made is a mask if something else was made by one. A layer with attention has the
    stream first.
    """
    parents = [parent for parent in call.parents if learned[parent]] or list(call.parents)
    return parents[:1] if attends(call.layer) else parents


def _attends_between(graph, before, position):
    """Whether there is an attention on a way from one tensor of the trunk to the next."""
    waiting, seen = [position], set()
    while waiting:
        call = waiting.pop()
        if call <= before or call in seen:
            continue
        if _is_stream(graph.calls[call]) and attends(graph.calls[call].layer, _word(call, graph)):
            return True
        seen.add(call)
        waiting.extend(graph.calls[call].parents)
    return False


def _word(call, graph):
    # Channel and spatial attention are gates of convolutional networks.
    return "multihead" if len(graph.calls[call].shapes[0]) == 4 else "attention"


def _is_stream(call):
    """Whether a call makes tokens, or maps that stand for them (ViTDet)."""
    return len(call.shapes[0]) in (3, 4)


def _end(graph, parents, run):
    calls = [graph.calls[position] for position in run]

    def is_sum(index):
        return len(set(parents[run[index]])) > 1

    def is_normalization(index):
        return index < len(run) and "Normalization" in type(calls[index].layer).__name__

    ends = [
        index
        for index, call in enumerate(calls)
        if call.shapes[0] == calls[0].shapes[0] and (is_sum(index) or _holds_layers(call.layer))
    ]
    end = max([0, *ends])
    post_norm = is_sum(0) and is_normalization(1)
    return run[end + 1] if post_norm and is_normalization(end + 1) else run[end]


def _holds_layers(layer):
    return isinstance(layer, keras.layers.Layer) and bool(layers_of(layer, include_self=False))

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
    runs = []  # The trunk from an attention to the next, and what is between it and the former.
    for before, position in itertools.pairwise(graph.trunk(parents)):
        between = _between(graph, before, position)
        if any(_is_attention(call) for call in between):
            runs.append(([], between))
        if runs:
            runs[-1][0].append(position)
    return [_end(graph, parents, *run) for run in runs if _is_stream(graph.calls[run[0][0]])]


def _followed(call, learned):
    """Returns the parents of a call that carry the stream: not masks, positions or biases.

    What no kernel made is a mask if something else was made by one. A layer with attention has the
    stream first.
    """
    parents = [parent for parent in call.parents if learned[parent]] or list(call.parents)
    return parents[:1] if attends(call.layer) else parents


def _between(graph, before, position):
    """Returns the calls from one tensor of the trunk to the next, with that of the next."""
    waiting, found = [position], {}
    while waiting:
        call = waiting.pop()
        if call > before and call not in found:
            found[call] = graph.calls[call]
            waiting.extend(graph.calls[call].parents)
    return list(found.values())


def _is_attention(call):
    # Channel and spatial attention are gates of convolutional networks.
    word = "multihead" if len(call.shapes[0]) == 4 else "attention"
    return _is_stream(call) and attends(call.layer, word)


def _is_stream(call):
    """Whether a call makes tokens, or maps that stand for them (ViTDet)."""
    return len(call.shapes[0]) in (3, 4)


def _end(graph, parents, run, between):
    calls = [graph.calls[position] for position in run]
    sums = [len(set(parents[position])) > 1 for position in run]
    ends = [
        index
        for index, call in enumerate(calls)
        if call.shapes[0] == calls[0].shapes[0] and (sums[index] or _holds_layers(call.layer))
    ]
    end = max([0, *ends])
    post_norm = sums[0] and _normalized(calls, 1) and not any(map(_is_normalization, between))
    return run[end + 1] if post_norm and _normalized(calls, end + 1) else run[end]


def _normalized(calls, index):
    return index < len(calls) and _is_normalization(calls[index])


def _is_normalization(call):
    return "norm" in type(call.layer).__name__.lower()


def _holds_layers(layer):
    return isinstance(layer, keras.layers.Layer) and bool(layers_of(layer, include_self=False))

"""Batch normalization as a part of kernels, which is how a file has it."""

import collections

import keras
import numpy as np
from keras import layers

from keras_mikd.export.fake_quantization import (
    FakeQuantizedConv2D,
    FakeQuantizedDepthwiseConv2D,
    FakeQuantizedRescaling,
)
from keras_mikd.features.layer_graph import LayerGraph, ends


def folded(model):
    """Returns a copy of a model of `quantization_aware` in which no BatchNorm is left.

    It rounds to the same values in inference: a kernel's scales are those of its channels, and
    BatchNorm multiplies channels.
    """
    graph = LayerGraph(model)
    readers = collections.Counter(parent for call in graph.calls for parent in call.parents)
    made, copies = [], {}
    for call in graph.calls:
        feeds = [made[parent] for parent in call.parents]
        if isinstance(call.layer, layers.InputLayer):
            made.append(keras.Input(call.layer.batch_shape[1:], name=call.layer.name))
        elif not isinstance(call.layer, layers.BatchNormalization):
            made.append(_copied(call.layer, copies)(feeds[0] if len(feeds) == 1 else feeds))
            _copy_weights(call.layer, copies)
        elif _takes_in(graph, *call.parents, readers):
            # Replaces the kernel, which was made without it.
            before = graph.calls[call.parents[0]]
            made.append(_with_normalization(before.layer, call.layer, made[before.parents[0]]))
        else:
            made.append(affine(call.layer.name, feeds[0], *scale_and_offset(call.layer)))
    outputs = [made[position] for position in graph.outputs]
    inputs = [made[i] for i, c in enumerate(graph.calls) if isinstance(c.layer, layers.InputLayer)]
    return keras.Model(
        inputs[0], keras.tree.pack_sequence_as(ends(model)[1], outputs), name=model.name
    )


def _takes_in(graph, position, readers):
    """Whether the layer at a position can have the BatchNorm that reads it in its kernel."""
    layer = graph.calls[position].layer
    kernels = (FakeQuantizedConv2D, FakeQuantizedDepthwiseConv2D)
    linear = isinstance(layer, kernels) and layer.activation is keras.activations.linear
    return linear and readers[position] == 1 and position not in graph.outputs


def _copied(layer, copies):
    """Returns the copy of a layer, one for all of its calls."""
    if id(layer) not in copies:
        copies[id(layer)] = type(layer).from_config(layer.get_config())
    return copies[id(layer)]


def _copy_weights(layer, copies):
    copies[id(layer)].set_weights(_told_apart(layer, layer.get_weights()))


def _told_apart(layer, weights):
    """Returns kernel and bias of a layer, the first bias one float up if all are the same number.

    LiteRT's converter rounds biases that are one number with the scale of the first channel.
    """
    if isinstance(layer, (FakeQuantizedConv2D, FakeQuantizedDepthwiseConv2D)) and layer.use_bias:
        kernel, bias = weights
        bias = np.array(bias, "float32")
        if bias[0] != 0 and np.ptp(bias) == 0:
            bias[0] = np.nextafter(bias[0], np.float32(np.inf))
        return [kernel, bias]
    return weights


def _with_normalization(layer, normalization, value):
    config = layer.get_config() | {"use_bias": True, "name": f"{layer.name}_normalized"}
    new = type(layer).from_config(config)
    result = new(value)
    new.set_weights(_told_apart(new, folded_weights(layer, normalization)))
    return result


def folded_weights(layer, normalization):
    """Returns kernel and bias of a layer with the BatchNorm behind it multiplied in."""
    scale, offset = scale_and_offset(normalization)
    kernel = numpy(layer.kernel)
    bias = numpy(layer.bias) if layer.use_bias else 0.0
    # The outputs of a depthwise kernel are its last two axes, as one.
    axes = 2 if isinstance(layer, layers.DepthwiseConv2D) else 1
    return [kernel * scale.reshape(kernel.shape[kernel.ndim - axes :]), bias * scale + offset]


def affine(name, value, scale, offset):
    """Applies `scale * value + offset`, numbers of the channels, as a depthwise convolution.

    They are constants: training does not change them.
    """

    def of_map(name, value):
        channels = value.shape[-1]
        layer = FakeQuantizedRescaling(1, name=name, dtype="float32", trainable=False)
        result = layer(value)
        kernel = np.broadcast_to(scale, channels).reshape(layer.kernel.shape)
        layer.set_weights(_told_apart(layer, [kernel, np.broadcast_to(offset, channels)]))
        return result

    return on_map(name, value, of_map)


def on_map(name, value, of_map):
    """Applies `of_map(name, map)` to a map, or to vectors or tokens as a map."""
    if len(value.shape) == 4:
        return of_map(name, value)
    channels = value.shape[-1]
    result = of_map(f"{name}_on_map", layers.Reshape((-1, 1, channels))(value))
    places = (-1,) * (len(value.shape) - 2)
    return layers.Reshape((*places, channels), name=name)(result)


def scale_and_offset(normalization):
    """Returns the two in float64: BatchNorm in inference is `scale * x + offset`."""
    mean = numpy(normalization.moving_mean)
    scale = 1 / np.sqrt(numpy(normalization.moving_variance) + normalization.epsilon)
    scale = scale * numpy(normalization.gamma) if normalization.scale else scale
    return scale, (numpy(normalization.beta) if normalization.center else 0.0) - mean * scale


def numpy(variable):
    """Returns the values of a variable in float64."""
    return keras.ops.convert_to_numpy(variable).astype("float64")

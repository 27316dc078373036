"""The calls of a network, in the layers that an int8 file has operators for."""

import collections

import keras
import numpy as np
from keras import layers

from keras_mikd.keras_internals import operation_name

_SUMS_AND_PRODUCTS = {"Add": layers.Add, "Multiply": layers.Multiply}
_ACTIVATIONS = {
    "HardSigmoid": "hard_sigmoid",
    "HardSilu": "hard_silu",
    "Relu": "relu",
    "Relu6": "relu6",
    "Sigmoid": "sigmoid",
    "Silu": "silu",
    "Tanh": "tanh",
}
# `(scale, offset)` of what follows a tensor, and of what stands before it.
_AFFINE = {
    "Add": (lambda c: (1.0, c), lambda c: (1.0, c)),
    "Subtract": (lambda c: (1.0, -c), lambda c: (-1.0, c)),
    "Multiply": (lambda c: (c, 0.0), lambda c: (c, 0.0)),
    "TrueDivide": (lambda c: (1.0 / c, 0.0), None),
}


def primitives(graph):
    """Returns the calls of a `LayerGraph`, and the positions of its outputs, in simpler layers.

    A separable convolution is two convolutions, a normalization of inputs and arithmetic with
    constants are `Rescaling`, and operations such as `a + b` are the layers of the same name.
    Several rescalings in a row are one. What has no simpler form stays as it is.
    """
    readers = collections.Counter(parent for call in graph.calls for parent in call.parents)
    readers.update(graph.outputs)
    calls, made = [], []
    for call in graph.calls:
        parents = tuple(made[parent] for parent in call.parents)
        for path, layer in _simpler(call):
            alone = len(parents) == 1 and readers[call.parents[0]] == 1
            if alone and _is_rescaling(layer) and _is_rescaling(calls[parents[0]].layer):
                before = calls[parents[0]]
                calls[parents[0]] = before._replace(path=path, layer=_chained(before.layer, layer))
            else:
                calls.append(call._replace(path=path, layer=layer, parents=parents))
                parents = (len(calls) - 1,)
        made.append(parents[0])
    return calls, [made[position] for position in graph.outputs]


def _simpler(call):
    """Returns `(path, layer)` of the layers that a call is the chain of."""
    layer, path = call.layer, call.path
    name = operation_name(layer)
    if type(layer) is layers.SeparableConv2D:
        depthwise, pointwise = _separated(layer)
        return [(f"{path}_depthwise", depthwise), (path, pointwise)]
    if type(layer) is layers.Normalization:
        layer = _of_normalization(layer, call)
    elif name in _ACTIVATIONS:
        layer = layers.Activation(_ACTIVATIONS[name])
    elif name == "LeakyRelu":
        layer = layers.LeakyReLU(negative_slope=layer.negative_slope)
    elif name == "ReLU":
        layer = layers.ReLU(layer.max_value, layer.negative_slope, layer.threshold)
    elif name in _SUMS_AND_PRODUCTS and len(call.parents) == 2:
        layer = _SUMS_AND_PRODUCTS[name]()
    elif name in _AFFINE and len(call.parents) == 1:
        layer = _of_arithmetic(name, call) or layer
    return [(path, layer)]


def _separated(layer):
    """Returns a depthwise and a 1x1 convolution with the weights of a separable one."""
    depthwise = layers.DepthwiseConv2D(
        layer.kernel_size,
        strides=layer.strides,
        padding=layer.padding,
        depth_multiplier=layer.depth_multiplier,
        dilation_rate=layer.dilation_rate,
        use_bias=False,
    )
    pointwise = layers.Conv2D(
        layer.filters, 1, use_bias=layer.use_bias, activation=layer.activation
    )
    _, _, channels, multiplier = layer.depthwise_kernel.shape
    depthwise.build((None, None, None, channels))
    pointwise.build((None, None, None, channels * multiplier))
    first, *others = layer.get_weights()
    depthwise.set_weights([first])
    pointwise.set_weights(others)
    return depthwise, pointwise


def _of_normalization(layer, call):
    """Returns the rescaling that a normalization of the channels, or of all values, is."""
    channels = call.shapes[0][-1]
    mean, variance = (np.asarray(x, "float64") for x in (layer.mean, layer.variance))
    known = ((), (1,), (channels,))
    if any(x.size not in (1, channels) or x.shape[-1:] not in known for x in (mean, variance)):
        raise ValueError(
            "Expected normalization over the last axis, the channels. Received: "
            f"{call.path!r} with axis={layer.axis}"
        )
    deviation = np.maximum(np.sqrt(variance.reshape(-1)), keras.config.epsilon())
    mean = mean.reshape(-1)
    if layer.invert:
        return layers.Rescaling(deviation, mean)
    return layers.Rescaling(1.0 / deviation, -mean / deviation)


def _of_arithmetic(name, call):
    """Returns the rescaling that an operation with a number, or one of each channel, is."""
    if len(call.arguments) != 2:
        return None
    tensor_first = call.arguments[0] is ...
    constant = np.asarray(call.arguments[1 if tensor_first else 0], "float64")
    form = _AFFINE[name][0 if tensor_first else 1]
    is_known = constant.ndim == 0 or constant.shape == (call.shapes[0][-1],)
    if form is None or not is_known or not np.isfinite(form(constant)[0]).all():
        return None
    return layers.Rescaling(*form(constant))


def _is_rescaling(layer):
    return type(layer) is layers.Rescaling


def _chained(first, second):
    """Returns the rescaling that two are, one after the other."""
    scale, offset = np.asarray(second.scale), np.asarray(second.offset)
    return layers.Rescaling(scale * first.scale, scale * first.offset + offset)

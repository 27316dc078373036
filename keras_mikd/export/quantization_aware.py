"""A trained student, rewritten to train on with the rounding of an int8 file."""

import collections

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from keras_mikd import checks, keras_internals
from keras_mikd.export.agreement import checked_batches, inputs_in
from keras_mikd.export.fake_quantization import (
    FakeQuantize,
    FakeQuantizedConv2D,
    FakeQuantizedDense,
    FakeQuantizedDepthwiseConv2D,
)
from keras_mikd.export.folding import affine, folded_weights, numpy, on_map
from keras_mikd.export.primitives import primitives
from keras_mikd.features.layer_graph import LayerGraph, check_channels_last, ends, has_graph

_WITH_KERNEL = {
    layers.Conv2D: FakeQuantizedConv2D,
    layers.DepthwiseConv2D: FakeQuantizedDepthwiseConv2D,
    layers.Dense: FakeQuantizedDense,
}
# Idle in an int8 file.
_IDLE = (
    layers.ActivityRegularization,
    layers.Dropout,
    layers.GaussianNoise,
    layers.Identity,
    layers.SpatialDropout2D,
)
# LiteRT asks these for one scale before and behind.
_SAME_SCALE = (
    layers.AveragePooling2D,
    layers.Cropping2D,
    layers.Flatten,
    layers.GlobalMaxPooling2D,
    layers.MaxPooling2D,
    layers.Permute,
    layers.Reshape,
    layers.ZeroPadding2D,
)
_AS_BEFORE = (*_IDLE, *_SAME_SCALE)
# Idle in a file too; a crop, which changes the size there, is not among them.
_AUGMENTATIONS = tuple(
    kind for name, kind in vars(layers).items() if name.startswith("Random") and "Crop" not in name
)
_NEW_SCALE = (layers.Add, layers.Concatenate, layers.GlobalAveragePooling2D, layers.Multiply)
_NORMALIZATIONS = (layers.BatchNormalization, layers.Rescaling)
_ACTIVATION_LAYERS = (layers.Activation, layers.LeakyReLU, layers.ReLU, layers.Softmax)
_KNOWN = (
    layers.InputLayer,
    *_WITH_KERNEL,
    *_NORMALIZATIONS,
    *_ACTIVATION_LAYERS,
    *_AS_BEFORE,
    *_NEW_SCALE,
)
# LiteRT computes these together with the layer before.
_FUSED = ("linear", "relu", "relu6")
# Of what these put out; LiteRT fixes those of sigmoid, softmax and tanh.
_FIXED_LIMITS = {
    "hard_sigmoid": (0.0, 1.0),
    "sigmoid": (0.0, 255 / 256),
    "softmax": (0.0, 255 / 256),
    "tanh": (-1.0, 127 / 128),
}
_KNOWN_ACTIVATIONS = (*_FUSED, "leaky_relu", "silu", "hard_silu", *_FIXED_LIMITS)


def quantization_aware(
    student: keras.Model,
    *,
    calibrate_on: tf.data.Dataset | np.ndarray | tf.Tensor,
    name: str | None = None,
) -> keras.Model:
    """Returns a copy of a trained student that rounds as an int8 file does, to be trained on.

    Distil the copy for some more epochs, at a small learning rate and with the same losses, and
    write it with `export_tflite(copy, path, quantize="int8")`. Weights are rounded to int8 with a
    scale for every output channel (a dense layer has one), activations with ranges that are trained
    too. The file has these scales and no float operator. Batch normalization behind a convolution
    trains as before, and in the file it is folded into the kernel. Right behind a linear dense
    layer it is folded here already. Elsewhere it becomes a depthwise 1x1 convolution, and so does
    arithmetic with constants, which are not trained.

    Layers keep their names, those of nested models with a dot, `"backbone.conv1"`; so `stages`
    finds in the copy what it finds in the student. The student itself is not changed.

    Args:
        student: A trained convolutional network: Functional, or Sequential with an input.
        calibrate_on: A hundred or more real examples of the training set, which give the first
            ranges: a finite `tf.data.Dataset` of batches `x` or `(x, y, ...)`, or one array of
            examples.
        name: Name of the copy; that of the student if not given.

    Returns:
        A Functional `keras.Model` in float32, for the same inputs and outputs.

    Raises:
        TypeError: If `calibrate_on` is of another type.
        ValueError: If `student` is not a Keras model or has no graph, several inputs, channels
            first, layers or activations that are not known in int8 (the message lists them and
            those that are), a layer with weights that is called twice, a dilated convolution, or a
            normalization over another axis than the channels or of volumes; or if it was made here
            already; or if `calibrate_on` is empty or endless, or gives values that are not finite.

    References:
        Jacob et al., arXiv 1712.05877. Distilling under fake quantization: Polino et al.,
        arXiv 1802.05668 (there with learned positions of the levels).

    Example:
    ```python
    aware = quantization_aware(student, calibrate_on=images)
    distiller = Distiller(teacher, aware, recipes.vid(teacher, aware))
    distiller.compile(keras.optimizers.Adam(1e-4), loss)
    distiller.fit(images, labels, epochs=10)
    export_tflite(aware, "student.tflite", quantize="int8", check_on=images)
    ```
    """
    checks.model("student", student)
    if not has_graph(student) or len(student.inputs) != 1:
        raise ValueError(
            "Expected `student` to be a Functional model with one input, or a Sequential one that "
            f"has an input. Received: {type(student).__name__} {student.name!r}. A model within a "
            "subclassed one can be rewritten by itself."
        )
    check_channels_last(student)
    batches = checked_batches("calibrate_on", calibrate_on, student)
    if batches is None:
        raise ValueError(
            "Expected `calibrate_on` to be real examples, which give the ranges of the "
            "activations. Received: calibrate_on=None"
        )
    copy = _Rewriting(student).copy(name or student.name)
    _calibrate(copy, batches)
    return copy


def is_quantization_aware(model: keras.Model) -> bool:
    """Tells whether a model came out of `quantization_aware`.

    Its int8 file takes no examples to calibrate on.

    Args:
        model: A Keras model.

    Returns:
        Whether one of its layers rounds as an int8 tensor does.

    Example:
    ```python
    assert is_quantization_aware(quantization_aware(student, calibrate_on=images))
    ```
    """
    return any(isinstance(layer, FakeQuantize) for layer in keras_internals.layers_of(model))


def _calibrate(model, batches):
    """Gives activations the mean of the smallest and of the largest values in the batches.

    Means clip a little of what was seen. Without a clipped value a range would have no gradient.
    """
    quantizers = [layer for layer in model.layers if isinstance(layer, FakeQuantize)]
    extremes = []
    for x in inputs_in("calibrate_on", batches):
        for quantizer in quantizers:
            quantizer.begin_observing()
        outputs = model(keras.tree.flatten(x)[0], training=False)
        if not all(np.isfinite(value).all() for value in keras.tree.flatten(outputs)):
            raise ValueError(
                "Expected examples on which the student is finite. Received: a batch of "
                "`calibrate_on` with NaN or infinity in it or in the student's outputs"
            )
        extremes.append([quantizer.end_observing() for quantizer in quantizers])
    for quantizer, (low, high) in zip(quantizers, np.mean(extremes, axis=0), strict=True):
        quantizer.set_range(low, high)


class _Rewriting:
    """The calls of a network, and which of them an int8 file computes as one."""

    def __init__(self, model):
        graph = LayerGraph(model)
        _check_calls(graph.calls)
        self._calls, self._outputs = primitives(graph)
        self._ends = ends(model)
        self._readers = [[] for _ in self._calls]
        for position, call in enumerate(self._calls):
            for parent in call.parents:
                self._readers[parent].append(position)
        self._normalized = {
            call.parents[0]: call.layer
            for position, call in enumerate(self._calls)
            if self._belongs_to_kernel(position)
        }
        self._check()

    def copy(self, name):
        """Returns the rewritten network."""
        self._made = []
        for position, call in enumerate(self._calls):
            feeds = [self._made[parent] for parent in call.parents]
            self._made.append(self._rewritten(position, call, feeds))
        outputs = [self._made[position] for position in self._outputs]
        return keras.Model(
            self._input, keras.tree.pack_sequence_as(self._ends[1], outputs), name=name
        )

    def _check(self):
        _check_kinds(self._calls)
        for call in self._calls:
            _check_layer(call)
            if isinstance(call.layer, layers.BatchNormalization):
                _check_axis(call)
        for position, call in enumerate(self._calls):
            if isinstance(call.layer, _NORMALIZATIONS) and not self._belongs_to_kernel(position):
                _check_affine(call)

    def _rewritten(self, position, call, feeds):
        """Returns the tensor that stands for the result of a call."""
        layer, name = call.layer, call.path.replace("/", ".").replace("@", ".")
        activation = _activation(layer)
        if isinstance(layer, layers.InputLayer):
            self._input = keras.Input(layer.batch_shape[1:], dtype="float32", name=name)
            return _quantized(name, self._input)
        if isinstance(layer, layers.BatchNormalization):
            in_kernel = self._belongs_to_kernel(position)
            if in_kernel and isinstance(self._calls[call.parents[0]].layer, layers.Dense):
                return layers.Identity(name=name, dtype="float32")(feeds[0])
            value = _with_weights(layer, name, feeds[0])
        elif isinstance(layer, layers.Rescaling):
            value = affine(name, feeds[0], layer.scale, layer.offset)
        elif type(layer) in _WITH_KERNEL:
            normalization = self._normalized.get(position)
            value = _with_kernel(name, layer, normalization, feeds[0])
            if activation not in _FUSED:
                own = _activating(layer)
                named = f"{name}_{activation}"
                options = () if own is layer else (own,)
                return _activated(named, activation, _quantized(name, value), *options)
            if normalization is not None and not isinstance(layer, layers.Dense):
                return value
        elif activation not in _FUSED:
            return _activated(name, activation, feeds[0], _activating(layer))
        else:
            value = _again(_activating(layer), name)(feeds[0] if len(feeds) == 1 else feeds)
            if isinstance(layer, layers.AveragePooling2D):
                return self._quantizer_behind(*call.parents)(value)
            if isinstance(layer, _AS_BEFORE + _AUGMENTATIONS) or _is_linear(layer):
                return value
        # Of what is no map, a file makes one, and a ReLU behind it stays by itself.
        is_reshaped = isinstance(layer, _NORMALIZATIONS) and len(value.shape) != 4
        if self._meets_relu(position) and not is_reshaped:
            return value
        return _quantized(name, value)

    def _quantizer_behind(self, position):
        """Returns the layer that rounds a result, or what it was made from at the same scale."""
        while not isinstance(keras_internals.operation_of(self._made[position]), FakeQuantize):
            (position,) = self._calls[position].parents
        return keras_internals.operation_of(self._made[position])

    def _belongs_to_kernel(self, position):
        """Whether a call is a BatchNorm that a file has in the kernel before it."""
        call = self._calls[position]
        if not isinstance(call.layer, layers.BatchNormalization):
            return False
        (before,) = call.parents
        return (
            type(self._calls[before].layer) in _WITH_KERNEL
            and _activation(self._calls[before].layer) == "linear"
            and self._readers[before] == [position]
            and before not in self._outputs
        )

    def _meets_relu(self, position):
        """Whether nothing but a ReLU reads a result, so that LiteRT computes both as one."""
        while len(self._readers[position]) == 1 and position not in self._outputs:
            (position,) = self._readers[position]
            layer = self._calls[position].layer
            if isinstance(layer, _ACTIVATION_LAYERS) and not _is_linear(layer):
                return _activation(layer) in _FUSED
            folded = self._belongs_to_kernel(position)
            if not (isinstance(layer, _IDLE) or _is_linear(layer) or folded):
                return False
        return False


def _check_calls(calls):
    """Checks that the weights of every layer are used once."""
    times = collections.Counter(id(call.layer) for call in calls)
    for call in calls:
        if times[id(call.layer)] > 1 and getattr(call.layer, "weights", None):
            raise ValueError(
                "Expected layers with weights that are called once: the values of two calls have "
                f"two ranges. Received: {call.layer.name!r}, called {times[id(call.layer)]} times"
            )


def _check_kinds(calls):
    """Refuses layers and activations that are not known in int8, all of them in one message."""
    if any(isinstance(call.layer, FakeQuantize) for call in calls):
        raise ValueError(
            "Expected a student without int8's rounding. Received: one of `quantization_aware`; "
            "train it as it is, or begin with the student that it was made from."
        )
    unknown = collections.Counter()
    for call in calls:
        kind, activation = type(call.layer), _activation(call.layer)
        if not _is_known(call.layer):
            own = kind.__module__.partition(".")[0]
            is_layer = isinstance(call.layer, layers.Layer)
            unknown[f"{kind.__name__} ({own})" if is_layer else f"operation {kind.__name__}"] += 1
        elif activation not in _KNOWN_ACTIVATIONS:
            unknown[f"activation {activation}"] += 1
    if unknown:
        received = ", ".join(f"{count} x {kind}" for kind, count in unknown.most_common())
        raise ValueError(
            f"Expected layers that are known in int8: {', '.join(x.__name__ for x in _KNOWN)}, "
            "augmentation, arithmetic with numbers, and the activations "
            f"{', '.join(_KNOWN_ACTIVATIONS)}. Received: {received}. "
            'export_tflite(quantize="int8") takes them, in float32 where LiteRT has no operator.'
        )


def _is_known(layer):
    return type(layer) in _KNOWN or isinstance(layer, _AUGMENTATIONS)


def _check_layer(call):
    layer = call.layer
    dilation = getattr(layer, "dilation_rate", 1)
    if np.any(np.asarray(dilation) > 1):
        raise ValueError(
            "Expected convolutions without dilation: the file of others keeps operators in "
            f"float32. Received: {call.path!r} with dilation_rate={dilation}. "
            'export_tflite(quantize="int8") takes them.'
        )


def _check_axis(call):
    """Checks that a BatchNorm is over the channels, so that it may be a part of a kernel."""
    if call.layer.axis not in (-1, len(call.shapes[0]) - 1):
        raise ValueError(
            "Expected batch normalization over the last axis, the channels. Received: "
            f"{call.path!r} with axis={call.layer.axis}"
        )


def _check_affine(call):
    """Checks what becomes a depthwise 1x1 convolution."""
    if len(call.shapes[0]) not in (2, 3, 4):
        raise ValueError(
            "Expected normalization of vectors, tokens or feature maps. Received: "
            f"{call.path!r}, whose output has the shape {call.shapes[0]}"
        )


def _activation(layer):
    """Returns the name of a layer's activation, "linear" if it has none."""
    if isinstance(layer, layers.ReLU):
        options = (layer.max_value, float(layer.negative_slope or 0), float(layer.threshold or 0))
        known = {(None, 0.0, 0.0): "relu", (6.0, 0.0, 0.0): "relu6"}
        known[None, options[1], 0.0] = known.get((None, options[1], 0.0), "leaky_relu")
        return known.get(options, f"ReLU(max_value, negative_slope, threshold = {options})")
    if isinstance(layer, layers.LeakyReLU):
        return "leaky_relu"
    if isinstance(layer, layers.Softmax):
        return "softmax"
    own = getattr(layer, "activation", None)
    if isinstance(own, _ACTIVATION_LAYERS):
        return _activation(own)
    return "linear" if own is None else getattr(own, "__name__", repr(own))


def _activating(layer):
    """Returns the layer that activates: the one given as `activation=`, or the layer itself."""
    own = getattr(layer, "activation", None)
    return own if isinstance(own, layers.Layer) else layer


def _is_linear(layer):
    return isinstance(layer, _ACTIVATION_LAYERS) and _activation(layer) == "linear"


def _again(layer, name):
    """Returns a new layer of the same kind in float32; it has no weights."""
    return type(layer).from_config(layer.get_config() | {"name": name, "dtype": "float32"})


def _quantized(name, value, limits=None):
    return FakeQuantize(limits, name=f"{name}_quantized", dtype="float32")(value)


def _activated(name, activation, value, layer=None):
    """Applies an activation that is an operator by itself to a quantized value, and quantizes."""
    if activation == "silu":
        gate = layers.Activation("sigmoid", name=f"{name}_sigmoid", dtype="float32")(value)
        gate = _quantized(f"{name}_sigmoid", gate, _FIXED_LIMITS["sigmoid"])
        result = layers.Multiply(name=name, dtype="float32")([value, gate])
    elif activation == "hard_sigmoid":
        result = on_map(name, value, _hard_sigmoid)
    elif layer is None:
        result = layers.Activation(activation, name=name, dtype="float32")(value)
    else:
        result = _again(layer, name)(value)
    return _quantized(name, result, _FIXED_LIMITS.get(activation))


def _hard_sigmoid(name, value):
    """Returns `relu6(x + 3) / 6` of a map: LiteRT has no operator for it."""
    shifted = layers.ReLU(6.0, name=f"{name}_relu6")(affine(f"{name}_shifted", value, 1.0, 3.0))
    return affine(name, _quantized(f"{name}_shifted", shifted, (0.0, 6.0)), 1 / 6, 0.0)


def _with_weights(layer, name, value):
    """Applies a copy of a layer in float32, with its weights."""
    new = _again(layer, name)
    result = new(value)
    new.set_weights(layer.get_weights())
    return result


def _with_kernel(name, layer, normalization, value):
    """Applies a layer with its kernel rounded.

    The scales of a convolution are those of its channels, so BatchNorm may follow, and be
    multiplied in when a file is written. A dense kernel has one scale: it takes it in here.
    """
    activation = _activation(layer)
    changed = {"name": name, "dtype": "float32"}
    changed["activation"] = activation if activation in _FUSED else "linear"
    config = layer.get_config() | changed
    config.pop("lora_rank", None)  # The kernel below has it in it.
    weights = [numpy(layer.kernel), *([numpy(layer.bias)] if layer.use_bias else [])]
    if normalization is not None and isinstance(layer, layers.Dense):
        weights, config["use_bias"] = folded_weights(layer, normalization), True
    new = _WITH_KERNEL[type(layer)].from_config(config)
    result = new(value)
    new.set_weights(weights)
    return result

"""Layers that compute what an int8 file computes, in float32 and with gradients.

`quantization_aware` puts them into a student. The converter of LiteRT reads their ranges, and makes
int8 tensors with the same scales.
"""

import keras
import numpy as np
from keras import ops

from keras_mikd import checks

# The largest weight of a channel has a gradient, although its limit is rounded.
_SLACK = 1.0 + 1e-6
_SMALLEST_RANGE = 1e-6


@keras.saving.register_keras_serializable("keras_mikd")
class _NotAbove(keras.constraints.Constraint):
    """Keeps the end of a range on its side of zero, which every range holds."""

    def __init__(self, limit):
        self.limit = limit

    def __call__(self, value):
        return ops.minimum(value, self.limit)

    def get_config(self):
        return {"limit": self.limit}


@keras.saving.register_keras_serializable("keras_mikd")
class _NotBelow(_NotAbove):
    def __call__(self, value):
        return ops.maximum(value, self.limit)


@keras.saving.register_keras_serializable("keras_mikd")
class FakeQuantize(keras.layers.Layer):
    """Rounds a tensor to the 256 values that an int8 tensor of a range can have.

    The range is trained with the network: a value outside is clipped, and its gradient moves the
    end that clipped it. A value inside passes its gradient on as if it were not rounded.

    Args:
        limits: `(minimum, maximum)` of a range that stays what it is, or `None` to learn it. The
            minimum is at most 0 and the maximum above 0.
        **kwargs: Keyword arguments of `keras.layers.Layer`.

    Attributes:
        minimum: Scalar variable, at most 0.
        maximum: Scalar variable, above 0.

    References:
        Jacob et al., Quantization and Training of Neural Networks for Efficient
        Integer-Arithmetic-Only Inference, arXiv 1712.05877, section 3.
    """

    def __init__(self, limits=None, **kwargs):
        super().__init__(**kwargs)
        self.limits = limits
        if limits is not None:
            checks.number("limits[0]", limits[0], at_most=0.0)
            checks.number("limits[1]", limits[1], at_least=_SMALLEST_RANGE)
        self._extremes = None

    def build(self, input_shape):
        del input_shape
        self.minimum = self._end("minimum", 0, -1.0, _NotAbove(0.0))
        self.maximum = self._end("maximum", 1, 1.0, _NotBelow(_SMALLEST_RANGE))

    def _end(self, name, position, default, constraint):
        return self.add_weight(
            name=name,
            initializer=keras.initializers.Constant(
                default if self.limits is None else self.limits[position]
            ),
            trainable=self.limits is None,
            constraint=constraint,
            dtype="float32",
        )

    def call(self, inputs):
        if self._extremes is not None:
            low, high = self._extremes
            self._extremes = (min(low, float(ops.min(inputs))), max(high, float(ops.max(inputs))))
            return inputs
        return keras.quantizers.fake_quant_with_min_max_vars(inputs, self.minimum, self.maximum)

    def begin_observing(self):
        """Passes values on as they are, and keeps the smallest and the largest."""
        self._extremes = (np.inf, -np.inf)

    def end_observing(self):
        """Rounds again, and returns the smallest and the largest value since `begin_observing`."""
        extremes, self._extremes = self._extremes, None
        return extremes

    def set_range(self, minimum, maximum):
        """Sets the range, widened to hold zero; a range that is fixed stays what it is."""
        if self.limits is None:
            self.minimum.assign(min(minimum, 0.0))
            self.maximum.assign(max(maximum, _SMALLEST_RANGE))

    def get_config(self):
        return super().get_config() | {"limits": self.limits}


@keras.saving.register_keras_serializable("keras_mikd")
class FakeQuantizedConv2D(keras.layers.Conv2D):
    """A convolution whose kernel is rounded to int8, with a scale for every output channel."""

    def convolution_op(self, inputs, kernel):
        return super().convolution_op(inputs, _rounded(kernel))


@keras.saving.register_keras_serializable("keras_mikd")
class FakeQuantizedDepthwiseConv2D(keras.layers.DepthwiseConv2D):
    """A depthwise convolution whose kernel is rounded to int8, with a scale for every channel."""

    def call(self, inputs):
        *size, channels, multiplier = self.kernel.shape
        # A scale belongs to an output channel, of which there are `channels * multiplier`.
        kernel = _rounded(ops.reshape(self.kernel, (*size, channels * multiplier)))
        outputs = ops.depthwise_conv(
            inputs,
            ops.reshape(kernel, self.kernel.shape),
            strides=self.strides,
            padding=self.padding,
            data_format=self.data_format,
            dilation_rate=self.dilation_rate,
        )
        return self.activation(outputs + self.bias if self.use_bias else outputs)


@keras.saving.register_keras_serializable("keras_mikd")
class FakeQuantizedRescaling(FakeQuantizedDepthwiseConv2D):
    """A rescaling of channels by constants, as the depthwise convolution that int8 has for it."""

    # `stages` counts it as what it stands for.
    has_learned_kernel = False


@keras.saving.register_keras_serializable("keras_mikd")
class FakeQuantizedDense(keras.layers.Dense):
    """A dense layer whose kernel is rounded to int8 with one scale, which every runtime knows."""

    def call(self, inputs, training=None):
        del training
        # As vectors: to the product of a map, LiteRT would add the bias in float32.
        is_map = len(inputs.shape) > 2
        vectors = ops.reshape(inputs, (-1, inputs.shape[-1])) if is_map else inputs
        outputs = ops.matmul(vectors, _rounded(self.kernel, axis=None))
        outputs = self.activation(outputs + self.bias if self.use_bias else outputs)
        places = ops.shape(inputs)[1:-1]
        return ops.reshape(outputs, (-1, *places, self.units)) if is_map else outputs


def _rounded(kernel, axis=-1):
    """Rounds to -127 ... 127 times a scale, that of the largest absolute weight."""
    others = None if axis is None else tuple(range(len(kernel.shape) - 1))
    largest = ops.max(ops.abs(ops.stop_gradient(kernel)), axis=others)
    limit = ops.maximum(largest * _SLACK, _SMALLEST_RANGE)
    return keras.quantizers.fake_quant_with_min_max_vars(
        kernel, -limit, limit, narrow_range=True, axis=axis
    )

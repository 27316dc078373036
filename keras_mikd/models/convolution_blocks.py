"""What the networks of this package share: convolutions, BatchNorm, blocks, classifier, checks."""

import math
from typing import Any

import keras
from keras import initializers, layers

from keras_mikd import checks


def check_model_arguments(*, num_classes, input_shape, smallest=4):
    """Raises a ValueError unless the two describe an image classifier.

    `smallest` is the height and width of which the last stage has a pixel: 4 with three stages.
    """
    checks.integer("num_classes", num_classes, at_least=2)
    check_sizes("input_shape", input_shape, at_least=(smallest, smallest, 1))


def check_sizes(argument, sizes, *, at_least):
    """Raises a ValueError unless `sizes` are as many ints as `at_least`, none below its limit."""
    if len(sizes) != len(at_least):
        raise ValueError(
            f"Expected `{argument}` to be {len(at_least)} ints. Received: {argument}={sizes!r}"
        )
    for position, (size, limit) in enumerate(zip(sizes, at_least, strict=True)):
        checks.integer(f"{argument}[{position}]", size, at_least=limit)


def convolution(
    x,
    filters,
    *,
    kernel_size=3,
    strides=1,
    use_bias=False,
    initializer="he",
    kernel_regularizer=None,
    name,
):
    """Applies a convolution that pads and initialises as PyTorch's networks do.

    By default the kernel is drawn from a normal distribution of variance
    2 / (kernel_size^2 * filters), which is He initialisation by fan-out. With `"pytorch"` it is
    drawn as PyTorch does where a network says nothing, uniform within `±1 / sqrt(fan_in)`. A bias
    starts at 0. Maps of shape `(batch, height, width, channels)` become
    `(batch, ceil(height / strides), ceil(width / strides), filters)`.
    """
    x, padding = _padded(x, kernel_size, strides, name)
    return layers.Conv2D(
        filters,
        kernel_size,
        strides=strides,
        padding=padding,
        use_bias=use_bias,
        kernel_initializer=_scaled(initializer, he="fan_out", pytorch="fan_in"),
        kernel_regularizer=kernel_regularizer,
        name=name,
    )(x)


def depthwise_convolution(x, *, strides=1, initializer="he", kernel_regularizer=None, name):
    """Applies a 3x3 convolution to every channel by itself; padding and start as in `convolution`.

    `"he"` counts all channels, as the benchmark's MobileNetV2 does.
    """
    x, padding = _padded(x, 3, strides, name)
    return layers.DepthwiseConv2D(
        3,
        strides=strides,
        padding=padding,
        use_bias=False,
        # Keras takes the channels of this kernel for inputs.
        depthwise_initializer=_scaled(initializer, he="fan_in", pytorch="fan_out"),
        depthwise_regularizer=kernel_regularizer,
        name=name,
    )(x)


def _padded(x, kernel_size, strides, name):
    """Returns what to convolve, and with which padding."""
    if strides == 1 or kernel_size == 1:
        return x, "same"
    # "same" would pad an even image at the bottom right only, one pixel off the 1x1 shortcut.
    return layers.ZeroPadding2D(kernel_size // 2, name=f"{name}_pad")(x), "valid"


def _scaled(initializer, *, he, pytorch):
    if initializer == "he":
        return initializers.VarianceScaling(2.0, he, "untruncated_normal")
    return initializers.VarianceScaling(1 / 3, pytorch, "uniform")


def batch_normalization(x, *, name):
    """Applies BatchNorm with PyTorch's defaults: Keras' 0.99 starves runs of few steps."""
    return layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=name)(x)


def classifier(
    x, num_classes, *, kernel_regularizer=None, initializer="glorot_uniform", bias_too=False
):
    """Returns logits of shape `(batch, num_classes)` from maps: the layers "pooled", "logits".

    The initializer is that of the kernel, and `"pytorch"` stands for PyTorch's default, uniform
    within `±1 / sqrt(channels)`. With `bias_too` the bias starts in the same way, and else at 0.
    """
    x = layers.GlobalAveragePooling2D(name="pooled")(x)
    bias = "zeros"
    if initializer == "pytorch":
        limit = 1 / math.sqrt(x.shape[-1])
        initializer = initializers.RandomUniform(-limit, limit)
        bias = initializers.RandomUniform(-limit, limit) if bias_too else bias
    return layers.Dense(
        num_classes,
        kernel_initializer=initializer,
        bias_initializer=bias,
        kernel_regularizer=kernel_regularizer,
        name="logits",
    )(x)


def residual_stages(x, block, *, widths, num_blocks, first_stage=1, first_strides=1):
    """Applies one stage of residual blocks for each width, at half the size from the second on.

    `block` is a function `(x, filters, *, strides, prefix, name) -> x`. The names of its layers
    start with `prefix`. The last layer of a stage has the `name` "stage1_output" and so on, counted
    from `first_stage`. `num_blocks` are the blocks of each stage; the first block of the first one
    has `first_strides`.
    """
    for position, (filters, count) in enumerate(zip(widths, num_blocks, strict=True)):
        stage = first_stage + position
        strides = 2 if position > 0 else first_strides
        for number in range(1, count + 1):
            x = block(
                x,
                filters,
                strides=strides if number == 1 else 1,
                prefix=f"stage{stage}_block{number}",
                name=f"stage{stage}_output" if number == count else None,
            )
    return x


def basic_block(convolve, x, filters, *, strides, prefix, name):
    """Applies two 3x3 convolutions with a shortcut, the block of the smaller ResNets.

    `convolve` is `convolution` with its regularizer. A `name` of `None` is chosen from the prefix.
    """
    shortcut = projected_shortcut(convolve, x, filters, strides=strides, prefix=prefix)
    x = convolve(x, filters, strides=strides, name=f"{prefix}_conv1")
    x = layers.ReLU(name=f"{prefix}_relu1")(batch_normalization(x, name=f"{prefix}_bn1"))
    x = batch_normalization(convolve(x, filters, name=f"{prefix}_conv2"), name=f"{prefix}_bn2")
    x = layers.Add(name=f"{prefix}_add")([x, shortcut])
    return layers.ReLU(name=name or f"{prefix}_relu2")(x)


def projected_shortcut(convolve, x, filters, *, strides, prefix):
    """Returns `x`, or where a block changes its shape, a 1x1 convolution of it with BatchNorm."""
    if strides == 1 and x.shape[-1] == filters:
        return x
    x = convolve(x, filters, kernel_size=1, strides=strides, name=f"{prefix}_shortcut_conv")
    return batch_normalization(x, name=f"{prefix}_shortcut_bn")


_PRESET = """`{build}` {summary} weights on CIFAR-100.

Args:
    num_classes: Number of classes, at least 2.
    input_shape: `(height, width, channels)` of an image.
    **kwargs: Other arguments of `{build}`.
"""


def preset(build, name, summary, **fixed):
    """Returns the function `name`, which is `build` with some arguments fixed."""

    def network(
        num_classes: int, input_shape: tuple[int, int, int] = (32, 32, 3), **kwargs: Any
    ) -> keras.Model:
        kwargs["name"] = kwargs.get("name") or name
        return build(num_classes=num_classes, input_shape=input_shape, **fixed, **kwargs)

    network.__name__ = network.__qualname__ = name
    network.__module__ = build.__module__
    network.__doc__ = _PRESET.format(build=build.__name__, summary=summary)
    return network

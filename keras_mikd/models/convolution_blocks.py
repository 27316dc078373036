"""What the networks of this package share: their convolution, BatchNorm, classifier and checks."""

import math

from keras import initializers, layers

from keras_mikd import checks


def check_model_arguments(*, num_classes, input_shape):
    """Raises a ValueError unless the two describe an image classifier of three stages."""
    checks.integer("num_classes", num_classes, at_least=2)
    # The last stage works at a quarter of the size.
    check_sizes("input_shape", input_shape, at_least=(4, 4, 1))


def check_sizes(argument, sizes, *, at_least):
    """Raises a ValueError unless `sizes` are as many ints as `at_least`, none below its limit."""
    if len(sizes) != len(at_least):
        raise ValueError(
            f"Expected `{argument}` to be {len(at_least)} ints. Received: {argument}={sizes!r}"
        )
    for position, (size, limit) in enumerate(zip(sizes, at_least, strict=True)):
        checks.integer(f"{argument}[{position}]", size, at_least=limit)


def convolution(x, filters, *, kernel_size=3, strides=1, kernel_regularizer=None, name):
    """Applies a convolution without bias that pads and initialises as PyTorch's networks do.

    The kernel is drawn from a normal distribution of variance 2 / (kernel_size^2 * filters), which
    is He initialisation by fan-out. Maps of shape `(batch, height, width, channels)` become
    `(batch, ceil(height / strides), ceil(width / strides), filters)`.
    """
    padding = "same"
    if strides > 1 and kernel_size > 1:
        # "same" would pad an even image at the bottom right only, one pixel off the 1x1 shortcut.
        x = layers.ZeroPadding2D(kernel_size // 2, name=f"{name}_pad")(x)
        padding = "valid"
    return layers.Conv2D(
        filters,
        kernel_size,
        strides=strides,
        padding=padding,
        use_bias=False,
        kernel_initializer=initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal"),
        kernel_regularizer=kernel_regularizer,
        name=name,
    )(x)


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


def residual_stages(x, block, *, widths, num_blocks):
    """Applies one stage of `num_blocks` residual blocks for each width, at half the size each time.

    `block` is a function `(x, filters, *, strides, prefix, name) -> x`. The names of its layers
    start with `prefix`. The last layer of a stage has the `name` "stage1_output" and so on.
    """
    for stage, filters in enumerate(widths, start=1):
        for number in range(1, num_blocks + 1):
            x = block(
                x,
                filters,
                strides=2 if stage > 1 and number == 1 else 1,
                prefix=f"stage{stage}_block{number}",
                name=f"stage{stage}_output" if number == num_blocks else None,
            )
    return x


def preset(build, name, summary, **fixed):
    """Returns the function `name`, which is `build` with some arguments fixed."""

    def network(num_classes, input_shape=(32, 32, 3), **kwargs):
        kwargs["name"] = kwargs.get("name") or name
        return build(num_classes=num_classes, input_shape=input_shape, **fixed, **kwargs)

    network.__name__ = network.__qualname__ = name
    network.__module__ = build.__module__
    network.__doc__ = f"`{build.__name__}` {summary} weights on CIFAR-100."
    return network

"""What the networks of this package share: their convolution, BatchNorm, classifier and checks."""

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

    The kernel is drawn from a normal distribution of variance 2 / (kernel_size^2 * filters): He
    initialisation by fan-out.

    Args:
        x: Shape `(batch, height, width, channels)`.
        filters: Output channels.
        kernel_size: 1 or 3.
        strides: 1 or 2.
        kernel_regularizer: Regularizer of the kernel, or None.
        name: Name of the layer.

    Returns:
        Shape `(batch, ceil(height / strides), ceil(width / strides), filters)`.
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


def classifier(x, num_classes, *, kernel_regularizer=None):
    """Returns logits of shape `(batch, num_classes)` from maps: the layers "pooled", "logits"."""
    x = layers.GlobalAveragePooling2D(name="pooled")(x)
    return layers.Dense(num_classes, kernel_regularizer=kernel_regularizer, name="logits")(x)


def residual_stages(x, block, *, widths, num_blocks):
    """Applies residual blocks, stage by stage, at the full, half, quarter, ... resolution.

    Args:
        x: Shape `(batch, height, width, channels)`.
        block: Function `(x, filters, *, strides, prefix, name) -> x` of one block. The names of its
            layers start with `prefix`; `name` is that of its last layer, or None.
        widths: Channels of the stages.
        num_blocks: Blocks in each stage.

    Returns:
        The last block's output. That of each stage is the layer "stage1_output" and so on.
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

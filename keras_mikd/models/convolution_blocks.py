"""What the networks of this package share: their convolution, BatchNorm, classifier and checks."""

import numbers

from keras import initializers, layers


def check_model_arguments(*, num_classes, input_shape):
    """Raises a ValueError unless the two describe an image classifier of three stages."""
    if not isinstance(num_classes, numbers.Integral) or num_classes < 2:
        raise ValueError(
            "Expected `num_classes` to be an integer of at least 2. "
            f"Received: num_classes={num_classes!r}"
        )
    height_width_channels = tuple(input_shape)
    if len(height_width_channels) != 3 or not all(
        isinstance(size, numbers.Integral) and size >= smallest
        for size, smallest in zip(height_width_channels, (4, 4, 1), strict=True)
    ):
        raise ValueError(
            "Expected `input_shape` to be (height, width, channels) of at least (4, 4, 1), since "
            f"the last stage works at a quarter of the size. Received: input_shape={input_shape!r}"
        )


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

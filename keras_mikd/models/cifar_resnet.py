"""The ResNets for 32x32 images that the CRD benchmark distils."""

import functools

import keras
from keras import layers

from keras_mikd import checks
from keras_mikd.models.convolution_blocks import (
    basic_block,
    batch_normalization,
    check_model_arguments,
    check_sizes,
    classifier,
    convolution,
    preset,
    residual_stages,
)


def cifar_resnet(
    *,
    depth: int,
    widths: tuple[int, int, int, int] = (16, 16, 32, 64),
    num_classes: int,
    input_shape: tuple[int, int, int] = (32, 32, 3),
    kernel_regularizer: keras.Regularizer | str | None = None,
    classifier_initializer: keras.Initializer | str = "pytorch",
    name: str | None = None,
) -> keras.Model:
    """Builds a residual network of three stages, at the full, half and quarter resolution.

    A 3x3 convolution is followed by three stages of `(depth - 2) / 6` basic blocks, global average
    pooling and a linear classifier. A block that changes the shape has a 1x1 convolution with
    BatchNorm on its shortcut. The layers "stage1_output" to "stage3_output" are the stage outputs,
    after the ReLU. The layer "pooled" is the vector before the classifier.

    Args:
        depth: Number of layers with weights, 6n + 2: 8, 14, 20, 32, 44, 56, 110.
        widths: Channels of the stem and of the three stages.
        num_classes: Number of classes, at least 2.
        input_shape: `(height, width, channels)`, at least `(4, 4, 1)`.
        kernel_regularizer: Regularizer of every convolution and of the classifier, or None.
        classifier_initializer: First weights of the classifier: `"pytorch"`, as in the benchmark,
            uniform within `±1 / sqrt(channels)`, its bias too; or a Keras initializer of the
            kernel, such as `"glorot_uniform"`, with a bias of 0.
        name: Name of the model; None is "resnet" and the depth.

    Returns:
        A Functional model from images to logits, shape `(batch, num_classes)`.

    Raises:
        ValueError: If an argument is out of range.

    References:
        He et al., Deep Residual Learning for Image Recognition, arXiv 1512.03385, section 4.2;
        widths and shortcuts from the CRD benchmark (HobbitLong/RepDistiller, models/resnet.py).

    Example:
    ```python
    student = cifar_resnet(depth=8, widths=(32, 64, 128, 256), num_classes=100)
    ```
    """
    check_model_arguments(num_classes=num_classes, input_shape=input_shape)
    if checks.integer("depth", depth, at_least=8) % 6 != 2:
        raise ValueError(f"Expected `depth` to be 6n + 2, as 8, 14, 20. Received: depth={depth}")
    check_sizes("widths", widths, at_least=(1, 1, 1, 1))
    convolve = functools.partial(convolution, kernel_regularizer=kernel_regularizer)
    inputs = keras.Input(input_shape, name="image")
    x = batch_normalization(convolve(inputs, widths[0], name="stem_conv"), name="stem_bn")
    x = residual_stages(
        layers.ReLU(name="stem")(x),
        functools.partial(basic_block, convolve),
        widths=widths[1:],
        num_blocks=[(depth - 2) // 6] * 3,
    )
    logits = classifier(
        x,
        num_classes,
        kernel_regularizer=kernel_regularizer,
        initializer=classifier_initializer,
        bias_too=True,
    )
    return keras.Model(inputs, logits, name=name or f"resnet{depth}")


resnet8 = preset(cifar_resnet, "resnet8", "of depth 8: 83,892", depth=8)
resnet14 = preset(cifar_resnet, "resnet14", "of depth 14: 181,108", depth=14)
resnet20 = preset(cifar_resnet, "resnet20", "of depth 20: 278,324", depth=20)
resnet32 = preset(cifar_resnet, "resnet32", "of depth 32: 472,756", depth=32)
resnet44 = preset(cifar_resnet, "resnet44", "of depth 44: 667,188", depth=44)
resnet56 = preset(cifar_resnet, "resnet56", "of depth 56: 861,620", depth=56)
resnet110 = preset(cifar_resnet, "resnet110", "of depth 110: 1,736,564", depth=110)

# The stem is only twice as wide, as in the benchmark's code.
_TIMES_FOUR = (32, 64, 128, 256)
resnet8x4 = preset(
    cifar_resnet,
    "resnet8x4",
    "of depth 8, four times as wide: 1,233,540",
    depth=8,
    widths=_TIMES_FOUR,
)
resnet32x4 = preset(
    cifar_resnet,
    "resnet32x4",
    "of depth 32, four times as wide: 7,433,860",
    depth=32,
    widths=_TIMES_FOUR,
)

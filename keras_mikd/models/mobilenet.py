"""MobileNetV2 for small images."""

import functools

import keras
from keras import initializers, layers

from keras_mikd import checks
from keras_mikd.models.convolution_blocks import (
    batch_normalization,
    check_model_arguments,
    classifier,
    convolution,
    depthwise_convolution,
    preset,
)

# Expansion, channels, blocks and stride of the first block; the stride of the second group is 1.
_GROUPS = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
# Positions of the groups with which a resolution ends.
_LAST_OF_STAGE = {1: "stage1_output", 2: "stage2_output", 4: "stage3_output", 6: "stage4_output"}
_LAST_CHANNELS = 1280


def mobilenet_v2(
    *,
    width: float,
    num_classes: int,
    input_shape: tuple[int, int, int] = (32, 32, 3),
    kernel_regularizer: keras.Regularizer | str | None = None,
    classifier_initializer: keras.Initializer | str = "pytorch",
    name: str | None = None,
) -> keras.Model:
    """Builds the CRD benchmark's MobileNetV2: inverted residuals, from half the size on.

    The layers "stage1_output" to "stage4_output" are the linear outputs of the last block at a
    half, a quarter, an eighth and a sixteenth of the size, which the benchmark reads. `stages`
    finds what follows at the same size: the expansion of the next block, and the last 1x1
    convolution, both after their ReLU; the recipes take the benchmark's places with `raw=True`. The
    layer "pooled" is the vector before the classifier, of 1280 channels.

    Args:
        width: Factor on the channels of all blocks and of the stem, at least 1/16 and at most 1.
        num_classes: Number of classes, at least 2.
        input_shape: `(height, width, channels)`, at least `(16, 16, 1)`.
        kernel_regularizer: Regularizer of every convolution and of the classifier, or None.
        classifier_initializer: First kernel of the classifier: `"pytorch"`, as in the benchmark's
            code, normal with a standard deviation of 0.01; or a Keras initializer. The bias starts
            at 0.
        name: Name of the model; None is "mobilenet_v2".

    Returns:
        A Functional model from images to logits, shape `(batch, num_classes)`.

    Raises:
        ValueError: If an argument is out of range.

    References:
        Sandler et al., MobileNetV2: Inverted Residuals and Linear Bottlenecks, arXiv 1801.04381;
        strides, ReLU and an expansion of the first block too from the CRD benchmark
        (HobbitLong/RepDistiller, models/mobilenetv2.py).

    Example:
    ```python
    student = mobilenet_v2(width=0.5, num_classes=100)
    ```
    """
    checks.number("width", width, at_least=1 / 16, at_most=1)
    check_model_arguments(num_classes=num_classes, input_shape=input_shape, smallest=16)
    convolve = functools.partial(convolution, kernel_regularizer=kernel_regularizer)
    depthwise = functools.partial(depthwise_convolution, kernel_regularizer=kernel_regularizer)
    inputs = keras.Input(input_shape, name="image")
    x = convolve(inputs, int(32 * width), strides=2, name="stem_conv")
    x = layers.ReLU(name="stem")(batch_normalization(x, name="stem_bn"))
    for group, (expansion, channels, count, strides) in enumerate(_GROUPS):
        for number in range(1, count + 1):
            x = _inverted_residual(
                (convolve, depthwise),
                x,
                int(channels * width),
                expansion=expansion,
                strides=strides if number == 1 else 1,
                prefix=f"group{group + 1}_block{number}",
                name=_LAST_OF_STAGE.get(group) if number == count else None,
            )
    x = convolve(x, _LAST_CHANNELS, kernel_size=1, name="final_conv")
    x = layers.ReLU(name="final_relu")(batch_normalization(x, name="final_bn"))
    if classifier_initializer == "pytorch":
        classifier_initializer = initializers.RandomNormal(stddev=0.01)
    logits = classifier(
        x,
        num_classes,
        kernel_regularizer=kernel_regularizer,
        initializer=classifier_initializer,
    )
    return keras.Model(inputs, logits, name=name or "mobilenet_v2")


def _inverted_residual(convolutions, x, filters, *, expansion, strides, prefix, name):
    convolve, depthwise = convolutions
    before = x
    x = convolve(x, expansion * x.shape[-1], kernel_size=1, name=f"{prefix}_expand_conv")
    x = layers.ReLU(name=f"{prefix}_relu1")(batch_normalization(x, name=f"{prefix}_expand_bn"))
    x = depthwise(x, strides=strides, name=f"{prefix}_depthwise_conv")
    x = layers.ReLU(name=f"{prefix}_relu2")(batch_normalization(x, name=f"{prefix}_depthwise_bn"))
    x = convolve(x, filters, kernel_size=1, name=f"{prefix}_project_conv")
    if strides > 1 or before.shape[-1] != filters:
        return batch_normalization(x, name=name or f"{prefix}_project_bn")
    x = batch_normalization(x, name=f"{prefix}_project_bn")
    return layers.Add(name=name or f"{prefix}_add")([before, x])


mobilenet_v2_half = preset(
    mobilenet_v2, "mobilenet_v2_half", "of half the width: 812,836", width=0.5
)

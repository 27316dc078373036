"""Wide residual networks for 32x32 images."""

import functools

import keras
from keras import layers

from keras_mikd import checks
from keras_mikd.models.convolution_blocks import (
    batch_normalization,
    check_model_arguments,
    classifier,
    convolution,
    preset,
    residual_stages,
)


def wide_resnet(
    *,
    depth: int,
    width: int,
    num_classes: int,
    input_shape: tuple[int, int, int] = (32, 32, 3),
    kernel_regularizer: keras.Regularizer | str | None = None,
    classifier_initializer: keras.Initializer | str = "pytorch",
    name: str | None = None,
) -> keras.Model:
    """Builds a pre-activation residual network, `width` times as wide as a ResNet of that depth.

    A 3x3 convolution of 16 channels is followed by three stages of `(depth - 4) / 6` blocks,
    BatchNorm and ReLU, global average pooling and a linear classifier. The stages have 16, 32 and
    64 times `width` channels, at the full, half and quarter resolution. The layer "pooled" is the
    vector before the classifier.

    The layers "stage1_output" to "stage3_output" are the raw stage outputs, which VID's code and
    the CRD benchmark distil. `stages` finds the activations after them; the recipes take the raw
    outputs with `raw=True`.

    Args:
        depth: Number of layers with weights, 6n + 4: 10, 16, 22, 28, 40.
        width: Factor on the channels, at least 1.
        num_classes: Number of classes, at least 2.
        input_shape: `(height, width, channels)`, at least `(4, 4, 1)`.
        kernel_regularizer: Regularizer of every convolution and of the classifier, or None.
        classifier_initializer: First kernel of the classifier: `"pytorch"`, as in the benchmark,
            uniform within `±1 / sqrt(channels)`; or a Keras initializer. The bias starts at 0.
        name: Name of the model; None is "wrn", the depth and the width.

    Returns:
        A Functional model from images to logits, shape `(batch, num_classes)`.

    Raises:
        ValueError: If an argument is out of range.

    References:
        Zagoruyko and Komodakis, Wide Residual Networks, arXiv 1605.07146; shortcuts and the lack of
        dropout from the CRD benchmark (HobbitLong/RepDistiller, models/wrn.py).

    Example:
    ```python
    student = wide_resnet(depth=16, width=1, num_classes=10)
    ```
    """
    check_model_arguments(num_classes=num_classes, input_shape=input_shape)
    if checks.integer("depth", depth, at_least=10) % 6 != 4:
        raise ValueError(f"Expected `depth` to be 6n + 4, as 16, 28, 40. Received: depth={depth}")
    checks.integer("width", width, at_least=1)
    convolve = functools.partial(convolution, kernel_regularizer=kernel_regularizer)
    inputs = keras.Input(input_shape, name="image")
    x = residual_stages(
        convolve(inputs, 16, name="stem_conv"),
        functools.partial(_preactivation_block, convolve),
        widths=(16 * width, 32 * width, 64 * width),
        num_blocks=[(depth - 4) // 6] * 3,
    )
    x = layers.ReLU(name="final_relu")(batch_normalization(x, name="final_bn"))
    logits = classifier(
        x,
        num_classes,
        kernel_regularizer=kernel_regularizer,
        initializer=classifier_initializer,
    )
    return keras.Model(inputs, logits, name=name or f"wrn_{depth}_{width}")


def _preactivation_block(convolve, x, filters, *, strides, prefix, name):
    activated = layers.ReLU(name=f"{prefix}_relu1")(batch_normalization(x, name=f"{prefix}_bn1"))
    shortcut = x
    if x.shape[-1] != filters:
        shortcut = convolve(
            activated, filters, kernel_size=1, strides=strides, name=f"{prefix}_shortcut_conv"
        )
    x = convolve(activated, filters, strides=strides, name=f"{prefix}_conv1")
    x = layers.ReLU(name=f"{prefix}_relu2")(batch_normalization(x, name=f"{prefix}_bn2"))
    x = convolve(x, filters, name=f"{prefix}_conv2")
    return layers.Add(name=name or f"{prefix}_add")([x, shortcut])


wrn_16_1 = preset(wide_resnet, "wrn_16_1", "of depth 16, width 1: 180,916", depth=16, width=1)
wrn_16_2 = preset(wide_resnet, "wrn_16_2", "of depth 16, width 2: 703,284", depth=16, width=2)
wrn_40_1 = preset(wide_resnet, "wrn_40_1", "of depth 40, width 1: 569,780", depth=40, width=1)
wrn_40_2 = preset(wide_resnet, "wrn_40_2", "of depth 40, width 2: 2,255,156", depth=40, width=2)

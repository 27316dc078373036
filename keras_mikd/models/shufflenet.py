"""ShuffleNets of both versions, for small images."""

import functools

import keras
from keras import initializers, layers

from keras_mikd.models.convolution_blocks import (
    batch_normalization,
    check_model_arguments,
    classifier,
    convolution,
    depthwise_convolution,
    residual_stages,
)

_STEM_CHANNELS = 24
_GROUPS = 3


def shufflenet_v1(
    num_classes: int,
    input_shape: tuple[int, int, int] = (32, 32, 3),
    *,
    kernel_regularizer: keras.Regularizer | str | None = None,
    classifier_initializer: keras.Initializer | str = "pytorch",
    name: str = "shufflenet_v1",
) -> keras.Model:
    """Builds the CRD benchmark's ShuffleV1, of 949,258 weights on CIFAR-100.

    A 1x1 convolution is followed by three stages of 4, 8 and 4 blocks with 240, 480 and 960
    channels in 3 groups, from half the size on. The layers "stage2_output" to "stage4_output" are
    the stage outputs, after the ReLU, which the benchmark reads. "stage1_output" is the stem, which
    sees single pixels and pairs with nothing. The layer "pooled" is the vector before the
    classifier.

    Args:
        num_classes: Number of classes, at least 2.
        input_shape: `(height, width, channels)`, at least `(8, 8, 1)`.
        kernel_regularizer: Regularizer of every convolution and of the classifier, or None.
        classifier_initializer: First weights of the classifier: `"pytorch"`, as in the benchmark,
            uniform within `±1 / sqrt(channels)`, its bias too; or a Keras initializer of the
            kernel, such as `"glorot_uniform"`, with a bias of 0.
        name: Name of the model.

    Returns:
        A Functional model from images to logits, shape `(batch, num_classes)`.

    Raises:
        ValueError: If an argument is out of range.

    References:
        Zhang et al., ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile
        Devices, arXiv 1707.01083; stem and order of the shuffle from the CRD benchmark
        (HobbitLong/RepDistiller, models/ShuffleNetv1.py).

    Example:
    ```python
    student = shufflenet_v1(100)
    ```
    """
    convolutions = _convolutions(kernel_regularizer)
    inputs, x = _stem(convolutions, num_classes, input_shape)
    x = residual_stages(
        x,
        functools.partial(_grouped_block, convolutions),
        widths=(240, 480, 960),
        num_blocks=(4, 8, 4),
        first_stage=2,
        first_strides=2,
    )
    return _classified(inputs, x, num_classes, kernel_regularizer, classifier_initializer, name)


def shufflenet_v2(
    num_classes: int,
    input_shape: tuple[int, int, int] = (32, 32, 3),
    *,
    kernel_regularizer: keras.Regularizer | str | None = None,
    classifier_initializer: keras.Initializer | str = "pytorch",
    name: str = "shufflenet_v2",
) -> keras.Model:
    """Builds the CRD benchmark's ShuffleV2, of 1,355,528 weights on CIFAR-100.

    A 1x1 convolution is followed by three stages of 4, 8 and 4 blocks with 116, 232 and 464
    channels, from half the size on, and by a 1x1 convolution of 1024 channels. The layers
    "stage2_output" to "stage4_output" are the stage outputs, after the shuffle, which the benchmark
    reads. In the place of the last one, `stages` finds the ReLU of the last convolution; the
    recipes take the benchmark's places with `raw=True`. "stage1_output" is the stem, which sees
    single pixels and pairs with nothing. The layer "pooled" is the vector before the classifier.

    Args:
        num_classes: As in `shufflenet_v1`.
        input_shape: As in `shufflenet_v1`.
        kernel_regularizer: As in `shufflenet_v1`.
        classifier_initializer: As in `shufflenet_v1`.
        name: Name of the model.

    Returns:
        A Functional model from images to logits, shape `(batch, num_classes)`.

    Raises:
        ValueError: As in `shufflenet_v1`.

    References:
        Ma et al., ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design,
        arXiv 1807.11164; stem and blocks from the CRD benchmark (HobbitLong/RepDistiller,
        models/ShuffleNetv2.py).

    Example:
    ```python
    student = shufflenet_v2(100)
    ```
    """
    convolutions = _convolutions(kernel_regularizer)
    inputs, x = _stem(convolutions, num_classes, input_shape)
    x = residual_stages(
        x,
        functools.partial(_split_block, convolutions),
        widths=(116, 232, 464),
        num_blocks=(4, 8, 4),
        first_stage=2,
        first_strides=2,
    )
    x = convolutions[0](x, 1024, kernel_size=1, name="final_conv")
    x = _activated(x, "final_bn", "final_relu")
    return _classified(inputs, x, num_classes, kernel_regularizer, classifier_initializer, name)


def _convolutions(kernel_regularizer):
    """Returns `convolution` and `depthwise_convolution`, started by PyTorch's default."""
    options = {"initializer": "pytorch", "kernel_regularizer": kernel_regularizer}
    return tuple(functools.partial(f, **options) for f in (convolution, depthwise_convolution))


def _stem(convolutions, num_classes, input_shape):
    check_model_arguments(num_classes=num_classes, input_shape=input_shape, smallest=8)
    inputs = keras.Input(input_shape, name="image")
    x = convolutions[0](inputs, _STEM_CHANNELS, kernel_size=1, name="stem_conv")
    return inputs, _activated(x, "stem_bn", "stage1_output")


def _classified(inputs, x, num_classes, kernel_regularizer, classifier_initializer, name):
    logits = classifier(
        x,
        num_classes,
        kernel_regularizer=kernel_regularizer,
        initializer=classifier_initializer,
        bias_too=True,
    )
    return keras.Model(inputs, logits, name=name)


def _grouped_block(convolutions, x, filters, *, strides, prefix, name):
    """Applies a bottleneck of grouped 1x1 convolutions; a halving one appends its input."""
    _, depthwise = convolutions
    kernel_regularizer = depthwise.keywords["kernel_regularizer"]
    halved = strides > 1
    shortcut = x
    if halved:
        filters -= x.shape[-1]
        # The zeros of the border count in the mean, as in PyTorch.
        shortcut = layers.ZeroPadding2D(1, name=f"{prefix}_shortcut_pad")(x)
        shortcut = layers.AveragePooling2D(3, strides=2, name=f"{prefix}_shortcut_pool")(shortcut)
    groups = 1 if x.shape[-1] == _STEM_CHANNELS else _GROUPS
    x = _grouped_convolution(x, filters // 4, groups, kernel_regularizer, name=f"{prefix}_conv1")
    x = _shuffled(_activated(x, f"{prefix}_bn1", f"{prefix}_relu1"), groups, f"{prefix}_shuffle")
    x = depthwise(x, strides=strides, name=f"{prefix}_conv2")
    x = _activated(x, f"{prefix}_bn2", f"{prefix}_relu2")
    x = _grouped_convolution(x, filters, _GROUPS, kernel_regularizer, name=f"{prefix}_conv3")
    x = batch_normalization(x, name=f"{prefix}_bn3")
    if halved:
        x = layers.Concatenate(name=f"{prefix}_concat")([x, shortcut])
    else:
        x = layers.Add(name=f"{prefix}_add")([x, shortcut])
    return layers.ReLU(name=name or f"{prefix}_relu3")(x)


def _split_block(convolutions, x, filters, *, strides, prefix, name):
    """Changes one half of the channels; a halving block makes both halves of all of them."""
    convolve, depthwise = convolutions
    half = filters // 2
    if strides > 1:
        kept = depthwise(x, strides=strides, name=f"{prefix}_shortcut_conv1")
        kept = batch_normalization(kept, name=f"{prefix}_shortcut_bn1")
        kept = convolve(kept, half, kernel_size=1, name=f"{prefix}_shortcut_conv2")
        kept = _activated(kept, f"{prefix}_shortcut_bn2", f"{prefix}_shortcut_relu")
    else:
        kept = _half_of_channels(x, (0, 1), f"{prefix}_kept")
        x = _half_of_channels(x, (1, 0), f"{prefix}_changed")
    x = convolve(x, half, kernel_size=1, name=f"{prefix}_conv1")
    x = _activated(x, f"{prefix}_bn1", f"{prefix}_relu1")
    x = depthwise(x, strides=strides, name=f"{prefix}_conv2")
    x = batch_normalization(x, name=f"{prefix}_bn2")
    x = convolve(x, half, kernel_size=1, name=f"{prefix}_conv3")
    x = _activated(x, f"{prefix}_bn3", f"{prefix}_relu3")
    x = layers.Concatenate(name=f"{prefix}_concat")([kept, x])
    return _shuffled(x, 2, f"{prefix}_shuffle", name)


def _grouped_convolution(x, filters, groups, kernel_regularizer, *, name):
    """Applies a 1x1 convolution to each group of channels; one group is a plain convolution.

    It is a product of matrices. Keras has XLA compile every `Conv2D` with groups by itself, and a
    step on a CPU then takes several times as long.
    """
    height, width, channels = x.shape[1:]
    limit = (channels // groups) ** -0.5
    x = layers.Reshape((height, width, groups, channels // groups), name=f"{name}_groups")(x)
    x = layers.EinsumDense(
        "bhwgi,gio->bhwgo",
        (height, width, groups, filters // groups),
        kernel_initializer=initializers.RandomUniform(-limit, limit),
        kernel_regularizer=kernel_regularizer,
        name=name,
    )(x)
    return layers.Reshape((height, width, filters), name=f"{name}_flat")(x)


def _activated(x, normalization, activation):
    return layers.ReLU(name=activation)(batch_normalization(x, name=normalization))


def _shuffled(x, groups, prefix, name=None):
    """Makes channels of different groups neighbours, in layers that need no class of our own."""
    height, width, channels = x.shape[1:]
    x = layers.Reshape((height, width, groups, channels // groups), name=f"{prefix}_groups")(x)
    x = layers.Permute((1, 2, 4, 3), name=f"{prefix}_permute")(x)
    return layers.Reshape((height, width, channels), name=name or prefix)(x)


def _half_of_channels(x, cropped, prefix):
    """Returns the channels that are left when the first or last half is `cropped`."""
    height, width, channels = x.shape[1:]
    x = layers.Reshape((height * width, 2, channels // 2), name=f"{prefix}_halves")(x)
    x = layers.Cropping2D(((0, 0), cropped), name=f"{prefix}_crop")(x)
    return layers.Reshape((height, width, channels // 2), name=prefix)(x)

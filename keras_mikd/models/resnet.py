"""ResNets of four stages, for small images and for those of ImageNet."""

import functools

import keras
from keras import layers

from keras_mikd import checks
from keras_mikd.models.convolution_blocks import (
    basic_block,
    batch_normalization,
    check_model_arguments,
    classifier,
    convolution,
    preset,
    projected_shortcut,
    residual_stages,
)

_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
_EXPANSION = 4


def resnet(
    *,
    depth: int,
    num_classes: int,
    input_shape: tuple[int, int, int] = (32, 32, 3),
    stem: str = "cifar",
    kernel_regularizer: keras.Regularizer | str | None = None,
    classifier_initializer: keras.Initializer | str = "pytorch",
    name: str | None = None,
) -> keras.Model:
    """Builds a residual network of four stages, each at half the size of the one before.

    Depths 18 and 34 have basic blocks, 50 has bottlenecks with the stride in the 3x3 convolution.
    With the stem for small images, the layers "stage1_output" to "stage4_output" are the stage
    outputs, after the ReLU. With ImageNet's, the stem is a place of its own, "stage1_output", and
    the stages are "stage2_output" to "stage5_output". The layer "pooled" is the vector before the
    classifier.

    Args:
        depth: Number of layers with weights: 18, 34 or 50.
        num_classes: Number of classes, at least 2.
        input_shape: `(height, width, channels)`, at least `(8, 8, 1)`, with ImageNet's stem
            `(32, 32, 1)`.
        stem: `"cifar"`, a 3x3 convolution, or `"imagenet"`, a 7x7 convolution of stride 2 and the
            maxima of 3x3, also of stride 2.
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
        He et al., Deep Residual Learning for Image Recognition, arXiv 1512.03385, table 1; for
        small images, the CRD benchmark (HobbitLong/RepDistiller, models/resnetv2.py). With
        ImageNet's stem and 1,000 classes, the weights are torchvision's: 11,689,512 at depth 18,
        21,797,672 at 34, 25,557,032 at 50.

    Example:
    ```python
    teacher = resnet(depth=34, num_classes=200, input_shape=(224, 224, 3), stem="imagenet")
    ```
    """
    checks.one_of("depth", depth, tuple(_BLOCKS))
    checks.one_of("stem", stem, ("cifar", "imagenet"))
    smallest = 8 if stem == "cifar" else 32
    check_model_arguments(num_classes=num_classes, input_shape=input_shape, smallest=smallest)
    convolve = functools.partial(convolution, kernel_regularizer=kernel_regularizer)
    inputs = keras.Input(input_shape, name="image")
    if stem == "cifar":
        x = batch_normalization(convolve(inputs, 64, name="stem_conv"), name="stem_bn")
        x = layers.ReLU(name="stem")(x)
    else:
        x = convolve(inputs, 64, kernel_size=7, strides=2, name="stem_conv")
        x = layers.ReLU(name="stage1_output")(batch_normalization(x, name="stem_bn"))
        # Zeros are no maxima of what a ReLU puts out.
        x = layers.ZeroPadding2D(1, name="stem_pool_pad")(x)
        x = layers.MaxPooling2D(3, strides=2, name="stem_pool")(x)
    x = residual_stages(
        x,
        functools.partial(_bottleneck if depth == 50 else basic_block, convolve),
        widths=(64, 128, 256, 512),
        num_blocks=_BLOCKS[depth],
        first_stage=1 if stem == "cifar" else 2,
    )
    logits = classifier(
        x,
        num_classes,
        kernel_regularizer=kernel_regularizer,
        initializer=classifier_initializer,
        bias_too=True,
    )
    return keras.Model(inputs, logits, name=name or f"resnet{depth}")


def _bottleneck(convolve, x, filters, *, strides, prefix, name):
    wide = _EXPANSION * filters
    shortcut = projected_shortcut(convolve, x, wide, strides=strides, prefix=prefix)
    x = batch_normalization(
        convolve(x, filters, kernel_size=1, name=f"{prefix}_conv1"), name=f"{prefix}_bn1"
    )
    x = layers.ReLU(name=f"{prefix}_relu1")(x)
    x = convolve(x, filters, strides=strides, name=f"{prefix}_conv2")
    x = layers.ReLU(name=f"{prefix}_relu2")(batch_normalization(x, name=f"{prefix}_bn2"))
    x = convolve(x, wide, kernel_size=1, name=f"{prefix}_conv3")
    x = layers.Add(name=f"{prefix}_add")([batch_normalization(x, name=f"{prefix}_bn3"), shortcut])
    return layers.ReLU(name=name or f"{prefix}_relu3")(x)


resnet18 = preset(resnet, "resnet18", "of depth 18: 11,220,132", depth=18)
resnet34 = preset(resnet, "resnet34", "of depth 34: 21,328,292", depth=34)
resnet50 = preset(resnet, "resnet50", "of depth 50: 23,705,252", depth=50)

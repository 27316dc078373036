"""VGG networks with BatchNorm and one linear layer, for small images."""

import functools

import keras
from keras import initializers, layers

from keras_mikd import checks
from keras_mikd.models.convolution_blocks import (
    batch_normalization,
    check_model_arguments,
    classifier,
    convolution,
    preset,
)

_WIDTHS = (64, 128, 256, 512, 512)
_CONVOLUTIONS = {
    8: (1, 1, 1, 1, 1),
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
# From this size on, the benchmark's code halves the map once more before the last block.
_LARGE = 64


def vgg(
    *,
    depth: int,
    num_classes: int,
    input_shape: tuple[int, int, int] = (32, 32, 3),
    kernel_regularizer: keras.Regularizer | str | None = None,
    classifier_initializer: keras.Initializer | str = "pytorch",
    name: str | None = None,
) -> keras.Model:
    """Builds five blocks of 3x3 convolutions with BatchNorm and ReLU, and one linear classifier.

    Maps are halved by maxima before the second, third and fourth block. On images of less than 64
    pixels the fifth block keeps the size of the fourth; on larger ones they are halved once more.

    The layers "stage1_output" to "stage4_output" (or "stage5_output") are the last maps of each
    size, after the ReLU. The CRD benchmark reads blocks 2 to 5, at two of which a small image has
    the same size: "stage2_output", "stage3_output", "block4_output" and "stage4_output". The layer
    "pooled" is the vector before the classifier.

    Args:
        depth: 8, 11, 13, 16 or 19: of the original networks' layers with weights, two linear ones
            are left out. 8 is the benchmark's own, with one convolution in a block.
        num_classes: Number of classes, at least 2.
        input_shape: `(height, width, channels)`, at least `(8, 8, 1)`.
        kernel_regularizer: Regularizer of every convolution and of the classifier, or None.
        classifier_initializer: First kernel of the classifier: `"pytorch"`, as in the benchmark's
            code, normal with a standard deviation of 0.01; or a Keras initializer. The bias starts
            at 0.
        name: Name of the model; None is "vgg" and the depth.

    Returns:
        A Functional model from images to logits, shape `(batch, num_classes)`.

    Raises:
        ValueError: If an argument is out of range.

    References:
        Simonyan and Zisserman, Very Deep Convolutional Networks for Large-Scale Image Recognition,
        arXiv 1409.1556; sizes from the CRD benchmark (HobbitLong/RepDistiller, models/vgg.py).

    Example:
    ```python
    student = vgg(depth=8, num_classes=100)
    ```
    """
    checks.one_of("depth", depth, tuple(_CONVOLUTIONS))
    check_model_arguments(num_classes=num_classes, input_shape=input_shape, smallest=8)
    convolve = functools.partial(convolution, use_bias=True, kernel_regularizer=kernel_regularizer)
    large = min(input_shape[:2]) >= _LARGE
    inputs = x = keras.Input(input_shape, name="image")
    for block, (filters, count) in enumerate(zip(_WIDTHS, _CONVOLUTIONS[depth], strict=True), 1):
        if block in (2, 3, 4) or (block == 5 and large):
            x = layers.MaxPooling2D(name=f"block{block}_pool")(x)
        for number in range(1, count + 1):
            x = convolve(x, filters, name=f"block{block}_conv{number}")
            x = batch_normalization(x, name=f"block{block}_bn{number}")
            activation = f"block{block}_relu{number}"
            x = layers.ReLU(name=activation if number < count else _output(block, large))(x)
    if classifier_initializer == "pytorch":
        classifier_initializer = initializers.RandomNormal(stddev=0.01)
    logits = classifier(
        x,
        num_classes,
        kernel_regularizer=kernel_regularizer,
        initializer=classifier_initializer,
    )
    return keras.Model(inputs, logits, name=name or f"vgg{depth}")


def _output(block, large):
    if large or block < 4:
        return f"stage{block}_output"
    return "block4_output" if block == 4 else "stage4_output"


vgg8 = preset(vgg, "vgg8", "of depth 8: 3,965,028", depth=8)
vgg9 = preset(
    vgg,
    "vgg9",
    "as VID's VGG-9, a reconstruction by name: eight convolutions, one linear layer; 9,277,284",
    depth=11,
)
vgg11 = preset(vgg, "vgg11", "of depth 11: 9,277,284", depth=11)
vgg13 = preset(vgg, "vgg13", "of depth 13: 9,462,180", depth=13)
vgg16 = preset(vgg, "vgg16", "of depth 16: 14,774,436", depth=16)
vgg19 = preset(vgg, "vgg19", "of depth 19: 20,086,692", depth=19)

"""A very small convolutional network for 8x8 digits."""

import keras
from keras import layers

from keras_mikd.models.convolution_blocks import (
    batch_normalization,
    check_model_arguments,
    check_sizes,
    classifier,
    convolution,
)


def digits_cnn(
    num_classes: int = 10,
    input_shape: tuple[int, int, int] = (8, 8, 1),
    *,
    widths: tuple[int, int, int] = (8, 16, 24),
    name: str = "digits_cnn",
) -> keras.Model:
    """Builds a student of 5,026 trainable weights: three times 3x3 convolution, BatchNorm and ReLU.

    The stages work at the full, half and quarter resolution. The layers "stage1_output" to
    "stage3_output" are their outputs, after the ReLU. The layer "pooled" is the vector before the
    classifier.

    Args:
        num_classes: Number of classes, at least 2.
        input_shape: `(height, width, channels)`, at least `(4, 4, 1)`.
        widths: Channels of the three stages.
        name: Name of the model.

    Returns:
        A Functional model from images to logits, shape `(batch, num_classes)`.

    Raises:
        ValueError: If an argument is out of range.

    Example:
    ```python
    student = digits_cnn()
    student.count_params()
    ```
    """
    check_model_arguments(num_classes=num_classes, input_shape=input_shape)
    check_sizes("widths", widths, at_least=(1, 1, 1))
    inputs = x = keras.Input(input_shape, name="image")
    for stage, (width, strides) in enumerate(zip(widths, (1, 2, 2), strict=True), start=1):
        x = convolution(x, width, strides=strides, name=f"stage{stage}_conv")
        x = batch_normalization(x, name=f"stage{stage}_bn")
        x = layers.ReLU(name=f"stage{stage}_output")(x)
    return keras.Model(inputs, classifier(x, num_classes), name=name)

"""Perceptrons that read an image as one vector."""

import keras
from keras import layers

from keras_mikd import checks
from keras_mikd.models.convolution_blocks import batch_normalization, check_sizes


def mlp(
    *,
    width: int,
    num_classes: int,
    depth: int = 3,
    input_shape: tuple[int, int, int] = (32, 32, 3),
    kernel_regularizer: keras.Regularizer | str | None = None,
    name: str | None = None,
) -> keras.Model:
    """Builds hidden layers of equal width, with BatchNorm and ReLU, and a linear classifier.

    VID's experiment "CNN to MLP" has students of width 1024, 2048 and 4096 on CIFAR-10. How many
    hidden layers they have, and what is in them, is not public to us: what stands here is a
    reconstruction.

    There are no maps, and so no stages to pair. The layers "hidden1", "hidden2", ... are the
    vectors after the ReLU; "pooled" is the last one. Losses take these places by name:
    `Hint` from vector to vector, `JSDCritic` and `GaussianVIDHead` from a map of the teacher too.

    Args:
        width: Units of every hidden layer.
        num_classes: Number of classes, at least 2.
        depth: Number of hidden layers.
        input_shape: `(height, width, channels)`.
        kernel_regularizer: Regularizer of every kernel, or None.
        name: Name of the model; None is `"mlp_"` and the width.

    Returns:
        A Functional model from images to logits, shape `(batch, num_classes)`.

    Raises:
        ValueError: If an argument is out of range.

    References:
        Ahn et al., Variational Information Distillation for Knowledge Transfer, arXiv 1904.05835,
        the experiment from a CNN to an MLP.

    Example:
    ```python
    student = mlp(width=1024, num_classes=10)
    ```
    """
    checks.integer("width", width, at_least=1)
    checks.integer("depth", depth, at_least=1)
    checks.integer("num_classes", num_classes, at_least=2)
    check_sizes("input_shape", input_shape, at_least=(1, 1, 1))
    inputs = keras.Input(input_shape, name="image")
    x = layers.Flatten(name="pixels")(inputs)
    for number in range(1, depth + 1):
        x = layers.Dense(
            width,
            use_bias=False,
            kernel_initializer="he_normal",
            kernel_regularizer=kernel_regularizer,
            name=f"hidden{number}_dense",
        )(x)
        x = batch_normalization(x, name=f"hidden{number}_bn")
        x = layers.ReLU(name=f"hidden{number}")(x)
    logits = layers.Dense(num_classes, kernel_regularizer=kernel_regularizer, name="logits")(x)
    return keras.Model(inputs, logits, name=name or f"mlp_{width}")

"""Vision transformers for small images."""

import keras
from keras import initializers, layers

from keras_mikd import checks
from keras_mikd.models.convolution_blocks import check_sizes
from keras_mikd.models.transformer_blocks import check_transformer_arguments, transformer_blocks


def vision_transformer(
    *,
    depth: int,
    num_classes: int,
    input_shape: tuple[int, int, int] = (32, 32, 3),
    patch_size: int = 4,
    width: int = 192,
    num_heads: int = 3,
    dropout: float = 0.0,
    class_token: bool = True,
    name: str | None = None,
) -> keras.Model:
    """Builds a ViT: patches become tokens, pre-norm blocks mix them, a linear layer classifies.

    Width and heads are those of ViT-Ti (DeiT); the patches suit CIFAR. Each token has a learned
    position. The class token comes first. It is the learned vector of its position, as nothing else
    is fed there. The layers "block1", "block2", ... are the residual streams, "pooled" is the
    vector before the classifier.

    Args:
        depth: Number of blocks.
        num_classes: Number of classes, at least 2.
        input_shape: `(height, width, channels)`, height and width multiples of `patch_size`.
        patch_size: Height and width of a patch.
        width: Channels of a token, a multiple of `num_heads`. Blocks have 4 times as many inside.
        num_heads: Heads of every attention.
        dropout: Rate in the attention and behind both halves of a block, in [0, 1).
        class_token: Whether a class token is classified, or else the mean of all tokens.
        name: Name of the model; None is "vit" and the depth.

    Returns:
        A Functional model from images to logits, shape `(batch, num_classes)`.

    Raises:
        ValueError: If an argument is out of range.

    References:
        Dosovitskiy et al., An Image is Worth 16x16 Words, arXiv 2010.11929; sizes of ViT-Ti from
        Touvron et al., arXiv 2012.12877; the mean instead of the class token from Beyer et al.,
        arXiv 2205.01580.

    Example:
    ```python
    teacher = vision_transformer(depth=6, num_classes=100)
    ```
    """
    checks.integer("num_classes", num_classes, at_least=2)
    checks.integer("patch_size", patch_size, at_least=1)
    check_sizes("input_shape", input_shape, at_least=(patch_size, patch_size, 1))
    check_transformer_arguments(depth=depth, width=width, num_heads=num_heads, dropout=dropout)
    if any(size % patch_size for size in input_shape[:2]):
        raise ValueError(
            "Expected the height and width of `input_shape` to be multiples of `patch_size`. "
            f"Received: input_shape={input_shape!r}, patch_size={patch_size}"
        )
    inputs = keras.Input(input_shape, name="image")
    x = _patches(inputs, patch_size)
    if class_token:
        x = layers.ZeroPadding1D((1, 0), name="class_token")(x)
    # One bias for each token is its position, and all that the class token has.
    x = layers.EinsumDense(
        "btp,pc->btc",
        (x.shape[1], width),
        bias_axes="tc",
        bias_initializer=initializers.RandomNormal(stddev=0.02),
        name="embedding",
    )(x)
    x = layers.Dropout(dropout, name="embedding_dropout")(x)
    x = transformer_blocks(x, depth=depth, num_heads=num_heads, dropout=dropout)
    if class_token:
        x = layers.Cropping1D((0, x.shape[1] - 1), name="first")(x)
        x = layers.Flatten(name="pooled")(x)
    else:
        x = layers.GlobalAveragePooling1D(name="pooled")(x)
    logits = layers.Dense(num_classes, name="logits")(x)
    return keras.Model(inputs, logits, name=name or f"vit{depth}")


def _patches(images, size):
    """Returns `(batch, rows * columns, size * size * channels)`, row by row."""
    height, width, channels = images.shape[1:]
    rows, columns = height // size, width // size
    x = layers.Reshape((rows, size, columns, size * channels), name="rows")(images)
    x = layers.Permute((1, 3, 2, 4), name="patches")(x)
    return layers.Reshape((rows * columns, size * size * channels), name="tokens")(x)

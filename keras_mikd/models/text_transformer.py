"""Transformers that classify short texts."""

import keras
from keras import initializers, layers, ops

from keras_mikd import checks
from keras_mikd.models.transformer_blocks import check_transformer_arguments, transformer_blocks


def text_transformer(
    *,
    depth: int,
    num_classes: int,
    vocabulary_size: int,
    max_length: int,
    width: int = 128,
    num_heads: int = 2,
    dropout: float = 0.1,
    name: str | None = None,
) -> keras.Model:
    """Builds a classifier of texts: pre-norm blocks, the mean over tokens, a linear layer.

    A text is a row of integers, shorter ones filled up with 0: such tokens are masked, so no other
    token attends to them, and they are not in the mean. Each token has a learned position, counted
    from the first that is no padding. The layers "block1", "block2", ... are the residual streams,
    "pooled" is the vector before the classifier.

    Args:
        depth: Number of blocks.
        num_classes: Number of classes, at least 2.
        vocabulary_size: Number of tokens, with the 0 of the padding.
        max_length: Most tokens of a text; the model takes rows of this length.
        width: Channels of a token, a multiple of `num_heads`. Blocks have 4 times as many inside.
        num_heads: Heads of every attention.
        dropout: Rate in the attention and behind both halves of a block, in [0, 1).
        name: Name of the model; None is "text_transformer" and the depth.

    Returns:
        A Functional model from `int32` tokens, shape `(batch, max_length)`, to logits, shape
        `(batch, num_classes)`.

    Raises:
        ValueError: If an argument is out of range.

    References:
        Vaswani et al., Attention Is All You Need, arXiv 1706.03762; pre-norm from Xiong et al.,
        arXiv 2002.04745. Default sizes of BERT-Tiny (Turc et al., arXiv 1908.08962).

    Example:
    ```python
    student = text_transformer(depth=1, num_classes=4, vocabulary_size=5000, max_length=64)
    ```
    """
    checks.integer("num_classes", num_classes, at_least=2)
    checks.integer("vocabulary_size", vocabulary_size, at_least=2)
    checks.integer("max_length", max_length, at_least=1)
    check_transformer_arguments(depth=depth, width=width, num_heads=num_heads, dropout=dropout)
    normal = initializers.RandomNormal(stddev=0.02)
    inputs = keras.Input((max_length,), dtype="int32", name="tokens")
    x = layers.Embedding(
        vocabulary_size, width, embeddings_initializer=normal, mask_zero=True, name="embedding"
    )(inputs)
    # Masked too: a sum has a mask only if all of its terms have one.
    present = ops.cast(ops.not_equal(inputs, 0), "int32")
    positions = layers.Embedding(
        max_length + 1, width, embeddings_initializer=normal, mask_zero=True, name="positions"
    )(present * ops.cumsum(present, axis=1))
    x = layers.Add(name="positioned")([x, positions])
    x = layers.Dropout(dropout, name="embedding_dropout")(x)
    x = transformer_blocks(x, depth=depth, num_heads=num_heads, dropout=dropout)
    x = layers.GlobalAveragePooling1D(name="pooled")(x)
    logits = layers.Dense(num_classes, name="logits")(x)
    return keras.Model(inputs, logits, name=name or f"text_transformer{depth}")

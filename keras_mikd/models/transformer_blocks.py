"""What the transformers of this package share: their blocks and the check of their sizes."""

from keras import layers

from keras_mikd import checks

# As in both papers: the hidden layer of a block has four times the channels of the stream.
_MLP_RATIO = 4


def check_transformer_arguments(*, depth, width, num_heads, dropout):
    """Raises a ValueError unless the sizes make a transformer."""
    checks.integer("depth", depth, at_least=1)
    checks.integer("num_heads", num_heads, at_least=1)
    if checks.integer("width", width, at_least=1) % num_heads:
        raise ValueError(
            "Expected `width` to be a multiple of `num_heads`, so that heads share the channels. "
            f"Received: width={width}, num_heads={num_heads}"
        )
    if not 0 <= dropout < 1:
        raise ValueError(f"Expected `dropout` in [0, 1). Received: dropout={dropout}")


def transformer_blocks(x, *, depth, num_heads, dropout):
    """Applies pre-norm blocks and a last normalization to tokens `(batch, tokens, channels)`.

    The layers "block1", "block2", ... are the residual streams after the blocks.
    """
    for number in range(1, depth + 1):
        x = _block(x, num_heads, dropout, f"block{number}")
    return layers.LayerNormalization(epsilon=1e-6, name="norm")(x)


def _block(x, num_heads, dropout, name):
    width = x.shape[-1]
    y = layers.LayerNormalization(epsilon=1e-6, name=f"{name}_norm1")(x)
    y = layers.MultiHeadAttention(
        num_heads, width // num_heads, dropout=dropout, name=f"{name}_attention"
    )(y, y)
    x = layers.Add(name=f"{name}_add")([x, layers.Dropout(dropout, name=f"{name}_dropout1")(y)])
    y = layers.LayerNormalization(epsilon=1e-6, name=f"{name}_norm2")(x)
    y = layers.Dense(_MLP_RATIO * width, activation="gelu", name=f"{name}_dense1")(y)
    y = layers.Dense(width, name=f"{name}_dense2")(y)
    return layers.Add(name=name)([x, layers.Dropout(dropout, name=f"{name}_dropout2")(y)])

"""The vision and text transformers: weights, and what they compute."""

import math

import keras
import numpy as np
import pytest

from keras_mikd import models

SMALL = {"width": 8, "num_heads": 2}
VIT = {"num_classes": 3, "input_shape": (8, 4, 2), "patch_size": 2, **SMALL}
TEXT = {"num_classes": 3, "vocabulary_size": 9, "max_length": 6, **SMALL}
# Two normalizations, four kernels of an attention, two of the hidden layer; all with biases.
BLOCK = 2 * 2 * 8 + 4 * (8 * 8 + 8) + (8 * 32 + 32) + (32 * 8 + 8)


def test_number_of_weights():
    vit = models.vision_transformer(depth=2, **VIT)
    assert vit.count_params() == (8 * 8 + 9 * 8) + 2 * BLOCK + 2 * 8 + (8 * 3 + 3)
    text = models.text_transformer(depth=2, dropout=0.0, **TEXT)
    assert text.count_params() == (9 + 7) * 8 + 2 * BLOCK + 2 * 8 + (8 * 3 + 3)
    # ViT-Ti has 5.7 million weights, with patches of 16 and 1000 classes.
    large = models.vision_transformer(
        depth=12, num_classes=1000, input_shape=(224, 224, 3), patch_size=16
    )
    assert round(large.count_params() / 1e5) == 57


def test_tokens_are_the_patches_row_by_row():
    model = models.vision_transformer(depth=1, **VIT)
    images = np.random.RandomState(0).normal(size=(2, 8, 4, 2)).astype("float32")
    tokens = keras.Model(model.input, model.get_layer("tokens").output)(images)
    patches = [images[:, r : r + 2, c : c + 2].reshape(2, -1) for r in (0, 2, 4, 6) for c in (0, 2)]
    np.testing.assert_array_equal(tokens, np.stack(patches, axis=1))
    embedding = model.get_layer("embedding")
    kernel, positions = embedding.get_weights()
    embedded = keras.Model(model.input, embedding.output)(images)
    np.testing.assert_allclose(embedded[:, 1:], tokens @ kernel + positions[1:], atol=1e-5)
    # The class token is the same for every image, and it is learned.
    np.testing.assert_array_equal(embedded[:, 0], [positions[0]] * 2)
    last = keras.Model(model.input, model.get_layer("norm").output)(images)
    pooled = keras.Model(model.input, model.get_layer("pooled").output)(images)
    np.testing.assert_array_equal(pooled, last[:, 0])


def _normal(x, layer):
    gamma, beta = (w.numpy() for w in (layer.gamma, layer.beta))
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * gamma + beta


def _attended(x, layer):
    weights = [weight.astype("float64") for weight in layer.get_weights()]
    *pairs, (last, last_bias) = zip(weights[::2], weights[1::2], strict=True)
    q, k, v = (np.einsum("btc,chd->bhtd", x, kernel) + bias[:, None] for kernel, bias in pairs)
    scores = q @ k.swapaxes(2, 3) / np.sqrt(q.shape[-1])
    shares = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    return np.einsum("bhtd,hdc->btc", shares @ v, last) + last_bias


def test_a_block_is_that_of_the_vision_transformer():
    """Pre-norm attention and a hidden layer with GELU, each beside a shortcut."""
    model = models.vision_transformer(depth=1, **VIT)
    rng = np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(weight + 0.5 * rng.normal(size=weight.shape))
    images = rng.normal(size=(2, 8, 4, 2)).astype("float32")
    read = [model.get_layer(name).output for name in ("embedding", "block1")]
    x, block = (y.numpy().astype("float64") for y in keras.Model(model.input, read)(images))
    part = {name: model.get_layer(f"block1_{name}") for name in ("norm1", "attention", "norm2")}
    first, second = (model.get_layer(f"block1_dense{i}").get_weights() for i in (1, 2))
    x = x + _attended(_normal(x, part["norm1"]), part["attention"])
    hidden = _normal(x, part["norm2"]) @ first[0] + first[1]
    erf = np.vectorize(math.erf)
    hidden = hidden * (1 + erf(hidden / math.sqrt(2))) / 2
    np.testing.assert_allclose(block, x + hidden @ second[0] + second[1], rtol=1e-4, atol=1e-4)


def test_dropout_has_the_rate_of_the_argument():
    model = models.vision_transformer(depth=1, dropout=0.25, **VIT)
    dropouts = [layer for layer in model.layers if isinstance(layer, keras.layers.Dropout)]
    assert {layer.rate for layer in dropouts} == {0.25} and len(dropouts) >= 2
    assert model.get_layer("block1_attention").dropout == 0.25


def test_mean_of_the_tokens_instead_of_a_class_token():
    model = models.vision_transformer(depth=1, class_token=False, **VIT)
    images = np.random.RandomState(0).normal(size=(2, 8, 4, 2)).astype("float32")
    last = keras.Model(model.input, model.get_layer("norm").output)(images)
    pooled = keras.Model(model.input, model.get_layer("pooled").output)(images)
    assert last.shape == (2, 8, 8)
    np.testing.assert_allclose(pooled, np.mean(last, axis=1), atol=1e-6)


def test_padding_changes_nothing_wherever_it_is():
    model = models.text_transformer(depth=2, **TEXT)
    short = np.array([[3, 4, 5, 0, 0, 0], [0, 3, 4, 0, 5, 0], [0, 0, 0, 3, 4, 5]])
    logits = model(short)
    np.testing.assert_allclose(logits[1:], [logits[0]] * 2, atol=1e-6)
    other = np.where(short == 4, 6, short)
    assert np.abs(model(other) - logits).max() > 1e-3


def test_order_matters():
    model = models.text_transformer(depth=1, **TEXT)
    logits = model(np.array([[3, 4, 5, 0, 0, 0], [5, 4, 3, 0, 0, 0]]))
    assert np.abs(logits[0] - logits[1]).max() > 1e-4


@pytest.mark.parametrize("kind", ["vision", "text"])
def test_a_saved_model_is_the_same_function(kind, tmp_path):
    model = (
        models.vision_transformer(depth=1, dropout=0.1, **VIT)
        if kind == "vision"
        else models.text_transformer(depth=1, **TEXT)
    )
    shape, random = (2, *model.input_shape[1:]), np.random.RandomState(0)
    x = random.normal(size=shape) if kind == "vision" else random.randint(0, 9, shape)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(x), model(x))
    assert loaded.name == ("vit1" if kind == "vision" else "text_transformer1")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 0}, "depth=0"),
        ({"num_heads": 3}, "multiple of `num_heads`.*Received: width=8, num_heads=3"),
        ({"dropout": 1.0}, r"in \[0, 1\). Received: dropout=1.0"),
        ({"num_classes": 1}, "num_classes=1"),
    ],
)
def test_bad_arguments_of_both(change, message):
    with pytest.raises(ValueError, match=message):
        models.vision_transformer(**{"depth": 1, **VIT, **change})
    with pytest.raises(ValueError, match=message):
        models.text_transformer(**{"depth": 1, **TEXT, **change})


def test_bad_sizes():
    with pytest.raises(ValueError, match="multiples of `patch_size`. Received: input_shape="):
        models.vision_transformer(**{"depth": 1, **VIT, "patch_size": 3})
    with pytest.raises(ValueError, match=r"Received: input_shape\[0\]=8"):
        models.vision_transformer(**{"depth": 1, **VIT, "patch_size": 16})
    with pytest.raises(ValueError, match="Received: vocabulary_size=1"):
        models.text_transformer(**{"depth": 1, **TEXT, "vocabulary_size": 1})
    with pytest.raises(ValueError, match="Received: max_length=0"):
        models.text_transformer(**{"depth": 1, **TEXT, "max_length": 0})

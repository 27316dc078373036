"""Blocks of transformers that are built by hand: where they end, and with what they pair."""

import keras
import numpy as np
import pytest
import tapped_networks as networks
from keras import layers

from keras_mikd import models
from keras_mikd.features.encoder_layers import opened
from keras_mikd.features.feature_taps import FeatureTaps
from keras_mikd.features.layer_graph import LayerGraph
from keras_mikd.features.stages import Stage, pair_stages, stages

TOKENS = (None, 17, 8)


def _attention(x, **kwargs):
    return layers.MultiHeadAttention(2, x.shape[-1] // 2, **kwargs)(x, x)


def _mlp(x):
    return layers.Dense(x.shape[-1])(layers.Dense(16, activation="gelu")(x))


def _pre_norm(x, k):
    x = layers.Add(name=f"a{k}")([x, _attention(layers.LayerNormalization()(x))])
    return layers.Add(name=f"m{k}")([x, _mlp(layers.LayerNormalization()(x))])


def _post_norm(x, k):
    x = layers.LayerNormalization(name=f"an{k}")(layers.Add()([x, _attention(x)]))
    return layers.LayerNormalization(name=f"mn{k}")(layers.Add()([x, _mlp(x)]))


class _ClassToken(layers.Layer):
    def build(self, shape):
        self.token = self.add_weight(shape=(1, 1, shape[-1]))

    def call(self, x):
        return keras.ops.concatenate([keras.ops.repeat(self.token, len(x), 0), x], axis=1)

    def compute_output_shape(self, shape):
        return (shape[0], shape[1] + 1, shape[2])


def _vit(block, depth, *, class_token=True, last_norm=True, name=None):
    """Of 16 x 16 images; the patches are those of a convolution."""
    inputs = keras.Input((16, 16, 3))
    x = layers.Conv2D(8, 4, strides=4, name="patches")(inputs)
    x = layers.Reshape((16, 8))(x)
    if class_token:
        x = _ClassToken()(x)
    for k in range(depth):
        x = block(x, k)
    x = layers.LayerNormalization(name="last")(x) if last_norm else x
    x = x[:, 0] if class_token else layers.GlobalAveragePooling1D(name="mean")(x)
    return keras.Model(inputs, layers.Dense(5)(layers.Dropout(0.1)(x)), name=name)


def test_pre_norm_blocks_end_with_their_sum():
    """The normalization at the end is not that of the last block."""
    found = stages(_vit(_pre_norm, 2))
    assert list(found.items())[:3] == [
        ("stage1", Stage("patches", (None, 4, 4, 8))),
        ("block1", Stage("m0", TOKENS)),
        ("block2", Stage("m1", TOKENS)),
    ]
    assert found["pooled"].shape == (None, 8)
    mean = stages(_vit(_pre_norm, 1, class_token=False))
    assert mean["block1"] == Stage("m0", (None, 16, 8))
    assert mean["pooled"] == Stage("mean", (None, 8))


@pytest.mark.parametrize("depth", [1, 2])
def test_post_norm_blocks_end_with_their_normalization(depth):
    found = stages(_vit(_post_norm, depth, last_norm=False))
    blocks = {place: stage.layer for place, stage in found.items() if "block" in place}
    assert blocks == {f"block{k + 1}": f"mn{k}" for k in range(depth)}


def test_a_block_of_one_sum_and_an_attention_alone():
    def parallel(x, k):
        y = layers.LayerNormalization()(x)
        return layers.Add(name=f"sum{k}")([x, _attention(y), _mlp(y)])

    assert stages(_vit(parallel, 1))["block1"].layer == "sum0"

    def alone(x, k):
        return _attention(x, name=f"attention{k}")

    found = stages(_vit(alone, 2))
    assert [found[place].layer for place in ("block1", "block2")] == ["attention0", "attention1"]


def test_four_blocks_are_listed_and_all_are_places():
    model = _vit(_pre_norm, 6)
    found = stages(model)
    assert [p for p in found if "block" in p] == ["block2", "block3", "block5", "block6"]
    assert found["block5"].layer == "m4"
    taps = FeatureTaps(model, ["block4", "m3", "block6"])
    read = taps(networks.images(2, 16, 16, 3), training=False)
    np.testing.assert_array_equal(read["block4"], read["m3"])
    with pytest.raises(ValueError, match="Received: 'block7'.*Did you mean 'block6'"):
        FeatureTaps(model, ["block7"])


def test_a_layer_with_the_name_of_another_block_is_refused():
    """Which of the two is meant cannot be told."""

    def from_zero(x, k):
        return layers.Activation("linear")(layers.Add(name=f"block{k}")([x, _attention(x)]))

    with pytest.raises(ValueError, match="to mean one thing. Received: 'block1'"):
        FeatureTaps(_vit(from_zero, 2), ["block1"])
    assert FeatureTaps(_vit(from_zero, 2), ["block0"]).specs["block0"].shape == TOKENS


def test_masks_and_biases_do_not_hide_blocks():
    """Neither masks of Keras, nor inputs that go to every block, are a way around the blocks."""
    ids, padding = keras.Input((7,), dtype="int32"), keras.Input((7,), dtype="bool")
    x = layers.Embedding(9, 8, mask_zero=True)(ids)
    bias = layers.Dense(8)(x)
    for k in range(3):
        y = layers.MultiHeadAttention(2, 4)(x, bias, attention_mask=padding[:, None])
        x = layers.Add(name=f"sum{k}")([x, y])
    x = layers.Dense(2)(layers.GlobalAveragePooling1D(name="mean")(x))
    found = stages(keras.Model([ids, padding], x))
    assert {place: stage.layer for place, stage in found.items()} == {
        **{f"block{k + 1}": f"sum{k}" for k in range(3)},
        "pooled": "mean",
    }


def test_convolutions_with_attention_inside_keep_their_stages():
    """Attention in a stage, over its maps or behind its channels, makes no block."""
    inputs = keras.Input((16, 16, 3))
    x = networks.conv(inputs, 4, name="c1")
    tokens = layers.Reshape((256, 4))(x)
    x = layers.Add(name="s1")([x, layers.Reshape((16, 16, 4))(_attention(tokens))])
    x = networks.conv(x, 4, strides=2, name="c2")
    x = layers.Add(name="s2")([x, layers.MultiHeadAttention(2, 2)(x, x)])
    x = layers.Dense(3)(layers.GlobalAveragePooling2D(name="pool")(x))
    found = stages(keras.Model(inputs, x))
    assert {p: s.layer for p, s in found.items()} == {
        "stage1": "s1",
        "stage2": "s2",
        "pooled": "pool",
    }

    class ChannelAttention(layers.Layer):
        def call(self, x):
            return x * keras.ops.sigmoid(keras.ops.mean(x, axis=(1, 2), keepdims=True))

    x = ChannelAttention(name="gate")(networks.conv(inputs, 4))
    x = layers.Dense(3)(layers.GlobalAveragePooling2D(name="pool")(x))
    assert list(stages(keras.Model(inputs, x))) == ["stage1", "pooled"]


def _hybrid():
    """Convolutions of two resolutions, then blocks."""
    inputs = keras.Input((16, 16, 3))
    x = networks.conv(networks.conv(inputs, 4, name="c1"), 8, strides=4, name="c2")
    x = layers.Reshape((16, 8))(x)
    for k in range(2):
        x = _pre_norm(x, k)
    return keras.Model(inputs, layers.Dense(5)(layers.GlobalAveragePooling1D()(x)))


def test_blocks_pair_at_the_same_relative_depth():
    twelve, six, three, one = (_vit(_pre_norm, depth) for depth in (12, 6, 3, 1))
    assert pair_stages(twelve, three) == [
        ("block4", "block1"),
        ("block8", "block2"),
        ("block12", "block3"),
    ]
    assert pair_stages(one, twelve) == [("block1", "block12")]
    four = [("block4", "block2"), ("block6", "block3"), ("block10", "block5")]
    assert pair_stages(twelve, six) == [*four, ("block12", "block6")]
    assert pair_stages(six, twelve) == [(b, a) for a, b in pair_stages(twelve, six)]
    assert pair_stages(six, six) == [(f"block{k}", f"block{k}") for k in (2, 3, 5, 6)]


def test_blocks_pair_with_stages():
    cnn = networks.resnet()
    assert pair_stages(_vit(_pre_norm, 6), cnn) == [
        ("block2", "stage1"),
        ("block4", "stage2"),
        ("block6", "stage3"),
    ]
    assert pair_stages(cnn, _vit(_post_norm, 1)) == [("stage3", "block1")]
    assert pair_stages(_hybrid(), cnn) == [
        ("stage1", "stage1"),
        ("block1", "stage2"),
        ("block2", "stage3"),
    ]
    with pytest.raises(ValueError, match="Expected a student with stages.*blocks of a transf"):
        pair_stages(cnn, keras.Sequential([keras.Input((4,)), layers.Dense(2)]))


class _Block(layers.Layer):
    """A block that is one layer, with another dropout in each call."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.attention = layers.MultiHeadAttention(2, 4, dtype=self.dtype_policy)
        self.dropout = layers.Dropout(0.5, seed=1, dtype=self.dtype_policy)

    def build(self, shape):
        self.attention.build(shape, shape)

    def call(self, x):
        return x + self.dropout(self.attention(x, x))

    def compute_output_shape(self, shape):
        return shape


class _Encoder(layers.Layer):
    """An encoder that is one layer, as KerasHub's."""

    scale = None

    def __init__(self, depth=3, **kwargs):
        super().__init__(**kwargs)
        self.blocks = [_Block(name=f"inner{k}", dtype=self.dtype_policy) for k in range(depth)]

    def build(self, shape):
        for block in self.blocks:
            block.build(shape)

    def call(self, x, training=None):
        for block in self.blocks:
            x = block(x, training=training)
        return x if self.scale is None else x * self.scale

    def compute_output_shape(self, shape):
        return shape


class _Scaled(_Encoder):
    scale = 2.0


def _encoded(encoder):
    return _vit(lambda x, _: encoder(x), 1)


def test_an_encoder_of_one_layer_is_opened():
    model = _encoded(_Encoder(name="encoder"))
    found = stages(model)
    assert {p: s.layer for p, s in found.items() if "block" in p} == {
        f"block{k + 1}": f"encoder/inner{k}" for k in range(3)
    }
    taps, x = (
        FeatureTaps(model, ["block2", "encoder", "encoder/inner1"]),
        networks.images(2, 16, 16, 3),
    )
    read = taps(x, training=False)
    np.testing.assert_array_equal(read["output"], model(x, training=False))
    np.testing.assert_array_equal(read["block2"], read["encoder/inner1"])
    inner = keras.Model(model.input, model.get_layer("encoder").output)
    np.testing.assert_array_equal(read["encoder"], inner(x, training=False))


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_an_opened_encoder_computes_the_same_when_it_trains(policy):
    model = _encoded(_Encoder(name="encoder", dtype=policy))
    x, before = networks.images(2, 16, 16, 3), [v.numpy() for v in model.variables]
    expected = model(x, training=True)
    for variable, value in zip(model.variables, before, strict=True):
        variable.assign(value)  # The state of Dropout.
    read = FeatureTaps(model, ["block3"])(x, training=True)
    np.testing.assert_array_equal(read["output"], expected)
    assert read["block3"].dtype == ("float16" if "16" in policy else "float32")
    assert np.abs(read["output"] - model(x, training=False)).max() > 0.01


def test_an_encoder_that_does_more_than_call_layers_stays_closed():
    model = _encoded(_Scaled(name="encoder"))
    assert stages(model)["block1"].layer == "encoder"
    one = _encoded(_Encoder(depth=1, name="encoder"))
    assert stages(one)["block1"].layer == "encoder"


def test_an_encoder_is_opened_once_and_shows_nothing_of_it():
    encoder = _Encoder(name="encoder")
    model = _encoded(encoder)
    config, weights = model.get_config(), [w.path for w in model.weights]
    tensor = keras.KerasTensor(TOKENS)
    assert opened(encoder, tensor) is opened(encoder, tensor)
    FeatureTaps(model, ["block1"])
    assert model.get_config() == config
    assert [w.path for w in model.weights] == weights
    assert all("call" not in vars(block) for block in encoder.blocks)
    assert "encoder/inner2" in LayerGraph(model).names


def test_places_of_the_transformers_of_this_package():
    vit = models.vision_transformer(
        depth=2, num_classes=3, input_shape=(8, 8, 1), patch_size=2, width=8, num_heads=2
    )
    assert stages(vit) == {
        "block1": Stage("block1", (None, 17, 8)),
        "block2": Stage("block2", (None, 17, 8)),
        "pooled": Stage("pooled", (None, 8)),
    }
    text = models.text_transformer(
        depth=1, num_classes=3, vocabulary_size=9, max_length=5, width=8, num_heads=2
    )
    assert stages(text) == {
        "block1": Stage("block1", (None, 5, 8)),
        "pooled": Stage("pooled", (None, 8)),
    }

"""Places in the transformers that KerasHub and KerasCV make."""

import warnings

import keras
import numpy as np
import pytest
import tapped_networks as networks

from keras_mikd.features.feature_taps import FeatureTaps
from keras_mikd.features.stages import all_stages, pair_stages, stages


def _imported(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name, exc_type=ImportError)


def _vision(models, kind, depth, mlp, **kwargs):
    options = {"num_heads": 2, "hidden_dim": 8, mlp: 16, "name": "backbone"}
    backbone = getattr(models, f"{kind}Backbone")
    made = backbone(image_shape=(16, 16, 3), patch_size=4, num_layers=depth, **options)
    return getattr(models, f"{kind}ImageClassifier")(made, num_classes=3, **kwargs)


def _text(models, kind, depth):
    backbone = getattr(models, f"{kind}Backbone")(
        vocabulary_size=20,
        num_layers=depth,
        num_heads=2,
        hidden_dim=8,
        intermediate_dim=16,
        max_sequence_length=12,
        name="backbone",
    )
    return getattr(models, f"{kind}TextClassifier")(backbone, num_classes=3)


def _texts(model, length):
    """Random texts, the second one with padding."""
    random, shape = np.random.default_rng(0), (2, length)
    own = {
        "token_ids": random.integers(1, 20, shape),
        "padding_mask": np.arange(length) < np.array([[length], [length - 2]]),
        "segment_ids": np.zeros(shape),
    }
    return {name: own[name].astype("int32") for name in model.input}


def _check(model, x, expected):
    """Checks the layers of all places, and that reading them computes what the model does."""
    found = all_stages(model)
    assert {place: stage.layer for place, stage in found.items()} == expected
    read = FeatureTaps(model, found)(x, training=False)
    np.testing.assert_array_equal(read["output"], model(x, training=False))
    for place, stage in found.items():
        assert len(read[place].shape) == len(stage.shape)
        sizes = zip(read[place].shape[1:], stage.shape[1:], strict=True)
        assert all(known in (None, size) for size, known in sizes)
    return read


@pytest.mark.parametrize(
    ("kind", "mlp", "output", "tokens"),
    [("ViT", "mlp_dim", "", 17), ("DeiT", "intermediate_dim", "/0", 18)],
)
def test_keras_hub_encoders_of_one_layer(kind, mlp, output, tokens):
    """ViT and DeiT; a block of DeiT has two outputs. The class token comes first."""
    model, x = _vision(_imported("keras_hub").models, kind, 3, mlp), networks.images(2, 16, 16, 3)
    blocks = f"backbone/{kind.lower()}_encoder/transformer_block_"
    pooled = stages(model)["pooled"].layer
    assert pooled.startswith("get_item")
    numbers = (1, 2, 3)
    expected = {f"block{k}": f"{blocks}{k}{output}" for k in numbers} | {"pooled": pooled}
    read = _check(model, x, expected)
    assert read["block3"].shape == (2, tokens, 8)
    encoder = model.backbone.get_layer(f"{kind.lower()}_encoder")
    last = encoder.layer_norm(read["block3"])
    np.testing.assert_array_equal(last[:, 0], read["pooled"])
    shallow = _vision(_imported("keras_hub").models, kind, 1, mlp)
    assert pair_stages(model, shallow) == [("block3", "block1")]


def test_keras_hub_dino():
    """Its encoder returns all of its blocks; single outputs of it are read by number, as ever."""
    backbone = _imported("keras_hub").models.DINOV2Backbone(
        patch_size=4,
        num_layers=3,
        hidden_dim=8,
        num_heads=2,
        intermediate_dim=16,
        image_shape=(16, 16, 3),
        name="backbone",
    )
    (images,) = backbone.inputs
    model = keras.Model(images, keras.layers.Dense(3)(backbone.output[:, 0]))
    x, pooled = networks.images(2, 16, 16, 3), stages(model)["pooled"].layer
    blocks = {f"block{k + 1}": f"backbone_encoder/layers_{k}" for k in range(3)}
    read = _check(model, x, blocks | {"pooled": pooled})
    outputs = [f"backbone_encoder/{k}" for k in range(4)]  # The last block, then all of them.
    taps = FeatureTaps(model, outputs)(x, training=False)
    for output, place in zip(outputs, ("block3", "block1", "block2", "block3"), strict=True):
        np.testing.assert_array_equal(taps[output], read[place])


def test_keras_hub_vit_of_mean_tokens_and_a_deeper_one_of_a_cnn():
    models = _imported("keras_hub").models
    model = _vision(models, "ViT", 6, "mlp_dim", pooling="gap", intermediate_dim=5)
    assert stages(model)["pooled"].layer == "pre_logits"
    assert pair_stages(model, networks.resnet()) == [
        ("block2", "stage1"),
        ("block4", "stage2"),
        ("block6", "stage3"),
    ]


def test_keras_hub_mit_has_stages():
    """Its tokens become a map at the end of each stage: these maps are its places."""
    models = _imported("keras_hub").models
    backbone = models.MiTBackbone(
        layerwise_depths=[1, 2],
        num_layers=2,
        layerwise_num_heads=[1, 2],
        layerwise_sr_ratios=[2, 1],
        max_drop_path_rate=0.1,
        layerwise_patch_sizes=[7, 3],
        layerwise_strides=[4, 2],
        image_shape=(32, 32, 3),
        hidden_dims=[8, 16],
        name="backbone",
    )
    model = models.MiTImageClassifier(backbone, num_classes=3)
    levels = {f"stage{k + 1}": f"backbone/output_level_{k}" for k in range(2)}
    read = _check(model, networks.images(2, 32, 32, 3), levels | {"pooled": "pooler"})
    assert [read[place].shape[1:] for place in levels] == [(8, 8, 8), (4, 4, 16)]
    assert pair_stages(model, _vision(models, "ViT", 2, "mlp_dim")) == [
        ("stage1", "block1"),
        ("stage2", "block2"),
    ]


@pytest.mark.parametrize(
    ("kind", "pooled"),
    [
        ("Bert", "backbone/pooled_dense"),
        ("Roberta", "pooled_dense"),
        ("DistilBert", "pooled_dense"),
        ("DebertaV3", "pooled_dense"),
    ],
)
def test_keras_hub_text_classifiers(kind, pooled):
    """The padding mask, and DeBERTa's relative positions, go to every block."""
    models = _imported("keras_hub").models
    deep, shallow = (_text(models, kind, depth) for depth in (4, 2))
    layer = "disentangled_attention_encoder_layer" if kind == "DebertaV3" else "transformer_layer"
    blocks = {f"block{k + 1}": f"backbone/{layer}_{k}" for k in range(4)}
    read = _check(deep, _texts(deep, 9), blocks | {"pooled": pooled})
    assert read["block1"].shape == (2, 9, 8)
    assert pair_stages(deep, shallow) == [("block2", "block1"), ("block4", "block2")]


def test_keras_hub_albert_calls_one_layer_several_times():
    models = _imported("keras_hub").models
    backbone = models.AlbertBackbone(
        vocabulary_size=20,
        num_layers=2,
        num_groups=1,
        num_inner_repetitions=1,
        num_heads=2,
        embedding_dim=4,
        hidden_dim=8,
        intermediate_dim=16,
        max_sequence_length=12,
        name="backbone",
    )
    model = models.AlbertTextClassifier(backbone, num_classes=3)
    blocks = {f"block{k}": f"backbone/group_0_inner_layer_0@{k}" for k in (1, 2)}
    _check(model, _texts(model, 7), blocks | {"pooled": "backbone/pooled_dense"})


def test_keras_cv_vit_det():
    """Its blocks keep their tokens as a map."""
    backbone = _imported("keras_cv").models.ViTDetBackbone(
        img_size=16,
        input_shape=(16, 16, 3),
        include_rescaling=False,
        patch_size=4,
        embed_dim=8,
        num_heads=2,
        intermediate_dim=16,
        depth=2,
        window_size=2,
        global_attention_layer_indices=[1],
    )
    x = keras.layers.GlobalAveragePooling2D(name="pool")(backbone.output)
    model = keras.Model(backbone.input, keras.layers.Dense(3)(x))
    blocks = [layer.name for layer in model.layers if "windowed" in layer.name]
    found = stages(model)
    assert [(found[p].layer, found[p].shape) for p in ("block1", "block2")] == [
        (name, (None, 4, 4, 8)) for name in blocks
    ]
    assert found["stage1"].shape == (None, 4, 4, 256)
    assert pair_stages(model, networks.resnet()) == [("block1", "stage2"), ("block2", "stage3")]
    places = ["block1", "block2", "pooled"]
    assert (
        FeatureTaps(model, places)(networks.images(2, 16, 16, 3), False)["pooled"].shape[1] == 256
    )

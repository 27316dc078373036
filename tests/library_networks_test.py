"""Places, stages and outputs of networks that KerasCV and KerasHub make."""

import warnings

import keras
import numpy as np
import pytest
import tapped_networks as networks

from keras_mikd.features.feature_taps import FeatureTaps
from keras_mikd.features.probabilities import holds_probabilities
from keras_mikd.features.stages import stages


def _imported(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name, exc_type=ImportError)


def test_keras_cv_classifier():
    models = _imported("keras_cv").models
    backbone = models.ResNetV2Backbone(
        stackwise_filters=[64, 8],
        stackwise_blocks=[2, 2],
        stackwise_strides=[1, 2],
        include_rescaling=True,
        block_type="basic_block",
        name="backbone",
    )
    model, x = (
        models.ImageClassifier(backbone=backbone, num_classes=3),
        networks.images(2, 32, 32, 3),
    )
    assert holds_probabilities(model) is True
    assert [s.layer for s in stages(model).values()] == [
        "backbone/conv1_conv",
        "backbone/v2_stack_1_block1_out",
        "backbone/post_relu",
        "avg_pool",
    ]
    places = ["P2", "P3", "backbone/v2_stack_0_block2_out", "stage2", "stage3", "pooled"]
    read = FeatureTaps(model, places)(x, training=False)
    np.testing.assert_array_equal(read["output"], model(x, training=False))
    np.testing.assert_array_equal(read["P2"], read["backbone/v2_stack_0_block2_out"])
    assert [tuple(read[place].shape) for place in places] == [
        (2, 8, 8, 64),
        (2, 4, 4, 8),
        (2, 8, 8, 64),
        (2, 8, 8, 8),
        (2, 4, 4, 8),
        (2, 8),
    ]
    config = model.get_config()
    FeatureTaps(backbone, ["P3", "stage1"])
    assert model.get_config() == config


def test_keras_cv_detector():
    models = _imported("keras_cv").models
    backbone = models.CSPDarkNetBackbone(
        stackwise_channels=[4, 6, 8, 10],
        stackwise_depth=[1, 1, 1, 1],
        include_rescaling=False,
        input_shape=(32, 32, 1),
    )
    # Another pyramid before it, so that this one gets another name.
    models.retinanet.FeaturePyramid()
    model = models.RetinaNet(backbone=backbone, num_classes=3, bounding_box_format="xyxy")
    assert model.feature_pyramid.name != "feature_pyramid"
    pyramid = [f"feature_pyramid/P{i}" for i in (3, 4, 5)]
    levels, x = ["P2", "P3", "P4", "P5"], {"images": networks.images(2, 32, 32, 1)}
    taps = FeatureTaps(model, [*levels, *pyramid])
    read = taps(x["images"], training=False)
    extractor = keras.Model(
        backbone.input,
        [backbone.get_layer(backbone.pyramid_level_inputs[p]).output for p in levels],
    )
    for place, expected in zip(levels, extractor(x["images"]), strict=True):
        np.testing.assert_allclose(read[place], expected, rtol=1e-5, atol=1e-6)
    expected = model.feature_pyramid({place: read[place] for place in levels[1:]})
    for place, tensor in zip(pyramid, expected, strict=False):
        np.testing.assert_allclose(read[place], tensor, rtol=1e-5, atol=1e-6)
        assert taps.specs[place].shape[1:] == tensor.shape[1:]
    for name, tensor in model(x).items():
        np.testing.assert_allclose(read["output"][name], tensor, rtol=1e-5, atol=1e-5)


def test_pyramid_of_a_detector_that_is_a_model_of_its_own():
    models = _imported("keras_cv").models
    backbone = networks.backbone()
    backbone.pyramid_level_inputs = {"P3": "conv1", "P4": "relu1", "P5": "conv2"}
    shapes = [backbone.get_layer(name).output.shape[1:] for name in ("conv1", "relu1", "conv2")]
    levels = {p: keras.Input(s, name=p) for p, s in zip(("P3", "P4", "P5"), shapes, strict=True)}
    outputs = [networks.conv(x, 3, name=f"own_{level}") for level, x in levels.items()]
    pyramid = keras.Model(levels, [*outputs, *outputs[-2:]], name="any")
    model = models.RetinaNet(
        backbone=backbone, num_classes=3, bounding_box_format="xyxy", feature_pyramid=pyramid
    )
    taps = FeatureTaps(model, ["P4", "any/own_P4", "feature_pyramid/P4"])
    read = taps(networks.images(2, 16, 16, 3), training=False)
    np.testing.assert_array_equal(read["feature_pyramid/P4"], read["any/own_P4"])
    assert read["P4"].shape[-1] != 3 == read["feature_pyramid/P4"].shape[-1]


@pytest.mark.parametrize("pre_activation", [False, True])
def test_keras_hub_classifier(pre_activation):
    models = _imported("keras_hub").models
    backbone = models.ResNetBackbone(
        input_conv_filters=[4],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 4],
        stackwise_num_blocks=[1, 1],
        stackwise_num_strides=[1, 2],
        block_type="bottleneck_block",
        use_pre_activation=pre_activation,
        image_shape=(32, 32, 3),
        name="backbone",
    )
    model, x = models.ImageClassifier(backbone, num_classes=3), networks.images(2, 32, 32, 3)
    found = stages(model)
    names = ["conv1_conv", "stack1_block0_pre_activation_relu", "post_relu"]
    if not pre_activation:
        names = ["conv1_relu", "stack0_block0_out", "stack1_block0_out"]
    assert [s.layer for s in found.values()] == [*[f"backbone/{n}" for n in names], "pooler"]
    assert [s.shape[1] for s in found.values()] == [16, 8, 4, 16]
    taps = FeatureTaps(model, ["P2", "P3", "stage2"])
    assert [taps.specs[place].shape[1] for place in ("P2", "P3", "stage2")] == [8, 4, 8]
    np.testing.assert_array_equal(taps(x, training=False)["output"], model(x, training=False))


def test_keras_hub_mobilenet():
    models = _imported("keras_hub").models
    backbone = models.MobileNetBackbone(
        stackwise_expansion=[[8], [8, 8]],
        stackwise_num_blocks=[1, 2],
        stackwise_num_filters=[[8], [8, 16]],
        stackwise_kernel_size=[[3], [3, 3]],
        stackwise_num_strides=[[2], [2, 1]],
        stackwise_se_ratio=[[0.25], [None, 0.25]],
        stackwise_activation=[["relu"], ["hard_swish", "hard_swish"]],
        stackwise_padding=[[1], [1, 1]],
        output_num_filters=16,
        input_num_filters=8,
        input_activation="hard_swish",
        output_activation="hard_swish",
        image_shape=(64, 64, 3),
        depthwise_filters=8,
        depthwise_stride=2,
        depthwise_residual=False,
        last_layer_filter=16,
        squeeze_and_excite=0.5,
        name="backbone",
    )
    model = models.MobileNetImageClassifier(backbone, num_classes=3, num_features=12)
    found, x = stages(model), networks.images(1, 64, 64, 3)
    assert [stage.shape[1] for stage in found.values()] == [32, 16, 8, 4, 12]
    assert found["pooled"].layer == "flatten"
    taps = FeatureTaps(model, found)
    read = taps(x, training=False)
    assert {place: tuple(read[place].shape)[1:] for place in found} == {
        place: stage.shape[1:] for place, stage in found.items()
    }
    np.testing.assert_array_equal(read["output"], model(x, training=False))

"""What the VGGs, ResNets of four stages, mobile networks and perceptrons have in common."""

import re

import keras
import numpy as np
import pytest

from keras_mikd import models, stages

SMALL = {
    "vgg8": (8, 8, 1),
    "resnet18": (8, 8, 1),
    "mobilenet_v2_half": (16, 16, 1),
    "shufflenet_v1": (8, 8, 1),
    "shufflenet_v2": (8, 8, 1),
}


def _kernels(model):
    return [w for w in model.trainable_weights if w.path.endswith("kernel")]


def _images(shape, count=2):
    return np.random.RandomState(0).normal(size=(count, *shape)).astype("float32")


@pytest.fixture(scope="module", params=SMALL)
def network(request):
    """A small network with a regularizer, its name and the smallest images that it takes."""
    name, shape = request.param, SMALL[request.param]
    regularizer = keras.regularizers.L2(0.5)
    return getattr(models, name)(5, shape, kernel_regularizer=regularizer), name, shape


def test_saved_model_is_the_same_function_and_needs_no_class_of_this_library(network, tmp_path):
    model, _, shape = network
    path = tmp_path / "model.keras"
    model.save(path)
    loaded = keras.saving.load_model(path)
    np.testing.assert_array_equal(loaded(_images(shape)), model(_images(shape)))
    assert {type(layer).__module__.partition(".")[0] for layer in model.layers} == {"keras"}


def test_layer_names_are_the_same_again_and_say_where_they_are(network):
    model, name, shape = network
    names = [layer.name for layer in model.layers]
    assert names == [layer.name for layer in getattr(models, name)(5, shape).layers]
    pattern = (
        r"image|pooled|logits|stem(_conv|_bn)?(_pad)?|final_(conv|bn|relu)|stage[1-5]_output|"
        r"block[1-5]_(pool|output|(conv|bn|relu)\d)|"
        r"(stage|group)\d_block\d_(shortcut_|expand_|depthwise_|project_|changed|kept|shuffle|_)*"
        r"((conv|bn|relu)\d?|add|concat|pool|groups|permute|halves|crop)?(_pad|_groups|_flat)?|"
        r"stage\d_block\d_shortcut_pad"
    )
    assert [x for x in names if not re.fullmatch(pattern, x)] == []


def test_regularizer_covers_every_kernel(network):
    model, _, _ = network
    kernels = _kernels(model)
    convolved = [x for x in model.layers if "conv" in x.name and x.trainable_weights]
    assert len(kernels) == len(convolved) + 1
    expected = sum(0.5 * np.sum(np.square(kernel.numpy())) for kernel in kernels)
    np.testing.assert_allclose(sum(model.losses), expected, rtol=1e-4)


def test_batch_normalization_forgets_as_in_the_papers(network):
    found = [x for x in network[0].layers if isinstance(x, keras.layers.BatchNormalization)]
    assert {(layer.momentum, layer.epsilon) for layer in found} == {(0.9, 1e-5)}


def test_a_layer_named_as_a_stage_has_the_size_of_that_place(network):
    model, _, _ = network
    found = {place: stage.shape for place, stage in stages(model).items() if place != "pooled"}
    # Where the smallest image ends as a single pixel, the last map counts as a vector.
    assert 3 <= len(found) <= 4
    for place, shape in found.items():
        assert model.get_layer(f"{place}_output").output.shape[1:3] == shape[1:3]


def test_smaller_images_are_refused(network):
    _, name, shape = network
    with pytest.raises(ValueError, match=rf"Received: input_shape\[1\]={shape[1] - 1}"):
        getattr(models, name)(5, (shape[0], shape[1] - 1, 1))
    with pytest.raises(ValueError, match="Received: num_classes=1"):
        getattr(models, name)(1)


def test_a_network_trains_in_every_weight(network):
    model, _, shape = network
    before = [w.numpy() for w in model.trainable_weights]
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss=loss, run_eagerly=True)
    model.train_on_batch(_images(shape, 4), np.arange(4))
    for old, weight in zip(before, model.trainable_weights, strict=True):
        moved = np.abs(weight.numpy() - old).max()
        # A bias before BatchNorm changes nothing.
        assert np.isfinite(moved) and (moved > 0 or weight.path.endswith("conv1/bias"))


@pytest.mark.parametrize("name", SMALL)
def test_classifier_starts_as_in_the_authors_code(name):
    kernel, bias = getattr(models, name)(100).get_layer("logits").get_weights()
    if name in ("vgg8", "mobilenet_v2_half"):
        np.testing.assert_allclose(kernel.std(), 0.01, rtol=0.05)
        assert not bias.any()
    else:
        limit = len(kernel) ** -0.5
        for weights in (kernel, bias):
            assert 0.9 * limit < np.abs(weights).max() <= limit
    own = getattr(models, name)(100, classifier_initializer="ones").get_layer("logits")
    np.testing.assert_array_equal(own.get_weights()[0], 1)
    assert not own.get_weights()[1].any()


def test_mobilenet_starts_by_fan_out_of_all_channels_and_shufflenet_by_pytorchs_default():
    mobile, shuffle = models.mobilenet_v2_half(10), models.shufflenet_v1(10)
    for name, channels in (("expand_conv", 480), ("depthwise_conv", 9 * 480), ("project_conv", 80)):
        kernel = mobile.get_layer(f"group6_block2_{name}").get_weights()[0]
        np.testing.assert_allclose(kernel.var(), 2 / channels, rtol=0.1)
    # 960 channels in 3 groups; one channel; 240 channels in 3 groups.
    for name, fan_in in (("conv1", 320), ("conv2", 9), ("conv3", 80)):
        kernel = shuffle.get_layer(f"stage4_block2_{name}").get_weights()[0]
        limit = fan_in**-0.5
        assert 0.99 * limit < np.abs(kernel).max() <= limit
        np.testing.assert_allclose(kernel.std(), limit / np.sqrt(3), rtol=0.05)


@pytest.mark.parametrize(
    ("size", "last", "stage"), [(32, 4, "stage4_output"), (64, 4, "stage5_output")]
)
def test_a_vgg_halves_large_images_once_more(size, last, stage):
    """From 64 pixels on, as the authors' code."""
    model = models.vgg8(10, (size, size, 3))
    assert model.get_layer(stage).output.shape == (None, last, last, 512)
    assert len(stages(model)) == (5 if size == 32 else 6)


def test_vgg9_is_eight_convolutions_and_a_linear_layer():
    model = models.vgg9(100)
    assert (model.name, len(_kernels(model))) == ("vgg9", 9)


@pytest.mark.parametrize(("depth", "count"), [(18, 11_689_512), (34, 21_797_672), (50, 25_557_032)])
def test_imagenet_stem_has_the_weights_of_torchvision(depth, count):
    model = getattr(models, f"resnet{depth}")(1000, (64, 64, 3), stem="imagenet")
    assert sum(int(np.prod(weight.shape)) for weight in model.trainable_weights) == count
    found = [(stage.shape[1], stage.layer) for stage in list(stages(model).values())[:-1]]
    assert found == [(2 ** (6 - k), f"stage{k}_output") for k in (1, 2, 3, 4, 5)]


@pytest.mark.parametrize(
    ("build", "options", "message"),
    [
        (models.vgg, {"depth": 12}, "Received: depth=12"),
        (models.resnet, {"depth": 20}, "18, 34 or 50. Received: depth=20"),
        (models.resnet, {"depth": 18, "stem": "small"}, "Received: stem='small'"),
        (
            models.resnet,
            {"depth": 18, "stem": "imagenet", "input_shape": (16, 32, 3)},
            r"input_shape\[0\]=16",
        ),
        (models.mobilenet_v2, {"width": 0}, "Received: width=0"),
        (models.mobilenet_v2, {"width": 1.5}, "Received: width=1.5"),
        (models.mlp, {"width": 0}, "Received: width=0"),
        (models.mlp, {"width": 8, "depth": 0}, "Received: depth=0"),
    ],
)
def test_bad_sizes(build, options, message):
    with pytest.raises(ValueError, match=message):
        build(num_classes=10, **options)


def test_a_perceptron_has_hidden_vectors_and_no_stages(tmp_path):
    regularizer = keras.regularizers.L2(0.5)
    model = models.mlp(
        width=6, num_classes=3, input_shape=(4, 4, 1), kernel_regularizer=regularizer
    )
    count = 16 * 6 + 2 * 36 + 3 * 2 * 6 + 7 * 3
    assert sum(int(np.prod(weight.shape)) for weight in model.trainable_weights) == count
    assert {place: stage.layer for place, stage in stages(model).items()} == {"pooled": "hidden3"}
    assert model.get_layer("hidden1").output.shape == (None, 6)
    expected = sum(0.5 * np.sum(np.square(kernel.numpy())) for kernel in _kernels(model))
    np.testing.assert_allclose(sum(model.losses), expected, rtol=1e-5)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(_images((4, 4, 1))), model(_images((4, 4, 1))))

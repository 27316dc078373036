import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mikd import models

NETWORKS = {
    "wrn_16_1": (16, 1, 180_916),
    "wrn_16_2": (16, 2, 703_284),
    "wrn_40_1": (40, 1, 569_780),
    "wrn_40_2": (40, 2, 2_255_156),
}

IMAGES = np.random.RandomState(0).normal(size=(4, 8, 8, 1)).astype("float32")


def _trainable(model):
    return sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)


def _count(depth, width, num_classes, channels):
    """Trainable weights by arithmetic: kernels, two per channel and BatchNorm, classifier."""
    widths = [16, 16 * width, 32 * width, 64 * width]
    total = 9 * channels * 16
    for before, after in zip(widths, widths[1:], strict=False):
        convolutions = 2 * ((depth - 4) // 6)
        total += 9 * before * after + (convolutions - 1) * 9 * after**2
        total += 2 * before + (convolutions - 1) * 2 * after
        total += before * after if before != after else 0
    return total + 2 * widths[-1] + (widths[-1] + 1) * num_classes


@pytest.mark.parametrize("name", NETWORKS)
def test_a_preset_has_the_published_depth_and_width(name):
    """Without building it: the deep ones take seconds."""
    depth, width, published = NETWORKS[name]
    assert _count(depth, width, 100, 3) == published
    network = getattr(models, name)
    assert f": {published:,} weights on CIFAR-100" in network.__doc__
    fixed = inspect.getclosurevars(network).nonlocals["fixed"]
    assert fixed == {"depth": depth, "width": width}


@pytest.mark.parametrize(
    "name",
    [n if n == "wrn_16_2" else pytest.param(n, marks=pytest.mark.slow) for n in NETWORKS],
)
def test_published_weights_on_cifar100(name):
    model = getattr(models, name)(100)
    assert _trainable(model) == NETWORKS[name][-1]
    assert model.name == name


@pytest.mark.parametrize("size", [8, 32])
def test_stages_work_at_full_half_and_quarter_resolution(size):
    model = models.wrn_16_2(10, (size, size, 1))
    for stage, channels in ((1, 32), (2, 64), (3, 128)):
        side = size // 2 ** (stage - 1)
        output = model.get_layer(f"stage{stage}_output").output
        assert output.shape == (None, side, side, channels)
    assert model.get_layer("pooled").output.shape == (None, 128)
    assert model.output_shape == (None, 10)


@pytest.fixture(scope="module")
def small():
    """A regularized network that has seen a batch."""
    model = models.wrn_16_1(10, (8, 8, 1), kernel_regularizer=keras.regularizers.L2(0.5))
    model(IMAGES, training=True)
    return model


def test_stage_outputs_are_raw(small):
    taps = [small.get_layer(f"stage{stage}_output").output for stage in (1, 2, 3)]
    for values in keras.Model(small.input, taps)(IMAGES):
        assert np.min(values) < 0


def test_the_classifier_starts_as_in_the_benchmark():
    kernel, bias = models.wrn_16_2(100, (8, 8, 1)).get_layer("logits").get_weights()
    np.testing.assert_allclose(kernel.std(), 1 / np.sqrt(3 * 128), rtol=0.02)
    assert not bias.any()
    options = {"classifier_initializer": "glorot_uniform"}
    kernel, _ = models.wrn_16_2(100, (8, 8, 1), **options).get_layer("logits").get_weights()
    np.testing.assert_allclose(kernel.std(), np.sqrt(2 / 228), rtol=0.03)


def test_saved_model_is_the_same_function(small, tmp_path):
    small.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(IMAGES), small(IMAGES))


def test_regularizer_covers_every_kernel(small):
    kernels = [w for w in small.trainable_weights if w.path.endswith("kernel")]
    assert len(kernels) == 16
    expected = sum(0.5 * np.sum(np.square(kernel.numpy())) for kernel in kernels)
    np.testing.assert_allclose(sum(small.losses), expected, rtol=1e-4)


@pytest.mark.parametrize("depth", [4, 8, 15, 20, 16.0])
def test_bad_depth(depth):
    with pytest.raises(ValueError, match=f"Expected `depth`.*Received: depth={depth}"):
        models.wide_resnet(depth=depth, width=1, num_classes=10)


def test_bad_width_num_classes_and_input_shape():
    with pytest.raises(ValueError, match="Received: width=0"):
        models.wide_resnet(depth=16, width=0, num_classes=10)
    with pytest.raises(ValueError, match="Received: num_classes=1"):
        models.wrn_16_1(1)
    with pytest.raises(ValueError, match=r"Received: input_shape\[0\]=2"):
        models.wrn_16_1(10, (2, 2, 3))


def test_a_block_is_that_of_the_benchmark():
    """RepDistiller's code: where the width changes, the shortcut starts behind the first ReLU."""
    model = models.wide_resnet(depth=10, width=2, num_classes=3, input_shape=(8, 8, 1))
    rng = np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(np.abs(weight + 0.3 * rng.normal(size=weight.shape)))

    def activated(x, name):
        norm = model.get_layer(name)
        scaled = (x - norm.moving_mean) / np.sqrt(norm.moving_variance + 1e-5)
        return np.maximum(scaled * norm.gamma + norm.beta, 0)

    def convolved(x, name, stride):
        kernel = model.get_layer(name).kernel.numpy()
        pad = kernel.shape[0] // 2
        pads = [[0, 0], [pad, pad], [pad, pad], [0, 0]]
        return tf.nn.conv2d(x, kernel, stride, pads).numpy()

    places = ["stem_conv", "stage1_output", "stage2_output", "stage3_output"]
    read = [model.get_layer(place).output for place in places]
    maps = [y.numpy() for y in keras.Model(model.input, read)(IMAGES)]
    np.testing.assert_allclose(maps[0], convolved(IMAGES, "stem_conv", 1), rtol=1e-5)
    for stage, stride in ((1, 1), (2, 2), (3, 2)):
        block = f"stage{stage}_block1"
        first = activated(maps[stage - 1], f"{block}_bn1")
        x = activated(convolved(first, f"{block}_conv1", stride), f"{block}_bn2")
        expected = convolved(x, f"{block}_conv2", 1)
        expected += convolved(first, f"{block}_shortcut_conv", stride)
        np.testing.assert_allclose(maps[stage], expected, rtol=1e-4)

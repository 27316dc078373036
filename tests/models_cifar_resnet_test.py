import inspect
import re

import keras
import numpy as np
import pytest

from keras_mikd import models

NARROW, WIDE = (16, 16, 32, 64), (32, 64, 128, 256)
NETWORKS = {
    "resnet8": (8, NARROW, 83_892),
    "resnet14": (14, NARROW, 181_108),
    "resnet20": (20, NARROW, 278_324),
    "resnet32": (32, NARROW, 472_756),
    "resnet44": (44, NARROW, 667_188),
    "resnet56": (56, NARROW, 861_620),
    "resnet110": (110, NARROW, 1_736_564),
    "resnet8x4": (8, WIDE, 1_233_540),
    "resnet32x4": (32, WIDE, 7_433_860),
}

IMAGES = np.random.RandomState(0).normal(size=(4, 8, 8, 1)).astype("float32")


def _trainable(model):
    return sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)


def _count(depth, widths, num_classes, channels):
    """Trainable weights by arithmetic: kernels, two per channel and BatchNorm, classifier."""
    total = 9 * channels * widths[0] + 2 * widths[0]
    for stage, (before, width) in enumerate(zip(widths, widths[1:], strict=False)):
        if stage > 0 or before != width:
            total += before * width + 2 * width
        convolutions = 2 * ((depth - 2) // 6)
        total += 9 * before * width + (convolutions - 1) * 9 * width**2 + convolutions * 2 * width
    return total + (widths[-1] + 1) * num_classes


@pytest.mark.parametrize("name", NETWORKS)
def test_a_preset_has_the_published_depth_and_widths(name):
    """Without building it: the deep ones take seconds."""
    depth, widths, published = NETWORKS[name]
    assert _count(depth, widths, 100, 3) == published
    network = getattr(models, name)
    assert f": {published:,} weights on CIFAR-100" in network.__doc__
    fixed = inspect.getclosurevars(network).nonlocals["fixed"]
    assert models.cifar_resnet.__kwdefaults__ | fixed == {
        **models.cifar_resnet.__kwdefaults__,
        "depth": depth,
        "widths": widths,
    }


@pytest.mark.parametrize(
    "name",
    [
        n if n in ("resnet8", "resnet8x4") else pytest.param(n, marks=pytest.mark.slow)
        for n in NETWORKS
    ],
)
def test_published_weights_on_cifar100(name):
    model = getattr(models, name)(100)
    assert _trainable(model) == NETWORKS[name][-1]
    assert model.name == name


def test_weights_for_another_shape():
    model = models.cifar_resnet(
        depth=14, widths=(4, 6, 8, 10), num_classes=7, input_shape=(8, 12, 1)
    )
    assert _trainable(model) == _count(14, (4, 6, 8, 10), 7, 1)


@pytest.mark.parametrize("size", [8, 32])
def test_stages_work_at_full_half_and_quarter_resolution(size):
    model = models.resnet8x4(10, (size, size, 1))
    for stage, channels in ((1, 64), (2, 128), (3, 256)):
        side = size // 2 ** (stage - 1)
        output = model.get_layer(f"stage{stage}_output").output
        assert output.shape == (None, side, side, channels)
    assert model.get_layer("pooled").output.shape == (None, 256)
    assert model.output_shape == (None, 10)


@pytest.fixture(scope="module")
def small():
    """A regularized network that has seen a batch."""
    model = models.resnet8(10, (8, 8, 1), kernel_regularizer=keras.regularizers.L2(0.5))
    model(IMAGES, training=True)
    return model


def test_odd_sizes():
    assert models.resnet8(5, (7, 9, 3))(np.zeros((2, 7, 9, 3))).shape == (2, 5)


def test_stage_outputs_are_not_negative_and_logits_are_not_probabilities(small):
    taps = [small.get_layer(f"stage{stage}_output").output for stage in (1, 2, 3)]
    *maps, logits = keras.Model(small.input, [*taps, small.output])(IMAGES)
    for values in maps:
        assert np.min(values) == 0
    assert np.min(logits) < 0


def test_shortcut_of_first_stage_only_where_the_width_changes(small):
    names = {layer.name for layer in small.layers}
    assert "stage1_block1_shortcut_conv" not in names
    assert "stage2_block1_shortcut_conv" in names
    wide = models.resnet8x4(10, (4, 4, 1))
    assert "stage1_block1_shortcut_conv" in {layer.name for layer in wide.layers}


def test_layer_names_do_not_depend_on_what_was_built_before():
    shape = (4, 4, 1)
    first, second = ([layer.name for layer in models.resnet14(10, shape).layers] for _ in range(2))
    assert first == second
    pattern = r"stage[123]_(output|block[12]_(shortcut_(conv|bn)|conv[12]|bn[12]|relu[12]|add))"
    inner = [name for name in first if name.startswith("stage")]
    assert all(re.fullmatch(pattern, name.removesuffix("_pad")) for name in inner)


def test_batch_normalization_forgets_as_in_the_papers(small):
    found = [x for x in small.layers if isinstance(x, keras.layers.BatchNormalization)]
    assert len(found) == 9
    assert {(layer.momentum, layer.epsilon) for layer in found} == {(0.9, 1e-5)}


def test_regularizer_covers_every_kernel(small):
    kernels = [w for w in small.trainable_weights if w.path.endswith("kernel")]
    assert len(kernels) == 10
    expected = sum(0.5 * np.sum(np.square(kernel.numpy())) for kernel in kernels)
    np.testing.assert_allclose(sum(small.losses), expected, rtol=1e-4)


def test_the_classifier_starts_as_in_pytorch_or_by_an_initializer_of_keras():
    """Uniform within 1 / sqrt(256): a standard deviation of 0.036."""
    kernel, bias = models.resnet8x4(100, (8, 8, 1)).get_layer("logits").get_weights()
    for weights in (kernel, bias):
        assert 0.95 / 16 < np.abs(weights).max() <= 1 / 16
        np.testing.assert_allclose(weights.std(), 1 / 16 / np.sqrt(3), rtol=0.2)
    options = {"classifier_initializer": "glorot_uniform"}
    kernel, bias = models.resnet8x4(100, (8, 8, 1), **options).get_layer("logits").get_weights()
    np.testing.assert_allclose(kernel.std(), np.sqrt(2 / 356), rtol=0.02)
    assert not bias.any()


def test_saved_model_is_the_same_function(small, tmp_path):
    small.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(IMAGES), small(IMAGES))
    assert [layer.name for layer in loaded.layers] == [layer.name for layer in small.layers]


@pytest.mark.parametrize("depth", [2, 7, 10, 16, -4, 8.0])
def test_bad_depth(depth):
    with pytest.raises(ValueError, match=f"Expected `depth`.*Received: depth={depth}"):
        models.cifar_resnet(depth=depth, num_classes=10)


@pytest.mark.parametrize(
    ("widths", "message"),
    [((16, 32, 64), "to be 4 ints. Received: widths="), ((16, 16, 0, 64), r"widths\[2\]=0")],
)
def test_bad_widths(widths, message):
    with pytest.raises(ValueError, match=message):
        models.cifar_resnet(depth=8, widths=widths, num_classes=10)


def test_bad_num_classes_and_input_shape():
    with pytest.raises(ValueError, match="Received: num_classes=1"):
        models.resnet8(1)
    with pytest.raises(ValueError, match="Received: input_shape="):
        models.resnet8(10, (32, 32))

import keras
import numpy as np
import pytest
from keras import layers

import keras_mikd as mikd
from keras_mikd.figures import eigen_cam
from tests import cases


def _identity(shape, num_classes=3):
    """A classifier whose one convolution passes the image on: its last map is the image."""
    inputs = keras.Input(shape)
    channels = shape[-1]
    x = layers.Conv2D(channels, 1, use_bias=False, name="conv")(inputs)
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, layers.Dense(num_classes, name="logits")(x))
    model.get_layer("conv").set_weights([np.eye(channels)[None, None]])
    return model


def _images(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def _twin(image, center=False):
    """Eigen-CAM of a map of the image's own size, by the eigenvectors of A^T A."""
    a = image.reshape(-1, image.shape[-1]).astype("float64")
    a = a - a.mean(axis=0) if center else a
    _, vectors = np.linalg.eigh(a.T @ a)
    first = (a @ vectors[:, -1]).reshape(image.shape[:2])
    if (np.minimum(first, 0) ** 2).sum() > (np.maximum(first, 0) ** 2).sum():
        first = -first
    first = np.maximum(first, 0)
    return (first - first.min()) / (first.max() - first.min())


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_values_agree_with_an_eigendecomposition(channels, center):
    images = _images(3, 6, 4, channels)
    maps = eigen_cam(_identity((6, 4, channels)), images, center=center)
    assert maps.shape == (3, 6, 4) and maps.dtype == np.float32
    expected = [_twin(image, center) for image in images]
    np.testing.assert_allclose(maps, expected, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_a_map_of_rank_one_gives_its_spatial_pattern(scale):
    pattern = np.random.default_rng(0).uniform(size=(6, 4))
    direction = np.array([0.3, -2.0, 1.0])
    images = scale * pattern[None, :, :, None] * direction
    (heat,) = eigen_cam(_identity((6, 4, 3)), images)
    expected = (pattern - pattern.min()) / np.ptp(pattern)
    np.testing.assert_allclose(heat, expected, atol=1e-5)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_sign_is_that_of_the_larger_part(sign):
    """Three strong locations on one side and one weak location on the other."""
    pattern = np.array([[2.0, 1.0], [2.0, -1.5]])
    (heat,) = eigen_cam(_identity((2, 2, 1)), sign * pattern[None, :, :, None])
    np.testing.assert_allclose(heat, [[1.0, 0.5], [1.0, 0.0]], atol=1e-6)


def test_the_map_is_enlarged_bilinearly():
    inputs = keras.Input((4, 4, 1))
    x = layers.Conv2D(1, 2, strides=2, use_bias=False, name="conv")(inputs)
    model = keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x)))
    model.get_layer("conv").set_weights([np.full((2, 2, 1, 1), 0.25)])
    image = np.kron([[1.0, 3.0], [1.0, 3.0]], np.ones((2, 2)))
    (heat,) = eigen_cam(model, image[None, :, :, None])
    # Half a cell beyond the centres the edge value goes on; between them it is linear.
    np.testing.assert_allclose(heat, np.tile([0.0, 0.25, 0.75, 1.0], (4, 1)), atol=1e-6)


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("value", [0.0, 0.1, 300.0])
def test_a_constant_map_has_no_preferred_location(value, center):
    maps = eigen_cam(_identity((5, 5, 3)), np.full((2, 5, 5, 3), value), center=center)
    np.testing.assert_array_equal(maps, np.zeros((2, 5, 5)))


def test_an_image_does_not_depend_on_the_others():
    model, images = cases.teacher(), _images(70, *cases.IMAGE_SHAPE)
    together = eigen_cam(model, images)
    for index in (0, 63, 64, 69):
        (alone,) = eigen_cam(model, images[index : index + 1])
        np.testing.assert_allclose(alone, together[index], atol=1e-5)
    assert together.min() == 0 and together.max() == 1


def test_the_last_stage_is_read_unless_a_place_is_named():
    model, images = cases.teacher(), _images(2, *cases.IMAGE_SHAPE)
    last = list(mikd.stages(model))[-2]
    default = eigen_cam(model, images)
    np.testing.assert_array_equal(default, eigen_cam(model, images, last))
    np.testing.assert_array_equal(default, eigen_cam(model, images, "relu2"))
    assert np.abs(default - eigen_cam(model, images, "stage1")).max() > 0.1


def test_a_model_of_any_size_takes_images_of_any_size():
    images = _images(2, 6, 4, 3)
    maps = eigen_cam(_identity((None, None, 3)), images)
    np.testing.assert_array_equal(maps, eigen_cam(_identity((6, 4, 3)), images))


def test_a_place_inside_a_nested_model_can_be_read():
    inner = cases.teacher()
    inputs = keras.Input(cases.IMAGE_SHAPE)
    outer = keras.Model(inputs, inner(inputs))
    images = _images(2, *cases.IMAGE_SHAPE)
    np.testing.assert_allclose(
        eigen_cam(outer, images, f"{inner.name}/relu2"), eigen_cam(inner, images), atol=1e-6
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_and_colour_images_leave_the_model_as_it_is(channels):
    shape = (8, 8, channels)
    model = mikd.models.digits_cnn(10, shape, widths=(2, 2, 2))
    before = [np.array(weight) for weight in model.weights]
    maps = eigen_cam(model, np.abs(_images(2, *shape)))
    assert maps.shape == (2, *shape[:2])
    assert np.isfinite(maps).all() and maps.max() == 1
    for old, new in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_half_precision_model_gives_nearly_the_same_map():
    keras.config.set_dtype_policy("mixed_float16")
    half = cases.teacher()
    keras.config.set_dtype_policy("float32")
    full = cases.teacher()
    full.set_weights(half.get_weights())
    images = _images(2, *cases.IMAGE_SHAPE)
    np.testing.assert_allclose(eigen_cam(half, images), eigen_cam(full, images), atol=0.02)


def _dense():
    return keras.Sequential([keras.Input((4, 4, 1)), layers.Flatten(), layers.Dense(3)])


def _two_inputs():
    inputs = [keras.Input((4, 4, 1)), keras.Input((4, 4, 1))]
    x = layers.Conv2D(2, 3)(layers.Add()(inputs))
    return keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x)))


class _Subclassed(keras.Model):
    def call(self, x):
        return x


@pytest.mark.parametrize(
    "model, shape, place, message",
    [
        (_dense, (2, 4, 4, 1), None, "convolutional network. Received: .*finds no feature map"),
        (
            _Subclassed,
            (2, 4, 4, 1),
            None,
            "Functional.*Received: model=_Subclassed.",
        ),
        (_two_inputs, (2, 4, 4, 1), None, "one input, images. Received: 2 inputs"),
        (cases.teacher, (0, 8, 8, 2), None, r"n > 0. Received: images of shape \(0, 8, 8, 2\)"),
        (
            cases.teacher,
            (8, 8, 2),
            None,
            r"\('n', 8, 8, 2\).*Received: images of shape \(8, 8, 2\)",
        ),
        (cases.teacher, (2, 8, 8, 3), None, "takes.*Received: images of shape"),
        (cases.teacher, (2, 8, 8, 2), "stage7", "Expected a place.*Received: 'stage7'"),
        (cases.teacher, (2, 8, 8, 2), "pooled", r"place of a feature map.*shape \(None, 8\)"),
    ],
)
def test_bad_input_is_refused(model, shape, place, message):
    with pytest.raises(ValueError, match=message):
        eigen_cam(model(), np.ones(shape, "float32"), place)


def test_activations_that_are_not_finite_are_refused():
    images = _images(2, *cases.IMAGE_SHAPE)
    images[1, 3, 3, 0] = np.nan
    with pytest.raises(ValueError, match="finite activations. Received: nan or inf"):
        eigen_cam(cases.teacher(), images)


if __name__ == "__main__":
    pytest.main([__file__])

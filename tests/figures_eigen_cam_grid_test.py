import numpy as np
import pytest

import keras_mikd as mikd
from keras_mikd.figures import eigen_cam, eigen_cam_grid


def _model(channels):
    return mikd.models.digits_cnn(10, (8, 8, channels), widths=(2, 2, 2))


def _pictures(figure, columns):
    """Arrays that are drawn, row by row, cell by cell: an image, or an image and its map."""
    cells = [[np.asarray(image.get_array()) for image in axes.images] for axes in figure.axes]
    return [cells[first : first + columns] for first in range(0, len(cells), columns)]


@pytest.mark.parametrize("channels", [1, 3])
def test_a_row_for_the_images_and_one_for_every_model(channels):
    images = np.random.default_rng(0).normal(size=(2, 8, 8, channels)).astype("float32")
    models = {"MLL": _model(channels), "MCMI": _model(channels)}
    figure = eigen_cam_grid(models, images, captions=np.arange(2))
    first, *others = _pictures(figure, 2)
    assert len(others) == 2
    for (shown,), image in zip(first, images, strict=True):
        expected = (image - image.min()) / np.ptp(image)
        np.testing.assert_allclose(shown, np.squeeze(expected), atol=1e-6)
    for row, model in zip(others, models.values(), strict=True):
        for (_, heat), expected in zip(row, eigen_cam(model, images), strict=True):
            np.testing.assert_allclose(heat, expected, atol=1e-5)
    assert [figure.axes[row * 2].get_ylabel() for row in range(3)] == ["image", "MLL", "MCMI"]
    assert [axes.get_title() for axes in figure.axes[:2]] == ["0", "1"]


def test_maps_lie_over_grey_images_on_scales_of_their_own():
    images = np.zeros((1, 8, 8, 1))  # Their smallest and largest number give no scale.
    above, below = eigen_cam_grid(_model(1), images).axes
    (picture,), (under, heat) = above.images, below.images
    assert picture.get_cmap().name == under.get_cmap().name == "gray"
    assert picture.get_clim() == under.get_clim() == heat.get_clim() == (0.0, 1.0)
    assert under.get_alpha() is None and 0 < heat.get_alpha() < 1
    assert not len(above.get_xticks()) and not len(below.get_yticks())


def test_one_model_and_a_black_image():
    (shown,), heat = (
        row[0] for row in _pictures(eigen_cam_grid(_model(1), np.zeros((1, 8, 8, 1))), 1)
    )
    np.testing.assert_array_equal(shown, np.zeros((8, 8)))
    assert np.isfinite(heat[1]).all()


def test_the_place_and_the_centring_are_passed_on():
    model, images = _model(1), np.random.default_rng(0).uniform(size=(1, 8, 8, 1))
    figure = eigen_cam_grid(model, images, "stage2", center=True)
    (expected,) = eigen_cam(model, images, "stage2", center=True)
    np.testing.assert_allclose(_pictures(figure, 1)[1][0][1], expected, atol=1e-5)


@pytest.mark.parametrize(
    "shape, captions, message",
    [
        ((2, 8, 8, 2), None, "1 or 3 channels"),
        ((8, 8, 1), None, r"1 or 3 channels. Received: images of shape \(8, 8, 1\)"),
        ((2, 8, 8, 1), ["a"], "each of 2 images. Received: captions of length 1"),
        ((0, 8, 8, 1), None, "n > 0"),
    ],
)
def test_bad_input_is_refused(shape, captions, message):
    with pytest.raises(ValueError, match=message):
        eigen_cam_grid(_model(1), np.ones(shape), captions=captions)


if __name__ == "__main__":
    pytest.main([__file__])

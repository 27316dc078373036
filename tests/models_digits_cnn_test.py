import keras
import numpy as np
import pytest

from keras_mikd import models


def test_number_of_weights():
    kernels = 9 * (1 * 8 + 8 * 16 + 16 * 24)
    normalization, classifier = 2 * (8 + 16 + 24), 24 * 10 + 10
    trainable = models.digits_cnn().trainable_weights
    count = sum(int(np.prod(weight.shape)) for weight in trainable)
    assert count == kernels + normalization + classifier == 5026


@pytest.mark.parametrize("size", [8, 32])
def test_stages_work_at_full_half_and_quarter_resolution(size):
    model = models.digits_cnn(7, (size, size, 3), widths=(4, 5, 6))
    for stage, channels in ((1, 4), (2, 5), (3, 6)):
        side = size // 2 ** (stage - 1)
        output = model.get_layer(f"stage{stage}_output").output
        assert output.shape == (None, side, side, channels)
    assert model.get_layer("pooled").output.shape == (None, 6)
    assert model.output_shape == (None, 7)


def test_saved_model_is_the_same_function(tmp_path):
    model = models.digits_cnn()
    images = np.random.RandomState(0).normal(size=(4, 8, 8, 1)).astype("float32")
    model(images, training=True)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(images), model(images))


@pytest.mark.parametrize(
    ("widths", "message"),
    [((8, 16), "to be 3 ints. Received: widths="), ((8, 0, 24), r"widths\[1\]=0")],
)
def test_bad_widths(widths, message):
    with pytest.raises(ValueError, match=message):
        models.digits_cnn(widths=widths)


def test_bad_num_classes_and_input_shape():
    with pytest.raises(ValueError, match="Received: num_classes=1"):
        models.digits_cnn(1)
    with pytest.raises(ValueError, match="Received: input_shape="):
        models.digits_cnn(10, (8, 8))

import keras
import numpy as np
import pytest

from keras_mikd.models.convolution_blocks import check_model_arguments, convolution, preset


def _centre_pixel_kernel(channels):
    kernel = np.zeros((3, 3, channels, channels), "float32")
    kernel[1, 1] = np.eye(channels)
    return kernel


@pytest.mark.parametrize("size", [7, 8])
def test_strided_convolution_is_centred_where_its_shortcut_looks(size):
    inputs = keras.Input((size, size, 2))
    model = keras.Model(inputs, convolution(inputs, 2, strides=2, name="conv"))
    model.get_layer("conv").set_weights([_centre_pixel_kernel(2)])
    images = np.random.RandomState(0).normal(size=(3, size, size, 2)).astype("float32")
    np.testing.assert_allclose(model(images), images[:, ::2, ::2], rtol=1e-6)


def test_kernels_have_the_variance_of_fan_out():
    inputs = keras.Input((8, 8, 4))
    model = keras.Model(inputs, convolution(inputs, 256, name="conv"))
    kernel = model.get_layer("conv").get_weights()[0]
    np.testing.assert_allclose(kernel.var(), 2 / (9 * 256), rtol=0.05)


@pytest.mark.parametrize("num_classes", [1, 0, -3, 2.5, None])
def test_bad_num_classes(num_classes):
    with pytest.raises(ValueError, match=f"Received: num_classes={num_classes}"):
        check_model_arguments(num_classes=num_classes, input_shape=(8, 8, 1))


@pytest.mark.parametrize(
    ("input_shape", "message"),
    [
        ((8, 8), "to be 3 ints. Received: input_shape="),
        ((8, 8, 1, 1), "to be 3 ints. Received: input_shape="),
        ((2, 8, 3), r"an int of at least 4. Received: input_shape\[0\]=2"),
        ((8, 8, 0), r"an int of at least 1. Received: input_shape\[2\]=0"),
        ((None, None, 3), r"Received: input_shape\[0\]=None"),
        ((8, 8.0, 1), r"Received: input_shape\[1\]=8.0"),
    ],
)
def test_bad_input_shape(input_shape, message):
    with pytest.raises(ValueError, match=message):
        check_model_arguments(num_classes=10, input_shape=input_shape)


def test_a_preset_is_a_function_of_its_own_name_with_arguments_fixed():
    def build(**given):
        """Returns what it is given."""
        return given

    network = preset(build, "net2", "of depth 2: 5", depth=2)
    assert network.__name__ == "net2"
    summary, _, arguments = network.__doc__.partition("\n")
    assert summary == "`build` of depth 2: 5 weights on CIFAR-100."
    assert "num_classes: " in arguments and "input_shape: " in arguments
    expected = {"num_classes": 7, "input_shape": (32, 32, 3), "depth": 2, "name": "net2"}
    assert network(7) == network(7, name=None) == expected
    assert network(7, (8, 8, 1), name="own", extra=1) == expected | {
        "input_shape": (8, 8, 1),
        "name": "own",
        "extra": 1,
    }

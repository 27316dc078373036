"""Networks beside the PyTorch code of the CRD benchmark, HobbitLong/RepDistiller.

The numbers are what that code puts out (commit b84f547, torch 1.13.1) with the weights of `_weight`
in evaluation mode: its weights for 100 classes, the logits of two images for 3 classes, and the
root mean square of the feature maps that it distils.
"""

import zlib

import keras
import numpy as np
import pytest

from keras_mikd import models

REFERENCE = {
    "vgg8": (
        3_965_028,
        [6.945504, -0.4311889, -1.189943, 7.510801, -0.3817092, -1.897542],
        [1.749685, 2.300706, 3.022222, 2.887048],
    ),
    "vgg13": (
        9_462_180,
        [1.890724, -0.7211708, -0.8491697, 2.17831, -0.802095, -1.109072],
        [2.036102, 2.269761, 2.754981, 2.637367],
    ),
    "vgg11": (
        9_277_284,
        [3.253384, -0.7576951, -0.9820279, 4.097953, -1.155716, -1.489696],
        [1.749685, 2.347307, 2.923926, 2.833416],
    ),
    "vgg16": (
        14_774_436,
        [2.343279, -1.082042, 1.767547, 2.525249, -1.271377, 1.781686],
        [2.036102, 2.186454, 2.619416, 2.330083],
    ),
    "vgg19": (
        20_086_692,
        [-0.2814921, -0.2853869, -1.279787, -0.4648755, -0.2378207, -1.314916],
        [2.036102, 2.100664, 2.171219, 1.849645],
    ),
    "mobilenet_v2_half": (
        812_836,
        [-0.1582601, 0.3213912, 0.3072483, -0.1582614, 0.32139, 0.3072491],
        [0.4811698, 0.3948765, 0.3879938, 0.2271395],
    ),
    "shufflenet_v1": (
        949_258,
        [-0.4246962, 0.6179377, 0.9514549, -0.4238135, 0.6192077, 0.9503586],
        [0.3732409, 0.4568067, 0.382282],
    ),
    "shufflenet_v2": (
        1_355_528,
        [0.05092387, -0.2388789, 0.4771726, 0.05094548, -0.2388767, 0.4771659],
        [0.299339, 0.2008257, 0.1950534],
    ),
    "resnet18": (
        11_220_132,
        [39.53799, -51.47033, -46.54225, 36.06264, -55.41533, -43.21576],
        [3.050686, 7.729543, 19.34307, 38.91706],
    ),
    "resnet34": (
        21_328_292,
        [661.9514, -1731.401, -810.8224, 742.663, -1863.797, -789.261],
        [4.553127, 36.37658, 655.1822, 2004.682],
    ),
    "resnet50": (
        23_705_252,
        [4278.689, 5448.973, -442.3579, 4381.407, 5612.665, -325.9109],
        [3.99239, 24.00284, 637.6512, 2869.236],
    ),
}
QUICK = ("vgg8", "mobilenet_v2_half", "shufflenet_v1", "shufflenet_v2", "resnet18")


def _places(name):
    if name.startswith("vgg"):
        return ["stage2_output", "stage3_output", "block4_output", "stage4_output"]
    first = 2 if name.startswith("shufflenet") else 1
    return [f"stage{stage}_output" for stage in range(first, 5)]


def _weight(layer, weight):
    """A weight that depends on its name alone; kernels in the layout of Keras."""
    random = np.random.RandomState(zlib.crc32(f"{layer.name}/{weight.name}".encode()))
    shape = tuple(weight.shape)
    if weight.name == "kernel":
        return random.normal(size=shape) * np.sqrt(2 / np.prod(shape[:-1]))
    if weight.name in ("gamma", "moving_variance"):
        return random.uniform(0.5, 1.5, size=shape)
    return 0.1 * random.normal(size=shape)


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in REFERENCE]
)
def test_outputs_and_features_are_those_of_the_authors_code(name):
    _, logits, features = REFERENCE[name]
    model = getattr(models, name)(3)
    for layer in model.layers:
        for weight in layer.weights:
            weight.assign(_weight(layer, weight))
    images = np.random.RandomState(0).normal(size=(2, 32, 32, 3)).astype("float32")
    read = [model.get_layer(place).output for place in _places(name)]
    *maps, output = keras.Model(model.input, [*read, model.output])(images)
    largest = np.abs(logits).max()
    np.testing.assert_allclose(np.ravel(output), logits, rtol=1e-4, atol=1e-5 * largest)
    sizes = [np.sqrt(np.mean(np.square(values))) for values in maps]
    np.testing.assert_allclose(sizes, features, rtol=1e-5)


@pytest.mark.parametrize("name", REFERENCE)
def test_weights_for_100_classes(name):
    """Also of the ones that are slow to run; without BatchNorm's statistics."""
    count = REFERENCE[name][0]
    network = getattr(models, name)
    assert f"{count:,} weights on CIFAR-100" in network.__doc__
    model = network(100)
    assert sum(int(np.prod(weight.shape)) for weight in model.trainable_weights) == count
    assert model.name == name

"""The 13 pairs of the CRD benchmark, and the places that it distils."""

import functools

import numpy as np
import pytest

from keras_mikd import models, pair_stages, recipes
from keras_mikd.features.feature_taps import FeatureTaps

PAIRS = [
    ("wrn_40_2", "wrn_16_2"),
    ("wrn_40_2", "wrn_40_1"),
    ("resnet56", "resnet20"),
    ("resnet110", "resnet20"),
    ("resnet110", "resnet32"),
    ("resnet32x4", "resnet8x4"),
    ("vgg13", "vgg8"),
    ("vgg13", "mobilenet_v2_half"),
    ("resnet50", "mobilenet_v2_half"),
    ("resnet50", "vgg8"),
    ("resnet32x4", "shufflenet_v1"),
    ("resnet32x4", "shufflenet_v2"),
    ("wrn_40_2", "shufflenet_v1"),
]
# Height and channels of the maps that a network's raw stages are, on images of 32x32.
_VGG = [(32, 64), (16, 128), (8, 256), (4, 512)]
_RESNET = [(32, 16), (16, 32), (8, 64)]
MAPS = {
    "wrn_40_1": _RESNET,
    "wrn_16_2": [(32, 32), (16, 64), (8, 128)],
    "wrn_40_2": [(32, 32), (16, 64), (8, 128)],
    "resnet20": _RESNET,
    "resnet32": _RESNET,
    "resnet56": _RESNET,
    "resnet110": _RESNET,
    "resnet8x4": [(32, 64), (16, 128), (8, 256)],
    "resnet32x4": [(32, 64), (16, 128), (8, 256)],
    "resnet50": [(32, 256), (16, 512), (8, 1024), (4, 2048)],
    "vgg8": _VGG,
    "vgg13": _VGG,
    "mobilenet_v2_half": [(16, 12), (8, 16), (4, 48), (2, 160)],
    "shufflenet_v1": [(16, 240), (8, 480), (4, 960)],
    "shufflenet_v2": [(16, 116), (8, 232), (4, 464)],
}


@functools.cache
def _network(name):
    return getattr(models, name)(100)


@pytest.mark.parametrize(("teacher", "student"), PAIRS)
def test_a_pair_of_the_benchmark_pairs_in_order_and_reads_its_maps(teacher, student):
    networks = [_network(teacher), _network(student)]
    losses = recipes.vid(*networks, raw=True)
    assert len(losses) == len(pair_stages(*networks)) == len(MAPS[teacher]) == len(MAPS[student])
    read = [[x.teacher_layer for x in losses], [x.student_layer for x in losses]]
    images = np.zeros((1, 32, 32, 3), "float32")
    for name, network, places in zip((teacher, student), networks, read, strict=True):
        values = FeatureTaps(network, places)(images, training=False)
        found = [tuple(values[place].shape) for place in places]
        assert found == [(1, side, side, channels) for side, channels in MAPS[name]]
        assert values["output"].shape == (1, 100)


def test_expansions_and_the_last_convolution_are_read_unless_raw():
    student, teacher = _network("mobilenet_v2_half"), _network("vgg13")
    losses = recipes.attention_transfer(teacher, student)
    values = FeatureTaps(student, [x.student_layer for x in losses])
    channels = [values.specs[x.student_layer].shape[-1] for x in losses]
    assert channels == [72, 96, 288, 1280]

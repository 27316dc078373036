import numpy as np
import pytest
from random_features import random_features

import keras_mikd as mikd


def twin(teacher, student):
    """The published loss of every example, float64, channel by channel."""
    t, s = (
        x.astype("float64").reshape(len(x), -1, x.shape[-1]).transpose(0, 2, 1)
        for x in (teacher, student)
    )
    t, s = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (t, s))

    def mean_kernel(a, b):
        return np.mean(
            [[np.sum(x * y, axis=-1) ** 2 for y in b.swapaxes(0, 1)] for x in a.swapaxes(0, 1)],
            axis=(0, 1),
        )

    return mean_kernel(t, t) + mean_kernel(s, s) - 2 * mean_kernel(t, s)


@pytest.mark.parametrize(
    "shapes",
    [((3, 4, 4, 5), (3, 4, 4, 2)), ((2, 3, 5, 1), (2, 3, 5, 7)), ((1, 1, 2, 3), (1, 1, 2, 3))],
)
def test_values_are_the_published_ones(shapes):
    teacher, student = random_features(shapes)
    np.testing.assert_allclose(
        mikd.NST()(teacher, student), twin(teacher, student), rtol=1e-4, atol=1e-6
    )


def test_the_larger_map_is_averaged_first():
    teacher, student = random_features(((2, 4, 6, 3), (2, 2, 3, 4)))
    pooled = teacher.reshape(2, 2, 2, 3, 2, 3).mean((2, 4))
    np.testing.assert_allclose(
        mikd.NST()(teacher, student), twin(pooled, student), rtol=1e-4, atol=1e-6
    )


def test_scale_and_order_of_the_channels_do_not_matter():
    (teacher,) = random_features([(3, 4, 4, 5)])
    loss = mikd.NST()(teacher, -3.0 * teacher[..., ::-1])
    np.testing.assert_allclose(loss, np.zeros(3), atol=1e-6)


@pytest.mark.parametrize(
    ("teacher", "student", "message"),
    [((2, 5), (2, 5), "two feature maps"), ((2, 8, 8, 5), (2, 1, 1, 5), "more than one position")],
)
def test_bad_shapes_are_refused(teacher, student, message):
    with pytest.raises(ValueError, match=message):
        mikd.NST().build(teacher, student)

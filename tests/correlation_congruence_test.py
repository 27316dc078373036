import math

import numpy as np
import pytest
from random_features import random_features

import keras_mikd as mikd

SHAPES = [((5, 3), (5, 7)), ((7, 4, 2, 3), (7, 3)), ((2, 5), (2, 1))]


@pytest.mark.parametrize("shapes", SHAPES)
def test_the_mean_over_the_batch_is_the_released_loss(shapes):
    teacher, student = random_features(shapes)
    cc = mikd.CorrelationCongruence(width=6)
    loss = cc(teacher, student)
    embedded = []
    for embedding, feature in zip(cc.embeddings, (teacher, student), strict=True):
        kernel, bias = (x.astype("float64") for x in embedding.get_weights())
        embedded.append(feature.reshape(len(feature), -1) @ kernel + bias)
    difference = np.abs(embedded[0] - embedded[1])
    expected = np.mean(np.sum(difference[:-1] * difference[1:], axis=1))
    np.testing.assert_allclose(np.mean(loss), expected, rtol=1e-4)
    assert float(loss[-1]) == 0.0  # The last example has no next one.


@pytest.mark.parametrize("shapes", SHAPES)
def test_the_mean_over_the_batch_is_the_published_loss(shapes):
    teacher, student = random_features(shapes)
    matrices = []
    for feature in (teacher, student):
        x = feature.astype("float64").reshape(len(feature), -1)
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
        matrices.append(
            sum(
                math.exp(-0.8) * 0.8**p / math.factorial(p) * np.power(x @ x.T, p) for p in range(3)
            )
        )
    expected = np.linalg.norm(matrices[0] - matrices[1]) ** 2 / len(teacher) ** 2
    loss = mikd.CorrelationCongruence(variant="paper")(teacher, student)
    np.testing.assert_allclose(np.mean(loss), expected, rtol=1e-4)


def test_the_series_is_near_the_kernel():
    """Worked out from the kernel itself: exp(-0.4 |x - y|^2) of two unit vectors at 60 degrees."""
    x = np.array([[1.0, 0.0], [0.5, math.sqrt(0.75)]], "float32")
    kernel = math.exp(-0.4 * 1.0)
    loss = mikd.CorrelationCongruence(variant="paper")(x, np.array([[1.0], [-1.0]], "float32"))
    assert float(loss[0]) == pytest.approx((kernel - math.exp(-0.4 * 4.0)) ** 2 / 2, rel=0.3)


@pytest.mark.parametrize("arguments", [{"variant": "code"}, {"width": 0}])
def test_bad_arguments_are_refused(arguments):
    (name,) = arguments
    with pytest.raises(ValueError, match=f"`{name}` to be"):
        mikd.CorrelationCongruence(**arguments)

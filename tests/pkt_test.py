import numpy as np
import pytest
from random_features import random_features

import keras_mikd as mikd


def twin(teacher, student, epsilon=1e-7):
    """The authors' loss of a batch, float64."""
    probabilities = []
    for feature in (teacher, student):
        x = feature.astype("float64").reshape(len(feature), -1)
        x = x / (np.linalg.norm(x, axis=1, keepdims=True) + epsilon)
        kernel = (x @ x.T + 1) / 2
        probabilities.append(kernel / kernel.sum(axis=1, keepdims=True))
    p, q = probabilities
    return np.mean(p * np.log((p + epsilon) / (q + epsilon)))


@pytest.mark.parametrize(
    "shapes", [((5, 3), (5, 7)), ((7, 4, 2, 3), (7, 3)), ((2, 5), (2, 2)), ((33, 2), (33, 3))]
)
def test_the_mean_over_the_batch_is_the_published_loss(shapes):
    teacher, student = random_features(shapes, seed=len(shapes[0]))
    loss = mikd.PKT()(teacher, student)
    np.testing.assert_allclose(np.mean(loss), twin(teacher, student), rtol=1e-4)


def test_opposite_examples_and_dead_ones_count_as_in_the_code():
    teacher, student = random_features(((4, 3), (4, 3)))
    student[1], student[2] = -student[0], 0.0  # 1 - 1 keeps few digits in float32.
    loss = mikd.PKT()(teacher, student)
    np.testing.assert_allclose(np.mean(loss), twin(teacher, student), rtol=5e-3)

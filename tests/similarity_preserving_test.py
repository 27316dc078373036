import numpy as np
import pytest
from random_features import random_features

import keras_mikd as mikd


def twin(teacher, student):
    """The published loss of a batch, float64."""
    matrices = []
    for feature in (teacher, student):
        rows = feature.astype("float64").reshape(len(feature), -1)
        products = rows @ rows.T
        matrices.append(products / np.linalg.norm(products, axis=1, keepdims=True))
    return np.linalg.norm(matrices[0] - matrices[1]) ** 2 / len(teacher) ** 2


@pytest.mark.parametrize(
    "shapes",
    [((5, 3), (5, 7)), ((7, 4, 2, 3), (7, 3, 3, 2)), ((3, 5, 5, 1), (3, 2)), ((13, 9), (13, 9))],
)
def test_the_mean_over_the_batch_is_the_published_loss(shapes):
    teacher, student = random_features(shapes, seed=len(shapes[0]))
    loss = mikd.SimilarityPreserving()(teacher, student)
    np.testing.assert_allclose(np.mean(loss), twin(teacher, student), rtol=1e-5)

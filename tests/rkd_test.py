import numpy as np
import pytest
from random_features import random_features

import keras_mikd as mikd


def _huber(x):
    return np.where(np.abs(x) < 1, x**2 / 2, np.abs(x) - 0.5)


def _distances(x):
    distances = np.array([[np.linalg.norm(a - b) for b in x] for a in x])
    different = ~np.eye(len(x), dtype=bool)
    distances[different] = np.maximum(distances[different], 1e-6)
    return distances / distances[different].mean()


def _cosines(x):
    cosines = np.zeros([len(x)] * 3)
    for i, at in enumerate(x):
        for j, one in enumerate(x):
            for k, other in enumerate(x):
                lengths = np.linalg.norm(one - at), np.linalg.norm(other - at)
                if min(lengths) > 0:
                    cosines[i, j, k] = (one - at) @ (other - at) / (lengths[0] * lengths[1])
    return cosines


def twin(teacher, student, distance_weight=25.0, angle_weight=50.0):
    """The published loss of a batch, float64, element by element."""
    teacher, student = (x.astype("float64").reshape(len(x), -1) for x in (teacher, student))
    distance = _huber(_distances(teacher) - _distances(student)).mean()
    angle = _huber(_cosines(teacher) - _cosines(student)).mean()
    return distance_weight * distance + angle_weight * angle


@pytest.mark.parametrize(
    "shapes", [((5, 3), (5, 7)), ((7, 4, 2, 3), (7, 3)), ((2, 5), (2, 1)), ((11, 1), (11, 6))]
)
@pytest.mark.parametrize("weights", [{}, {"distance_weight": 0.5, "angle_weight": 0.0}])
def test_the_mean_over_the_batch_is_the_published_loss(shapes, weights):
    teacher, student = random_features(shapes, seed=len(shapes[0]))
    student = student**3  # Some distances are far from the teacher's.
    loss = mikd.RKD(**weights)(teacher, student)
    np.testing.assert_allclose(
        np.mean(loss), twin(teacher, student, **weights), rtol=1e-4, atol=1e-9
    )


def test_examples_in_one_place_count_as_in_the_code():
    teacher, student = random_features(((5, 3), (5, 4)))
    student[1] = student[0]
    loss = mikd.RKD()(teacher, student)
    np.testing.assert_allclose(np.mean(loss), twin(teacher, student), rtol=1e-4)
    student[:] = student[0]
    loss = mikd.RKD(angle_weight=0.0)(teacher, student)
    np.testing.assert_allclose(np.mean(loss), twin(teacher, student, 25.0, 0.0), rtol=1e-4)


def test_moving_turning_and_scaling_cost_nothing():
    (teacher,) = random_features([(6, 4)])
    turn, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(4, 4)))
    loss = mikd.RKD()(teacher, 3.0 * teacher @ turn + 5.0)
    np.testing.assert_allclose(loss, np.zeros(6), atol=1e-6)


@pytest.mark.parametrize("argument", ["distance_weight", "angle_weight"])
def test_negative_factors_are_refused(argument):
    with pytest.raises(ValueError, match=f"`{argument}` to be a finite number of at least 0"):
        mikd.RKD(**{argument: -1.0})

import numpy as np
import pytest
from random_features import random_features

import keras_mikd as mikd

PAIR = [(3, 4, 6, 5), (3, 4, 6, 2)], [(3, 2, 2, 5), (3, 2, 2, 2)]


def twin(teacher, student):
    """The published loss of every example, float64, for maps of one size within a network."""
    total = 0.0
    for i in range(len(teacher) - 1):
        flows = [
            np.einsum("bhwc,bhwd->bcd", maps[i].astype("float64"), maps[i + 1])
            / np.prod(maps[i].shape[1:3])
            for maps in (teacher, student)
        ]
        total = total + np.mean((flows[0] - flows[1]) ** 2, axis=(1, 2))
    return total


@pytest.mark.parametrize(
    "shapes",
    [
        PAIR,
        [[(2, 3, 1, 2), (2, 3, 1, 4), (2, 3, 1, 7)], [(2, 5, 5, 2), (2, 5, 5, 4), (2, 5, 5, 7)]],
    ],
)
def test_values_are_the_published_ones(shapes):
    teacher, student = random_features(shapes)
    places = ["stage1", "stage2", "stage3"][: len(teacher)]
    loss = mikd.FSP(teacher_layer=places, student_layer=places)(teacher, student)
    np.testing.assert_allclose(loss, twin(teacher, student), rtol=1e-4)


def test_maps_of_a_pair_are_averaged_to_the_smaller_grid_first():
    (first, second), student = random_features(
        ([(2, 4, 6, 3), (2, 2, 3, 4)], [(2, 1, 1, 3), (2, 1, 1, 4)])
    )
    pooled = first.reshape(2, 2, 2, 3, 2, 3).mean((2, 4))
    loss = mikd.FSP()([first, second], student)
    np.testing.assert_allclose(loss, twin([pooled, second], student), rtol=1e-4)


@pytest.mark.parametrize(
    ("teacher", "student", "message"),
    [
        ((2, 4, 4, 5), (2, 4, 4, 5), "lists of two or more places"),
        ([(2, 4, 4, 5)], [(2, 4, 4, 5)], "lists of two or more places"),
        ([(2, 4, 4, 5)] * 2, [(2, 4, 4, 5)] * 3, "lists of two or more places"),
        ([(2, 4, 4, 5)] * 2, [(2, 5), (2, 5)], "lists of two or more places"),
        ([(2, 4, 4, 5)] * 2, [(2, 4, 4, 5), (2, 4, 4, 3)], "the same channels"),
    ],
)
def test_bad_shapes_are_refused(teacher, student, message):
    with pytest.raises(ValueError, match=message):
        mikd.FSP().build(teacher, student)

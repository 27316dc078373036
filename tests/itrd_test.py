import numpy as np
import pytest
from random_features import random_features

import keras_mikd as mikd


def twin(loss, teacher, student, correlation_weight=2.0, mutual_weight=1.0, alpha=1.01):
    """The authors' loss of a batch, float64."""
    kernel, bias = (x.astype("float64") for x in loss.regressor.get_weights())
    regressed = student @ kernel + bias
    t, s = ((x - x.mean(0)) / x.std(0, ddof=1) for x in (teacher.astype("float64"), regressed))
    correlations = (t * s).sum(0) / len(t)
    correlation = np.log2(np.sum(((correlations - 1) ** 2) ** alpha))
    s = student.astype("float64") if teacher.shape == student.shape else regressed
    t, s = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (teacher, s))
    of_student = s @ s.T
    of_both = of_student * (t @ t.T)
    of_student, of_both = (gram / np.trace(gram) for gram in (of_student, of_both))
    return correlation_weight * correlation + mutual_weight * np.sum(of_student**2 - of_both**2)


@pytest.mark.parametrize("shapes", [((5, 3), (5, 7)), ((7, 4), (7, 4)), ((2, 6), (2, 1))])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"correlation_weight": 0.0},
        {"mutual_weight": 0.0, "alpha": 1.5},
        {"mutual_weight": 0.05},
    ],
)
def test_the_mean_over_the_batch_is_the_released_loss(shapes, arguments):
    teacher, student = random_features(shapes, seed=len(shapes[0]))
    itrd = mikd.ITRD(**arguments)
    value = itrd(teacher, student)
    expected = twin(itrd, teacher, student, **arguments)
    np.testing.assert_allclose(np.mean(value), expected, rtol=1e-4, atol=1e-5)


def test_a_constant_channel_has_no_correlation():
    teacher, student = random_features(((6, 3), (6, 4)))
    itrd = mikd.ITRD(mutual_weight=0.0, correlation_weight=1.0)
    teacher[:, 1:] = 0.0, 0.1
    alone = 2.0 ** itrd(teacher, student)
    kernel, bias = itrd.regressor.get_weights()
    first = np.corrcoef(teacher[:, 0], student @ kernel[:, 0] + bias[0])[0, 1] * 5 / 6
    np.testing.assert_allclose(alone, np.full(6, (1 - first) ** 2.02 + 2.0), rtol=1e-4)


@pytest.mark.parametrize(
    "arguments", [{"correlation_weight": -1.0}, {"mutual_weight": -1.0}, {"alpha": 0.5}]
)
def test_bad_arguments_are_refused(arguments):
    (name,) = arguments
    with pytest.raises(ValueError, match=f"`{name}` to be a finite number of at least"):
        mikd.ITRD(**arguments)


def test_maps_are_refused():
    with pytest.raises(ValueError, match="Expected two vectors"):
        mikd.ITRD().build((2, 4, 4, 3), (2, 4, 4, 3))

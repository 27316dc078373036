import numpy as np
import pytest
from logit_twins import divergence, logits, slope, softmax, value_and_gradient

import keras_mikd as mikd


def _twin(teacher, student, gamma, weighted=True):
    power = softmax(teacher) ** gamma
    total = power.sum(axis=-1)
    values = divergence(power / total[:, None], softmax(student))
    return total * values if weighted else values


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("examples", "classes"), [(5, 2), (7, 11), (3, 100)])
@pytest.mark.parametrize("gamma", [0.1, 0.2, 1.0, 2.0])
def test_value_equals_numpy(examples, classes, gamma, seed):
    teacher, student, _ = logits(examples, classes, seed=seed)
    for weighted in (True, False):
        value = mikd.WTTM(gamma=gamma, weighted=weighted)(teacher, student)
        expected = _twin(teacher, student, gamma, weighted)
        np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-6)


def test_with_an_exponent_of_one_it_is_soft_targets_without_temperature():
    teacher, student, _ = logits(6, 5)
    soft = mikd.SoftTargets(temperature=1.0)(teacher, student)
    np.testing.assert_allclose(mikd.WTTM(gamma=1.0)(teacher, student), soft, rtol=1e-5)


def test_gradient_equals_its_closed_form_and_differences():
    teacher, student, _ = logits(3, 4)
    loss = mikd.WTTM(gamma=0.3)
    _, gradient = value_and_gradient(loss, teacher, student)
    power = softmax(teacher) ** 0.3
    closed = power.sum(-1, keepdims=True) * softmax(student) - power
    np.testing.assert_allclose(gradient, closed, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(gradient, slope(loss, teacher, student), rtol=2e-2, atol=1e-2)


@pytest.mark.parametrize("scale", [0.0, 1e-6, 1e4])
@pytest.mark.parametrize("classes", [2, 5])
def test_gradients_are_finite_at_the_edges(scale, classes):
    teacher, student, _ = logits(1, classes)
    for t, s in ((teacher, teacher), (scale * teacher, student), (teacher, scale * student)):
        value, gradient = value_and_gradient(mikd.WTTM(), t, s)
        assert value.shape == (1,)
        assert np.all(np.isfinite(value)) and np.all(np.isfinite(gradient))


@pytest.mark.parametrize("gamma", [0.0, -1.0, float("nan"), "1"])
def test_bad_exponents_are_refused(gamma):
    with pytest.raises(ValueError, match="`gamma` to be a finite number above 0"):
        mikd.WTTM(gamma=gamma)
    with pytest.raises(ValueError, match="`weighted` to be True or False"):
        mikd.WTTM(weighted=1)

import keras
import numpy as np
import pytest
from logit_twins import (
    divergence,
    logits,
    one_against_rest,
    slope,
    softmax,
    value_and_gradient,
)

import keras_mikd as mikd


def _pair(p, index):
    return np.array([p[index], np.delete(p, index).sum()])


def _twin(teacher, student, labels, *, alpha=1.0, beta=8.0, temperature=4.0, confidence=None):
    confidence = confidence or temperature
    values = []
    for t, s, label in zip(teacher, student, labels, strict=True):
        p, q = softmax(t, confidence), softmax(s, confidence)
        of_confidence = divergence(_pair(p, np.argmax(t)), _pair(q, label))
        below = t < t[label]
        of_order = 0.0
        if below.any():
            of_order = divergence(softmax(t[below], temperature), softmax(s[below], temperature))
        values.append(alpha * confidence**2 * of_confidence + beta * temperature**2 * of_order)
    return np.array(values)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("examples", "classes"), [(9, 2), (7, 3), (5, 11), (3, 100)])
def test_value_equals_numpy(examples, classes, seed):
    teacher, student, labels = logits(examples, classes, seed=seed)
    value = mikd.RLD()(teacher, student, labels=labels)
    np.testing.assert_allclose(value, _twin(teacher, student, labels), rtol=1e-4, atol=1e-5)
    loss = mikd.RLD(alpha=0.5, beta=2.0, temperature=3.0, confidence_temperature=1.0)
    value = loss(teacher, student, labels=labels)
    options = {"alpha": 0.5, "beta": 2.0, "temperature": 3.0, "confidence": 1.0}
    expected = _twin(teacher, student, labels, **options)
    np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-5)


def test_for_a_teacher_that_is_right_it_is_dkd():
    teacher, student, _ = logits(6, 5)
    labels = teacher.argmax(axis=1)
    rld, dkd = (cls()(teacher, student, labels=labels) for cls in (mikd.RLD, mikd.DKD))
    np.testing.assert_allclose(rld, dkd, rtol=1e-5)


def test_a_label_that_is_the_last_for_the_teacher_leaves_the_confidence():
    teacher, student, _ = logits(6, 5)
    labels = teacher.argmin(axis=1)
    value, gradient = value_and_gradient(mikd.RLD(beta=1e3), teacher, student, labels)
    np.testing.assert_allclose(value, _twin(teacher, student, labels), rtol=1e-4)
    assert np.all(np.isfinite(gradient)) and np.all(np.any(gradient != 0, axis=1))


def test_equal_logits_of_the_teacher_are_all_refuted():
    teacher, student, labels = np.zeros((3, 4), "float32"), *logits(3, 4)[1:]
    value, gradient = value_and_gradient(mikd.RLD(), teacher, student, labels)
    np.testing.assert_allclose(value, _twin(teacher, student, labels), rtol=1e-4)
    assert np.all(np.isfinite(gradient))


def test_gradient_equals_differences():
    teacher, student, labels = logits(3, 4, scale=1.0)
    loss = mikd.RLD(temperature=2.0)
    _, gradient = value_and_gradient(loss, teacher, student, labels)
    expected = slope(loss, teacher, student, labels)
    np.testing.assert_allclose(gradient, expected, rtol=2e-2, atol=1e-2)


@pytest.mark.parametrize("scale", [0.0, 1e-6, 1e4])
@pytest.mark.parametrize("classes", [2, 5])
def test_gradients_are_finite_at_the_edges(scale, classes):
    teacher, student, _ = logits(1, classes)
    for t, s in ((teacher, teacher), (scale * teacher, scale * student), (teacher, 0 * student)):
        value, gradient = value_and_gradient(mikd.RLD(), t, s, np.zeros(1, int))
        assert value.shape == (1,)
        assert np.all(np.isfinite(value)) and np.all(np.isfinite(gradient))


def test_temperatures_may_be_schedules_and_labels_have_to_be_there():
    schedule = keras.optimizers.schedules.PolynomialDecay(2.0, 10, 1.0)
    loss = mikd.RLD(temperature=4.0, confidence_temperature=schedule)
    teacher, student, labels = logits(4, 3)
    constant = mikd.RLD(confidence_temperature=2.0)(teacher, student, labels=labels)
    np.testing.assert_allclose(loss(teacher, student, labels=labels), constant, rtol=1e-6)
    assert mikd.RLD.from_config(loss.get_config()).get_config() == loss.get_config()
    with pytest.raises(ValueError, match="Expected labels in the data"):
        loss(teacher, student)


@pytest.mark.parametrize("name", ["alpha", "beta"])
def test_bad_factors_are_refused(name):
    with pytest.raises(ValueError, match=f"`{name}` to be a finite number of at least 0"):
        mikd.RLD(**{name: -1.0})
    with pytest.raises(ValueError, match="`confidence_temperature` to be a finite number"):
        mikd.RLD(confidence_temperature=0.0)


@pytest.mark.parametrize("temperature", [1e-2, 0.1, 1.0, 4.0, 100.0, 1e3, 1e4, 1e5, 1e6])
@pytest.mark.parametrize("shift", [0.0, 32.0])
def test_every_temperature_is_right_to_a_ten_thousandth(temperature, shift):
    teacher, student, labels = logits(64, 10)
    loss = mikd.RLD(alpha=1.0, beta=0.0, temperature=temperature)
    # Steps of 2^-10, so that the shift loses nothing before the loss begins.
    teacher, student = (np.round(1024 * z) / np.float32(1024) for z in (teacher, student))
    value, gradient = value_and_gradient(loss, teacher + shift, student - shift, labels)
    chosen = {"of_teacher": teacher.argmax(axis=1), "of_student": labels}
    expected, slopes = one_against_rest(teacher, student, temperature, **chosen)
    np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-6 * expected.max())
    np.testing.assert_allclose(gradient, slopes, rtol=1e-3, atol=1e-4 * np.abs(slopes).max())

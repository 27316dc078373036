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


def _twin(teacher, student, labels, *, alpha=1.0, beta=8.0, temperature=4.0):
    values = []
    for t, s, label in zip(teacher, student, labels, strict=True):
        p, q = softmax(t, temperature), softmax(s, temperature)
        pairs = [np.array([x[label], np.delete(x, label).sum()]) for x in (p, q)]
        others = [softmax(np.delete(x, label), temperature) for x in (t, s)]
        values.append(alpha * divergence(*pairs) + beta * divergence(*others))
    return temperature**2 * np.array(values)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("examples", "classes"), [(5, 3), (7, 11), (3, 100)])
def test_value_equals_numpy(examples, classes, seed):
    teacher, student, labels = logits(examples, classes, seed=seed)
    for options in ({}, {"alpha": 0.5, "beta": 2.0, "temperature": 1.0}):
        value = mikd.DKD(**options)(teacher, student, labels=labels)
        np.testing.assert_allclose(value, _twin(teacher, student, labels, **options), rtol=1e-4)


def test_with_the_teachers_own_share_of_the_others_it_is_soft_targets():
    teacher, student, labels = logits(6, 5)
    others = 1.0 - softmax(teacher, 4.0)[np.arange(6), labels]
    of_target = mikd.DKD(alpha=1.0, beta=0.0)(teacher, student, labels=labels)
    of_others = mikd.DKD(alpha=0.0, beta=1.0)(teacher, student, labels=labels)
    soft = mikd.SoftTargets(temperature=4.0)(teacher, student)
    np.testing.assert_allclose(of_target + others * of_others, soft, rtol=1e-4)


def test_gradient_equals_differences():
    teacher, student, labels = logits(2, 4, scale=1.0)
    loss = mikd.DKD(temperature=2.0)
    _, gradient = value_and_gradient(loss, teacher, student, labels)
    expected = slope(loss, teacher, student, labels)
    np.testing.assert_allclose(gradient, expected, rtol=2e-2, atol=1e-2)


def test_two_classes_leave_the_part_of_the_target():
    teacher, student, labels = logits(6, 2)
    value, gradient = value_and_gradient(mikd.DKD(beta=1e3), teacher, student, labels)
    soft = mikd.SoftTargets(temperature=4.0)(teacher, student)
    np.testing.assert_allclose(value, soft, rtol=1e-4)
    assert np.all(np.isfinite(gradient)) and np.any(gradient != 0)


@pytest.mark.parametrize("scale", [0.0, 1e-6, 1e4])
@pytest.mark.parametrize("classes", [2, 5])
def test_gradients_are_finite_at_the_edges(scale, classes):
    teacher, student, _ = logits(1, classes)
    for t, s in ((teacher, teacher), (scale * teacher, scale * student), (teacher, 0 * student)):
        value, gradient = value_and_gradient(mikd.DKD(), t, s, np.zeros(1, int))
        assert value.shape == (1,)
        assert np.all(np.isfinite(value)) and np.all(np.isfinite(gradient))
        if s is t:
            np.testing.assert_allclose(value, [0.0], atol=1e-5)


def test_labels_may_be_one_hot_and_have_to_be_there():
    teacher, student, labels = logits(4, 3)
    loss = mikd.DKD()
    one_hot = np.eye(3, dtype="float32")[labels]
    np.testing.assert_array_equal(
        loss(teacher, student, labels=labels), loss(teacher, student, labels=one_hot)
    )
    with pytest.raises(ValueError, match="Expected labels in the data"):
        loss(teacher, student)


def test_a_temperature_may_be_a_schedule():
    loss = mikd.DKD(temperature=keras.optimizers.schedules.PolynomialDecay(2.0, 10, 1.0))
    teacher, student, labels = logits(4, 3)
    constant = mikd.DKD(temperature=2.0)(teacher, student, labels=labels)
    np.testing.assert_allclose(loss(teacher, student, labels=labels), constant, rtol=1e-6)
    assert mikd.DKD.from_config(loss.get_config()).get_config() == loss.get_config()


@pytest.mark.parametrize("name", ["alpha", "beta"])
def test_bad_factors_are_refused(name):
    with pytest.raises(ValueError, match=f"`{name}` to be a finite number of at least 0"):
        mikd.DKD(**{name: -1.0})


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((2, 3), (2, 4)), "same classes.*second output"),
        (((2, 1), (2, 1)), "at least two classes"),
        (((2, 4, 4, 3), (2, 4, 4, 3)), "two vectors"),
    ],
)
@pytest.mark.parametrize("cls", [mikd.DKD, mikd.DIST, mikd.WTTM, mikd.RLD])
def test_bad_shapes_are_refused(cls, shapes, message):
    with pytest.raises(ValueError, match=message):
        cls().build(*shapes)
    assert cls.expects_logits


@pytest.mark.parametrize("temperature", [1e-2, 0.1, 1.0, 4.0, 100.0, 1e3, 1e4, 1e5, 1e6])
@pytest.mark.parametrize("shift", [0.0, 32.0])
def test_every_temperature_is_right_to_a_ten_thousandth(temperature, shift):
    teacher, student, labels = logits(64, 10)
    loss = mikd.DKD(alpha=1.0, beta=0.0, temperature=temperature)
    # Steps of 2^-10, so that the shift loses nothing before the loss begins.
    teacher, student = (np.round(1024 * z) / np.float32(1024) for z in (teacher, student))
    value, gradient = value_and_gradient(loss, teacher + shift, student - shift, labels)
    chosen = {"of_teacher": labels, "of_student": labels}
    expected, slopes = one_against_rest(teacher, student, temperature, **chosen)
    np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-6 * expected.max())
    np.testing.assert_allclose(gradient, slopes, rtol=1e-3, atol=1e-4 * np.abs(slopes).max())


@pytest.mark.parametrize("cls", [mikd.DKD, mikd.RLD])
@pytest.mark.parametrize("temperature", [4.0, 1e6])
def test_a_class_that_both_mask_counts_for_nothing(cls, temperature):
    teacher, student, _ = logits(6, 5)
    labels = np.full(6, 3)
    loss = cls(temperature=temperature)
    kept, slopes = value_and_gradient(loss, teacher[:, 1:], student[:, 1:], labels - 1)
    teacher[:, 0] = student[:, 0] = -np.inf
    value, gradient = value_and_gradient(cls(temperature=temperature), teacher, student, labels)
    np.testing.assert_allclose(value, kept, rtol=1e-4)
    np.testing.assert_allclose(gradient[:, 1:], slopes, rtol=1e-3, atol=1e-5)
    np.testing.assert_array_equal(gradient[:, 0], 0.0)

import numpy as np
import pytest
from logit_twins import logits, slope, softmax, value_and_gradient

import keras_mikd as mikd


def _correlation(a, b):
    a, b = a - a.mean(), b - b.mean()
    return a @ b / (np.linalg.norm(a) * np.linalg.norm(b) + 1e-8)


def _twin(teacher, student, *, inter=1.0, intra=1.0, temperature=4.0):
    """The published loss of a batch, one number."""
    t, s = softmax(teacher, temperature), softmax(student, temperature)
    rows = np.mean([_correlation(a, b) for a, b in zip(t, s, strict=True)])
    columns = np.mean([_correlation(a, b) for a, b in zip(t.T, s.T, strict=True)])
    return temperature**2 * (inter * (1 - rows) + intra * (1 - columns))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("examples", "classes"), [(5, 3), (7, 11), (2, 100), (6, 2)])
def test_the_mean_is_the_published_value(examples, classes, seed):
    teacher, student, _ = logits(examples, classes, seed=seed)
    for options in ({}, {"inter": 2.0, "intra": 0.5, "temperature": 1.0}):
        value = mikd.DIST(**options)(teacher, student)
        assert value.shape == (examples,)
        expected = _twin(teacher, student, **options)
        np.testing.assert_allclose(np.mean(value), expected, rtol=1e-4, atol=1e-5)


def test_shift_and_scale_of_the_probabilities_do_not_matter():
    teacher, _, _ = logits(6, 4)
    np.testing.assert_allclose(np.mean(mikd.DIST()(teacher, teacher + 7.0)), 0.0, atol=1e-4)


def test_gradient_equals_differences():
    teacher, student, _ = logits(3, 4, scale=1.0)
    loss = mikd.DIST(temperature=2.0)
    _, gradient = value_and_gradient(loss, teacher, student)
    np.testing.assert_allclose(gradient, slope(loss, teacher, student), rtol=2e-2, atol=1e-2)


@pytest.mark.parametrize("scale", [0.0, 1e-6, 1.0, 1e4])
@pytest.mark.parametrize(("examples", "classes"), [(1, 5), (4, 2), (4, 5)])
def test_gradients_are_finite_and_small_at_the_edges(scale, examples, classes):
    teacher, student, _ = logits(examples, classes)
    for t, s in ((teacher, scale * student), (scale * teacher, student), (teacher, teacher)):
        value, gradient = value_and_gradient(mikd.DIST(), t, s)
        assert np.all(np.isfinite(value))
        assert np.all(np.isfinite(gradient))
    # The classifier of a new network may put out zeros: 1 / 1e-8 must not become a gradient.
    _, gradient = value_and_gradient(mikd.DIST(), teacher, np.zeros_like(student) + 0.3)
    np.testing.assert_array_equal(gradient, 0.0)


@pytest.mark.parametrize("scale", [1e-3, 1e-4, 1e-5])
def test_a_student_that_hardly_varies_gets_a_gradient_that_float16_holds(scale):
    teacher, student, _ = logits(6, 5)
    _, ordinary = value_and_gradient(mikd.DIST(), teacher, student)
    _, gradient = value_and_gradient(mikd.DIST(), teacher, scale * student)
    assert 0 < np.max(np.abs(gradient)) < 500.0 * np.max(np.abs(ordinary))


def test_a_batch_of_one_keeps_the_correlation_of_its_classes():
    teacher, student, _ = logits(1, 5)
    value, gradient = value_and_gradient(mikd.DIST(temperature=1.0), teacher, student)
    np.testing.assert_allclose(value, _twin(teacher, student, temperature=1.0), rtol=1e-4)
    assert np.any(gradient != 0)


def test_it_compares_examples_and_its_arguments_are_checked():
    assert mikd.DIST.compares_examples
    for name in ("inter", "intra"):
        with pytest.raises(ValueError, match=f"`{name}` to be a finite number of at least 0"):
            mikd.DIST(**{name: -1.0})
    with pytest.raises(ValueError, match="`gather` to be True or False"):
        mikd.DIST(gather="yes")

import numpy as np
import pytest
import tensorflow as tf

import keras_mikd as mikd
from keras_mikd.losses.parts.connectors import run

SAME = (3, 4, 2, 5), (3, 4, 2, 5)


def _tensors(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [(2 * rng.normal(size=shape)).astype("float32") for shape in shapes]


def _twin(teacher, student, margin):
    """The published form, with its masks."""
    teacher, student = teacher.astype("float64"), student.astype("float64")
    off = (student + margin) ** 2 * ((student > -margin) & (teacher <= 0))
    on = (student - margin) ** 2 * ((student <= margin) & (teacher > 0))
    return 3 / 1000 * (off + on).sum((1, 2, 3))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("margin", [0.0, 1.0, 2.5])
def test_value_equals_numpy(margin, seed):
    teacher, student = _tensors(SAME, seed)
    teacher[:, 0] = 0.0  # As after a ReLU: a zero counts as inactive.
    loss = mikd.ActivationBoundary(margin=margin)
    np.testing.assert_allclose(loss(teacher, student), _twin(teacher, student, margin), rtol=1e-5)
    assert not loss.weights[: -len(loss.metrics_variables)]
    agree = np.mean((teacher > 0) == (student > 0))
    np.testing.assert_allclose(loss.agreement.result(), agree, rtol=1e-5)


def test_the_scale_is_a_factor():
    teacher, student = _tensors(SAME)
    loss = mikd.ActivationBoundary(scale=0.0015)
    assert type(loss).from_config(loss.get_config()).scale == 0.0015
    np.testing.assert_allclose(2 * loss(teacher, student), _twin(teacher, student, 1.0), rtol=1e-5)


def test_a_teacher_after_its_relu_has_the_same_boundaries():
    teacher, student = _tensors(SAME)
    loss = mikd.ActivationBoundary()
    np.testing.assert_array_equal(loss(teacher, student), loss(np.maximum(teacher, 0), student))


@pytest.mark.parametrize("training", [True, False])
def test_a_connector_is_a_convolution_and_batch_norm_without_relu(training):
    teacher, student = _tensors(((3, 4, 4, 5), (3, 4, 4, 2)))
    loss = mikd.ActivationBoundary()
    value = loss(teacher, student, training=training)
    convolution, norm = loss.connector
    kernel = convolution.kernel.numpy().astype("float64")
    assert kernel.shape == (1, 1, 2, 5)
    mapped = student @ kernel[0, 0]
    if training:
        mapped = (mapped - mapped.mean((0, 1, 2))) / np.sqrt(mapped.var((0, 1, 2)) + 1e-5)
    else:
        mapped = mapped / np.sqrt(1 + 1e-5)
    np.testing.assert_allclose(value, _twin(teacher, mapped, 1.0), rtol=1e-4)
    assert len(loss.trainable_weights) == 3  # The kernel, gamma and beta.


@pytest.mark.parametrize("size", [(8, 8), (2, 2), (5, 6)])
def test_other_sizes_are_brought_to_the_teachers(size):
    teacher, student = _tensors(((2, 4, 4, 3), (2, *size, 3)))
    loss = mikd.ActivationBoundary()
    value = loss(teacher, student, training=True)
    mapped = run(loss.connector, tf.constant(student), training=True)
    assert mapped.shape == teacher.shape
    expected = _twin(teacher, mapped.numpy().astype("float64"), 1.0)
    np.testing.assert_allclose(value, expected, rtol=1e-4)


@pytest.mark.parametrize("scale", [0.0, 1e-6, 1e4])
@pytest.mark.parametrize(
    "shapes", [SAME, ((1, 1, 1, 4), (1, 1, 1, 4)), ((1, 1, 1, 4), (1, 2, 2, 3))]
)
def test_gradients_are_finite_at_the_edges(scale, shapes):
    teacher, student = _tensors(shapes)
    loss, student = mikd.ActivationBoundary(), tf.constant(scale * student)
    with tf.GradientTape() as tape:
        tape.watch(student)
        value = loss(teacher, student, training=True)
    assert np.all(np.isfinite(value)) and np.all(np.isfinite(tape.gradient(value, student)))


def test_bad_arguments_and_shapes_are_refused():
    with pytest.raises(ValueError, match="`margin` to be a finite number of at least 0"):
        mikd.ActivationBoundary(margin=-1.0)
    with pytest.raises(ValueError, match="`scale` to be a finite number above 0"):
        mikd.ActivationBoundary(scale=0.0)
    with pytest.raises(ValueError, match="two feature maps"):
        mikd.ActivationBoundary().build((2, 5), (2, 5))
    with pytest.raises(ValueError, match="half the size.*Take a place of the student"):
        mikd.ActivationBoundary().build((2, 4, 4, 5), (2, 3, 3, 5))

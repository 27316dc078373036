import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mikd.losses.hint import Hint

MAPS = (3, 4, 4, 5), (3, 4, 4, 2)
VECTORS = (3, 5), (3, 2)


def _tensors(shapes):
    rng = np.random.default_rng(0)
    return [rng.normal(size=shape).astype("float32") for shape in shapes]


@pytest.mark.parametrize("shapes", [MAPS, VECTORS])
def test_value_equals_numpy(shapes):
    hint = Hint()
    teacher, student = _tensors(shapes)
    loss = hint(teacher, student)
    kernel, bias = hint.get_weights()
    assert (kernel.shape, bias.shape) == ((2, 5), (5,))
    error = teacher - (student.astype("float64") @ kernel + bias)
    np.testing.assert_allclose(loss, (error**2).reshape(3, -1).mean(-1), rtol=1e-5)


def test_the_larger_map_is_averaged_first():
    hint = Hint()
    teacher, student = _tensors(((2, 2, 3, 5), (2, 4, 6, 2)))
    loss = hint(teacher, student)
    pooled = student.reshape(2, 2, 2, 3, 2, 2).mean((2, 4))
    np.testing.assert_allclose(loss, hint(teacher, pooled), rtol=1e-5)


@pytest.mark.parametrize("shapes", [MAPS, VECTORS])
def test_every_weight_gets_a_gradient(shapes):
    hint = Hint()
    hint.build(*shapes)
    with tf.GradientTape() as tape:
        loss = hint(*_tensors(shapes))
    gradients = tape.gradient(loss, hint.trainable_weights)
    assert len(gradients) == 2
    assert all(np.any(g.numpy() != 0) for g in gradients)


def test_a_batch_of_one():
    assert Hint()(*(x[:1] for x in _tensors(MAPS))).shape == (1,)


def test_a_saved_loss_is_the_same_loss(tmp_path):
    inputs = [keras.Input(shape[1:]) for shape in MAPS]
    hint = Hint(teacher_layer="stage2", student_layer="stage1", weight=100.0)
    model = keras.Model(inputs, hint(*inputs))
    model.save(tmp_path / "hint.keras")
    loaded = keras.saving.load_model(tmp_path / "hint.keras")
    assert loaded.layers[-1].get_config() == hint.get_config()
    np.testing.assert_array_equal(loaded(_tensors(MAPS)), hint(*_tensors(MAPS)))


def _convolved(x, kernel, *, strides=1, padding=0):
    """A convolution as PyTorch pads it, position by position."""
    x = np.pad(x.astype("float64"), [(0, 0), (padding,) * 2, (padding,) * 2, (0, 0)])
    rows, columns = (
        (n - k) // strides + 1 for n, k in zip(x.shape[1:3], kernel.shape, strict=False)
    )
    result = np.empty((len(x), rows, columns, kernel.shape[-1]))
    for i in range(rows):
        for j in range(columns):
            cell = x[:, i * strides :, j * strides :][:, : kernel.shape[0], : kernel.shape[1]]
            result[:, i, j] = np.einsum("bhwc,hwcd->bd", cell, kernel)
    return result


def _transposed(x, kernel):
    """PyTorch's transposed convolution of 4x4 with stride 2 and padding 1."""
    batch, height, width, _ = x.shape
    result = np.zeros((batch, 2 * height + 2, 2 * width + 2, kernel.shape[2]))
    for i in range(height):
        for j in range(width):
            spread = np.einsum("bc,hwdc->bhwd", x[:, i, j].astype("float64"), kernel)
            result[:, 2 * i : 2 * i + 4, 2 * j : 2 * j + 4] += spread
    return result[:, 1:-1, 1:-1]


@pytest.mark.parametrize(
    ("student_size", "convolve", "kernel"),
    [
        ((4, 4), _convolved, (1, 1)),
        ((8, 8), functools.partial(_convolved, strides=2, padding=1), (3, 3)),
        ((2, 2), _transposed, (4, 4)),
        ((6, 5), _convolved, (3, 2)),
    ],
)
def test_the_regressor_of_the_crd_benchmark_equals_numpy(student_size, convolve, kernel):
    shapes = (3, 4, 4, 5), (3, *student_size, 2)
    hint = Hint(regressor="repdistiller")
    teacher, student = _tensors(shapes)
    values = {training: hint(teacher, student, training=training) for training in (True, False)}
    weights = {weight.path.split("/")[-1]: weight.numpy() for weight in hint.weights}
    assert weights["kernel"].shape[:2] == kernel
    mapped = convolve(student, weights["kernel"])
    mean, variance = mapped.mean((0, 1, 2)), mapped.var((0, 1, 2))
    for training, (m, v) in {
        True: (mean, variance),
        False: (0.1 * mean, 0.9 + 0.1 * variance),
    }.items():
        regressed = np.maximum((mapped - m) / np.sqrt(v + 1e-5), 0)
        error = np.square(teacher - regressed).mean((1, 2, 3))
        np.testing.assert_allclose(values[training], error, rtol=1e-4)


@pytest.mark.parametrize("shapes", [((3, 4, 4, 5), (3, 3, 4, 2)), ((3, 5), (3, 2))])
def test_what_the_regressor_of_the_benchmark_cannot_reach_is_refused(shapes):
    with pytest.raises(ValueError, match="Expected (a student's map|the teacher's tensor to be)"):
        Hint(regressor="repdistiller").build(*shapes)
    with pytest.raises(ValueError, match="`regressor` to be 'linear' or 'repdistiller'"):
        Hint(regressor="conv")


def test_a_vector_against_a_map_is_refused():
    with pytest.raises(ValueError, match="two vectors .* or two feature maps"):
        Hint().build((2, 5), (2, 4, 4, 3))

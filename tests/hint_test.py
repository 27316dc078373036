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


@pytest.mark.parametrize("size", [(8, 8), (4, 4), (6, 7)])
def test_convolutions_of_repdistiller_start_as_pytorch_s(size):
    """Of U(-1, 1) / sqrt(number of terms), but for the transposed one, which is not asked here."""
    hint = Hint(regressor="repdistiller")
    hint.build((None, 4, 4, 64), (None, *size, 64))
    (kernel,) = [w for w in hint.trainable_weights if w.path.endswith("kernel")]
    limit = np.prod(kernel.shape[:-1]) ** -0.5
    assert 0.9 * limit < np.abs(kernel).max() <= limit


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
    with pytest.raises(ValueError, match="`regressor` to be 'linear', 'repdistiller' or"):
        Hint(regressor="conv")


def test_a_vector_against_a_map_is_refused():
    with pytest.raises(ValueError, match="two vectors .* or two feature maps"):
        Hint().build((2, 5), (2, 4, 4, 3))


def _smooth_l1(error):
    size = np.abs(error)
    return np.where(size < 1, error**2 / 2, size - 0.5)


def _layer_norm(x):
    x = x.astype("float64")
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)


def _batch_norm(x):
    axes = tuple(range(x.ndim - 1))
    x = x.astype("float64")
    return (x - x.mean(axes)) / x.std(axes, ddof=1)


@pytest.mark.parametrize("shapes", [MAPS, VECTORS, ((4, 2), (4, 5)), ((3, 5), (3, 5))])
@pytest.mark.parametrize(
    ("normalization", "twin"), [("layer", _layer_norm), ("batch", _batch_norm)]
)
def test_an_orthogonal_regressor_equals_numpy(shapes, normalization, twin):
    hint = Hint(regressor="orthogonal", normalization=normalization)
    teacher, student = (9 * x for x in _tensors(shapes))
    loss = hint(teacher, student)
    matrix = hint.regressor.matrix().numpy().astype("float64")
    assert matrix.shape == (shapes[1][-1], shapes[0][-1])
    error = _smooth_l1(twin(teacher) - student @ matrix)
    np.testing.assert_allclose(loss, error.reshape(len(loss), -1).mean(-1), rtol=1e-4)
    assert hint.compares_examples == (normalization == "batch")


@pytest.mark.parametrize("shapes", [((9, 5), (9, 2)), ((9, 2), (9, 5)), ((9, 4), (9, 4))])
def test_the_matrix_starts_as_its_weight_and_stays_orthogonal_while_it_learns(shapes):
    hint = Hint(regressor="orthogonal")
    hint.build(*shapes)
    (kernel,) = hint.trainable_weights
    start = hint.regressor.matrix().numpy()
    as_made = kernel.numpy() if shapes[1][1] > shapes[0][1] else kernel.numpy().T
    np.testing.assert_allclose(start, as_made, atol=1e-6)
    teacher, student = (tf.constant(x) for x in _tensors(shapes))
    optimizer, values = keras.optimizers.Adam(0.05), []
    for _ in range(60):
        with tf.GradientTape() as tape:
            values.append(tf.reduce_mean(hint(teacher, student)))
        optimizer.apply([tape.gradient(values[-1], kernel)], [kernel])
    matrix = hint.regressor.matrix().numpy().astype("float64")
    gram = matrix @ matrix.T if shapes[1][1] <= shapes[0][1] else matrix.T @ matrix
    np.testing.assert_allclose(gram, np.eye(min(matrix.shape)), atol=1e-6)
    assert values[-1] < values[0] - 1e-3
    assert np.abs(matrix - start).max() > 0.05
    kernel.assign(7.0 * kernel)  # Its scale does not matter.
    np.testing.assert_allclose(hint.regressor.matrix(), matrix, atol=1e-6)


@pytest.mark.parametrize("normalization", ["layer", "batch"])
@pytest.mark.parametrize("shapes", [VECTORS, ((1, 5), (1, 2)), ((1, 1, 1, 2), (1, 1, 1, 2))])
@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e4])
def test_an_orthogonal_regressor_is_finite_at_the_edges(shapes, scale, normalization):
    hint = Hint(regressor="orthogonal", normalization=normalization)
    teacher, student = (tf.constant(scale * x) for x in _tensors(shapes))
    with tf.GradientTape() as tape:
        tape.watch(student)
        value = hint(teacher, student)
    gradients = tape.gradient(value, [student, *hint.trainable_weights])
    assert np.all(np.isfinite(value))
    assert all(np.all(np.isfinite(g)) for g in gradients)


def test_a_saved_orthogonal_regressor_is_the_same(tmp_path):
    inputs = [keras.Input(shape[1:]) for shape in MAPS]
    hint = Hint(regressor="orthogonal", normalization="batch")
    model = keras.Model(inputs, hint(*inputs))
    model.save(tmp_path / "hint.keras")
    loaded = keras.saving.load_model(tmp_path / "hint.keras")
    assert loaded.layers[-1].get_config() == hint.get_config()
    np.testing.assert_array_equal(loaded(_tensors(MAPS)), hint(*_tensors(MAPS)))


def test_a_normalization_belongs_to_the_orthogonal_regressor():
    with pytest.raises(ValueError, match='`normalization` with regressor="orthogonal" only'):
        Hint(normalization="batch")
    with pytest.raises(ValueError, match="`normalization` to be 'layer' or 'batch'"):
        Hint(regressor="orthogonal", normalization="whitened")

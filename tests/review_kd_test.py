import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_mikd as mikd

TEACHER = [(3, 8, 8, 4), (3, 4, 4, 6), (3, 6)]
STUDENT = [(3, 6, 6, 2), (3, 2, 2, 3), (3, 5)]
PLACES = ["stage1", "stage2", "pooled"]


def _tensors(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape).astype("float32") for shape in shapes]


def _loss(**kwargs):
    return mikd.ReviewKD(teacher_layer=PLACES, student_layer=PLACES, **kwargs)


def _as_map(x):
    x = x.astype("float64")
    return x[:, None, None] if x.ndim == 2 else x


def _resized(x, size):
    """PyTorch's nearest neighbour, location by location."""
    result = np.empty((len(x), size, size, x.shape[-1]))
    for i in range(size):
        for j in range(size):
            result[:, i, j] = x[:, int(i * x.shape[1] / size), int(j * x.shape[2] / size)]
    return result


def _normalized(x):
    return (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + 1e-5)


def _convolved(x, kernel):
    padded = np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])
    result = np.zeros((*x.shape[:3], kernel.shape[-1]))
    for i in range(3):
        for j in range(3):
            result += padded[:, i : i + x.shape[1], j : j + x.shape[2]] @ kernel[i, j]
    return result


def _pooled(x, cells):
    """Adaptive average pooling."""
    size = x.shape[1]
    edges = [(i * size // cells, -(-(i + 1) * size // cells)) for i in range(cells)]
    return np.stack(
        [np.stack([x[:, a:b, c:d].mean((1, 2)) for c, d in edges], 1) for a, b in edges], 1
    )


def _hcl(teacher, student):
    loss, count, total = np.square(teacher - student).mean((1, 2, 3)), 1.0, 1.0
    for cells in (4, 2, 1):
        if cells >= teacher.shape[1]:
            continue
        count /= 2.0
        difference = _pooled(teacher, cells) - _pooled(student, cells)
        loss = loss + np.square(difference).mean((1, 2, 3)) * count
        total += count
    return loss / total


def _twin(loss, teacher, student):
    """The published fusion from deep to early, with the weights of the loss."""
    teacher, student = [_as_map(t) for t in teacher], [_as_map(s) for s in student]
    value, fused = 0.0, None
    for level in (2, 1, 0):
        x = _normalized(student[level] @ loss.narrow[level].kernel.numpy())
        if fused is not None:
            y = _resized(fused, x.shape[1])
            layer = loss.attention[level]
            z = np.concatenate([x, y], -1) @ layer.kernel.numpy() + layer.bias.numpy()
            z = 1 / (1 + np.exp(-z))
            x = x * z[..., :1] + y * z[..., 1:]
        fused = _resized(x, teacher[level].shape[1])
        out = _normalized(_convolved(fused, loss.widen[level].kernel.numpy().astype("float64")))
        value = value + _hcl(teacher[level], out)
    return value


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("channels", [None, 7])
def test_value_equals_numpy(channels, seed):
    loss = _loss(channels=channels)
    teacher, student = _tensors(TEACHER, seed), _tensors(STUDENT, seed + 1)
    loss.build(TEACHER, STUDENT)
    for layer in loss.attention:
        layer.bias.assign([0.3, -0.7])
    value = loss(teacher, student, training=True)
    np.testing.assert_allclose(value, _twin(loss, teacher, student), rtol=1e-4)
    assert loss.narrow[0].units == (channels or 5)
    assert value.shape == (3,)


def test_inference_takes_the_moving_statistics():
    loss, teacher, student = _loss(), _tensors(TEACHER), _tensors(STUDENT)
    first = loss(teacher, student, training=False)
    np.testing.assert_array_equal(first, loss(teacher, student, training=False))
    loss(teacher, student, training=True)
    assert np.any(np.array(loss(teacher, student, training=False)) != np.array(first))


def test_in_inference_examples_do_not_depend_on_one_another():
    loss, teacher, student = _loss(), _tensors(TEACHER), _tensors(STUDENT)
    loss(teacher, student, training=True)
    before = [v.numpy() for v in loss.variables]
    whole = loss(teacher, student, training=False)
    parts = [
        loss([t[i : i + 1] for t in teacher], [s[i : i + 1] for s in student], training=False)[0]
        for i in range(3)
    ]
    np.testing.assert_allclose(whole, parts, rtol=1e-5)
    for old, new in zip(before, loss.variables, strict=True):
        np.testing.assert_array_equal(old, new)


def test_layers_start_as_the_authors_do():
    """Kaiming's uniform with a slope of 1; the attention's as PyTorch's own."""
    loss = _loss(channels=64)
    loss.build([(None, 8, 8, 64), (None, 4, 4, 64)], [(None, 8, 8, 32), (None, 4, 4, 32)])
    narrow, widen = ([layer.kernel for layer in each] for each in (loss.narrow, loss.widen))
    attention = [layer.kernel for layer in loss.attention if layer is not None]
    for kernels, times in ((narrow, 3.0), (widen, 3.0), (attention, 1.0)):
        for kernel in kernels:
            limit = (times / np.prod(kernel.shape[:-1])) ** 0.5
            assert 0.9 * limit < np.abs(kernel).max() <= limit


@pytest.mark.parametrize("scale", [0.0, 1e4])
@pytest.mark.parametrize("examples", [1, 3])
def test_gradients_are_finite_at_the_edges_and_reach_every_weight(scale, examples):
    loss = _loss()
    teacher = [x[:examples] for x in _tensors(TEACHER)]
    student = [tf.constant(scale * x[:examples]) for x in _tensors(STUDENT)]
    with tf.GradientTape() as tape:
        tape.watch(student)
        value = loss(teacher, student, training=True)
    gradients = tape.gradient(value, [*student, *loss.trainable_weights])
    assert np.all(np.isfinite(value))
    assert all(g is not None and np.all(np.isfinite(g)) for g in gradients)


def test_a_saved_loss_is_the_same_loss(tmp_path):
    inputs = [[keras.Input(shape[1:]) for shape in shapes] for shapes in (TEACHER, STUDENT)]
    loss = _loss(channels=4, weight=5.0)
    model = keras.Model(inputs, loss(*inputs))
    model.save(tmp_path / "loss.keras")
    loaded = keras.saving.load_model(tmp_path / "loss.keras")
    assert loaded.layers[-1].get_config() == loss.get_config()
    tensors = [_tensors(TEACHER), _tensors(STUDENT)]
    np.testing.assert_array_equal(loaded(tensors), loss(*tensors))


@pytest.mark.parametrize(
    ("teacher", "student", "message"),
    [
        (TEACHER, STUDENT[:2], "as many places"),
        (TEACHER[0], STUDENT[0], "lists of as many places"),
        (TEACHER[:1], [(3, None, None, 4)], "known size"),
        ([(3, 7, 4)], [(3, 7, 4)], "known size"),
    ],
)
def test_bad_shapes_are_refused(teacher, student, message):
    with pytest.raises(ValueError, match=message):
        _loss().build(teacher, student)
    with pytest.raises(ValueError, match="`channels` to be an int of at least 1"):
        _loss(channels=0)

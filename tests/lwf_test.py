import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mikd.losses.lwf import LwF

VECTORS = (3, 7), (3, 4)
MAPS = (3, 2, 3, 7), (3, 2, 3, 4)


def _tensors(shapes):
    rng = np.random.default_rng(0)
    return [2 * rng.normal(size=shape).astype("float32") for shape in shapes]


def _log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def _cross_entropy(teacher, student, kernel, bias, temperature):
    """The modified cross-entropy of the paper, eqs. 2 to 4, of probabilities to the power 1 / T."""
    recorded, current = (
        np.exp(_log_softmax(x.astype("float64"))) ** (1 / temperature)
        for x in (teacher, student @ kernel + bias)
    )
    recorded /= recorded.sum(-1, keepdims=True)
    current /= current.sum(-1, keepdims=True)
    entropy = -np.sum(recorded * np.log(recorded), -1)
    return -np.sum(recorded * np.log(current), -1), entropy


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("shapes", [VECTORS, MAPS])
def test_value_is_that_of_the_paper_less_the_entropy_of_the_teacher(shapes, temperature):
    loss = LwF(temperature=temperature)
    teacher, student = _tensors(shapes)
    value = loss(teacher, student)
    kernel, bias = loss.get_weights()
    assert (kernel.shape, bias.shape) == ((4, 7), (7,))
    crossed, entropy = _cross_entropy(teacher, student, kernel, bias, temperature)
    expected = (crossed - entropy).reshape(3, -1).mean(axis=1)
    np.testing.assert_allclose(value, expected, rtol=1e-4)
    assert value.dtype == "float32"


def test_gradients_are_those_of_the_papers_cross_entropy():
    loss, (teacher, student) = LwF(temperature=2.0), _tensors(VECTORS)
    feature = tf.Variable(student)
    with tf.GradientTape() as tape:
        value = loss(tf.constant(teacher), feature)
    to_feature, to_kernel, to_bias = tape.gradient(value, [feature, *loss.trainable_weights])
    kernel, bias = loss.get_weights()
    p, q = (np.exp(_log_softmax(z / 2.0)) for z in (teacher, student @ kernel + bias))
    to_logits = (q - p) / 2.0  # Without T^2.
    np.testing.assert_allclose(to_feature, to_logits @ kernel.T, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(to_kernel, student.T @ to_logits, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(to_bias, to_logits.sum(0), rtol=1e-4, atol=1e-6)


def test_the_finer_map_is_averaged_first():
    loss, (teacher, student) = LwF(), _tensors(((2, 2, 3, 5), (2, 4, 6, 3)))
    pooled = student.reshape(2, 2, 2, 3, 2, 3).mean((2, 4))
    np.testing.assert_allclose(loss(teacher, student), loss(teacher, pooled), rtol=1e-4)


def test_a_batch_of_one_and_logits_of_a_hundred():
    loss, (teacher, student) = LwF(), _tensors(VECTORS)
    for size in (1.0, 100.0):
        value = loss(size * teacher[:1], size * student[:1])
        assert value.shape == (1,)
        assert np.all(np.isfinite(value))


def test_a_saved_loss_is_the_same_loss(tmp_path):
    inputs = [keras.Input(shape[1:]) for shape in VECTORS]
    loss = LwF(temperature=3.0, weight=0.5)
    model = keras.Model(inputs, loss(*inputs))
    model.save(tmp_path / "lwf.keras")
    loaded = keras.saving.load_model(tmp_path / "lwf.keras")
    assert loaded.layers[-1].get_config() == loss.get_config()
    np.testing.assert_array_equal(loaded(_tensors(VECTORS)), loss(*_tensors(VECTORS)))


def test_defaults_are_the_papers():
    loss = LwF()
    assert (loss.temperature, loss.weight, loss.name) == (2.0, 1.0, "lwf_pooled")
    assert (loss.teacher_layer, loss.student_layer) == ("output", "pooled")


@pytest.mark.parametrize(
    ("teacher", "student", "message"),
    [
        ((2, 1), (2, 4), "at least two classes"),
        ((2, 7), (2, 4, 4, 3), "two vectors .* or two"),
        ((2, 9, 7), (2, 8, 3), "same positions"),
    ],
)
def test_bad_shapes_are_refused(teacher, student, message):
    with pytest.raises(ValueError, match=message):
        LwF().build(teacher, student)


def test_a_bad_temperature_is_refused():
    with pytest.raises(ValueError, match="`temperature` to be a finite number"):
        LwF(temperature=0.0)

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mikd.losses.attention_transfer import AttentionTransfer

MAPS = (3, 4, 2, 5), (3, 4, 2, 3)


def _tensors(shapes=MAPS):
    rng = np.random.default_rng(0)
    return [rng.normal(size=shape).astype("float32") for shape in shapes]


def _attention(feature_map, power):
    attention = (np.abs(feature_map.astype("float64")) ** power).mean(-1)
    attention = attention.reshape(len(feature_map), -1)
    return attention / np.linalg.norm(attention, axis=-1, keepdims=True)


def _gradient(loss, teacher, student):
    student = tf.constant(student)
    with tf.GradientTape() as tape:
        tape.watch(student)
        value = loss(tf.constant(teacher), student)
    return value, tape.gradient(value, student)


@pytest.mark.parametrize("power", [1, 2, 3.5])
def test_value_equals_numpy(power):
    teacher, student = _tensors()
    difference = _attention(teacher, power) - _attention(student, power)
    loss = AttentionTransfer(power=power)(teacher, student)
    np.testing.assert_allclose(loss, np.mean(difference**2, -1), rtol=1e-5, atol=1e-7)


def test_scale_and_number_of_channels_do_not_matter():
    (teacher, _) = _tensors()
    loss = AttentionTransfer()(teacher, np.concatenate([teacher, -teacher], -1) * 100.0)
    np.testing.assert_allclose(loss, np.zeros(3), atol=1e-10)


def test_features_are_averaged_to_the_smaller_grid_first():
    teacher, student = _tensors(((2, 8, 4, 5), (2, 4, 2, 3)))
    pooled = teacher.reshape(2, 4, 2, 2, 2, 5).mean((2, 4))
    difference = _attention(pooled, 2) - _attention(student, 2)
    loss = AttentionTransfer()(teacher, student)
    np.testing.assert_allclose(loss, np.mean(difference**2, -1), rtol=1e-5)


@pytest.mark.parametrize("power", [1, 2, 3])
@pytest.mark.parametrize("scale", [0.0, 1e-15, 1e-7, 1e4])
def test_gradients_are_finite_at_dead_and_huge_maps(scale, power):
    teacher, student = _tensors()
    loss, gradient = _gradient(AttentionTransfer(power=power), teacher, scale * student)
    assert np.all(np.isfinite(loss))
    assert np.all(np.isfinite(gradient))


def test_a_batch_of_one_gets_a_gradient():
    loss, gradient = _gradient(AttentionTransfer(), *(x[:1] for x in _tensors()))
    assert loss.shape == (1,)
    assert np.any(gradient.numpy() != 0)


def test_a_saved_loss_is_the_same_loss(tmp_path):
    inputs = [keras.Input(shape[1:]) for shape in MAPS]
    loss = AttentionTransfer(power=3, teacher_layer="stage1", weight=1000.0)
    model = keras.Model(inputs, loss(*inputs))
    model.save(tmp_path / "loss.keras")
    loaded = keras.saving.load_model(tmp_path / "loss.keras")
    assert loaded.layers[-1].get_config() == loss.get_config()
    assert loaded.layers[-1].power == 3.0
    np.testing.assert_array_equal(loaded(_tensors()), loss(*_tensors()))


@pytest.mark.parametrize("power", [0.5, float("inf"), float("nan"), "2", True])
def test_bad_powers_are_refused(power):
    with pytest.raises(ValueError, match="`power` to be a finite number of at least 1"):
        AttentionTransfer(power=power)


@pytest.mark.parametrize(
    ("teacher", "student", "message"),
    [
        ((2, 5), (2, 5), "two feature maps"),
        ((2, 8, 8, 5), (2, 1, 1, 5), "more than one position"),
    ],
)
def test_bad_shapes_are_refused(teacher, student, message):
    with pytest.raises(ValueError, match=message):
        AttentionTransfer().build(teacher, student)

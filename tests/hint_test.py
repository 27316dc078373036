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


def test_a_vector_against_a_map_is_refused():
    with pytest.raises(ValueError, match="two vectors .* or two feature maps"):
        Hint().build((2, 5), (2, 4, 4, 3))

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_mikd as mikd
from keras_mikd.losses.parts import paraphraser

SHAPES = (3, 4, 4, 6), (3, 4, 4, 5)


def _tensors(shapes=SHAPES, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape).astype("float32") for shape in shapes]


def _convolved(x, layer):
    kernel = layer.kernel.numpy().astype("float64")
    padded = np.pad(x.astype("float64"), [(0, 0), (1, 1), (1, 1), (0, 0)])
    result = np.zeros((*x.shape[:3], kernel.shape[-1])) + layer.bias.numpy()
    for i in range(3):
        for j in range(3):
            result += padded[:, i : i + x.shape[1], j : j + x.shape[2]] @ kernel[i, j]
    return result


def _factors(layers, x):
    """Three convolutions with LeakyReLU, and BatchNorm in training between where there is one."""
    for layer in layers:
        if isinstance(layer, keras.layers.Conv2D):
            x = _convolved(x, layer)
        elif isinstance(layer, keras.layers.BatchNormalization):
            x = (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + 1e-5)
        else:
            x = np.where(x > 0, x, 0.1 * x)
    return x


def _normalized(factors, variant):
    if variant == "repdistiller":
        factors = (factors**2).mean(-1)
    factors = factors.reshape(len(factors), -1)
    return factors / np.linalg.norm(factors, axis=1, keepdims=True)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("variant", ["repdistiller", "official"])
def test_value_equals_numpy(variant, seed):
    loss = mikd.FactorTransfer(variant=variant)
    teacher, student = _tensors(seed=seed)
    value = loss(teacher, student, training=True)
    factors = [_factors(loss.paraphraser, teacher), _factors(loss.translator, student)]
    assert [each.shape[-1] for each in factors] == [3, 3]
    t, s = (_normalized(each, variant) for each in factors)
    np.testing.assert_allclose(value, np.abs(t - s).mean(1), rtol=1e-4)


def test_the_number_of_factors_is_that_of_the_codes():
    for variant, factors in (("repdistiller", 3), ("official", 4)):
        loss = mikd.FactorTransfer(variant=variant)
        loss.build((None, 2, 2, 7), (None, 2, 2, 5))
        assert loss.paraphraser[-2].filters == factors


@pytest.mark.parametrize("variant", ["repdistiller", "official"])
def test_factors_are_averaged_to_the_smaller_grid(variant):
    loss = mikd.FactorTransfer(variant=variant)
    teacher, student = _tensors(((2, 4, 4, 6), (2, 2, 2, 5)))
    value = loss(teacher, student, training=True)
    factors = _factors(loss.paraphraser, teacher).reshape(2, 2, 2, 2, 2, 3).mean((2, 4))
    t = _normalized(factors, variant)
    s = _normalized(_factors(loss.translator, student), variant)
    np.testing.assert_allclose(value, np.abs(t - s).mean(1), rtol=1e-4)


def test_the_paraphraser_takes_in_the_scale_of_the_teacher():
    maps = np.random.default_rng(0).normal(size=(8, 4, 4, 6)).astype("float32")
    factors = []
    for scale in (1.0, 1000.0):
        keras.utils.set_random_seed(0)
        loss = mikd.FactorTransfer(paraphraser_steps=20)
        loss.build(*((None, *shape[1:]) for shape in SHAPES))
        loss.look_at(scale * maps, None)
        factors.append(_factors(loss.paraphraser, scale * maps))
    np.testing.assert_allclose(*factors, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_the_paraphraser_learns_to_rebuild_maps_of_any_scale(scale):
    """Maps of two kinds of patches in six channels; three channels of factors are enough."""
    rng = np.random.default_rng(0)
    maps = np.maximum(rng.normal(size=(64, 4, 4, 2)) @ rng.normal(size=(2, 6)), 0)
    maps = (scale * maps).astype("float32")
    loss = mikd.FactorTransfer(paraphraser_steps=400)
    loss.build(maps.shape, maps.shape)
    first = [layer.kernel.numpy() for layer in loss.paraphraser if hasattr(layer, "kernel")]
    assert loss.waits_for_examples
    loss.look_at(maps, maps)
    assert not loss.waits_for_examples
    assert 0.0 < loss.reconstruction_error.numpy() < 0.5
    last = [layer.kernel.numpy() for layer in loss.paraphraser if hasattr(layer, "kernel")]
    assert all(np.any(a != b) for a, b in zip(first, last, strict=True))


def test_more_steps_rebuild_better_and_the_same_steps_the_same():
    maps = np.maximum(_tensors(((48, 4, 4, 6), (1, 1)))[0], 0)
    errors, kernels = [], []
    for steps in (1, 100, 100):
        keras.utils.set_random_seed(0)
        loss = mikd.FactorTransfer(paraphraser_steps=steps, variant="official")
        loss.build(maps.shape, maps.shape)
        loss.look_at(maps, maps)
        errors.append(loss.reconstruction_error.numpy())
        kernels.append(loss.paraphraser[0].kernel.numpy())
    assert errors[1] < 0.9 * errors[0]
    np.testing.assert_array_equal(kernels[1], kernels[2])


def test_fitted_leaves_a_constant_teacher_finite():
    encoder = [(tf.ones((3, 3, 2, 2)), tf.zeros(2))] * 3
    weights, error = paraphraser.fitted(encoder, tf.zeros((5, 2, 2, 2)), steps=3, squared=True)
    assert all(np.all(np.isfinite(weight)) for pair in weights for weight in pair)
    assert np.isfinite(error)


def test_only_the_translator_is_trained_in_fit_and_a_file_keeps_the_paraphraser(tmp_path):
    loss = mikd.FactorTransfer(weight=200.0, variant="official")
    inputs = [keras.Input(shape[1:]) for shape in SHAPES]
    model = keras.Model(inputs, loss(*inputs))
    loss.look_at(*_tensors())
    assert len(loss.trainable_weights) == 6
    assert len(loss.non_trainable_weights) == 7
    model.save(tmp_path / "loss.keras")
    loaded = keras.saving.load_model(tmp_path / "loss.keras")
    assert not loaded.layers[-1].waits_for_examples
    assert loaded.layers[-1].get_config() == loss.get_config()
    np.testing.assert_array_equal(loaded(_tensors()), loss(*_tensors()))


@pytest.mark.parametrize("variant", ["repdistiller", "official"])
@pytest.mark.parametrize("scale", [0.0, 1e-12, 1e4])
@pytest.mark.parametrize("shapes", [SHAPES, ((1, 1, 1, 4), (1, 1, 1, 4))])
def test_gradients_are_finite_at_the_edges(shapes, scale, variant):
    loss = mikd.FactorTransfer(variant=variant)
    teacher, student = _tensors(shapes)
    student = tf.constant(scale * student)
    with tf.GradientTape() as tape:
        tape.watch(student)
        value = loss(scale * teacher, student, training=True)
    gradients = tape.gradient(value, [student, *loss.trainable_weights])
    assert np.all(np.isfinite(value))
    assert all(np.all(np.isfinite(g)) for g in gradients)


def test_bad_arguments_and_shapes_are_refused():
    for argument, value, message in (
        ("variant", "paper", "`variant` to be 'repdistiller' or 'official'"),
        ("rate", 0.0, "`rate` to be a finite number above 0"),
        ("paraphraser_steps", 0, "`paraphraser_steps` to be an int of at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            mikd.FactorTransfer(**{argument: value})
    with pytest.raises(ValueError, match="two feature maps"):
        mikd.FactorTransfer().build((2, 5), (2, 5))

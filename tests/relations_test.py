"""Losses that compare examples or channels: what holds for all of them, at the edges too."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from random_features import random_features

import keras_mikd as mikd

VECTORS = (5, 7), (5, 4)
MAPS = (5, 4, 6, 3), (5, 2, 3, 6)
# name -> (a function that makes the loss, its shapes)
LOSSES = {
    "sp": (mikd.SimilarityPreserving, MAPS),
    "rkd": (mikd.RKD, VECTORS),
    "pkt": (mikd.PKT, VECTORS),
    "cc": (mikd.CorrelationCongruence, VECTORS),
    "cc_paper": (lambda: mikd.CorrelationCongruence(variant="paper"), VECTORS),
    "crd": (lambda: mikd.CRD(width=6), VECTORS),
    "queue": (lambda: mikd.QueueRelation(size=8), VECTORS),
    "itrd": (mikd.ITRD, VECTORS),
    "itrd_same_width": (mikd.ITRD, ((5, 4), (5, 4))),
    "nst": (mikd.NST, MAPS),
    "fsp": (mikd.FSP, ([(5, 4, 6, 3), (5, 2, 3, 2)], [(5, 2, 2, 3), (5, 2, 2, 2)])),
}
NEEDS_ONE_RANK = ("nst", "fsp", "queue", "itrd", "itrd_same_width")
TRAINED = ("cc", "crd", "queue", "itrd", "itrd_same_width")
EDGES = {
    "ordinary": lambda x: x,
    "zeros": lambda x: 0.0 * x,
    "tiny": lambda x: 1e-14 * x,
    "small": lambda x: 1e-5 * x,
    "large": lambda x: 1e4 * x,
    "constant": lambda x: 0.0 * x + 3.0,
    "all_examples_the_same": lambda x: 0.0 * x + x[:1],
    "two_examples_the_same": lambda x: np.concatenate([x[:1], x[:-1]]),
    "a_channel_without_activity": lambda x: x * (np.arange(x.shape[-1]) > 0),
    "an_example_without_activity": lambda x: (
        x * (np.arange(len(x)) > 0).reshape(-1, *[1] * (x.ndim - 1))
    ),
    "one_example": lambda x: x[:1],
    "two_examples": lambda x: x[:2],
}


def _value_and_gradient(loss, teacher, student):
    student = tf.nest.map_structure(tf.constant, student)
    with tf.GradientTape() as tape:
        tape.watch(student)
        value = loss(teacher, student)
    return value, tape.gradient(value, student)


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("name", LOSSES)
def test_values_and_gradients_are_finite(name, edge):
    make, shapes = LOSSES[name]
    one_of_both = (EDGES[edge], lambda x: x[: len(EDGES[edge](x))])
    for of_teacher, of_student in (one_of_both, one_of_both[::-1], (EDGES[edge],) * 2):
        teacher, student = random_features(shapes)
        teacher = tf.nest.map_structure(of_teacher, teacher)
        student = tf.nest.map_structure(of_student, student)
        value, gradient = _value_and_gradient(
            make(),
            *(tf.nest.map_structure(lambda x: x.astype("float32"), t) for t in (teacher, student)),
        )
        assert value.shape == (len(tf.nest.flatten(student)[0]),)
        for each in (value, *tf.nest.flatten(gradient)):
            assert np.isfinite(each).all()
            # Not the inverse of a length of next to nothing.
            assert edge == "large" or np.abs(each).max() < 1e10


@pytest.mark.parametrize("name", [n for n in LOSSES if n not in TRAINED])
def test_what_is_the_same_in_both_networks_costs_nothing(name):
    make, (shape, _) = LOSSES[name]
    (same,) = random_features([shape])
    value, gradient = _value_and_gradient(make(), same, same)
    np.testing.assert_allclose(value, np.zeros(5), atol=1e-6)
    for each in tf.nest.flatten(gradient):
        np.testing.assert_allclose(each, np.zeros(each.shape), atol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_a_batch_of_several_gets_a_gradient(name):
    make, shapes = LOSSES[name]
    _, gradient = _value_and_gradient(make(), *random_features(shapes))
    assert all(np.any(each != 0) for each in tf.nest.flatten(gradient))


# Those that divide by a length or a distance.
@pytest.mark.parametrize("name", ["rkd", "pkt", "itrd", "itrd_same_width", "nst", "sp"])
@pytest.mark.parametrize("scale", [1e-3, 1e-4, 1e-5, 1e-7])
def test_features_without_activity_get_gradients_that_float16_holds(name, scale):
    """Their own would be the inverse of their scale."""
    make, shapes = LOSSES[name]
    teacher, student = random_features(shapes)
    loss = make()
    _, ordinary = _value_and_gradient(loss, teacher, student)
    _, gradient = _value_and_gradient(loss, teacher, scale * student)
    assert np.max(np.abs(gradient)) < 500.0 * np.max(np.abs(ordinary))


@pytest.mark.parametrize("name", ["rkd", "pkt", "nst", "sp"])
def test_ordinary_features_get_the_gradient_of_the_published_loss(name):
    """One that no scale changes: of features ten times as large it is a tenth."""
    make, shapes = LOSSES[name]
    teacher, student = random_features(shapes)
    _, gradient = _value_and_gradient(make(), teacher, student)
    _, larger = _value_and_gradient(make(), teacher, 1e3 * student)
    size = np.max(np.abs(gradient))
    np.testing.assert_allclose(1e3 * larger, gradient, rtol=2e-3, atol=2e-3 * size)


def test_similarities_of_small_features_keep_their_gradient():
    """They are products: a hundredth of the scale is a ten-thousandth of the products' length."""
    make, shapes = LOSSES["sp"]
    teacher, student = random_features(shapes)
    _, gradient = _value_and_gradient(make(), teacher, student)
    scale = 0.03 / np.abs(np.asarray(student)).max()
    _, smaller = _value_and_gradient(make(), teacher, scale * student)
    size = np.max(np.abs(gradient))
    np.testing.assert_allclose(scale * smaller, gradient, rtol=2e-3, atol=2e-3 * size)


@pytest.mark.parametrize("name", LOSSES)
def test_a_saved_loss_is_the_same_loss(name, tmp_path):
    make, shapes = LOSSES[name]
    loss = make()
    inputs = tf.nest.map_structure(lambda x: keras.Input(x.shape[1:]), random_features(shapes))
    model = keras.Model(inputs, loss(*inputs))
    model.save(tmp_path / "loss.keras")
    loaded = keras.saving.load_model(tmp_path / "loss.keras")
    (twin,) = [x for x in loaded.layers if isinstance(x, mikd.DistillationLoss)]
    assert twin.get_config() == loss.get_config()
    values = [np.array(each(*random_features(shapes), training=False)) for each in (twin, loss)]
    np.testing.assert_array_equal(*values)


@pytest.mark.parametrize("name", [n for n in LOSSES if n not in NEEDS_ONE_RANK])
def test_several_places_and_unknown_sizes_are_refused(name):
    make, _ = LOSSES[name]
    for shape in ([(None, 4), (None, 4)], (None, None, None, 3), (None,)):
        with pytest.raises(ValueError, match="Expected one tensor"):
            make().build((None, 4), shape)

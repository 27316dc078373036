import numpy as np
import pytest
import tensorflow as tf
from crd_twins import TEMPERATURE, contrast, embedded
from random_features import random_features

import keras_mikd as mikd
from keras_mikd.losses import crd as crd_module


def rows_of(scores):
    """The exponentials of square scores, the diagonal first."""
    scores = np.exp(scores / TEMPERATURE)
    return np.array([[row[i], *np.delete(row, i)] for i, row in enumerate(scores)])


@pytest.mark.parametrize("shapes", [((5, 3), (5, 7)), ((7, 4, 2, 3), (7, 3)), ((2, 6), (2, 1))])
def test_in_the_batch_it_is_the_released_loss_with_the_batch_as_its_memory(shapes):
    crd, normalizers = mikd.CRD(width=6), None
    for seed in range(3):
        teacher, student = random_features(shapes, seed=seed)
        value = crd(teacher, student, training=True)
        t, s = embedded(crd, teacher, student)
        outs = rows_of(s @ t.T), rows_of(t @ s.T)
        normalizers = normalizers or [out.mean() * len(t) for out in outs]
        pairs = zip(outs, normalizers, strict=True)
        expected = sum(contrast(out / z, len(t)) for out, z in pairs)
        np.testing.assert_allclose(np.mean(value), expected, rtol=1e-4)


def test_evaluation_measures_nothing():
    crd = mikd.CRD(width=6)
    (first, second), student = random_features(([(5, 3), (4, 3)], (4, 2)))
    crd(second, student, training=False)
    for normalizer in crd.normalizers:
        np.testing.assert_array_equal(normalizer, [0.0, 0.0])
    crd(first[:1], student[:1], training=True)  # Without negatives, nothing is measured.
    for normalizer in crd.normalizers:
        np.testing.assert_array_equal(normalizer, [0.0, 0.0])
    before = crd(second, student, training=True)
    np.testing.assert_array_equal(crd(second, student, training=False), before)


def test_measuring_the_normalizer_adds_no_gradient():
    crd = mikd.CRD(width=6)
    teacher, student = random_features(((5, 3), (5, 4)))

    def gradients():
        with tf.GradientTape() as tape:
            value = crd(teacher, student, training=True)
        return tape.gradient(value, crd.trainable_weights)

    crd.build((None, 3), (None, 4))
    measuring, known = gradients(), gradients()
    for one, other in zip(measuring, known, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("examples", [5, 10_000_000])
def test_the_epsilon_of_the_authors_counts_in_a_large_memory(examples):
    rng = np.random.default_rng(0)
    own, scores = (rng.normal(size=s).astype("float32") for s in ((5,), (5, 7)))
    log_z = np.float32(0.3)
    out = np.exp(np.concatenate([own[:, None], scores], 1) - log_z) / examples
    value = crd_module._contrast(own, scores, np.full((5, 7), True), log_z, examples=examples)
    np.testing.assert_allclose(np.mean(value), contrast(out, examples), rtol=1e-4)


def test_examples_of_the_same_class_are_no_negatives():
    teacher, student = random_features(((5, 3), (5, 4)))
    classes = np.array([0, 1, 0, 2, 1])
    crd = mikd.CRD(width=6, negatives_from="other_classes")
    value = crd(teacher, student, labels=classes, training=True)
    t, s = embedded(crd, teacher, student)
    expected = 0.0
    for scores in (s @ t.T, t @ s.T):
        e = np.exp(scores / TEMPERATURE)
        rows = [np.array([e[i, i], *e[i, classes != classes[i]]]) for i in range(5)]
        z = np.concatenate(rows).mean()
        expected += np.array([contrast(row[None] / (5 * z), 5) for row in rows])
    np.testing.assert_allclose(value, expected, rtol=1e-4)


def test_a_batch_of_one_class_has_no_negatives():
    teacher, student = random_features(((4, 3), (4, 2)))
    crd = mikd.CRD(negatives_from="other_classes")
    value = crd(teacher, student, labels=np.zeros(4, int), training=True)
    np.testing.assert_allclose(value, np.zeros(4), atol=1e-2)


def test_labels_are_needed_for_other_classes():
    with pytest.raises(ValueError, match='Expected labels .* negatives_from="batch" needs none'):
        mikd.CRD(negatives_from="other_classes")(*random_features(((4, 3), (4, 2))))


def test_low_temperatures_stay_finite():
    value = mikd.CRD(temperature=1e-3)(*random_features(((4, 3), (4, 2))))
    assert np.isfinite(value).all()


@pytest.mark.parametrize(
    "arguments", [{"width": 0}, {"temperature": 0.0}, {"negatives_from": "teacher"}]
)
def test_bad_arguments_are_refused(arguments):
    (name,) = arguments
    with pytest.raises(ValueError, match=f"`{name}` to be"):
        mikd.CRD(**arguments)

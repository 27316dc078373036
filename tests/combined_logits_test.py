"""What several teachers say together, beside NumPy."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mikd.distillers.combined_logits import combined, confidence


def _softmax(x, axis):
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def _twin(logits, truth):
    """Weights by the formula as it is printed, in float64."""
    p = _softmax(np.asarray(logits, "float64"), -1)
    h = -(truth * np.log(p)).sum(-1)
    return (1 - np.exp(h) / np.exp(h).sum(0)) / (len(p) - 1)


def _logits(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


@pytest.mark.parametrize("teachers", [2, 3])
def test_the_mean_is_the_geometric_mean_of_the_probabilities(teachers):
    logits = list(_logits(teachers, 5, 4))
    for temperature in (1.0, 4.0):
        p = np.prod([_softmax(z / temperature, -1) ** (1 / teachers) for z in logits], axis=0)
        together = np.asarray(combined(logits, None, "mean"))
        np.testing.assert_allclose(
            _softmax(together / temperature, -1), p / p.sum(-1, keepdims=True), rtol=1e-5
        )


@pytest.mark.parametrize("teachers", [2, 3, 5])
@pytest.mark.parametrize("rows", [(6,), (3, 2, 2)])
def test_confidence_weights_every_example_as_the_formula_says(teachers, rows):
    logits = 2 * _logits(teachers, *rows, 4)
    labels = np.random.default_rng(1).integers(4, size=rows)
    truth = np.eye(4)[labels]
    weights = _twin(logits, truth)
    np.testing.assert_allclose(weights.sum(0), 1.0, rtol=1e-9)
    expected = (weights[..., None] * logits).sum(0)
    soft = (0.7 * truth + 0.3 / 4).astype("float32")
    for given, twin in ((labels, expected), (truth, expected), (labels[..., None], expected)):
        seen = combined(list(logits), given, "confidence")
        np.testing.assert_allclose(seen, twin, rtol=1e-4, atol=1e-5)
    mixed = (_twin(logits, soft)[..., None] * logits).sum(0)
    np.testing.assert_allclose(
        combined(list(logits), soft, "confidence"), mixed, rtol=1e-4, atol=1e-5
    )


def test_of_two_teachers_the_one_that_is_wrong_counts_for_little():
    right, wrong = np.array([[9.0, 0, 0]]), np.array([[0, 9.0, 0]])
    weights = np.asarray(confidence(np.stack([right, wrong]).astype("float32"), np.eye(3)[:1]))
    assert weights[0, 0] > 0.999
    np.testing.assert_allclose(weights.sum(0), 1.0, rtol=1e-6)


@pytest.mark.parametrize("how", ["mean", "confidence"])
def test_large_and_masked_logits_leave_finite_targets(how):
    logits = np.array([[[1e4, 0, -1e4]], [[-1e4, 0, 1e4]]], "float16")
    seen = combined(list(logits), np.array([0]), how)
    assert seen.dtype == "float32"
    assert np.all(np.isfinite(seen))
    masked = np.array([[[2.0, 1.0, -np.inf]], [[0.0, 1.0, -np.inf]]], "float32")
    for label in (0, 2, -1, 255):  # Out of range: nobody is more to be believed.
        seen = np.asarray(combined(list(masked), np.array([label]), how))
        assert np.all(np.isfinite(seen[:, :2])) and np.all(np.isneginf(seen[:, 2]))
        if label != 0:
            np.testing.assert_allclose(seen[0, :2], [1.0, 1.0], rtol=1e-6)


def test_a_teacher_that_masks_the_label_counts_for_nothing():
    logits = np.array([[[1.0, -np.inf]], [[0.5, 0.25]]], "float32")
    seen = combined(list(logits), np.array([1]), "confidence")
    np.testing.assert_allclose(seen, [[0.5, 0.25]])


def test_a_batch_without_examples():
    seen = combined([tf.zeros((0, 3))] * 2, tf.zeros((0,), "int64"), "confidence")
    assert seen.shape == (0, 3)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, 'labels=None. Use combine="mean" without labels'),
        ({"a": np.zeros(2, int)}, "one array of labels"),
        (np.zeros((2, 3), int), r"over 4 classes.*shape \(2, 4\).*labels of shape \(2, 3\)"),
    ],
)
def test_confidence_needs_labels_that_fit(labels, message):
    with pytest.raises(ValueError, match=message):
        combined([tf.zeros((2, 4))] * 2, labels, "confidence")


def test_symbolic_batches_of_open_size():
    @tf.function(
        input_signature=[tf.TensorSpec((None, 3)), tf.TensorSpec((None,), "uint8")],
        autograph=False,
    )
    def run(logits, labels):
        return combined([logits, 2 * logits], labels, "confidence")

    x = _logits(4, 3)
    labels = np.array([0, 1, 2, 0], "uint8")
    np.testing.assert_allclose(
        run(x, labels), combined([x, 2 * x], keras.ops.cast(labels, "int32"), "confidence")
    )

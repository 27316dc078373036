"""How a batch is taken apart, with and without what a cache adds to it."""

import numpy as np
import pytest
import tensorflow as tf

from keras_mikd.batches import Batch, take_apart, with_class_weight, with_index

X, Y, WEIGHT = np.zeros((2, 3)), np.array([1, 0]), np.array([0.5, 2.0], "float32")
FEATURES = {"fingerprint": {"output": np.ones((2, 4))}}


@pytest.mark.parametrize(
    ("data", "parts"),
    [
        (X, (X, None, None)),
        ((X,), (X, None, None)),
        ((X, Y), (X, Y, None)),
        ((X, Y, WEIGHT), (X, Y, WEIGHT)),
        ({"image": X}, ({"image": X}, None, None)),
    ],
)
def test_a_plain_batch_has_nothing_of_a_teacher(data, parts):
    batch = take_apart(data)
    assert batch.teacher_features is None
    for part, wanted in zip(batch, parts, strict=False):
        assert part is wanted or part == wanted


def test_a_batch_of_a_cache_brings_the_tensors_of_its_teacher():
    batch = take_apart(Batch(X, Y, WEIGHT, FEATURES))
    assert batch == Batch(X, Y, WEIGHT, FEATURES, None)
    assert take_apart(Batch(X, teacher_features=FEATURES))[:3] == (X, None, None)
    assert take_apart(Batch(X)) == (X, None, None, None, None)


def test_a_data_set_keeps_the_parts_apart():
    """What is missing is `()`, which `tf.data` takes and `None` it does not."""
    dataset = tf.data.Dataset.from_tensors(Batch(X, Y, teacher_features=FEATURES))
    spec = take_apart(dataset.element_spec)
    assert (spec.y.shape, spec.sample_weight) == ((2,), None)
    (element,) = dataset
    batch = take_apart(element)
    np.testing.assert_array_equal(batch.y, Y)
    np.testing.assert_array_equal(batch.teacher_features["fingerprint"]["output"], np.ones((2, 4)))


def test_class_weights_need_labels():
    with pytest.raises(ValueError, match="Expected labels in the data"):
        with_class_weight(tf.data.Dataset.from_tensors(Batch(X)), {0: 2.0, 1: 1.0})


@pytest.mark.parametrize(
    "labels", [Y, np.eye(2, dtype="float32")[Y], Y[:, None], Y.astype("uint8")]
)
def test_class_weights_become_sample_weights(labels):
    for own, expected in (((), [3.0, 1.0]), (WEIGHT, [1.5, 2.0])):
        dataset = tf.data.Dataset.from_tensors(Batch(X, labels, own, FEATURES))
        (batch,) = with_class_weight(dataset, {1: 3.0})
        np.testing.assert_array_equal(batch.sample_weight, expected)
        assert batch.teacher_features.keys() == FEATURES.keys()


@pytest.mark.parametrize(("labels", "expected"), [([0, 9], [2, 1]), ([-1, 1], [1, 3])])
def test_a_class_without_a_weight_counts_once(labels, expected):
    dataset = tf.data.Dataset.from_tensors(Batch(X, np.array(labels), (), FEATURES))
    (batch,) = with_class_weight(dataset, {0: 2, 1: 3})
    np.testing.assert_array_equal(batch.sample_weight, expected)


@pytest.mark.parametrize("rest", [(), (WEIGHT,)])
def test_an_index_comes_with_the_batch(rest):
    batches = tf.data.Dataset.from_tensor_slices((X, Y, *rest, np.arange(2) + 7)).batch(2)
    (batch,) = with_index(batches)
    batch = take_apart(batch)
    np.testing.assert_array_equal(batch.index, [7, 8])
    np.testing.assert_array_equal(batch.y, Y)
    assert batch.teacher_features is None
    assert (batch.sample_weight is None) == (not rest)


@pytest.mark.parametrize(
    "batches",
    [
        (X, Y, np.arange(2)),
        tf.data.Dataset.from_tensors((X, Y)),
        tf.data.Dataset.from_tensors((X, Y, WEIGHT)),
        tf.data.Dataset.from_tensor_slices((X, Y, np.arange(2))),
        tf.data.Dataset.from_tensors(Batch(X, Y, (), FEATURES, np.arange(2))),
    ],
    ids=["arrays", "no_index", "weights", "examples", "cache"],
)
def test_batches_without_an_index_are_refused(batches):
    with pytest.raises(ValueError, match=r"Expected a tf.data.Dataset of batches \(x, y, index\)"):
        with_index(batches)

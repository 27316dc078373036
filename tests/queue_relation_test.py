import numpy as np
import pytest
from random_features import random_features

import keras_mikd as mikd


def _unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def twin(loss, teacher, student, queue, teacher_temperature=0.02, student_temperature=0.1):
    """The loss of every example against a queue of the teacher's features, float64."""
    kernel, bias = (x.astype("float64") for x in loss.regressor.get_weights())
    queue = _unit(queue.astype("float64"))
    p = np.exp(_unit(teacher) @ queue.T / teacher_temperature)
    q = np.exp(_unit(student @ kernel + bias) @ queue.T / student_temperature)
    p, q = (x / x.sum(axis=1, keepdims=True) for x in (p, q))
    return -np.sum(p * np.log(q), axis=1)


@pytest.mark.parametrize("size", [2, 5, 7, 9, 100])
def test_the_batch_enters_and_the_oldest_leave(size):
    relation, seen = mikd.QueueRelation(size=size), np.zeros((0, 4), "float32")
    for step, examples in enumerate((3, 5, 1, 4)):
        teacher, student = random_features(((examples, 4), (examples, 6)), seed=step)
        values = relation(teacher, student, training=True)
        seen = np.concatenate([teacher, seen])
        expected = twin(relation, teacher, student, seen[:size])
        np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-6)
        kept = _unit(seen[:size])
        np.testing.assert_allclose(relation.queue[: len(kept)], kept, rtol=1e-5)
        np.testing.assert_array_equal(relation.queue[len(kept) :], 0)


def test_temperatures():
    relation = mikd.QueueRelation(size=8, teacher_temperature=0.5, student_temperature=2.0)
    teacher, student = random_features(((5, 3), (5, 2)))
    values = relation(teacher, student)
    expected = twin(relation, teacher, student, teacher, 0.5, 2.0)
    np.testing.assert_allclose(values, expected, rtol=1e-4)


def test_evaluation_leaves_the_queue_as_it_is():
    relation = mikd.QueueRelation(size=8)
    (first, second), student = random_features(([(5, 3), (4, 3)], (4, 2)))
    relation(first, random_features([(5, 2)])[0], training=True)
    before = np.array(relation.queue)
    values = relation(second, student, training=False)
    np.testing.assert_array_equal(relation.queue, before)
    seen = np.concatenate([second, first])[:8]
    np.testing.assert_allclose(values, twin(relation, second, student, seen), rtol=1e-4)


@pytest.mark.parametrize(
    "arguments", [{"size": 1}, {"teacher_temperature": 0.0}, {"student_temperature": -1.0}]
)
def test_bad_arguments_are_refused(arguments):
    (name,) = arguments
    with pytest.raises(ValueError, match=f"`{name}` to be"):
        mikd.QueueRelation(**arguments)


def test_maps_are_refused():
    with pytest.raises(ValueError, match="Expected two vectors"):
        mikd.QueueRelation().build((2, 4, 4, 3), (2, 4, 4, 3))

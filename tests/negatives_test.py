"""Which pairs are scored, on one replica and on several."""

import numpy as np
import pytest
import tensorflow as tf
from replicas_test import on_each

from keras_mikd.critics.critic import Critic
from keras_mikd.critics.negatives import Negatives, Pool


class NamesThePair(Critic):
    """Scores a pair by the first channels of its two sides: teacher 3 with student 5 is 305."""

    def build(self, teacher_shape, student_shape):
        pass

    def embed_teacher(self, teacher):
        return teacher

    def embed_student(self, student):
        return student

    def score(self, teacher, student):
        return 100 * teacher[..., 0] + student[..., 0]


def _numbered(count, start=0):
    return tf.reshape(tf.range(start, start + count, dtype="float32"), (count, 1, 1))


def _pairs(batch, number, pool=None, first=0):
    """The student of the true pair of every example, and those of its negatives."""
    negatives = Negatives(number, "batch", gather=False)
    students = tf.roll(_numbered(pool or batch), -first, axis=0)
    pool = Pool(students, len(students) - 1)
    joint, product = negatives.scores(NamesThePair(), _numbered(batch, first), pool)
    joint, product = (np.asarray(x)[..., 0].astype(int) for x in (joint, product))
    teachers = first + np.arange(batch)
    np.testing.assert_array_equal(joint // 100, teachers)
    np.testing.assert_array_equal(product // 100, np.broadcast_to(teachers[:, None], product.shape))
    return joint % 100, product % 100


@pytest.mark.parametrize("number", [1, 2, 4])
def test_negatives_are_the_students_of_the_next_examples(number):
    joint, product = _pairs(5, number)
    np.testing.assert_array_equal(joint, np.arange(5))
    expected = [[(i + k) % 5 for k in range(1, number + 1)] for i in range(5)]
    np.testing.assert_array_equal(product, expected)


def test_all_negatives_are_every_other_example_once():
    joint, product = _pairs(5, "all")
    np.testing.assert_array_equal(joint, np.arange(5))
    np.testing.assert_array_equal(product, [[j for j in range(5) if j != i] for i in range(5)])


@pytest.mark.parametrize("number", [4, 5, 30])
def test_more_negatives_than_there_are_never_contain_the_true_pair(number):
    _, product = _pairs(5, number)
    assert product.shape == (5, 4)
    for i, others in enumerate(product):
        assert sorted(others) == [j for j in range(5) if j != i]


@pytest.mark.parametrize("first", [0, 2, 4])
def test_a_replica_pairs_its_part_with_the_global_batch(first):
    joint, product = _pairs(2, 3, pool=6, first=first)
    np.testing.assert_array_equal(joint, [first, first + 1])
    expected = [[(first + i + k) % 6 for k in (1, 2, 3)] for i in range(2)]
    np.testing.assert_array_equal(product, expected)
    _, every = _pairs(2, "all", pool=6, first=first)
    for i, others in enumerate(every):
        assert sorted(others) == [j for j in range(6) if j != first + i]


SAME_SIZES = [((3, 3), 1), ((3, 3), 2), ((2, 2), 9), ((1, 1), 1)]
SIZES = [*SAME_SIZES, ((3, 1), 2), ((1, 3), 3), ((3, 0), 2)]


@pytest.mark.parametrize(
    ("sizes", "number", "known"),
    [(*case, False) for case in SIZES] + [(*case, True) for case in SAME_SIZES],
)
def test_on_replicas_they_are_the_next_examples_around_the_global_batch(
    two_replicas, sizes, number, known
):
    """Each replica returns a row for every example: its own partner, then its negatives."""
    students = np.arange(sum(sizes), dtype="float32")[:, None, None]
    batches = students[: sizes[0]], students[sizes[0] :]
    negatives = Negatives(number, "batch", gather=True)

    def pairs(x):
        x = x if known else tf.boolean_mask(x, tf.ones_like(x[:, 0, 0], "bool"))
        assert (x.shape[0] is not None) is known
        joint, product = negatives.comparison(NamesThePair(), lambda joint, _: joint[:, 0])(
            x, negatives.pool(x)
        )[1:]
        return tf.concat([joint, product[..., 0]], axis=1)

    seen = on_each(two_replicas, pairs, batches)
    available = min(number, sum(sizes) - 1)
    for batch, rows in zip(batches, seen, strict=True):
        own = batch[:, 0, 0]
        expected = [[100 * i + (i + k) % sum(sizes) for k in range(available + 1)] for i in own]
        np.testing.assert_array_equal(rows, np.reshape(expected, (len(own), available + 1)))

"""Which pairs are scored, on one replica and on several."""

import critic_twins
import numpy as np
import pytest
import tensorflow as tf
from replicas_test import on_each

from keras_mikd.critics.critic import Critic
from keras_mikd.critics.negatives import Negatives, Pool, _without_the_rest, draw_scope


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


def _pairs(batch, number, *, step=0, **kwargs):
    """The student of the true pair of every example, and those of its negatives."""
    negatives = Negatives(number, kwargs.pop("source", "batch"), gather=False)
    with draw_scope(step):
        pool = negatives.pool(_numbered(batch), **kwargs)
    joint, product = negatives.scores(NamesThePair(), _numbered(batch), pool)
    joint, product = (np.asarray(x)[..., 0].astype(int) for x in (joint, product))
    teachers = np.arange(batch)
    np.testing.assert_array_equal(joint // 100, teachers)
    np.testing.assert_array_equal(product // 100, np.broadcast_to(teachers[:, None], product.shape))
    np.testing.assert_array_equal(joint % 100, teachers)
    return product % 100


def _expected(batch, number, step=0):
    return list(critic_twins.partners(batch, number, step).values())


@pytest.mark.parametrize("step", [0, 1, 70_000])
@pytest.mark.parametrize(("batch", "number"), [(5, 1), (5, 4), (64, 3), (2, 1)])
def test_negatives_are_drawn_by_the_step(batch, number, step):
    seen = _pairs(batch, number, step=tf.constant(step, "int64"))
    np.testing.assert_array_equal(seen, _expected(batch, number, step))


def test_every_other_example_is_drawn_as_often():
    counts = np.zeros((6, 6), int)
    for step in range(600):
        for i, (other,) in critic_twins.partners(6, 1, step).items():
            counts[i, other] += 1
    expected = np.where(np.eye(6), 0, 120)
    # Chi-squared of 30 cells, of which the batch leaves fewer free: 50 is exceeded in 1 of 80.
    assert np.sum((counts - expected) ** 2 / np.maximum(expected, 1)) < 50
    assert not np.any(np.diag(counts))


def test_all_negatives_are_every_other_example_once():
    expected = [[j for j in range(5) if j != i] for i in range(5)]
    np.testing.assert_array_equal(_pairs(5, "all"), expected)


@pytest.mark.parametrize("number", [4, 5, 30])
def test_more_negatives_than_there_are_never_contain_the_true_pair(number):
    product = _pairs(5, number)
    assert product.shape == (5, 4)
    for i, others in enumerate(product):
        assert sorted(others) == [j for j in range(5) if j != i]


def test_in_data_that_is_sorted_by_class_most_negatives_are_of_other_classes():
    classes = np.repeat(np.arange(8), 8)
    same = np.mean([classes[_pairs(64, 1, step=k)[:, 0]] == classes for k in range(20)])
    assert same == pytest.approx(7 / 63, abs=0.03)  # The next example: 7 / 8.


def test_negatives_of_other_classes_are_of_all_of_them():
    classes = np.repeat(np.arange(4), 4)
    options = {"source": "other_classes", "labels": classes}
    seen = [_pairs(16, 3, step=k, **options) for k in range(40)]
    assert all(np.all(classes[product] != classes[:, None]) for product in seen)
    for i in range(16):
        drawn = {j for product in seen for j in product[i]}
        assert drawn == set(np.flatnonzero(classes != classes[i]))


def test_xla_draws_the_same():
    def draw(step):
        with draw_scope(step):
            return Negatives(3, "batch", gather=False).pool(_numbered(40)).rows

    compiled = tf.function(draw, jit_compile=True)
    for step in (0, 5, 2_000_000):
        np.testing.assert_array_equal(compiled(tf.constant(step)), draw(tf.constant(step)))


def test_students_that_are_not_scored_are_not_embedded():
    """Of the batch of many replicas, a replica with few negatives needs a part."""
    negatives = Negatives(2, "batch", gather=True)
    own = tf.range(6, 9)
    pool = Pool(_numbered(40), negatives._rows(own, 40, None))
    smaller = _without_the_rest(pool)
    assert smaller.student.shape[0] == 3 * (1 + 2)
    teacher = _numbered(3, start=6)
    for one, other in zip(
        negatives.scores(NamesThePair(), teacher, smaller),
        negatives.scores(NamesThePair(), teacher, pool),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)


SAME_SIZES = [((3, 3), 1), ((3, 3), 2), ((2, 2), 9), ((1, 1), 1)]
SIZES = [*SAME_SIZES, ((3, 1), 2), ((1, 3), 3), ((3, 0), 2)]


@pytest.mark.parametrize(
    ("sizes", "number", "known"),
    [(*case, False) for case in SIZES] + [(*case, True) for case in SAME_SIZES],
)
def test_on_replicas_they_are_those_of_one(two_replicas, sizes, number, known):
    """Each replica returns a row for every example: its own partner, then its negatives."""
    students = np.arange(sum(sizes), dtype="float32")[:, None, None]
    batches = students[: sizes[0]], students[sizes[0] :]
    negatives = Negatives(number, "batch", gather=True)

    def pairs(x):
        x = x if known else tf.boolean_mask(x, tf.ones_like(x[:, 0, 0], "bool"))
        assert (x.shape[0] is not None) is known
        with draw_scope(3):
            pool = negatives.pool(x)
        compare = negatives.comparison(NamesThePair(), lambda joint, _: joint[:, 0])
        joint, product = compare(x, pool)[1:]
        return tf.concat([joint, product[..., 0]], axis=1)

    seen = on_each(two_replicas, pairs, batches)
    partners = critic_twins.partners(sum(sizes), number, step=3)
    for batch, rows in zip(batches, seen, strict=True):
        expected = [[100 * i + j for j in [i, *partners[i]]] for i in batch[:, 0, 0].astype(int)]
        available = min(number, sum(sizes) - 1)
        np.testing.assert_array_equal(rows, np.reshape(expected, (len(batch), available + 1)))

"""Which pairs are scored: every example with its own partner, and with others by chance."""

from typing import Any, NamedTuple

import keras
from keras import ops

from keras_mikd import bounds, checks
from keras_mikd.critics.critic import compiled
from keras_mikd.distribution import replicas

ALL = "all"
BATCH = "batch"
OTHER_CLASSES = "other_classes"


class Pool(NamedTuple):
    """The students that a replica's examples are compared with; its own ones come first."""

    student: Any
    """Tensor of shape `(pool, locations or 1, channels)`."""
    available: Any
    """How many of them are at most negatives of an example, an int32 scalar."""
    classes: Any = None
    """Their classes, of shape `(pool,)`, where negatives are of other classes."""


class Negatives:
    """Chooses the pairs that a critic scores: negatives are the next examples of the batch.

    `number`, `source` and `gather` are `negatives`, `negatives_from` and `gather` of `JSDCritic`.
    Negatives of other classes are no draws from the product of the marginals, so bounds on mutual
    information do not hold with them.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(self, number, source, gather):
        if number != ALL and (not isinstance(number, int) or number < 1):
            raise ValueError(
                'Expected `negatives` to be an int of at least 1, or "all". '
                f"Received: negatives={number!r}"
            )
        checks.one_of("negatives_from", source, (BATCH, OTHER_CLASSES))
        if source == OTHER_CLASSES and number == ALL:
            raise ValueError(
                'Expected an int of `negatives` with negatives_from="other_classes", since their '
                f"number differs from example to example. Received: negatives={number!r}"
            )
        self.number = None if number == ALL else number
        self.source = source
        self.gather = gather

    def pool(self, student, labels=None):
        """Returns the students to compare with, once for any number of teachers' features.

        `student` has the shape `(batch, locations or 1, channels)`. Negatives of other classes need
        the class of every example, as indices or one-hot.

        Raises:
            ValueError: If labels are needed and missing, or an example has more than one.
        """
        classes = None
        if self.source == OTHER_CLASSES:
            # Floats are not cast: as integers, all of [0, 1) would be one class.
            hint = 'negatives_from="batch" needs none.'
            classes = checks.class_indices(labels, one_hot=True, dtype=None, hint=hint)
        if self._globally():
            if self.number is not None and classes is None:
                following = _following(student, self.number)
                pool = ops.concatenate([student, following], axis=0)
                return Pool(pool, ops.shape(following)[0])
            first = replicas.first_index(student)
            student = ops.roll(replicas.gather(student), -first, axis=0)
            if classes is not None:
                classes = ops.roll(replicas.gather(classes), -first, axis=0)
        return Pool(student, ops.shape(student)[0] - 1, classes)

    def comparison(self, critic, bound):
        """Returns a function that compares a teacher's feature with a pool of students.

        It maps `(teacher, pool)` to `(value, joint, product)`, of shapes `(batch,)`,
        `(batch, locations)` and `(batch, negatives, locations)`: the scores by `critic`, and their
        `bound` for every example.
        """

        def scored(teacher, pool):
            joint, product = self.scores(critic, teacher, pool)
            return bound(joint, product), joint, product

        scored = compiled(scored)

        def compared(teacher, pool):
            if not self._globally():
                return scored(teacher, pool)
            value, joint, product = replicas.run_network(
                lambda x: scored(x[0], pool._replace(student=x[1])), (teacher, pool.student)
            )
            if bounds.couples_examples(bound):
                # It needs the scores of all replicas. They are sent together, because a collective
                # fails on the scores of no negatives.
                scores = replicas.gather(ops.concatenate([joint[:, None], product], axis=1))
                value = replicas.own_part(bound(scores[:, 0], scores[:, 1:]), of=teacher)
            return value, joint, product

        return compared

    def scores(self, critic, teacher, pool):
        """Returns the scores of true pairs, `(batch, locations)`, and of pairs by chance.

        The latter have the shape `(batch, negatives, locations)`. Each feature is embedded once.
        """
        with keras.name_scope(critic.name, caller=critic):  # As in a call of the critic.
            teacher, student = critic.embed_teacher(teacher), critic.embed_student(pool.student)
            if self.number is None:
                return _diagonal_and_rest(critic.score_all(teacher, student))
            batch = ops.shape(teacher)[0]
            if pool.classes is not None:
                order = _others_first(pool.classes, batch)[:, : self.number]
                others = ops.take(student, order, axis=0)
                joint = critic.score(teacher, student[:batch])
                return joint, critic.score(teacher[:, None], others)
            shifts = range(1, self.number + 1)
            partners = [student[:batch]] + [ops.roll(student, -k, axis=0)[:batch] for k in shifts]
            scores = critic.score(teacher[:, None], ops.stack(partners, axis=1))
            return scores[:, 0], scores[:, 1 : ops.minimum(self.number, pool.available) + 1]

    def _globally(self):
        return self.gather and replicas.count() > 1


def _following(tensor, number):
    """Returns the `number` examples of the global batch that come after this replica's last one.

    The first example of all follows the last. Every replica sends only its first `number` examples.
    A small global batch gives fewer rows: all of its examples but one.
    """
    sizes, own = replicas.batch_sizes(tensor)
    first_ones = tensor[:number]
    up_to_own = ops.sum(ops.minimum(sizes[: own + 1], number))
    rows = ops.roll(replicas.gather(first_ones), -up_to_own, axis=0)
    if first_ones.shape[0] == number:  # Known, so the other replicas have as many.
        return rows[:number]
    return rows[: ops.minimum(number, ops.sum(sizes) - 1)]


def _others_first(classes, batch):
    """Indices `(batch, pool - 1)` of the other examples, with those of other classes first."""
    pool = ops.shape(classes)[0]
    rows, offsets = ops.arange(batch)[:, None], ops.arange(1, pool)[None]
    partners = ops.mod(rows + offsets, pool)
    same = ops.equal(ops.take(classes, partners, axis=0), classes[:batch, None])
    order = ops.argsort(offsets + pool * ops.cast(same, offsets.dtype), axis=1)
    return ops.take_along_axis(partners, order, axis=1)


def _diagonal_and_rest(scores):
    batch, pool = ops.shape(scores)[0], ops.shape(scores)[1]
    rows = ops.arange(batch)[:, None]
    columns = ops.arange(pool - 1)[None]
    others = columns + ops.cast(columns >= rows, columns.dtype)
    joint = ops.take_along_axis(scores, rows[:, :, None], axis=1)
    return joint[:, 0], ops.take_along_axis(scores, others[:, :, None], axis=1)

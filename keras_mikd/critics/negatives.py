"""Which pairs are scored: every example with its own partner, and with others by chance."""

import contextlib
import contextvars
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_mikd import bounds, checks
from keras_mikd.critics.critic import compiled
from keras_mikd.distribution import replicas

ALL = "all"
BATCH = "batch"
OTHER_CLASSES = "other_classes"

_DRAW = contextvars.ContextVar("draw_of_the_step", default=None)


@contextlib.contextmanager
def draw_scope(step):
    """Within this scope, negatives are those of the optimizer's iteration `step`.

    A file holds the iteration, so a run that goes on draws what it would have drawn.
    """
    token = _DRAW.set(_Draw(step))
    try:
        yield
    finally:
        _DRAW.reset(token)


class _Draw:
    """The orders of a step, which the losses of that step share: its batches have one size."""

    def __init__(self, step):
        self.step = step
        self.orders = {}

    def order(self, size, globally):
        """Returns the order of a batch, see `_random_order`, and the place of every example."""
        if globally not in self.orders:
            order = _random_order(size, self.step)
            self.orders[globally] = order, ops.argsort(order)
        return self.orders[globally]


class Pool(NamedTuple):
    """The students that a replica's examples are compared with, and which of them are."""

    student: Any
    """Tensor of shape `(pool, locations or 1, channels)`."""
    rows: Any
    """Indices into it, int32 of shape `(batch, 1 + negatives)`: an example's own, then others."""
    is_batch: bool = False
    """Whether the students are those of the examples, in their order, so that none is gathered."""
    mask: Any = None
    """Which pairs count: bool of shape `(batch, 1 + negatives, locations)`; `None` for all."""


class Negatives:
    """Chooses the pairs that a critic scores: negatives are drawn at random from the batch.

    They are the next examples in an order of the global batch that depends on its size and on the
    step of `draw_scope`, and on nothing else: any number of replicas draws the same, every call
    outside of training too. Data that is sorted by class is so no worse than other data, as long as
    a batch holds several classes.

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
        self.gather = checks.boolean("gather", gather)

    def pool(self, student, labels=None, mask=None):
        """Returns the students to compare with, once for any number of teachers' features.

        `student` has the shape `(batch, locations or 1, channels)`, `mask` `(batch, locations)`. A
        pair counts where the example's own location does, and that of the student, if it has
        several. Negatives of other classes need the class of every example, as indices or one-hot.

        Raises:
            ValueError: If labels are needed and missing, or an example has more than one.
        """
        classes = None
        if self.source == OTHER_CLASSES:
            # Floats are not cast: as integers, all of [0, 1) would be one class.
            hint = 'negatives_from="batch" needs none.'
            classes = checks.class_indices(labels, one_hot=True, dtype=None, hint=hint)
        own, real = _indices(ops.shape(student)[0]), mask
        if self._globally():
            own = own + replicas.first_index(student)
            student = replicas.gather(student)
            classes = None if classes is None else replicas.gather(classes)
            real = None if real is None else replicas.gather(ops.cast(real, "int32")) > 0
        rows = self._rows(own, ops.shape(student)[0], classes)
        if mask is not None:
            real = ops.take(real, rows, axis=0) if student.shape[1] != 1 else mask[:, None]
            mask = ops.logical_and(real, mask[:, None])
            mask = ops.broadcast_to(mask, (*ops.shape(rows), ops.shape(mask)[2]))
        pool = Pool(student, rows, not self._globally(), mask)
        few = self.number is not None and self.number + 1 < replicas.count()
        return _without_the_rest(pool) if few and self._globally() else pool

    def comparison(self, critic, bound):
        """Returns a function that compares a teacher's feature with a pool of students.

        It maps `(teacher, pool)` to `(value, joint, product)`, of shapes `(batch,)`,
        `(batch, locations)` and `(batch, negatives, locations)`: the scores by `critic`, and their
        `bound` for every example.
        """

        def bounded(joint, product, mask):
            return bound(joint, product) if mask is None else bound(joint, product, mask=mask)

        def scored(teacher, pool):
            joint, product = self.scores(critic, teacher, pool)
            return bounded(joint, product, pool.mask), joint, product

        scored = compiled(scored)

        def compared(teacher, pool):
            if not self._globally():
                return scored(teacher, pool)
            masked = () if pool.mask is None else (pool.mask,)
            value, joint, product = replicas.run_network(
                lambda x: scored(x[0], Pool(x[1], x[2], False, *x[3:])),
                (teacher, pool.student, pool.rows, *masked),
            )
            if bounds.couples_examples(bound):
                # It needs the scores of all replicas. They are sent together, because a collective
                # fails on the scores of no negatives.
                scores = replicas.gather(ops.concatenate([joint[:, None], product], axis=1))
                mask = pool.mask
                mask = None if mask is None else replicas.gather(ops.cast(mask, "int32")) > 0
                value = replicas.own_part(bounded(scores[:, 0], scores[:, 1:], mask), of=teacher)
            return value, joint, product

        return compared

    def scores(self, critic, teacher, pool):
        """Returns the scores of true pairs, `(batch, locations)`, and of pairs by chance.

        The latter have the shape `(batch, negatives, locations)`. Each feature is embedded once.
        """
        with keras.name_scope(critic.name, caller=critic):  # As in a call of the critic.
            teacher, student = critic.embed_teacher(teacher), critic.embed_student(pool.student)
            if self.number is None:
                scores, rows = critic.score_all(teacher, student), pool.rows[:, :, None]
                joint = ops.take_along_axis(scores, rows[:, :1], axis=1)[:, 0]
                return joint, ops.take_along_axis(scores, rows[:, 1:], axis=1)
            own = student if pool.is_batch else ops.take(student, pool.rows[:, 0], axis=0)
            others = ops.take(student, pool.rows[:, 1:], axis=0)
            return critic.score(teacher, own), critic.score(teacher[:, None], others)

    def _rows(self, own, size, classes):
        """Returns the `rows` of a `Pool` of `size` students for the examples `own`."""
        own = own[:, None]
        if self.number is None:
            return _own_first(own, size)
        order, places = (_DRAW.get() or _Draw(0)).order(size, self._globally())
        position = ops.take(places, own, axis=0)
        number = ops.minimum(self.number, ops.maximum(size - 1, 0))
        if classes is None:
            return ops.take(order, ops.mod(position + _indices(number + 1)[None], size), axis=0)
        ahead = ops.mod(places[None] - position, size)
        same = ops.equal(classes[None], ops.take(classes, own, axis=0))
        # Those of its own class come last; an example is 0 ahead of itself.
        ahead = ahead + size * ops.cast(same & (ahead > 0), ahead.dtype)
        return ops.argsort(ahead, axis=1)[:, : number + 1]

    def _globally(self):
        return self.gather and replicas.count() > 1


def _indices(number):
    return ops.arange(number, dtype="int32")  # Keras would follow `floatx`.


def drawn_rows(number, below):
    """Returns `number` rows of a table of `below`, with replacement: the draw of the step."""
    return ops.mod(_random_numbers(number, (_DRAW.get() or _Draw(0)).step), below)


def _random_order(size, step):
    """Returns the examples of a batch in the order of a step: the same on every device."""
    return ops.argsort(_random_numbers(size, step))


def _random_numbers(number, step):
    """Returns int32 numbers of at least 0 that depend on the step alone.

    By the finalizer of MurmurHash3. XLA's random numbers would be others than TensorFlow's.
    """
    keys = ops.cast(_indices(number), "uint32") + ops.cast(step, "uint32") * 0x9E3779B9
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        keys = ops.bitwise_xor(keys, ops.right_shift(keys, shift)) * factor
    return ops.cast(ops.right_shift(keys, 1), "int32")


def _without_the_rest(pool):
    """Returns a pool of the students that are scored alone, so that no others are embedded."""
    rows = ops.reshape(_indices(ops.size(pool.rows)), ops.shape(pool.rows))
    student = ops.take(pool.student, ops.reshape(pool.rows, (-1,)), axis=0)
    return Pool(student, rows, mask=pool.mask)


def _own_first(own, size):
    columns = _indices(size - 1)[None]
    others = columns + ops.cast(columns >= own, columns.dtype)
    return ops.concatenate([own, others], axis=1)

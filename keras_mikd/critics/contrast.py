"""The scores of a critic for true pairs and for pairs by chance, and a bound on them."""

import functools
from typing import Any, NamedTuple

import keras
import tensorflow as tf
from keras import ops

from keras_mikd import bounds
from keras_mikd.distribution import replicas

ALL = "all"
BATCH = "batch"
OTHER_CLASSES = "other_classes"
# Bounds whose value for an example takes the scores of that example alone.
_BY_EXAMPLE = (bounds.jsd, bounds.nwj, bounds.info_nce)


class Pool(NamedTuple):
    """Students that a replica's examples are compared with, as a critic takes them."""

    student: Any
    first: Any = None
    classes: Any = None
    following: Any = None


class Contrast:
    """A critic, the bound that its scores go into, and which negatives they are made with.

    This is not a Keras layer: the critic belongs to the loss that holds both.

    Args:
        critic: `Critic`, see its call arguments.
        bound: Function `(joint, product) -> (batch,)`, see `bounds`.
        negatives: Negatives for every positive: an int of at least 1, or `"all"` for every other
            example of the batch.
        negatives_from: `"batch"`: any other example is a negative. `"other_classes"`: examples of
            other classes, and of the same class only where the batch has not enough; needs labels
            and an int of `negatives`. Bounds are none on information then: the pairs by chance are
            no draws from the product of the marginals.
        gather: Whether negatives come from the global batch of all replicas (then any number of
            replicas gives the update of one) or from a replica's own examples (no communication).

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(self, critic, bound, *, negatives, negatives_from, gather):
        if negatives != ALL and (not isinstance(negatives, int) or negatives < 1):
            raise ValueError(
                f'Expected `negatives` to be an int of at least 1, or "all". '
                f"Received: negatives={negatives!r}"
            )
        if negatives_from not in (BATCH, OTHER_CLASSES):
            raise ValueError(
                f'Expected `negatives_from` to be "batch" or "other_classes". '
                f"Received: negatives_from={negatives_from!r}"
            )
        if negatives_from == OTHER_CLASSES and negatives == ALL:
            raise ValueError(
                'Expected an int of `negatives` with negatives_from="other_classes", since their '
                f"number differs from example to example. Received: negatives={negatives!r}"
            )
        self.critic = critic
        self.bound = bound
        self.negatives = None if negatives == ALL else negatives
        self.negatives_from = negatives_from
        self.gather = gather
        self._compiled_compare = tf.function(self._compare, jit_compile=True)

    def __call__(self, teacher, student, labels=None, *, xla=False):
        """Compares two features, location by location.

        Args:
            teacher: Tensor of shape `(batch, locations or 1, channels)`.
            student: Tensor of shape `(batch, locations or 1, channels)`.
            labels: Class of every example, as indices or one-hot, for negatives of other classes.
            xla: Whether XLA compiles the critic and the bound by themselves.

        Returns:
            `(bound, joint, product)`, of shapes `(batch,)`, `(batch, locations)` and `(batch,
            negatives, locations)`.

        Raises:
            ValueError: If labels are needed and there are none, or more than one for an example.
        """
        return self.compare(teacher, self.pool(student, labels), xla=xla)

    def pool(self, student, labels=None):
        """Returns what `compare` compares teachers with, any number of them.

        What other replicas have of it is sent once.
        """
        classes = _classes(labels) if self.negatives_from == OTHER_CLASSES else None
        if not self._globally():
            return Pool(student, classes=classes)
        if self.negatives is None or classes is not None:
            first, everyone = replicas.first_index(student), replicas.gather(student)
            return Pool(everyone, first, None if classes is None else replicas.gather(classes))
        # Negatives are the next examples, which is all that the others have to send.
        following = replicas.following(student, self.negatives)
        return Pool(replicas.at_least_one(student), following=following)

    def compare(self, teacher, pool, *, xla=False):
        """Compares a feature with a `pool` of students; returns what a call returns."""
        compare = self._compiled_compare if xla else self._compare
        if not self._globally():
            return compare(teacher, *pool)
        size = ops.shape(teacher)[0]
        bound, joint, product = compare(replicas.at_least_one(teacher), *pool)
        joint, product = joint[:size], product[:size]
        if _takes_every_example_by_itself(self.bound):
            return bound[:size], joint, product
        # The bound couples the examples of a batch, and gets the scores of all replicas. Together,
        # because a collective does not survive the scores of no negatives.
        scores = replicas.gather(ops.concatenate([joint[:, None], product], axis=1))
        bound = self.bound(scores[:, 0], scores[:, 1:])
        first = replicas.first_index(teacher)
        return bound[first : first + size], joint, product

    def _globally(self):
        return self.gather and replicas.count() > 1

    def _compare(self, teacher, student, first, classes, following):
        joint, product = self.critic(
            teacher,
            student,
            first=first,
            negatives=self.negatives,
            classes=classes,
            following=following,
        )
        return self.bound(joint, product), joint, product


def _takes_every_example_by_itself(bound):
    function = bound.func if isinstance(bound, functools.partial) else bound
    return any(function is each for each in _BY_EXAMPLE)


def _classes(labels):
    if labels is None or keras.tree.is_nested(labels):
        raise ValueError(
            "Expected labels in the data, the class of every example, to take negatives from other "
            f'classes, or negatives_from="batch". Received: labels={labels!r}'
        )
    if len(labels.shape) > 2:
        raise ValueError(
            "Expected one class for every example, as an index (batch,) or one-hot (batch, "
            f"classes), to take negatives from other classes. Received: labels of shape "
            f'{tuple(labels.shape)}; negatives_from="batch" needs none'
        )
    one_hot = len(labels.shape) == 2 and labels.shape[1] != 1
    classes = ops.argmax(labels, axis=1) if one_hot else ops.reshape(labels, (-1,))
    # Floats stay what they are: as integers, all of [0, 1) would be one class.
    floats = "float" in keras.backend.standardize_dtype(classes.dtype)
    return classes if floats else ops.cast(classes, "int32")

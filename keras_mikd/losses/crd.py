"""Contrastive representation distillation (CRD)."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from keras_mikd import checks
from keras_mikd.critics.negatives import BATCH, OTHER_CLASSES, drawn_rows
from keras_mikd.losses.distillation_loss import DistillationLoss
from keras_mikd.losses.parts.memory_bank import MemoryBank
from keras_mikd.losses.parts.shape_checks import check_known
from keras_mikd.losses.parts.similarities import (
    directions,
    embedding,
    flattened,
    is_itself,
    size,
    whole_batch,
)

_EPSILON = 1e-7  # Beside the probability of noise, as in the authors' code.
_NEVER = -1e9  # Score of what is not compared.


@keras.saving.register_keras_serializable("keras_mikd")
class CRD(DistillationLoss):
    """Noise-contrastive estimation of the pairs of a teacher's and a student's embedding (CRD).

        loss = sum over both directions of -log h(t, s) - sum over negatives of log(1 - h(t, s')),
        h = e / (e + m Z),   e = exp(<t, s> / temperature),

    where `t` and `s` are trained linear maps of the features at length 1 and `m` is the number of
    negatives: student embeddings of other examples in one direction, teacher embeddings in the
    other. `Z` is the mean of `e` over the first batch of training, as in the authors' code, and
    stays. The negatives are the other examples of the batch, or with `bank` drawn from a memory of
    how all training examples were last embedded, which takes about `8 * bank * width` bytes on
    every replica (they are printed) and needs `with_index`. There the other one of a pair comes
    from the memory too, so each direction trains one side. The code draws other negatives for every
    example; here the examples of a step share them. Validation leaves the memory as it is.

    Args:
        width: Number of units of the two maps, at least 1.
        temperature: Scale of the scores, from 1e-6 to 1e6.
        negatives_from: `"batch"`: all others. `"other_classes"`: those of other classes, as the
            authors' code draws them; needs labels.
        bank: Number of training examples, for the memory of the paper; `None`: the batch.
        negatives: How many are drawn from the memory in a step; of no use without `bank`.
        momentum: Share of the old embedding in the memory, from 0 to below 1.
        gather: As in `SimilarityPreserving`; a memory always takes in the batch of all replicas.
        **kwargs: `teacher_layer`, `student_layer`, `weight` and others of `DistillationLoss`.

    Raises:
        ValueError: If an argument is out of range, or labels or the index of the examples are
            needed and missing; in `build`, if there is not one tensor of known size for each
            network. An index that is no row of the memory makes the loss NaN, at which `fit` stops.

    References:
        Tian, Krishnan, Isola, Contrastive representation distillation (arXiv:1910.10699), section
        3; HobbitLong/RepDistiller, crd/criterion.py, on the pooled vectors with a weight of 0.8.
        There wrn_40_2 teaches wrn_16_2 75.48 % on CIFAR-100 (alone: 73.26; KD: 74.92), with 16,384
        negatives out of a memory of all training images.
    """

    compares_examples = True

    def __init__(
        self,
        *,
        width: int = 128,
        temperature: float = 0.07,
        negatives_from: str = BATCH,
        bank: int | None = None,
        negatives: int = 16384,
        momentum: float = 0.5,
        gather: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.width = checks.integer("width", width, at_least=1)
        self.temperature = checks.number("temperature", temperature, at_least=1e-6, at_most=1e6)
        self.negatives_from = checks.one_of(
            "negatives_from", negatives_from, (BATCH, OTHER_CLASSES)
        )
        self.bank = checks.integer("bank", bank, at_least=2, optional=True)
        self.negatives = checks.integer("negatives", negatives, at_least=1)
        self.momentum = checks.number("momentum", momentum, at_least=0, below=1)
        self.gather = checks.boolean("gather", gather)

    @property
    def reads_classes(self) -> bool:
        return self.negatives_from == OTHER_CLASSES

    def build(
        self, teacher_shape: Sequence[int | None], student_shape: Sequence[int | None]
    ) -> None:
        check_known(teacher_shape, student_shape)
        self.embeddings = [
            embedding(shape, self.width, self.dtype_policy)
            for shape in (teacher_shape, student_shape)
        ]
        if self.bank is not None:
            self.memory = MemoryBank(self.bank, self.width, self.momentum, dtype=self.dtype_policy)
            print(f"{self.name}: a memory of {self.bank:,} examples, {self.memory.nbytes:,} bytes")
        self.normalizers = [self._add_normalizer(name) for name in ("student", "teacher")]

    def call(
        self,
        teacher: tf.Tensor,
        student: tf.Tensor,
        labels: Any = None,
        training: bool | None = None,
    ) -> tf.Tensor:
        teacher, student = (
            directions(embed(flattened(x)))
            for embed, x in zip(self.embeddings, (teacher, student), strict=True)
        )
        classes = self._classes(labels)
        if self.bank is not None:
            return self._in_memory(teacher, student, classes, training)
        allowed = ops.logical_not(is_itself(student, self.gather))
        if classes is not None:
            everyone = whole_batch(classes, self.gather)
            allowed = ops.logical_and(allowed, classes[:, None] != everyone[None])
        partners = [(x, whole_batch(x, self.gather)) for x in (teacher, student)]
        examples = size(partners[0][1])
        return self._both_ways((student, teacher), partners, allowed, examples, training)

    def _in_memory(self, teacher, student, classes, training):
        """Returns the loss with partners out of the memory, which learns from training batches."""
        rows = drawn_rows(self.negatives, below=self.bank)
        *pools, of_rows = self.memory.read(rows)
        allowed = ops.ones((ops.shape(student)[0], self.negatives), "bool")
        if classes is not None:
            allowed = ops.cast(classes, "float32")[:, None] != of_rows[None]
        pairs, fits = (teacher, student), None
        if training is not False:
            index = self.memory.index(self.name)
            allowed = ops.logical_and(allowed, index[:, None] != rows[None])
            *pairs, _ = self.memory.read(index)
            fits = self.memory.holds(index)
        partners = list(zip(pairs, pools, strict=True))
        loss = self._both_ways((student, teacher), partners, allowed, float(self.bank), training)
        if training is False:
            return loss
        self.memory.update(index, teacher, student, classes)
        return ops.where(fits, loss, float("nan"))

    def _both_ways(self, anchors, partners, allowed, examples, training):
        """Returns the loss of students against teachers plus that of teachers against students."""
        total = 0.0
        for anchor, (own, pool), normalizer in zip(
            anchors, partners, self.normalizers, strict=True
        ):
            own = ops.sum(anchor * own, axis=-1) / self.temperature
            scores = ops.matmul(anchor, ops.transpose(pool)) / self.temperature
            log_z = self._log_normalizer(normalizer, own, scores, allowed, training)
            total = total + _contrast(own, scores, allowed, log_z, examples=examples)
        return total

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "width": self.width,
            "temperature": self.temperature,
            "negatives_from": self.negatives_from,
            "bank": self.bank,
            "negatives": self.negatives,
            "momentum": self.momentum,
            "gather": self.gather,
        }

    def _add_normalizer(self, anchor):
        """Adds the logarithm of `Z`, and whether it has been measured."""
        return self.add_weight(
            shape=(2,), initializer="zeros", trainable=False, name=f"normalizer_of_{anchor}"
        )

    def _classes(self, labels):
        """Returns the classes of the own examples, or `None` where they make no difference."""
        if self.negatives_from == BATCH:
            return None
        hint = 'negatives_from="batch" needs none.'
        return checks.class_indices(labels, one_hot=True, hint=hint)

    def _log_normalizer(self, normalizer, own, scores, allowed, training):
        """Returns the logarithm of `Z`, measured on the first batch that has negatives."""
        value, known = ops.unstack(normalizer)
        scores = ops.concatenate([own[:, None], ops.where(allowed, scores, _NEVER)], axis=1)
        sums = ops.stop_gradient(ops.logsumexp(scores, axis=1))
        gather = self.gather or self.bank is not None
        sums, pairs = (whole_batch(x, gather) for x in (sums, _number(allowed) + 1.0))
        measured = ops.logsumexp(sums) - ops.log(ops.maximum(ops.sum(pairs), 1.0))
        log_z = ops.where(known > 0, value, measured)
        if training is not False:
            is_known = ops.maximum(known, ops.cast(ops.any(pairs > 1.0), known.dtype))
            normalizer.assign(ops.stack([ops.where(is_known > 0, log_z, value), is_known]))
        return log_z


def _contrast(own, scores, allowed, log_z, *, examples):
    """Returns the loss of one direction, `(own,)`; `examples` are those that pairs come from."""
    number = _number(allowed)
    noise = log_z + ops.log(number + _EPSILON * examples)
    of_negatives = ops.where(allowed, ops.softplus(scores - noise[:, None]), 0.0)
    # What the epsilon adds to every negative: nothing to speak of, but in a large memory.
    rest = number * ops.log1p(_EPSILON * examples / ops.maximum(number, 1.0))
    return ops.softplus(noise - own) + ops.sum(of_negatives, axis=-1) + rest


def _number(allowed):
    return ops.sum(ops.cast(allowed, "float32"), axis=-1)

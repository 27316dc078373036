"""Contrastive representation distillation (CRD)."""

import math

import keras
from keras import ops

from keras_mikd import checks
from keras_mikd.critics.negatives import BATCH, OTHER_CLASSES
from keras_mikd.losses.distillation_loss import DistillationLoss
from keras_mikd.losses.shape_checks import check_known
from keras_mikd.losses.similarities import directions, flattened, is_itself, size, whole_batch

_EPSILON = 1e-7  # Beside the probability of noise, as in the authors' code.
_NEVER = -1e9  # Score of what is not compared.


@keras.saving.register_keras_serializable("keras_mikd")
class CRD(DistillationLoss):
    """Noise-contrastive estimation of the pairs of a teacher's and a student's embedding (CRD).

        loss = sum over both directions of -log h(t, s) - sum over negatives of log(1 - h(t, s')),
        h = e / (e + m Z),   e = exp(<t, s> / temperature),

    where `t` and `s` are trained linear maps of the features at length 1 and `m` is the number of
    negatives. In one direction these are students of other examples, in the other teachers. `Z` is
    the mean of `e` over the first batch of training, as in the authors' code, and stays. The
    negatives are the other examples of the batch.

    Args:
        width: Number of units of the two maps, at least 1.
        temperature: Scale of the scores, above 0.
        negatives_from: `"batch"`: all others. `"other_classes"`: those of other classes, as the
            authors' code draws them; needs labels.
        gather: As in `SimilarityPreserving`.
        **kwargs: `teacher_layer`, `student_layer`, `weight` and others of `DistillationLoss`.

    Raises:
        ValueError: If an argument is out of range, or labels are needed and missing; in `build`, if
            there is not one tensor of known size for each network.

    References:
        Tian, Krishnan, Isola, Contrastive representation distillation (arXiv:1910.10699), section
        3; HobbitLong/RepDistiller, crd/criterion.py, on the pooled vectors with a weight of 0.8.
        There wrn_40_2 teaches wrn_16_2 75.48 % on CIFAR-100 (alone: 73.26; KD: 74.92), with 16,384
        negatives out of a memory of all training images.
    """

    compares_examples = True

    def __init__(self, *, width=128, temperature=0.07, negatives_from=BATCH, gather=True, **kwargs):
        super().__init__(**kwargs)
        self.width = checks.integer("width", width, at_least=1)
        self.temperature = checks.number("temperature", temperature, at_least=1e-6, at_most=1e6)
        self.negatives_from = checks.one_of(
            "negatives_from", negatives_from, (BATCH, OTHER_CLASSES)
        )
        self.gather = gather

    @property
    def reads_classes(self):
        return self.negatives_from == OTHER_CLASSES

    def build(self, teacher_shape, student_shape):
        check_known(teacher_shape, student_shape)
        self.embeddings = [self._embedding(shape) for shape in (teacher_shape, student_shape)]
        self.normalizers = [self._add_normalizer(name) for name in ("student", "teacher")]

    def call(self, teacher, student, labels=None, training=None):
        teacher, student = (
            directions(embedding(flattened(x)))
            for embedding, x in zip(self.embeddings, (teacher, student), strict=True)
        )
        allowed = self._negatives(student, labels)
        both_ways = ((student, teacher), (teacher, student))
        losses = []
        for (anchors, others), normalizer in zip(both_ways, self.normalizers, strict=True):
            own = ops.sum(anchors * others, axis=-1) / self.temperature
            everyone = whole_batch(others, self.gather)
            scores = ops.matmul(anchors, ops.transpose(everyone)) / self.temperature
            log_z = self._log_normalizer(normalizer, own, scores, allowed, training)
            losses.append(_contrast(own, scores, allowed, log_z, examples=size(everyone)))
        return losses[0] + losses[1]

    def get_config(self):
        return {
            **super().get_config(),
            "width": self.width,
            "temperature": self.temperature,
            "negatives_from": self.negatives_from,
            "gather": self.gather,
        }

    def _embedding(self, shape):
        embedding = keras.layers.Dense(self.width, dtype=self.dtype_policy)
        embedding.build((None, math.prod(shape[1:])))
        return embedding

    def _add_normalizer(self, anchor):
        """Adds the logarithm of `Z`, and whether it has been measured."""
        return self.add_weight(
            shape=(2,),
            initializer="zeros",
            trainable=False,
            aggregation="only_first_replica",
            name=f"normalizer_of_{anchor}",
        )

    def _negatives(self, student, labels):
        """Returns which examples of the batch an own one is told from: `(own, whole batch)`."""
        others = ops.logical_not(is_itself(student, self.gather))
        if self.negatives_from == BATCH:
            return others
        hint = 'negatives_from="batch" needs none.'
        classes = checks.class_indices(labels, one_hot=True, hint=hint)
        everyone = whole_batch(classes, self.gather)
        return ops.logical_and(others, classes[:, None] != everyone[None])

    def _log_normalizer(self, normalizer, own, scores, allowed, training):
        """Returns the logarithm of `Z`, measured on the first batch that has negatives."""
        value, known = ops.unstack(normalizer)
        scores = ops.concatenate([own[:, None], ops.where(allowed, scores, _NEVER)], axis=1)
        sums = ops.stop_gradient(ops.logsumexp(scores, axis=1))
        sums, pairs = (whole_batch(x, self.gather) for x in (sums, _number(allowed) + 1.0))
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

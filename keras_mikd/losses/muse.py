"""MUSE: mutual information between layers, combined with the layers' self-information."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from keras_mikd import bounds, checks, masks
from keras_mikd.critics.critic import Critic, SeparableCritic
from keras_mikd.critics.negatives import Negatives
from keras_mikd.distribution import replicas
from keras_mikd.features.grids import Alignment
from keras_mikd.losses.distillation_loss import DistillationLoss

_COMBINATIONS = ("additive", "multiplicative")
_SELF_INFORMATION = ("feature", "input")


@keras.saving.register_keras_serializable("keras_mikd")
class MUSE(DistillationLoss):
    """Mutual and self-information of the stages of a network, MUSE style: a *reconstruction*.

    For the features `F_1`, ..., `F_K` of the stages and a target `F_M` from the same network, a
    peer or a teacher, the loss is

        additive:        -sum_i (I(F_i; F_M) + I(F_i; F_i)),
        multiplicative:  -sum_i softplus(I(F_i; F_M)) * softplus(I(F_i; F_i)),

    where `I` is an estimate over the batch, in nats. The two terms and their two combinations are
    the paper's. Its equations are not public: everything else is this library's, and there was no
    number of the paper to check it against.

    A `SeparableCritic` per stage projects `F_i` and `F_M` linearly to a common embedding, location
    by location. `I(F_i; F_M)` contrasts pairs of one image with pairs of two; `I(F_i; F_i)` does so
    for a feature and itself, by the projection of `F_i`. The true values are infinite where
    features are continuous, so only estimates with a ceiling are accepted: Jensen-Shannon, shifted
    to 0 for a constant critic (at most `2 log 2`; it bounds a divergence), or InfoNCE (at most the
    log of its pairs).

    Metrics: `<name>_<place>_mutual_nats`, `<name>_<place>_self_nats` and `<name>_ceiling_nats`.

    Args:
        teacher_layer: Place of `F_M`, a vector, map or tokens as in `JSDCritic`. With
            `self_information="input"`, a list of the places of `F_M` and of the input.
        student_layer: List of the places of `F_1`, ..., `F_K`, vectors, maps or tokens. A map is
            compared with a vector at every location, with a map on their common grid.
        combine: `"additive"` or `"multiplicative"`.
        self_information: `"feature"`: of a feature with itself, `I(F_i; F_i)`. `"input"`: of a
            feature with the input, `I(X; F_i)`, by a critic of its own; an image is averaged to at
            most `grid` (8 if `None`) rows and columns and flattened.
        bound: `bounds.jsd` or `bounds.info_nce`.
        negatives: As in `JSDCritic`.
        negatives_from: As in `JSDCritic`. With `"other_classes"` the estimate is not information:
            it says how well images of different classes can be told apart.
        width: Number of units of the common embedding.
        temperature: Scale of the scores, see `SeparableCritic`. A higher one keeps estimates
            further from the ceiling.
        grid: As in `JSDCritic`.
        gather: As in `JSDCritic`, for the batch of the estimates too.
        **kwargs: `weight`, `name` and other arguments of `DistillationLoss`.

    Raises:
        ValueError: If an argument is out of range, `bound` has no ceiling, a tensor is not a
            vector, a map or a sequence, or labels are needed and missing.

    References:
        Gong, Yu, Mittal, Mori, Chen, MUSE: Feature Self-Distillation with Mutual Information and
        Self-Information (arXiv:2110.12606).
    """

    compares_examples = True

    def __init__(
        self,
        *,
        teacher_layer: str | Sequence[str | None] | None = "pooled",
        student_layer: Sequence[str | None] = ("stage1", "stage2", "stage3"),
        combine: str = "multiplicative",
        self_information: str = "feature",
        bound: Callable[..., tf.Tensor] = bounds.jsd,
        negatives: int | str = 1,
        negatives_from: str = "batch",
        width: int = 64,
        temperature: float = 0.1,
        grid: int | None = 8,
        gather: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(teacher_layer=teacher_layer, student_layer=student_layer, **kwargs)
        if not self.student_layer:
            raise ValueError("Expected `student_layer` to name a stage. Received: student_layer=[]")
        _check_bound(bound)
        self.combine = checks.one_of("combine", combine, _COMBINATIONS)
        self.self_information = checks.one_of(
            "self_information", self_information, _SELF_INFORMATION
        )
        self.bound = bound
        self.negatives = negatives
        self.negatives_from = negatives_from
        self.width = width
        self.temperature = temperature
        self.grid = checks.integer("grid", grid, at_least=1, optional=True)
        self.gather = checks.boolean("gather", gather)
        self._critic()  # Refuses a bad width or temperature here, not in `build`.
        self._pairs = Negatives(negatives, negatives_from, gather)

    @property
    def reads_classes(self) -> bool:
        return self.negatives_from == "other_classes"

    @property
    def takes_masks(self) -> bool:
        return masks.takes(self.bound, "mask")

    def build(
        self,
        teacher_shape: Sequence[int | None] | Sequence[Sequence[int | None]],
        student_shape: Sequence[Sequence[int | None]],
    ) -> None:
        target, *source = _each(teacher_shape)
        if len(source) != (self.self_information == "input"):
            raise ValueError(
                'Expected one place as `teacher_layer`, or with self_information="input" a list of '
                f"two, the target's and the input's. Received: teacher_layer={self.teacher_layer!r}"
            )
        for shape in (target, *_each(student_shape)):
            sizes = shape[2:] if len(shape) == 3 else shape[1:]
            if len(shape) not in (2, 3, 4) or None in sizes:
                raise ValueError(
                    "Expected vectors (batch, channels), sequences (batch, tokens, channels) or "
                    "feature maps (batch, height, width, channels) of known size. Received: "
                    f"shape={tuple(shape)}"
                )
        self._compared = [
            Alignment(target, shape, limit=self.grid, image_size=self.image_size)
            for shape in _each(student_shape)
        ]
        self.critics = [self._built_critic(target, shape) for shape in _each(student_shape)]
        bound = _above_uninformed(self.bound)
        self._mutual = [self._pairs.comparison(critic, bound) for critic in self.critics]
        own = [_Reflexive(critic) for critic in self.critics]
        if source:
            self._input = Alignment(source[0], source[0], limit=self.grid or 8)
            gist = (None, self._input.places * source[0][-1])
            self.input_critics = [self._built_critic(gist, s) for s in _each(student_shape)]
            own = self.input_critics
        self._own = [self._pairs.comparison(critic, bound) for critic in own]
        self.readouts = {name: keras.metrics.Mean(name=name) for name in self._readout_names()}

    def call(
        self,
        teacher: tf.Tensor | list[tf.Tensor],
        student: list[tf.Tensor],
        labels: Any = None,
        training: bool | None = None,
        teacher_mask: tf.Tensor | dict[str, tf.Tensor] | list | None = None,
        student_mask: dict[str, tf.Tensor] | list | None = None,
    ) -> tf.Tensor:
        target, *source = _each(teacher)
        gist = self._gist(source[0]) if source else None
        target_mask = _masks(teacher_mask, self.teacher_layer)[0]
        mutual, own, real = [], [], []
        for i, feature in enumerate(_each(student)):
            own_mask = _masks(student_mask, self.student_layer)[i]
            of_target, feature, mask = self._compared[i].at_locations(
                target, feature, target_mask, own_mask
            )
            pool = self._pairs.pool(feature, labels, mask)
            value, _, product = self._mutual[i](of_target, pool)
            mutual.append(value)
            own_pool = pool if feature.shape[1] != 1 else pool._replace(mask=None)
            own.append(self._own[i](feature if gist is None else gist, own_pool)[0])
            has_token = ops.ones_like(value) if mask is None else ops.any(mask, axis=1)
            real.append(ops.cast(has_token, "float32"))
        masked = any(mask is not None for mask in (teacher_mask, student_mask))
        real = ops.stack(real, axis=1) if masked else None
        mutual, own = ops.stack(mutual, axis=1), ops.stack(own, axis=1)
        both = mutual + own if self.combine == "additive" else self._product(mutual, own, real)
        ceiling = bounds.mean_ceiling(self.bound, product, pool.mask) + _shift(self.bound)
        self._read_out(mutual, own, ceiling, real)
        return -ops.sum(both if real is None else both * real, axis=1)

    def _product(self, mutual, own, real):
        """Returns the product of the batch's factors, spread over its examples.

        A product of means is not a mean over examples, but its first-order expansion around the
        means is. The mean of that expansion has the value and the gradient of the product. The
        means are over the examples with a `real` token.
        """
        estimates = ops.stop_gradient(ops.stack([mutual, own], axis=2))
        if real is not None:
            estimates = ops.concatenate([estimates, real[:, :, None]], axis=2) * real[:, :, None]
        if self.gather:
            estimates = replicas.gather(estimates)
        count = ops.cast(ops.maximum(ops.shape(estimates)[0], 1), estimates.dtype)
        sums = ops.sum(estimates, axis=0)
        if real is not None:
            sums, count = sums[:, :2], ops.maximum(sums[:, 2:], 1.0)
        means = sums / count
        factors, slopes = ops.softplus(means), ops.sigmoid(means)
        mutual = factors[:, 0] + slopes[:, 0] * (mutual - means[:, 0])
        own_change = slopes[:, 1] * (own - means[:, 1])
        return mutual * factors[:, 1] + factors[:, 0] * own_change

    def _read_out(self, mutual, own, ceiling, real):
        values, weights = [], []
        for i in range(len(self.critics)):
            values += [mutual[:, i], own[:, i]]
            weights += 2 * [None if real is None else real[:, i]]
        # Once per example, like the estimates: the ceiling depends on the size of the batch.
        values.append(ceiling * ops.ones_like(mutual[:, 0]))
        weights.append(weights[-1])
        for metric, value, weight in zip(self.readouts.values(), values, weights, strict=True):
            self.read_out(metric, value, sample_weight=weight)

    def _readout_names(self):
        places = [place.replace("/", "_") for place in _each(self.student_layer)]
        names = [f"{place}_{term}_nats" for place in places for term in ("mutual", "self")]
        return [f"{self.name}_{name}" for name in [*names, "ceiling_nats"]]

    def _critic(self):
        return SeparableCritic(
            width=self.width, temperature=self.temperature, dtype=self.dtype_policy
        )

    def _built_critic(self, first, second):
        critic = self._critic()
        critic.build((None, None, first[-1]), (None, None, second[-1]))
        return critic

    def _gist(self, source):
        """The input as one vector: `(batch, 1, channels)`."""
        source = self._input(source, source)[0]
        return ops.reshape(source, (-1, 1, math.prod(source.shape[1:])))

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "combine": self.combine,
            "self_information": self.self_information,
            "bound": keras.saving.serialize_keras_object(self.bound),
            "negatives": self.negatives,
            "negatives_from": self.negatives_from,
            "width": self.width,
            "temperature": self.temperature,
            "grid": self.grid,
            "gather": self.gather,
        }


class _Reflexive(Critic):
    """Scores a feature with itself: both sides pass the student's side of another critic."""

    def __init__(self, critic):
        super().__init__(width=critic.width, name="reflexive")
        self.critic = critic
        self.built = True

    def embed_teacher(self, teacher):
        return self.critic.embed_student(teacher)

    def embed_student(self, student):
        return self.critic.embed_student(student)

    def score(self, teacher, student):
        return self.critic.score(teacher, student)

    def score_all(self, teacher, student):
        return self.critic.score_all(teacher, student)


def _each(item):
    """Returns the parts of a list of tensors, shapes or places, or a list of the single one."""
    shape = isinstance(item, (list, tuple)) and (item[0] is None or isinstance(item[0], int))
    return list(item) if isinstance(item, (list, tuple)) and not shape else [item]


def _masks(given, places):
    """Returns the mask of each of the places, or `None`, of masks by place."""
    if isinstance(given, dict):
        return [given.get(place) for place in _each(places)]
    return given if isinstance(given, list) else [given] * len(_each(places))


def _check_bound(bound):
    if getattr(bound, "ceiling", None) is None:
        raise ValueError(
            "Expected `bound` to have a ceiling, like keras_mikd.bounds.jsd and "
            "keras_mikd.bounds.info_nce: the information of a feature with itself is infinite, so "
            f"others would be driven up for ever. Received: bound={bound!r}"
        )


def _above_uninformed(bound):
    """Returns a bound shifted so that a constant critic gets 0."""

    @functools.wraps(bound)  # Keeps the attributes of the bound.
    def shifted(joint, product, mask=None):
        if mask is None:
            return bound(joint, product) + _shift(bound)
        has_token = ops.cast(ops.any(mask[:, 0], axis=1), "float32")
        return bound(joint, product, mask=mask) + _shift(bound) * has_token

    return shifted


def _shift(bound):
    return -getattr(bound, "uninformed", 0.0)

"""MUSE: mutual information between layers, combined with the layers' self-information."""

import functools
import math

import keras
from keras import ops

from keras_mikd import bounds
from keras_mikd.critics.contrast import Contrast
from keras_mikd.critics.critic import Critic, SeparableCritic
from keras_mikd.distribution import replicas
from keras_mikd.features.grids import comparison_grids, locations, pool_to
from keras_mikd.losses.distillation_loss import DistillationLoss

# Bound: (the same with a floor of about 0, its ceiling in nats given the number of negatives).
_BOUNDED = {
    bounds.jsd: (functools.partial(bounds.jsd, shifted=True), lambda _: 2.0 * math.log(2.0)),
    bounds.info_nce: (bounds.info_nce, lambda negatives: ops.log1p(negatives)),
}
_COMBINATIONS = ("additive", "multiplicative")
_SELF_INFORMATION = ("feature", "input")


@keras.saving.register_keras_serializable("keras_mikd")
class MUSE(DistillationLoss):
    """Mutual and self-information of the stages of a network, MUSE style: a *reconstruction*.

    With the features `F_1`, ..., `F_K` of the stages and a target feature `F_M`, of the last layer
    of the same network, of a peer or of a teacher, the loss is

        additive:        -sum_i (I(F_i; F_M) + I(F_i; F_i)),
        multiplicative:  -sum_i softplus(I(F_i; F_M)) * softplus(I(F_i; F_i)),

    where `I` stands for the estimates of a batch. In the product neither factor can make up for the
    other; `softplus` keeps both above 0, with a gradient where an estimate still is below.

    The paper's equations are not public. That mutual and self-information of all layers are
    combined, in these two ways, is the paper's; estimator, embedding, negatives and everything else
    are this library's, and there was no number of the paper to check them against.

    *Estimates.* A `SeparableCritic` per stage projects `F_i` and `F_M` linearly to a common
    embedding, location by location; these projections belong to the loss. `I(F_i; F_M)` contrasts
    the pair with pairs of different images, `I(F_i; F_i)` does it for a feature and itself, both
    sides through the projection of `F_i`. Between features of deterministic networks the true
    values are infinite, as soon as features are continuous: `I(F; F)` is an entropy. So only
    estimates with a ceiling are taken: the Jensen-Shannon objective shifted to end at 0 for a
    constant critic (at most `2 log 2`; it bounds a divergence, not the mutual information), or
    InfoNCE (at most the logarithm of its pairs). They say how well images can be told apart by what
    the layers have in common *linearly*, and are reported against the ceiling.

    *Gradients.* Into `F_i`, and what lies before it, from both terms. Into `F_M` only where the
    distiller lets it (`SelfDistiller(stop_gradient=False)`), from the first term.

    Read-outs, in nats: `<name>_<place>_mutual_nats` and `<name>_<place>_self_nats` for every stage,
    `<name>_ceiling_nats`.

    Args:
        teacher_layer: Place of `F_M`: a vector `(batch, channels)` or a map `(batch, height, width,
            channels)`. With `self_information="input"` a list, the place of `F_M` and that of the
            input (the name of the input layer).
        student_layer: List of the places of `F_1`, ..., `F_K`, vectors or maps. A map is compared
            with a vector at every location, with a map on their common grid.
        combine: `"additive"` or `"multiplicative"`.
        self_information: `"feature"`: of a feature with itself, `I(F_i; F_i)`. `"input"`: of a
            feature with the input, `I(X; F_i)`, by a critic of its own; an image is averaged to at
            most `grid` (8 if `None`) rows and columns and flattened.
        bound: `bounds.jsd` or `bounds.info_nce`.
        negatives: Negatives for every positive: an int of at least 1, or `"all"` for every other
            example of the batch.
        negatives_from: `"batch"`: any other image. `"other_classes"`: images of other classes, and
            of the same only where the batch has not enough; needs labels and a number of
            `negatives`. What is estimated then is no information any more, but how well an image
            can be told from those of other classes.
        width: Number of units of the common embedding.
        temperature: Scale of the scores, see `SeparableCritic`. A higher one keeps estimates
            further from the ceiling.
        grid: Most rows and columns on which maps are compared; larger maps are averaged first,
            which for 32 rows spares most of the loss's cost. `None` keeps every location.
        gather: Whether the batch is that of all replicas (then any number of replicas gives the
            update of one) or a replica's own (no communication).
        **kwargs: `weight`, `name` and other arguments of `DistillationLoss`.

    Raises:
        ValueError: If an argument is out of range, `bound` has no ceiling, a tensor is neither
            vector nor map, or labels are needed and missing.

    References:
        Gong, Yu, Mittal, Mori, Chen, MUSE: Feature Self-Distillation with Mutual Information and
        Self-Information (arXiv:2110.12606).
    """

    def __init__(
        self,
        *,
        teacher_layer="pooled",
        student_layer=("stage1", "stage2", "stage3"),
        combine="multiplicative",
        self_information="feature",
        bound=bounds.jsd,
        negatives=1,
        negatives_from="batch",
        width=64,
        temperature=0.1,
        grid=8,
        gather=True,
        **kwargs,
    ):
        super().__init__(teacher_layer=teacher_layer, student_layer=student_layer, **kwargs)
        if not self.student_layer:
            raise ValueError("Expected `student_layer` to name a stage. Received: student_layer=[]")
        _check_bound(bound)
        _check_choice("combine", combine, _COMBINATIONS)
        _check_choice("self_information", self_information, _SELF_INFORMATION)
        if grid is not None and (not isinstance(grid, int) or grid < 1):
            raise ValueError(
                f"Expected `grid` to be a positive int or None. Received: grid={grid!r}"
            )
        self.combine = combine
        self.self_information = self_information
        self.bound = bound
        self.negatives = negatives
        self.negatives_from = negatives_from
        self.width = width
        self.temperature = temperature
        self.grid = grid
        self.gather = gather
        self._critic()  # Refuses a bad width or temperature here, not in `build`.
        self._contrast(None)

    def build(self, teacher_shape, student_shape):
        target, *source = _each(teacher_shape)
        if len(source) != (self.self_information == "input"):
            raise ValueError(
                'Expected one place as `teacher_layer`, or with self_information="input" a list of '
                f"two, the target's and the input's. Received: teacher_layer={self.teacher_layer!r}"
            )
        for shape in (target, *_each(student_shape)):
            if len(shape) not in (2, 4) or None in shape[1:]:
                raise ValueError(
                    "Expected vectors (batch, channels) or feature maps (batch, height, width, "
                    f"channels) of known size. Received: shape={tuple(shape)}"
                )
        self._grids = [
            comparison_grids(target, shape, limit=self.grid) for shape in _each(student_shape)
        ]
        self.critics = [self._built_critic(target, shape) for shape in _each(student_shape)]
        self._mutual = [self._contrast(critic) for critic in self.critics]
        self._own = [self._contrast(_Reflexive(critic)) for critic in self.critics]
        if source:
            self._input_grid = comparison_grids(source[0], source[0], limit=self.grid or 8)[0]
            gist = (None, math.prod(self._input_grid or ()) * source[0][-1])
            self.input_critics = [self._built_critic(gist, s) for s in _each(student_shape)]
            self._own = [self._contrast(critic) for critic in self.input_critics]

    def call(self, teacher, student, labels=None, training=None):
        target, *source = _each(teacher)
        gist = self._gist(source[0]) if source else None
        mutual, own = [], []
        for i, feature in enumerate(_each(student)):
            feature = locations(feature, self._grids[i][1])
            of_target = locations(target, self._grids[i][0])
            pool = self._mutual[i].pool(feature, labels)
            value, _, product = self._mutual[i].compare(of_target, pool, xla=self.xla)
            mutual.append(value)
            first = feature if gist is None else gist
            own.append(self._own[i].compare(first, pool, xla=self.xla)[0])
        mutual, own = ops.stack(mutual, axis=1), ops.stack(own, axis=1)
        both = mutual + own if self.combine == "additive" else self._product(mutual, own)
        self._read_out(mutual, own, product)
        return -ops.sum(both, axis=1)

    def _product(self, mutual, own):
        """Product of the batch's factors, spread over its examples.

        A product of means is no mean of examples. Its expansion to first order around the means is:
        the mean over the batch is the product, and so is the gradient.
        """
        estimates = ops.stop_gradient(ops.stack([mutual, own], axis=2))
        if self.gather:
            estimates = replicas.gather(estimates)
        count = ops.cast(ops.maximum(ops.shape(estimates)[0], 1), estimates.dtype)
        means = ops.sum(estimates, axis=0) / count
        factors, slopes = ops.softplus(means), ops.sigmoid(means)
        mutual = factors[:, 0] + slopes[:, 0] * (mutual - means[:, 0])
        own_change = slopes[:, 1] * (own - means[:, 1])
        return mutual * factors[:, 1] + factors[:, 0] * own_change

    def _read_out(self, mutual, own, product):
        for i, suffix in enumerate(self._suffixes()):
            self.add_readout(f"{suffix}_mutual_nats", mutual[:, i])
            self.add_readout(f"{suffix}_self_nats", own[:, i])
        _, ceiling = _BOUNDED[self.bound]
        # Once for every example, as the estimates: batches of other sizes have other ceilings.
        highest = ceiling(ops.cast(ops.shape(product)[1], "float32"))
        self.add_readout("ceiling_nats", highest * ops.ones_like(mutual[:, 0]))

    def _suffixes(self):
        return [place.replace("/", "_") for place in _each(self.student_layer)]

    def readout_metrics(self):
        suffixes = [f"{s}_{term}_nats" for s in self._suffixes() for term in ("mutual", "self")]
        return {
            suffix: keras.metrics.Mean(name=f"{self.name}_{suffix}")
            for suffix in [*suffixes, "ceiling_nats"]
        }

    def _critic(self):
        return SeparableCritic(
            width=self.width, temperature=self.temperature, dtype=self.dtype_policy
        )

    def _built_critic(self, first, second):
        critic = self._critic()
        critic.build((None, None, first[-1]), (None, None, second[-1]))
        return critic

    def _contrast(self, critic):
        bound, _ = _BOUNDED[self.bound]
        return Contrast(
            critic,
            bound,
            negatives=self.negatives,
            negatives_from=self.negatives_from,
            gather=self.gather,
        )

    def _gist(self, source):
        """The input as one vector: `(batch, 1, channels)`."""
        source = source if self._input_grid is None else pool_to(source, self._input_grid)
        return ops.reshape(source, (-1, 1, math.prod(source.shape[1:])))

    def get_config(self):
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

    @classmethod
    def from_config(cls, config):
        bound = keras.saving.deserialize_keras_object(config["bound"])
        return super().from_config({**config, "bound": bound})


class _Reflexive(Critic):
    """Scores a feature with itself: both sides through the student's side of another critic."""

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
    """The parts of a list of tensors, shapes or places, or the one that is there instead."""
    shape = isinstance(item, (list, tuple)) and (item[0] is None or isinstance(item[0], int))
    return list(item) if isinstance(item, (list, tuple)) and not shape else [item]


def _check_bound(bound):
    if bound not in _BOUNDED:
        raise ValueError(
            "Expected `bound` to be keras_mikd.bounds.jsd or keras_mikd.bounds.info_nce. The "
            "information of a feature with itself is infinite where the feature is continuous and "
            "the network deterministic, so one without a ceiling (nwj, donsker_varadhan, smile, "
            f"barber_agakov) would be driven up for ever. Received: bound={bound!r}"
        )


def _check_choice(argument, value, choices):
    if value not in choices:
        raise ValueError(f"Expected `{argument}` to be one of {choices}. Received: {value!r}")

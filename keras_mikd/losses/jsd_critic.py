"""The Jensen-Shannon critic of MIMKD, and the same critic with any other bound."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from keras_mikd import bounds, checks, masks
from keras_mikd.critics.critic import Critic, SeparableCritic
from keras_mikd.critics.negatives import Negatives
from keras_mikd.distribution import replicas
from keras_mikd.features.grids import Alignment
from keras_mikd.losses.distillation_loss import DistillationLoss
from keras_mikd.metrics.mutual_information import BoundInformation, MutualInformation


@keras.saving.register_keras_serializable("keras_mikd")
class JSDCritic(DistillationLoss):
    """Maximises the mutual information of two features with a critic trained beside the student.

    `loss = softplus(-f(t, s)) + mean over negatives of softplus(f(t, s'))`, where `(t, s)` are the
    features of one example, `s'` is the student's feature of another, and `f` is the critic. The
    ranks of the two tensors decide the level:

    - *global*: vector and vector;
    - *local*: vector and map, in either order; the vector is compared with every location;
    - *feature*: map and map, averaged to the smaller grid and compared location by location.

    Sequences of tokens may replace maps, see docs/tokens.md. Padded tokens are in no pair.

    The objective bounds a Jensen-Shannon divergence, not the mutual information: it is a stable
    training signal, and one negative suffices. The metric `<name>_mi_nats` reports the mutual
    information in nats, by the Donsker-Varadhan bound on the same scores, or by `bounds.info_nce`
    where that trains the critic; `<name>_mi_nats_se` is its standard error, `<name>_mi_nats_limit`
    the most that its pairs can show: distrust values near or above it. MIMKD's critics, layers and
    weights are not public: this is a *reconstruction*, after Deep InfoMax.

    Args:
        teacher_layer: Place in the teacher: a vector `(batch, channels)`, a map
            `(batch, height, width, channels)` or tokens `(batch, tokens, channels)`.
        student_layer: Place in the student, likewise.
        weight: Factor in the total loss, a float or a schedule.
        bound: Bound to maximise, a function `(joint, product) -> (batch,)` in nats: one of
            `keras_mikd.bounds`, or your own (registered as serializable if the distiller is to be
            loaded; for padded tokens with an argument `mask`).
        critic: Score network, such as `ConcatCritic()`; the cheap `SeparableCritic()` if `None`.
        negatives: Negatives for every positive, drawn at random from the batch, and in training
            redrawn in every step: an int of at least 1, or `"all"` for every other example of the
            batch (one matrix product with a separable critic).
        negatives_from: `"batch"`: any other example. `"other_classes"`: examples of other classes,
            and of the same one only where the batch has too few; needs labels and an int of
            `negatives`, and `<name>_mi_nats` is then no bound on mutual information.
        grid: Largest number of rows and columns on which maps are compared; larger maps are
            averaged first. `None` keeps every location, and so do sequences.
        gather: Whether negatives come from the global batch of all replicas, so that any number of
            replicas gives the update of one, or from a replica's own examples, without
            communication.
        **kwargs: `name` and other arguments of `DistillationLoss`.

    Raises:
        ValueError: If a tensor is not a vector, a map or a sequence, an argument is out of range,
            or labels are needed and missing.

    References:
        Shrivastava, Qi, Ordonez, Estimating and Maximizing Mutual Information for Knowledge
        Distillation (arXiv:2110.15946); Hjelm et al. (arXiv:1808.06670), eq. 4.
    """

    compares_examples = True

    def __init__(
        self,
        *,
        teacher_layer: str | None = "pooled",
        student_layer: str | None = "pooled",
        weight: float | LearningRateSchedule = 1.0,
        bound: Callable[..., tf.Tensor] = bounds.jsd,
        critic: Critic | None = None,
        negatives: int | str = 1,
        negatives_from: str = "batch",
        grid: int | None = 8,
        gather: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            teacher_layer=teacher_layer, student_layer=student_layer, weight=weight, **kwargs
        )
        if not callable(bound):
            raise ValueError(
                "Expected `bound` to be a function of joint and product scores, such as "
                f"keras_mikd.bounds.jsd. Received: bound={bound!r}"
            )
        if critic is not None and not isinstance(critic, Critic):
            raise ValueError(
                "Expected `critic` to be a Critic, such as keras_mikd.SeparableCritic(). "
                f"Received: critic={critic!r}"
            )
        self.bound = bound
        self.critic = critic or SeparableCritic()
        self.negatives = negatives
        self.negatives_from = negatives_from
        self.grid = checks.integer("grid", grid, at_least=1, optional=True)
        self.gather = checks.boolean("gather", gather)
        self._pairs = Negatives(negatives, negatives_from, gather)
        self._compare = self._pairs.comparison(self.critic, bound)

    @property
    def reads_classes(self) -> bool:
        return self.negatives_from == "other_classes"

    def build(
        self, teacher_shape: Sequence[int | None], student_shape: Sequence[int | None]
    ) -> None:
        for shape in (teacher_shape, student_shape):
            if len(shape) not in (2, 3, 4) or not isinstance(shape[-1], int):
                raise ValueError(
                    f"Expected one tensor of each network for {self.name!r}: a vector (batch, "
                    "channels), a feature map (batch, height, width, channels) or a sequence "
                    "(batch, tokens, channels), channels known. "
                    f"Received: teacher_shape={tuple(teacher_shape)} at {self.teacher_layer!r}, "
                    f"student_shape={tuple(student_shape)} at {self.student_layer!r}"
                )
        self.compared = Alignment(
            teacher_shape, student_shape, limit=self.grid, image_size=self.image_size
        )
        read_out = BoundInformation if bounds.reads_itself(self.bound) else MutualInformation
        self.mi_nats = read_out(name=f"{self.name}_mi_nats")
        self.companions = self.mi_nats.companions()
        if not self.critic.built:  # In a loaded loss it is built.
            self.critic.build((None, None, teacher_shape[-1]), (None, None, student_shape[-1]))
        pairs = 2 if self.negatives == "all" else 1 + self.negatives  # Of a matrix product, a part.
        if self.compared.places is not None:
            self.multiplications = self.critic.multiplications(self.compared.places, pairs)

    @property
    def takes_masks(self) -> bool:
        observe = self.critic.observe
        return masks.takes(self.bound, "mask") and masks.takes(observe, "weights")

    def call(
        self,
        teacher: tf.Tensor,
        student: tf.Tensor,
        labels: Any = None,
        training: bool | None = None,
        teacher_mask: tf.Tensor | None = None,
        student_mask: tf.Tensor | None = None,
    ) -> tf.Tensor:
        teacher, student, mask = self.compared.at_locations(
            teacher, student, teacher_mask, student_mask
        )
        if training is not False:
            weights = {} if mask is None else {"weights": self._shares(mask)}
            self.critic.observe(teacher, student, **weights)
        pool = self._pairs.pool(student, labels, mask)
        bound, joint, product = self._compare(teacher, pool)
        if bounds.reads_itself(self.bound):
            ceiling = bounds.mean_ceiling(self.bound, product, pool.mask)
            self.read_out(self.mi_nats, bound, ceiling)
        else:
            self.read_out(self.mi_nats, joint, product, mask=pool.mask)
        return -bound

    def _shares(self, mask):
        """The share of every real token in a mean over the batch of all replicas."""
        number = masks.number(mask)
        every = replicas.gather(number) if self.gather else number
        average = ops.sum(every) / (replicas.count() if self.gather else 1)
        return ops.cast(mask, average.dtype) / ops.maximum(average, 1.0)

    def get_config(self) -> dict[str, Any]:
        serialize = keras.saving.serialize_keras_object
        return {
            **super().get_config(),
            "bound": serialize(self.bound),
            "critic": serialize(self.critic),
            "negatives": self.negatives,
            "negatives_from": self.negatives_from,
            "grid": self.grid,
            "gather": self.gather,
        }

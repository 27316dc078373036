"""Factor transfer: a paraphrase of the teacher's last map, translated from the student's."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from keras_mikd import checks
from keras_mikd.features.grids import common_grid, pool_to
from keras_mikd.losses.distillation_loss import DistillationLoss
from keras_mikd.losses.parts.centering import gently, length
from keras_mikd.losses.parts.connectors import batch_norm, maps_like_ours, run
from keras_mikd.losses.parts.paraphraser import fitted
from keras_mikd.losses.parts.shape_checks import check_pair


@dataclasses.dataclass(frozen=True)
class _Variant:
    """What a released code chose."""

    power: int | None  # Of the activations that are averaged over channels; None keeps channels.
    translator_norm: bool  # Whether the translator has BatchNorm.
    squared: bool  # Whether the reconstruction's error is squared or absolute.
    whole: Callable[[float], int]  # How the number of factors becomes a whole one.


_VARIANTS = {
    "repdistiller": _Variant(power=2, translator_norm=True, squared=True, whole=int),
    "official": _Variant(power=None, translator_norm=False, squared=False, whole=round),
}


@keras.saving.register_keras_serializable("keras_mikd")
class FactorTransfer(DistillationLoss):
    """Mean absolute difference of normalized factors of teacher and student (FT).

        loss = mean over elements of |normalized(factor(teacher)) - normalized(factor(student))|.

    The teacher's factors come from a paraphraser, the encoder of a convolutional autoencoder of the
    teacher's map; the student's from a translator of the same three 3x3 convolutions, which is
    trained. `"official"` divides the flattened factors by their Euclidean length; `"repdistiller"`
    averages their squares over the channels first, and has BatchNorm in the translator. Maps of
    different sizes: factors are averaged to the smaller grid.

    As published, the paraphraser is trained first and then stays. `fit` does so before its first
    step, on the first 256 examples of the data instead of all: `paraphraser_steps` of Adam on 32 of
    them each. `reconstruction_error`, a weight, is then its squared error in units of the teacher's
    variance, the mean over the map; before, it is -1. A loaded loss keeps its paraphraser.

    Args:
        variant: `"repdistiller"` or `"official"` (Jangho-Kim/Factor-Transfer-pytorch).
        rate: Channels of the factors for each channel of the teacher's map, a float above 0.
        paraphraser_steps: Number of steps that the paraphraser is trained for.
        **kwargs: `teacher_layer`, `student_layer`, `weight` and others of `DistillationLoss`. The
            published weights are 200 in RepDistiller and 500 in the authors' code.

    Raises:
        ValueError: If an argument is out of range; in `build`, if the tensors are not two feature
            maps of known size; in `fit`, on several hosts or on data that can be read only once.

    References:
        Kim et al., Paraphrasing complex network: network compression via factor transfer
        (arXiv:1802.04977), section 3; HobbitLong/RepDistiller, distiller_zoo/FT.py. Published
        CIFAR-100 top-1 (RepDistiller): resnet56 to resnet20 69.84 %.
    """

    def __init__(
        self,
        *,
        variant: str = "repdistiller",
        rate: float = 0.5,
        paraphraser_steps: int = 400,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.variant = checks.one_of("variant", variant, list(_VARIANTS))
        self.rate = checks.number("rate", rate, above=0)
        self.paraphraser_steps = checks.integer("paraphraser_steps", paraphraser_steps, at_least=1)

    def build(
        self, teacher_shape: Sequence[int | None], student_shape: Sequence[int | None]
    ) -> None:
        check_pair(teacher_shape, student_shape, ranks=(4,))
        self.grid = common_grid(teacher_shape, student_shape)
        teacher_channels, own_channels = teacher_shape[-1], student_shape[-1]
        factors = max(1, _VARIANTS[self.variant].whole(teacher_channels * self.rate))
        self.paraphraser = self._encoder(teacher_channels, factors, norm=False, trainable=False)
        norm = _VARIANTS[self.variant].translator_norm
        self.translator = self._encoder(own_channels, factors, norm=norm)
        self.reconstruction_error = self.add_weight(
            shape=(),
            initializer=keras.initializers.Constant(-1.0),
            trainable=False,
            name="reconstruction_error",
        )

    @property
    def waits_for_examples(self) -> bool:
        return bool(self.reconstruction_error.numpy() < 0)

    def look_at(self, teacher: tf.Tensor, student: tf.Tensor) -> None:
        convolutions = [x for x in self.paraphraser if isinstance(x, keras.layers.Conv2D)]
        weights, error = fitted(
            [(layer.kernel, layer.bias) for layer in convolutions],
            ops.cast(teacher, "float32"),
            steps=self.paraphraser_steps,
            squared=_VARIANTS[self.variant].squared,
        )
        for layer, (kernel, bias) in zip(convolutions, weights, strict=True):
            layer.kernel.assign(kernel)
            layer.bias.assign(bias)
        self.reconstruction_error.assign(error)

    def call(
        self,
        teacher: tf.Tensor,
        student: tf.Tensor,
        labels: Any = None,
        training: bool | None = None,
    ) -> tf.Tensor:
        teacher = run(self.paraphraser, teacher, training=False)
        student = run(self.translator, student, training)
        difference = self._normalized(teacher) - self._normalized(student)
        return ops.mean(ops.abs(difference), axis=(1, 2, 3))

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "variant": self.variant,
            "rate": self.rate,
            "paraphraser_steps": self.paraphraser_steps,
        }

    def _normalized(self, factors):
        factors, power = pool_to(factors, self.grid), _VARIANTS[self.variant].power
        if power is not None:
            factors = ops.mean(factors**power, axis=-1, keepdims=True)
        factors = gently(factors, length(factors, axis=(1, 2, 3)))
        return factors / ops.maximum(length(factors, axis=(1, 2, 3)), 1e-12)

    def _encoder(self, channels, factors, *, norm, trainable=True):
        layers, shape = [], (None, None, None, channels)
        for filters in (channels, factors, factors):
            convolution = keras.layers.Conv2D(
                filters,
                3,
                padding="same",
                kernel_initializer=keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform"),
                **maps_like_ours(self.dtype_policy),
            )
            relu = keras.layers.LeakyReLU(negative_slope=0.1, dtype=self.dtype_policy)
            layers += [convolution, *([batch_norm(self.dtype_policy)] if norm else []), relu]
        for layer in layers:
            layer.trainable = trainable
            layer.build(shape)
            shape = layer.compute_output_shape(shape)
        return layers

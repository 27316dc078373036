"""Variational information distillation (VID): a Gaussian model of the teacher given the student."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from keras_mikd import checks, masks
from keras_mikd.bounds import barber_agakov
from keras_mikd.features.grids import Alignment
from keras_mikd.losses.distillation_loss import DistillationLoss
from keras_mikd.losses.parts.connectors import batch_norm, run, unfolding_convolutions
from keras_mikd.losses.parts.shape_checks import check_pair
from keras_mikd.metrics.gaussian_information import GaussianInformation


@dataclasses.dataclass(frozen=True)
class _Variant:
    """What a released code chose where the paper leaves the choice open."""

    convolutions: int
    hidden: tuple[int, int]  # Hidden channels per channel of (student, teacher).
    relu: bool  # Before every convolution but the first.
    batch_norm_relu: bool  # Before every convolution.
    epsilon: float
    vector_epsilon: float
    initial_alpha: float
    normalized: bool  # Whether the loss includes log(2 pi) / 2.


_VARIANTS = {
    "official": _Variant(
        convolutions=2,
        hidden=(0, 1),
        relu=False,
        batch_norm_relu=False,
        # The release has 0, which overflows where a channel of the teacher is constant.
        epsilon=1e-12,
        vector_epsilon=1e-12,
        # The release applies softplus where its comment asks for the inverse.
        initial_alpha=math.log1p(math.exp(5.0)),
        normalized=False,
    ),
    "repdistiller": _Variant(
        convolutions=3,
        hidden=(0, 1),
        relu=True,
        batch_norm_relu=False,
        epsilon=1e-5,
        vector_epsilon=1e-5,
        initial_alpha=math.log(math.expm1(5.0 - 1e-5)),
        normalized=False,
    ),
    "wgan": _Variant(
        convolutions=2,
        hidden=(2, 2),
        relu=False,
        batch_norm_relu=True,
        epsilon=1e-5,
        vector_epsilon=1e-6,
        initial_alpha=0.0,
        normalized=True,
    ),
}


_SMALLEST = 1e-4  # First variance; channels can be constant.


@keras.saving.register_keras_serializable("keras_mikd")
class GaussianVIDHead(DistillationLoss):
    """Gaussian head of variational information distillation (VID).

    It maximises `E log q(t | s)`. Plus the teacher's entropy, which is unknown but constant, that
    is a lower bound on `I(t; s)`. The mean of the Gaussian `q` is a small network applied to the
    student's tensor; its variance is one trainable number per channel:

        loss = -log q(t | s) = sum or mean of 0.5 * ((t_c - mu_c(s))^2 / var_c + log var_c),
        var_c = softplus(alpha_c) + epsilon.

    `"wgan"` adds `log(2 pi) / 2`. The loss is in nats and falls below 0 for small variances. It is
    not a mutual information; the metric `<name>_gaussian_nats` estimates one, see
    `GaussianInformation`.

    For two vectors, `mu` is a linear map with bias; for VID on logits, compare
    `student_layer="pooled"` with the teacher's output. For two feature maps, averaged to the
    smaller grid, `mu` is a stack of 1x1 convolutions without bias; the same holds for sequences of
    tokens, see docs/tokens.md. For a teacher's map and a student's vector, as from a CNN to a
    perceptron, `mu` unfolds the vector by transposed convolutions, see docs/methods/vid.md: a
    reconstruction.

    Args:
        variant: Which released code sets `mu`, `epsilon` and the initial variance: `"official"`
            (amzn/xfer), `"repdistiller"` (HobbitLong/RepDistiller) or `"wgan"`
            (hushell/wgan_distil).
        hidden_channels: Width of the hidden convolutions instead of the variant's.
        initial_variance: Initial variance of every channel instead of the variant's, at least 1e-4;
            `"auto"`: each channel's own variance in the teacher, over the first 256 examples and
            their locations. `fit` measures it once, before the first step; a loaded head keeps it.
        reduction: Over the elements of an example: `"mean"`, as in all three codes, or `"sum"`, as
            in the paper. A weight means something only together with its reduction.
        **kwargs: `teacher_layer`, `student_layer`, `weight` and others of `DistillationLoss`.

    Raises:
        ValueError: If an argument is out of range; in `build`, if the tensors are not two vectors,
            feature maps or sequences of tokens, or a teacher's map of known size and a vector; in
            `fit`, with `"auto"`, on several hosts or on data that can be read only once.

    References:
        Ahn et al., Variational information distillation for knowledge transfer (arXiv:1904.05835).
    """

    def __init__(
        self,
        *,
        variant: str = "official",
        hidden_channels: int | None = None,
        initial_variance: float | str | None = None,
        reduction: str = "mean",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        checks.one_of("variant", variant, list(_VARIANTS))
        checks.one_of("reduction", reduction, ("mean", "sum"))
        checks.integer("hidden_channels", hidden_channels, at_least=1, optional=True)
        if isinstance(initial_variance, str):
            checks.one_of("initial_variance", initial_variance, ("auto",))
        else:
            checks.number("initial_variance", initial_variance, at_least=_SMALLEST, optional=True)
        self.variant = variant
        self.hidden_channels = hidden_channels
        self.initial_variance = initial_variance
        self.reduction = reduction

    def build(
        self, teacher_shape: Sequence[int | None], student_shape: Sequence[int | None]
    ) -> None:
        check_pair(teacher_shape, student_shape, unfolds=True)
        vectors = len(teacher_shape) == 2
        variant = _VARIANTS[self.variant]
        self.compared = Alignment(teacher_shape, student_shape, image_size=self.image_size)
        self.grid = self.compared.student.grid
        self.epsilon = variant.vector_epsilon if vectors else variant.epsilon
        self.alpha = self.add_weight(
            shape=(teacher_shape[-1],),
            initializer=keras.initializers.Constant(self._initial_alpha()),
            name="alpha",
        )
        if self.initial_variance == "auto":
            self.measured = self.add_weight(
                shape=(), initializer="zeros", trainable=False, name="measured"
            )
        self.gaussian_nats = GaussianInformation(
            teacher_shape[-1], name=f"{self.name}_gaussian_nats"
        )
        self.mean_layers = self._mean_layers(tuple(teacher_shape), tuple(student_shape))
        shape = (*student_shape[:1], *(self.grid or ()), student_shape[-1])
        for layer in self.mean_layers:
            layer.build(shape)
            shape = layer.compute_output_shape(shape)

    @property
    def takes_masks(self) -> bool:
        # Keras' BatchNorm with a mask measures every replica by itself.
        return not _VARIANTS[self.variant].batch_norm_relu

    @property
    def waits_for_examples(self) -> bool:
        return self.initial_variance == "auto" and not self.measured.numpy()

    def look_at(
        self,
        teacher: tf.Tensor,
        student: tf.Tensor,
        teacher_mask: tf.Tensor | None = None,
        student_mask: tf.Tensor | None = None,
    ) -> None:
        teacher, student = ops.cast(teacher, "float32"), ops.cast(student, "float32")
        teacher, _, mask = self.compared(teacher, student, teacher_mask, student_mask)
        if mask is None:
            variance = ops.var(teacher, axis=tuple(range(len(teacher.shape) - 1)))
        else:
            variance = _variance_of_real(teacher, mask)
        softplus = ops.maximum(variance, _SMALLEST) - self.epsilon
        self.alpha.assign(softplus + ops.log(-ops.expm1(-softplus)))
        self.measured.assign(1.0)

    def call(
        self,
        teacher: tf.Tensor,
        student: tf.Tensor,
        labels: Any = None,
        training: bool | None = None,
        teacher_mask: tf.Tensor | None = None,
        student_mask: tf.Tensor | None = None,
    ) -> tf.Tensor:
        teacher, student, mask = self.compared(teacher, student, teacher_mask, student_mask)
        mean = self.predict_mean(student, training=training)
        variance = self.variance()
        self.read_out(self.gaussian_nats, teacher, mean, variance, mask=mask)
        log_likelihood = barber_agakov(
            teacher,
            mean,
            variance,
            reduction=self.reduction,
            normalized=_VARIANTS[self.variant].normalized,
            mask=mask,
        )
        return -log_likelihood  # A bound is maximised, a loss minimised.

    def predict_mean(self, student: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Returns `mu(s)`, the predicted teacher's tensor, for a student's on the common grid."""
        if len(student.shape) > 2 and all(
            isinstance(layer, keras.layers.Dense) for layer in self.mean_layers
        ):
            # A chain of linear maps: multiplied first, they cost one pass over the feature map.
            kernels = [layer.kernel for layer in self.mean_layers]
            return ops.matmul(student, functools.reduce(ops.matmul, kernels))
        return run(self.mean_layers, student, training)

    def variance(self) -> tf.Tensor:
        """Returns the variance of `q`, shape `(teacher channels,)`."""
        return ops.softplus(self.alpha) + self.epsilon

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "variant": self.variant,
            "hidden_channels": self.hidden_channels,
            "initial_variance": self.initial_variance,
            "reduction": self.reduction,
        }

    def _initial_alpha(self):
        if self.initial_variance in (None, "auto"):
            return _VARIANTS[self.variant].initial_alpha
        softplus = self.initial_variance - self.epsilon
        return softplus + math.log(-math.expm1(-softplus))

    def _mean_layers(self, teacher_shape, student_shape):
        made, taken = teacher_shape[-1], student_shape[-1]
        if len(teacher_shape) == 2:
            return [self._linear(made)]
        variant = _VARIANTS[self.variant]
        width = self.hidden_channels or variant.hidden[0] * taken + variant.hidden[1] * made
        if len(student_shape) == 2:
            cell, *stack = unfolding_convolutions(
                teacher_shape, student_shape, width=width, dtype=self.dtype_policy
            )
            return [cell, *self._activated(stack)]
        widths = [*[width] * (variant.convolutions - 1), made]
        return self._activated([self._linear(each, use_bias=False) for each in widths])

    def _activated(self, convolutions):
        """Returns convolutions with what the variant has before them."""
        variant, layers = _VARIANTS[self.variant], []
        for i, convolution in enumerate(convolutions):
            if variant.batch_norm_relu:
                layers.append(batch_norm(self.dtype_policy))
            if variant.batch_norm_relu or (variant.relu and i > 0):
                layers.append(keras.layers.ReLU(dtype=self.dtype_policy))
            layers.append(convolution)
        return layers

    def _linear(self, channels, use_bias=True):
        # Over the last axis: on a feature map this is a 1x1 convolution.
        return keras.layers.Dense(
            channels,
            use_bias=use_bias,
            kernel_initializer=keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform"),
            dtype=self.dtype_policy,
        )


def _variance_of_real(tokens, mask):
    """Returns the variance of every channel over the real tokens of all examples."""
    count = ops.cast(ops.maximum(ops.count_nonzero(mask), 1), tokens.dtype)
    mean = ops.sum(masks.total(tokens), axis=0) / count  # Padded tokens are 0.
    return ops.sum(masks.total(masks.only_real(ops.square(tokens - mean), mask)), axis=0) / count

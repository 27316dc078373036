"""Variational information distillation (VID): a Gaussian model of the teacher given the student."""

import dataclasses
import functools
import math

import keras
from keras import ops

from keras_mikd import checks
from keras_mikd.bounds import barber_agakov
from keras_mikd.features.grids import common_grid, pool_to
from keras_mikd.losses.distillation_loss import DistillationLoss
from keras_mikd.losses.shape_checks import check_pair
from keras_mikd.metrics.gaussian_information import GaussianInformation


@dataclasses.dataclass(frozen=True)
class _Variant:
    """What a released code chose where the paper leaves the choice."""

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
        # The release applies softplus where its comment means the inverse.
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


@keras.saving.register_keras_serializable("keras_mikd")
class GaussianVIDHead(DistillationLoss):
    """Gaussian head of variational information distillation.

    Maximises `E log q(t | s)`: plus the teacher's entropy, unknown but constant, it is a lower
    bound on `I(t; s)`. `q` is a Gaussian whose mean is a small network of the student's tensor and
    whose variance is one trainable number per channel, whatever the input:

        loss = -log q(t | s) = sum or mean of 0.5 * ((t_c - mu_c(s))^2 / var_c + log var_c),
        var_c = softplus(alpha_c) + epsilon.

    The loss falls below 0 as variances fall below 1. It is not a mutual information; the metric
    `<name>_gaussian_nats` estimates one, see `GaussianInformation`.

    For two vectors `mu` is one linear map (with bias): put `student_layer="pooled"` against the
    teacher's output for VID on logits. For two feature maps, pooled to the smaller grid where they
    differ, `mu` is a stack of 1x1 convolutions without bias. Three codes that go back to the
    authors differ (Cs and Ct: the student's and the teacher's channels):

    | `variant` | `mu` | hidden channels | epsilon | first variance | weight there |
    |---|---|---|---|---|---|
    | `"official"` | conv, conv | Ct | 0 | 5.013 | 0.1 |
    | `"repdistiller"` | conv, ReLU, conv, ReLU, conv | Ct | 1e-5 | 5 | 1 |
    | `"wgan"` | BN, ReLU, conv, BN, ReLU, conv | 2 (Cs + Ct) | 1e-5 | log 2 | 0.001 |

    The 0 is 1e-12 here, so that a channel in which the teacher is constant stays finite. `"wgan"`
    takes 1e-6 for vectors, and adds the constant `log(2 pi) / 2` to the loss. Kernels start by
    PyTorch's default. Batch normalization (BN) takes its statistics over all replicas.

    ```python
    head = keras_mikd.GaussianVIDHead(teacher_layer="stage2", student_layer="stage2")
    loss = head(keras.random.normal((2, 8, 8, 32)), keras.random.normal((2, 8, 8, 16)))
    print(loss.shape)  # (2,)
    ```

    Args:
        variant: `"official"`, `"repdistiller"` or `"wgan"`.
        hidden_channels: width of the hidden convolutions instead of the variant's.
        initial_variance: variance of every channel at the start, at least 1e-4, instead of the
            variant's.
        reduction: over the elements of an example. `"mean"`: as all three codes; `"sum"`: as the
            paper's equation. A weight only means something together with its reduction.
        **kwargs: `teacher_layer`, `student_layer`, `weight` and others of `DistillationLoss`.

    Raises:
        ValueError: an argument is out of range; in `build`, the tensors are not two vectors or two
            feature maps.

    References:
        Ahn et al., Variational information distillation for knowledge transfer, CVPR 2019,
        arXiv:1904.05835. Codes: amzn/xfer (`var_info_distil`), HobbitLong/RepDistiller,
        hushell/wgan_distil.
    """

    def __init__(
        self,
        *,
        variant="official",
        hidden_channels=None,
        initial_variance=None,
        reduction="mean",
        **kwargs,
    ):
        super().__init__(**kwargs)
        checks.one_of("variant", variant, list(_VARIANTS))
        checks.one_of("reduction", reduction, ("mean", "sum"))
        checks.integer("hidden_channels", hidden_channels, at_least=1, optional=True)
        checks.number("initial_variance", initial_variance, at_least=1e-4, optional=True)
        self.variant = variant
        self.hidden_channels = hidden_channels
        self.initial_variance = initial_variance
        self.reduction = reduction

    def build(self, teacher_shape, student_shape):
        check_pair(teacher_shape, student_shape)
        maps = len(teacher_shape) == 4
        variant = _VARIANTS[self.variant]
        self.grid = common_grid(teacher_shape, student_shape) if maps else None
        self.epsilon = variant.epsilon if maps else variant.vector_epsilon
        self.alpha = self.add_weight(
            shape=(teacher_shape[-1],),
            initializer=keras.initializers.Constant(self._initial_alpha()),
            name="alpha",
        )
        self.gaussian_nats = GaussianInformation(
            teacher_shape[-1], name=f"{self.name}_gaussian_nats"
        )
        channels = student_shape[-1], teacher_shape[-1]
        self.mean_layers = self._convolutions(*channels) if maps else [self._linear(channels[1])]
        shape = (*student_shape[:1], *(self.grid or ()), student_shape[-1])
        for layer in self.mean_layers:
            layer.build(shape)
            shape = layer.compute_output_shape(shape)

    def call(self, teacher, student, labels=None, training=None):
        if self.grid is not None:
            teacher, student = pool_to(teacher, self.grid), pool_to(student, self.grid)
        mean = self.predict_mean(student, training=training)
        variance = self.variance()
        self.gaussian_nats.update_state(teacher, mean, variance)
        log_likelihood = barber_agakov(
            teacher,
            mean,
            variance,
            reduction=self.reduction,
            normalized=_VARIANTS[self.variant].normalized,
        )
        return -log_likelihood  # A bound is maximised, a loss minimised.

    def predict_mean(self, student, training=None):
        """Returns `mu(s)`, the head's prediction of the teacher's tensor.

        Args:
            student: the student's tensor, on the grid the two feature maps share.
            training: whether batch normalization uses the batch's statistics.

        Returns:
            Tensor of the teacher's shape, on that grid.
        """
        if self.grid and all(isinstance(layer, keras.layers.Dense) for layer in self.mean_layers):
            # Linear maps in a row: multiplied first, they cost one pass over the feature map.
            kernels = [layer.kernel for layer in self.mean_layers]
            return ops.matmul(student, functools.reduce(ops.matmul, kernels))
        mean = student
        for layer in self.mean_layers:
            norm = isinstance(layer, keras.layers.BatchNormalization)
            mean = layer(mean, training=training) if norm else layer(mean)
        return mean

    def variance(self):
        """Returns the variance of `q`, shape `(teacher channels,)`."""
        return ops.softplus(self.alpha) + self.epsilon

    def get_config(self):
        return {
            **super().get_config(),
            "variant": self.variant,
            "hidden_channels": self.hidden_channels,
            "initial_variance": self.initial_variance,
            "reduction": self.reduction,
        }

    def _initial_alpha(self):
        if self.initial_variance is None:
            return _VARIANTS[self.variant].initial_alpha
        softplus = self.initial_variance - self.epsilon
        return softplus + math.log(-math.expm1(-softplus))

    def _convolutions(self, student_channels, teacher_channels):
        variant = _VARIANTS[self.variant]
        width = variant.hidden[0] * student_channels + variant.hidden[1] * teacher_channels
        hidden = [self.hidden_channels or width] * (variant.convolutions - 1)
        layers = []
        for i, channels in enumerate([*hidden, teacher_channels]):
            if variant.batch_norm_relu:
                layers.append(
                    keras.layers.BatchNormalization(
                        momentum=0.9, epsilon=1e-5, synchronized=True, dtype=self.dtype_policy
                    )
                )
            if variant.batch_norm_relu or (variant.relu and i > 0):
                layers.append(keras.layers.ReLU(dtype=self.dtype_policy))
            layers.append(self._linear(channels, use_bias=False))
        return layers

    def _linear(self, channels, use_bias=True):
        # Over the last axis: of a feature map this is a 1x1 convolution.
        return keras.layers.Dense(
            channels,
            use_bias=use_bias,
            kernel_initializer=keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform"),
            dtype=self.dtype_policy,
        )

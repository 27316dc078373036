"""Bounds on mutual information (MI), as pure functions of critic scores, in nats.

A critic gives every pair a score. `joint`, of shape `(batch, ...)`, holds the scores of pairs that
belong together. `product`, of shape `(batch, negatives, ...)`, holds those of example i with the
partners of others: draws from the product of the marginals. Trailing axes, the same in both, are
locations of a feature map, or tokens; bounds are averaged over them.

Where tokens are padded, `mask` says which pairs count: bool of shape `(batch, 1 + negatives,
tokens)`, an example's own pair first. Others are in no sum, no logarithm and no number. A token
without a negative is left out of the mean; an example without a token gets 0.

Every bound is to be *maximised*. It is float32 of shape `(batch,)`, and its mean over the batch is
the bound. Without negatives (a batch of one) the value is 0 nats (for `jsd` that of a constant
critic, -2 log 2) and the gradient is zero.

Attributes of the function tell losses what they need to know: `couples_examples`, whether the value
of an example depends on the scores of others (default: true); `ceiling(negatives)`, the maximum in
nats (default: none); `uninformed`, the value for a constant critic (default: 0); `reads_itself`,
whether no other bound reads out a critic that is trained on it (default: false).
"""

import functools
import math
from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_mikd import checks, masks

# exp() overflows float32 at 88; stopping at 60 keeps sums over a batch finite as well.
_LARGEST_EXPONENT = 60.0
# Of a pair that does not count: its exponential is 0. An infinite one would have no gradient.
_NO_SCORE = -1e30


def _bound(**says):
    """Registers a bound with Keras, and attaches what losses need to know about it."""

    def decorate(function):
        vars(function).update(says)
        return keras.saving.register_keras_serializable("keras_mikd")(function)

    return decorate


def couples_examples(bound: Callable[..., tf.Tensor]) -> bool:
    """Whether the value of an example depends on the scores of other examples in the batch.

    The bound, or the one inside a `functools.partial`, says so itself; the default is `True`.

    Args:
        bound: Function of scores.
    """
    return _says(bound, "couples_examples", True)


def reads_itself(bound: Callable[..., tf.Tensor]) -> bool:
    """Whether a critic that is trained on a bound is read out by it, and by no other one.

    Its optimal critic is then not the log density ratio plus a constant. The bound, or the one
    inside a `functools.partial`, says so itself; the default is `False`.

    Args:
        bound: Function of scores.
    """
    return _says(bound, "reads_itself", False)


def ceiling(bound: Callable[..., tf.Tensor], negatives: float | tf.Tensor) -> float | tf.Tensor:
    """The most that a bound can be with so many negatives, in nats; infinity without a ceiling.

    Args:
        bound: Function of scores.
        negatives: How many there are for each example.
    """
    found = _says(bound, "ceiling", lambda negatives: math.inf)(negatives)
    shifted = isinstance(bound, functools.partial) and bound.keywords.get("shifted", False)
    return found - _says(bound, "uninformed", 0.0) if shifted else found


def mean_ceiling(
    bound: Callable[..., tf.Tensor], product: tf.Tensor, mask: tf.Tensor | np.ndarray | None = None
) -> float | tf.Tensor:
    """The ceiling with the negatives of `product`; with a `mask` that of every example.

    The latter, of shape `(batch,)`, is the mean over the tokens that are compared.

    Args:
        bound: Function of scores.
        product: Scores, shape `(batch, negatives, ...)`.
        mask: Which pairs count, `(batch, 1 + negatives, ...)`; all if `None`.
    """
    if mask is None:
        return ceiling(bound, ops.cast(ops.shape(product)[1], "float32"))
    negatives = ops.sum(ops.cast(mask[:, 1:], "float32"), axis=1)
    ceilings = ceiling(bound, negatives) + ops.zeros_like(negatives)
    return masks.mean(ceilings, masks.compared(mask))


@_bound(couples_examples=False, ceiling=lambda negatives: 0.0, uninformed=-2.0 * math.log(2.0))
def jsd(
    joint: tf.Tensor | np.ndarray | Sequence,
    product: tf.Tensor | np.ndarray | Sequence,
    *,
    shifted: bool = False,
    mask: tf.Tensor | np.ndarray | None = None,
) -> tf.Tensor:
    """Objective of the Jensen-Shannon divergence (JSD) between joint and product of marginals.

    `-softplus(-joint) - mean_k softplus(product)`. Its optimal critic is the log density ratio
    `log(p(x, y) / (p(x) p(y)))`, where it equals `2 JSD - 2 log 2`. It is a stable training signal,
    but **not the MI**: read that out of the same critic with `nwj(joint, product, log_ratio=True)`.
    Sources: Nowozin et al., f-GAN (arXiv:1606.00709); Hjelm et al., Deep InfoMax
    (arXiv:1808.06670).

    >>> jsd([0.0], [[0.0, 0.0]], shifted=True).numpy()
    array([0.], dtype=float32)

    Args:
        joint: Scores, shape `(batch, ...)`.
        product: Scores, shape `(batch, negatives, ...)`.
        shifted: Whether to add `2 log 2`; a constant critic then gets at most 0.
        mask: Which pairs count, `(batch, 1 + negatives, ...)`; all if `None`.

    Returns:
        Objective in nats, shape `(batch,)`, at most 0 (2 log 2 if `shifted`).

    Raises:
        ValueError: If the two shapes do not fit.
    """
    joint, product = _scores(joint, product, mask)
    product_term = ops.sum(_counting(ops.softplus(product), mask), axis=1)
    value = -ops.softplus(-joint) - product_term / _count(product, (1,), mask)
    value = _per_example(value, product, mask, no_negatives=-2.0 * math.log(2.0))
    return value + _if_any(2.0 * math.log(2.0), mask) if shifted else value


@_bound(couples_examples=False)
def nwj(
    joint: tf.Tensor | np.ndarray | Sequence,
    product: tf.Tensor | np.ndarray | Sequence,
    *,
    log_ratio: bool = False,
    mask: tf.Tensor | np.ndarray | None = None,
) -> tf.Tensor:
    """Lower bound on MI of Nguyen, Wainwright and Jordan (also called f-GAN KL, MINE-f).

    `joint - mean_k exp(product - 1)`, tight where the critic is 1 + the log density ratio. It is
    unbiased, but its variance grows exponentially with the MI: a readout, not a training signal.
    Where `log mean_k exp(product - 1)` exceeds 60, exp continues along its tangent, so that value
    and gradient stay finite; such a value only says that the critic is broken. Sources: Nguyen et
    al. (arXiv:0809.0853); Poole et al. (arXiv:1905.06922).

    >>> nwj([2.0], [[0.0]], log_ratio=True).numpy()  # 2 + 1 - exp(0)
    array([2.], dtype=float32)

    Args:
        joint: Scores, shape `(batch, ...)`.
        product: Scores, shape `(batch, negatives, ...)`.
        log_ratio: Whether the scores estimate the log density ratio itself, as those of a critic
            trained on `jsd` do; 1 is then added to every score.
        mask: Which pairs count, `(batch, 1 + negatives, ...)`; all if `None`.

    Returns:
        Bound in nats, shape `(batch,)`.

    Raises:
        ValueError: If the two shapes do not fit.
    """
    joint, product = _scores(joint, product, mask)
    if log_ratio:
        joint, product = joint + 1.0, product + 1.0
    exponent = _log_mean_exp(product - 1.0, (1,), mask)
    tangent = 1.0 + ops.relu(exponent - _LARGEST_EXPONENT)
    partition = ops.exp(ops.minimum(exponent, _LARGEST_EXPONENT)) * tangent
    return _per_example(joint - partition, product, mask)


@_bound(couples_examples=True)
def donsker_varadhan(
    joint: tf.Tensor | np.ndarray | Sequence,
    product: tf.Tensor | np.ndarray | Sequence,
    *,
    mask: tf.Tensor | np.ndarray | None = None,
) -> tf.Tensor:
    """Lower bound on MI of Donsker and Varadhan (that of MINE, without its moving average).

    `joint - log mean exp(product)`, with the mean over all product scores of the batch (at a
    location), which couples its examples. It is tight where the critic is the log density ratio
    plus a constant. The log of a batch mean biases the estimate upwards (it can exceed the MI) and
    biases its gradient; both biases fade as the number of product scores grows. Source: Belghazi et
    al., MINE (arXiv:1801.04062).

    >>> donsker_varadhan([3.0, 1.0], [[1.0], [1.0]]).numpy()
    array([2., 0.], dtype=float32)

    Args:
        joint: Scores, shape `(batch, ...)`.
        product: Scores, shape `(batch, negatives, ...)`.
        mask: Which pairs count, `(batch, 1 + negatives, ...)`; all if `None`.

    Returns:
        Bound in nats, shape `(batch,)`.

    Raises:
        ValueError: If the two shapes do not fit.
    """
    joint, product = _scores(joint, product, mask)
    return _per_example(joint - _log_mean_exp(product, (0, 1), mask), product, mask)


@_bound(couples_examples=True)
def smile(
    joint: tf.Tensor | np.ndarray | Sequence,
    product: tf.Tensor | np.ndarray | Sequence,
    *,
    clip: float = 5.0,
    mask: tf.Tensor | np.ndarray | None = None,
) -> tf.Tensor:
    """Donsker-Varadhan with clipped product scores: less variance, but no longer a bound.

    `joint - log mean exp(min(max(product, -clip), clip))`. Clipped scores get no gradient. The
    authors' code trains its critic on `jsd` and only reads this value out. Source: Song and Ermon
    (arXiv:1910.06222).

    >>> smile([3.0], [[100.0]], clip=1.0).numpy()
    array([2.], dtype=float32)

    Args:
        joint: Scores, shape `(batch, ...)`.
        product: Scores, shape `(batch, negatives, ...)`.
        clip: Finite float above 0, in nats; a large one gives `donsker_varadhan`.
        mask: Which pairs count, `(batch, 1 + negatives, ...)`; all if `None`.

    Returns:
        Estimate in nats, shape `(batch,)`.

    Raises:
        ValueError: If the two shapes do not fit, or `clip` is out of range.
    """
    checks.number("clip", clip, above=0)
    joint, product = _scores(joint, product, mask)
    return donsker_varadhan(joint, ops.clip(product, -clip, clip), mask=mask)


@_bound(couples_examples=False, ceiling=lambda negatives: ops.log1p(negatives), reads_itself=True)
def info_nce(
    joint: tf.Tensor | np.ndarray | Sequence,
    product: tf.Tensor | np.ndarray | Sequence,
    *,
    mask: tf.Tensor | np.ndarray | None = None,
) -> tf.Tensor:
    """InfoNCE lower bound on MI: tell the joint pair from K product pairs.

    `joint - logsumexp([joint, product_1, ..., product_K]) + log(K + 1)`. It has low variance, but
    never exceeds `log(K + 1)`, whatever the MI. An optimal critic is the log density ratio, plus
    any term that the K + 1 pairs of an example have in common. Sources: van den Oord et al.
    (arXiv:1807.03748); Poole et al. (arXiv:1905.06922), eq. 12.

    >>> info_nce([50.0], [[-50.0, -50.0, -50.0]]).numpy().round(4)  # log 4
    array([1.3863], dtype=float32)

    Args:
        joint: Scores, shape `(batch, ...)`.
        product: Scores, shape `(batch, negatives, ...)`.
        mask: Which pairs count, `(batch, 1 + negatives, ...)`; all if `None`.

    Returns:
        Bound in nats, shape `(batch,)`, at most `log(negatives + 1)`.

    Raises:
        ValueError: If the two shapes do not fit.
    """
    joint, product = _scores(joint, product, mask)
    pairs = ops.concatenate([ops.expand_dims(joint, 1), product], axis=1)
    number = _count(pairs, (1,))
    if mask is not None:
        pairs = ops.where(mask, pairs, _NO_SCORE)
        number = ops.maximum(ops.sum(ops.cast(mask, "float32"), axis=1), 1.0)
    log_probability = ops.log_softmax(pairs, axis=1)[:, 0]
    return _per_example(log_probability + ops.log(number), product, mask)


def split_scores(scores: tf.Tensor | np.ndarray | Sequence) -> tuple[tf.Tensor, tf.Tensor]:
    """Splits a square matrix of scores into `joint` (its diagonal) and `product` (the rest).

    >>> joint, product = split_scores([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
    >>> joint.numpy().tolist(), product.numpy().tolist()
    ([1.0, 5.0, 9.0], [[2.0, 3.0], [4.0, 6.0], [7.0, 8.0]])

    Args:
        scores: Shape `(batch, batch, ...)`; entry (i, j) scores example i of the first variable
            with example j of the second. Swap the two axes for negatives of the first variable.

    Returns:
        `(joint, product)`, float32, of shapes `(batch, ...)` and `(batch, batch - 1, ...)`.

    Raises:
        ValueError: If the first two axes are missing or not equal.
    """
    scores = ops.convert_to_tensor(scores, "float32")
    if len(scores.shape) < 2 or not _fits(scores.shape[:1], scores.shape[1:2]):
        raise ValueError(
            "Expected `scores` of shape (batch, batch, ...), one score per pair of examples. "
            f"Received: scores.shape={tuple(scores.shape)}"
        )
    batch, locations = ops.shape(scores)[0], ops.shape(scores)[2:]
    flat = ops.reshape(scores, (-1, *locations))
    # After the first entry, every (batch + 1)-th one is on the diagonal.
    rest = ops.reshape(flat[1:], (-1, batch + 1, *locations))
    joint = ops.concatenate([flat[:1], rest[:, -1]], axis=0)
    return joint, ops.reshape(rest[:, :-1], (batch, ops.shape(rest)[0], *locations))


def barber_agakov(
    target: tf.Tensor | np.ndarray | Sequence,
    mean: tf.Tensor | np.ndarray | Sequence,
    variance: tf.Tensor | np.ndarray | Sequence,
    *,
    reduction: str = "sum",
    normalized: bool = True,
    mask: tf.Tensor | np.ndarray | None = None,
) -> tf.Tensor:
    """Gaussian `log q(target | source)`: the bound of Barber and Agakov up to a constant.

    `I(target; source) >= H(target) + E log q(target | source)`. The entropy H of a frozen teacher's
    features is constant, so maximising this maximises the bound. Since H is unknown, the value is
    not an MI and can have either sign. With q Gaussian, `log q` is a sum over elements of
    `-0.5 * ((target - mean)^2 / variance + log variance + log(2 pi))`. Sources: Barber and Agakov,
    NIPS 2003; Ahn et al. (arXiv:1904.05835).

    >>> barber_agakov([[1.0, 2.0]], [[1.0, 1.0]], [1.0, 0.5], normalized=False).numpy().round(4)
    array([-0.6534], dtype=float32)

    Args:
        target: Shape `(batch, ...)`.
        mean: Prediction from the source, same shape as `target`.
        variance: Positive (no floor is added here), of a shape that broadcasts to that of `target`;
            `(channels,)` is one per channel.
        reduction: Over the elements of an example: `"sum"` (the bound), or `"mean"` (nats per
            element, as in the code released for variational information distillation).
        normalized: Whether to include the constant `-0.5 * log(2 pi)` of each element.
        mask: Which positions count, of a `target` `(batch, tokens, channels)` and one variance per
            channel: bool of shape `(batch, tokens)`; all if `None`.

    Returns:
        Log likelihood in nats, shape `(batch,)`.

    Raises:
        ValueError: If the shapes do not fit, or `reduction` is unknown.
    """
    checks.one_of("reduction", reduction, ("sum", "mean"))
    target, mean, variance = (ops.convert_to_tensor(x, "float32") for x in (target, mean, variance))
    fits = _fits(target.shape, mean.shape) and _broadcasts(variance.shape, target.shape)
    if len(target.shape) < 1 or not fits:
        raise ValueError(
            "Expected `target` of shape (batch, ...), `mean` of the same, and `variance` of one "
            f"that broadcasts to it. Received: target.shape={tuple(target.shape)}, "
            f"mean.shape={tuple(mean.shape)}, variance.shape={tuple(variance.shape)}"
        )
    error = ops.square(target - mean)
    positions, inner = 1, tuple(range(1, len(target.shape) - 1))
    if mask is not None:
        positions = masks.number(mask)
        error, variance = masks.mean(error, mask), ops.reshape(variance, variance.shape[-1:])
    elif all(size == 1 for size in variance.shape[:-1]):
        # Positions first: the rest then costs little, and a feature map is read once.
        positions = ops.prod(ops.shape(target)[1:-1])
        error, variance = ops.mean(error, axis=inner), ops.reshape(variance, variance.shape[-1:])
    value = -0.5 * (error / variance + ops.log(variance))
    if normalized:
        value = value - 0.5 * math.log(2.0 * math.pi)
    axes = tuple(range(1, len(value.shape)))
    if reduction == "mean":
        value = ops.mean(value, axis=axes)
        return value if mask is None else ops.where(positions > 0, value, 0.0)
    return ops.sum(value, axis=axes) * ops.cast(positions, "float32")


def gaussian_mutual_information(correlation: float, dimension: int) -> float:
    """MI of two Gaussian vectors correlated element by element: a closed form to test against.

    >>> round(gaussian_mutual_information(0.8, dimension=2), 4)
    1.0217

    Args:
        correlation: Float in (-1, 1), the same for every pair of elements.
        dimension: Number of elements of each vector, at least 1.

    Returns:
        `-dimension / 2 * log(1 - correlation^2)`, a Python float, in nats.

    Raises:
        ValueError: If an argument is out of range.
    """
    if not (-1.0 < correlation < 1.0 and dimension >= 1):
        raise ValueError(
            "Expected `correlation` in (-1, 1) and `dimension` at least 1. "
            f"Received: correlation={correlation}, dimension={dimension}"
        )
    return -0.5 * dimension * math.log1p(-(correlation**2))


def gaussian_correlation(mutual_information: float, dimension: int) -> float:
    """Inverse of `gaussian_mutual_information`.

    >>> round(gaussian_correlation(1.0217, dimension=2), 4)
    0.8

    Args:
        mutual_information: Finite float of at least 0, in nats.
        dimension: Number of elements of each vector, at least 1.

    Returns:
        `sqrt(1 - exp(-2 * mutual_information / dimension))`, a Python float in [0, 1].

    Raises:
        ValueError: If an argument is out of range.
    """
    if not (0.0 <= mutual_information < math.inf and dimension >= 1):
        raise ValueError(
            "Expected a finite `mutual_information` of at least 0 and `dimension` at least 1. "
            f"Received: mutual_information={mutual_information}, dimension={dimension}"
        )
    return math.sqrt(-math.expm1(-2.0 * mutual_information / dimension))


def _says(bound, attribute, default):
    function = bound.func if isinstance(bound, functools.partial) else bound
    return getattr(function, attribute, default)


def _scores(joint, product, mask=None):
    joint = ops.convert_to_tensor(joint, "float32")
    product = ops.convert_to_tensor(product, "float32")
    expected = (*joint.shape[:1], None, *joint.shape[1:])
    if len(joint.shape) < 1 or not _fits(expected, product.shape):
        raise ValueError(
            "Expected `joint` of shape (batch, ...) and `product` (batch, negatives, ...) with the "
            f"same trailing axes. Received: joint.shape={tuple(joint.shape)}, "
            f"product.shape={tuple(product.shape)}. `split_scores` makes both from a square matrix."
        )
    number = None if product.shape[1] is None else product.shape[1] + 1
    pairs = (joint.shape[0], number, *joint.shape[1:])
    if mask is not None and not _fits(pairs, mask.shape):
        raise ValueError(
            "Expected `mask` of shape (batch, 1 + negatives, ...), the own pair of every example "
            f"first. Received: mask.shape={tuple(mask.shape)}, product.shape="
            f"{tuple(product.shape)}"
        )
    return joint, product


def _fits(shape, other):
    """Whether two static shapes, in which None is any size, can be equal."""
    return len(shape) == len(other) and all(
        a is None or b is None or a == b for a, b in zip(shape, other, strict=True)
    )


def _broadcasts(shape, target):
    """Whether a static shape broadcasts to another without changing it."""
    sizes = zip(tuple(shape)[::-1], tuple(target)[::-1], strict=False)
    return len(shape) <= len(target) and all(
        own in (None, 1, size) or size is None for own, size in sizes
    )


def _count(product, axes, mask=None):
    """Number of product pairs along `axes`, but at least 1, as float32."""
    if mask is not None:
        return ops.maximum(ops.sum(ops.cast(mask[:, 1:], "float32"), axis=axes), 1.0)
    shape = ops.shape(product)
    return ops.cast(ops.maximum(math.prod(shape[axis] for axis in axes), 1), "float32")


def _log_mean_exp(product, axes, mask=None):
    scores = _counting(product, mask, _NO_SCORE)
    return ops.logsumexp(scores, axis=axes) - ops.log(_count(product, axes, mask))


def _counting(product, mask, otherwise=0.0):
    """Returns the terms of product pairs, `otherwise` for those that do not count."""
    return product if mask is None else ops.where(mask[:, 1:], product, otherwise)


def _per_example(value, product, mask=None, *, no_negatives=0.0):
    if mask is None:
        value = ops.mean(value, axis=tuple(range(1, len(value.shape))))
        return ops.where(ops.shape(product)[1] > 0, value, no_negatives)
    compared = masks.compared(mask)
    value = masks.mean(value, compared)
    return ops.where(ops.any(compared, axis=1), value, _if_any(no_negatives, mask))


def _if_any(constant, mask):
    """Returns a constant, where there is a mask for the examples that have a token."""
    return constant if mask is None else constant * ops.cast(ops.any(mask[:, 0], axis=1), "float32")

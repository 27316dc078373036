"""The information in a classifier's outputs beyond the label, in nats, from sums over one pass."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_mikd import checks
from keras_mikd.metrics.sums import Sums


@keras.saving.register_keras_serializable("keras_mikd")
class ConditionalMutualInformation(Sums):
    """Conditional mutual information `I(X; Yhat | Y)` of a classifier, in nats, exact in one pass.

    With `P_x = softmax(logits / temperature)` and the centroid `Q^y`, the mean of `P_x` over the
    examples of class y,

        CMI = mean over examples of KL(P_x || Q^y) = sum_y (n_y / n) [H(Q^y) - mean H(P_x)].

    It is 0 if all outputs of a class agree, and at most `log(num_classes)`. It is exact for the
    examples since the last reset, whatever their order, batches and replicas: every state is a sum.
    As a Keras metric it takes `(labels, outputs)` and can stand in `compile(metrics=[...])` of any
    classifier. `readout` gives the separation, NCMI and more from the same sums.

    Args:
        num_classes: Number of classes C, at least 2.
        from_logits: Whether outputs are logits; otherwise they are probabilities, exact zeros
            included.
        temperature: Temperature of `P_x`, above 0.
        name: Name of the metric.
        dtype: Precision of the sums, `"float32"` or `"float64"`.

    Raises:
        ValueError: If an argument is out of range; in `update_state`, if labels are not integers of
            shape `(batch,)` or `(batch, 1)`, or outputs not of shape `(batch, num_classes)`. Labels
            outside 0 to `num_classes - 1` are skipped; `measure_cmi` and `MCMITeacher` refuse them.

    Example:
        >>> metric = keras_mikd.ConditionalMutualInformation(num_classes=2, from_logits=False)
        >>> metric.update_state([0, 0], [[1.0, 0.0], [0.5, 0.5]])
        >>> round(float(metric.result()), 4)  # H(3/4, 1/4) - (0 + log 2) / 2
        0.2158

    References:
        Yang et al. (arXiv:2309.09123); Ye et al. (arXiv:2401.08732).
    """

    def __init__(
        self,
        num_classes: int,
        *,
        from_logits: bool = True,
        temperature: float = 1.0,
        name: str = "cmi",
        dtype: str = "float64",
    ) -> None:
        super().__init__(name=name, dtype=dtype)
        # In float16, a count of 2,048 stays where it is.
        checks.one_of("dtype", self.dtype, ("float32", "float64"))
        self.num_classes = checks.integer("num_classes", num_classes, at_least=2)
        self.from_logits = checks.boolean("from_logits", from_logits)
        self.temperature = checks.temperature("temperature", temperature)
        square = (self.num_classes, self.num_classes)
        self.counts = self._add_sum("counts", square[:1])
        self.probability_sums = self._add_sum("probability_sums", square)
        self.log_probability_sums = self._add_sum("log_probability_sums", square)
        self.negative_entropy_sums = self._add_sum("negative_entropy_sums", square[:1])

    def update_state(
        self,
        y_true: tf.Tensor | np.ndarray,
        y_pred: tf.Tensor | np.ndarray,
        sample_weight: tf.Tensor | np.ndarray | None = None,
    ) -> None:
        """Adds a batch.

        Args:
            y_true: Integer labels, shape `(batch,)` or `(batch, 1)`.
            y_pred: Outputs of the classifier, shape `(batch, num_classes)`.
            sample_weight: Weight of every example, at least 0, shape `(batch,)`, or `None`.
        """
        log_p = self._log_probabilities(y_pred)
        labels = checks.class_indices(y_true)
        known = ops.logical_and(labels >= 0, labels < self.num_classes)
        labels = ops.where(known, labels, -1)  # segment_sum skips negative ones.
        p = ops.exp(log_p)
        negative_entropy = ops.sum(ops.where(p > 0, p * log_p, 0.0), axis=-1)
        weight = ops.ones_like(negative_entropy)
        if sample_weight is not None:
            weight = ops.reshape(ops.cast(sample_weight, self.dtype), (-1,))
        for sums, values in (
            (self.counts, ops.ones_like(weight)[:, None]),
            (self.probability_sums, p),
            (self.log_probability_sums, log_p),
            (self.negative_entropy_sums, negative_entropy[:, None]),
        ):
            # A logarithm may be -inf, and 0 times that is NaN.
            weighted = ops.where(weight[:, None] > 0, weight[:, None] * values, 0.0)
            total = ops.segment_sum(weighted, labels, num_segments=self.num_classes)
            sums.assign_add(ops.reshape(total, sums.shape))

    def result(self) -> tf.Tensor:
        """Returns the CMI in nats, a float32 scalar; 0 before any example."""
        q = self._per_example(self.probability_sums)
        entropy = -ops.sum(ops.where(q > 0, q * ops.log(ops.where(q > 0, q, 1.0)), 0.0), axis=-1)
        cmi = ops.sum(self.counts * entropy + self.negative_entropy_sums)
        cmi = ops.divide_no_nan(cmi, ops.sum(self.counts))
        return ops.cast(ops.maximum(cmi, 0.0), "float32")

    def readout(self) -> dict[str, Any]:
        """Returns everything that follows from the sums, as NumPy float64: see `CMIReport`.

        Returns:
            Dict with `counts`, `cmi_per_class` and `separation_per_class` of shape `(C,)`,
            `centroids` of shape `(C, C)`, and the scalars `cmi`, `separation`, `ncmi` and
            `log_likelihood`. What has no examples is `nan`.
        """
        counts, p, log_p, negative_entropy = (
            np.asarray(ops.convert_to_numpy(v), "float64")
            for v in (
                self.counts,
                self.probability_sums,
                self.log_probability_sums,
                self.negative_entropy_sums,
            )
        )
        with np.errstate(divide="ignore", invalid="ignore"):
            centroids = p / counts[:, None]
            entropy = -np.where(p > 0, centroids * np.log(centroids), 0.0).sum(axis=1)
            cmi = np.maximum(entropy + negative_entropy / counts, 0.0)
            crossed = _cross_entropy_sums(p, log_p)
            pairs = counts * (counts.sum() - counts)
            total_cmi = np.nansum(counts * cmi) / counts.sum()
            separation = crossed.sum() / pairs.sum()
            return {
                "counts": counts,
                "centroids": centroids,
                "cmi": total_cmi,
                "cmi_per_class": cmi,
                "separation": separation,
                "separation_per_class": crossed / pairs,
                "ncmi": total_cmi / separation,
                "log_likelihood": np.trace(log_p) / counts.sum(),
            }

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "from_logits": self.from_logits,
            "temperature": self.temperature,
        }

    def _log_probabilities(self, outputs):
        outputs = ops.cast(outputs, self.dtype)
        check_outputs(outputs.shape, self.num_classes)
        logits = outputs if self.from_logits else ops.log(outputs)
        return ops.log_softmax(logits / self.temperature, axis=-1)

    def _per_example(self, sums):
        return ops.divide_no_nan(sums, self.counts[:, None])


def _cross_entropy_sums(p, log_p):
    """Sums of `H(P_x, P_u)` for x of each class over the u of all others, from sums by class.

    A sum of logarithms is -inf where an output is exactly 0; it counts only where some `P_x` is
    positive.
    """
    crossed = np.zeros(len(p))
    for y in range(len(p)):
        others = np.delete(log_p, y, axis=0).sum(axis=0)
        crossed[y] = -np.where(p[y] > 0, p[y] * others, 0.0).sum()
    return crossed


def check_outputs(shape, num_classes):
    """Checks that outputs are one vector of `num_classes` numbers for each example."""
    if len(shape) != 2 or shape[-1] != num_classes:
        dense = (
            " Positions of a dense output become examples by ops.reshape: outputs to "
            f"(-1, {num_classes}), labels to (-1,)."
        )
        raise ValueError(
            f"Expected outputs of shape (batch, {num_classes}), one for each of the "
            f"num_classes={num_classes} classes. Received: outputs of shape {tuple(shape)}"
            f"{'.' + dense if len(shape) > 2 else ''}"
        )

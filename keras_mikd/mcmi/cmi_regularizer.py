"""How far each output is from the centroid of its class: the term that MCMI adds to a loss."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_mikd import checks
from keras_mikd.distribution import replicas
from keras_mikd.mcmi.conditional_mutual_information import check_outputs


@keras.saving.register_keras_serializable("keras_mikd")
class CMIRegularizer(checks.Settled, keras.layers.Layer):
    """Divergence of every output from the centroid of its class, `KL(P_x || Q^y)`, in nats.

    `P_x = softmax(logits / temperature)`, and the centroid `Q^y` is the mean of `P_x` over the
    examples of class y. With exact centroids the mean of the divergence is the conditional mutual
    information `I(X; Yhat | Y)`; with stale ones it is `CMI + KL(mean of P_x || Q^y)`, which also
    rewards drift. Subtract it from a cross entropy to raise the information (MCMI), or add it to
    lower it (CMIC-DL). The gradient flows through `P_x` only. The centroids are a weight that is
    not trained.

    ```python
    regularizer = keras_mikd.CMIRegularizer(num_classes=10)
    regularizer.set_centroids(keras_mikd.measure_cmi(teacher, train).centroids)
    divergence = regularizer(teacher(images), labels)  # (batch,)
    ```

    Args:
        num_classes: Number of classes C, at least 2.
        temperature: Temperature of `P_x`, above 0. The papers use 1.
        dtype: Precision of the arithmetic: `"float32"`, or `"float64"`.
        **kwargs: `name` and other arguments of `keras.layers.Layer`.

    Raises:
        ValueError: If an argument is out of range.

    References:
        Ye et al., ICLR 2024 (arXiv:2401.08732); Yang et al. (arXiv:2309.09123) for the term that is
        minimised.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        temperature: float = 1.0,
        dtype: str | dict | keras.DTypePolicy = "float32",
        **kwargs: Any,
    ) -> None:
        super().__init__(dtype=dtype, **kwargs)
        # In 16 bits, small probabilities of a centroid are 0, and the divergence is not a number.
        checks.one_of("dtype", self.compute_dtype, ("float32", "float64"))
        self.num_classes = checks.integer("num_classes", num_classes, at_least=2)
        self.temperature = checks.temperature("temperature", temperature)
        # Until they are set, the centroids are nan, and so is every divergence from them.
        self.log_centroids = self.add_weight(
            shape=(self.num_classes, self.num_classes),
            initializer=keras.initializers.Constant(float("nan")),
            trainable=False,
            autocast=False,
            aggregation="only_first_replica",
            name="log_centroids",
        )
        self.built = True

    @property
    def has_centroids(self) -> bool:
        """Whether the centroids have been set."""
        return not np.any(np.isnan(ops.convert_to_numpy(self.log_centroids)))

    @property
    def centroids(self) -> np.ndarray:
        """The centroids in the precision of this layer, shape `(C, C)`; row y is `Q^y`."""
        return np.exp(ops.convert_to_numpy(self.log_centroids))

    def set_centroids(self, centroids: np.ndarray) -> None:
        """Sets the centroids; an exact 0 becomes the smallest normal float64.

        Args:
            centroids: Array of shape `(C, C)`; row y is the mean output of class y, as in
                `CMIReport.centroids`.

        Raises:
            ValueError: If the shape is another one, a row is not a distribution, or a row is `nan`:
                that class has no examples.
        """
        centroids = np.asarray(centroids, "float64")
        if centroids.shape != (self.num_classes, self.num_classes):
            raise ValueError(
                f"Expected centroids of shape ({self.num_classes}, {self.num_classes}), a row for "
                f"each class. Received: centroids of shape {centroids.shape}"
            )
        empty = np.flatnonzero(np.all(np.isnan(centroids), axis=1))
        if len(empty):
            raise ValueError(
                f"Expected a centroid for every class. Received: none for {empty.tolist()}, "
                "classes without examples in the data. Measure on data that has some, or, for "
                "classes that are never trained on, put any distribution in their rows."
            )
        wrong = ~np.isclose(centroids.sum(axis=1), 1.0, atol=1e-3) | np.any(centroids < 0, axis=1)
        if np.any(wrong):
            raise ValueError(
                "Expected every row of the centroids to be a distribution: numbers of at least 0 "
                f"that add up to 1. Received: row {np.argmax(wrong)} is "
                f"{centroids[np.argmax(wrong)].tolist()}"
            )
        self.log_centroids.assign(np.log(np.maximum(centroids, np.finfo("float64").tiny)))

    def update_centroids(self, logits: tf.Tensor, labels: tf.Tensor, momentum: float) -> None:
        """Moves the centroids of the classes in the global batch towards their mean outputs in it.

        `Q^y <- momentum * Q^y + (1 - momentum) * mean of P_x over the examples of y in the batch`.

        Args:
            logits: Tensor of shape `(batch, C)`.
            labels: Integer labels, shape `(batch,)`.
            momentum: Float in [0, 1).
        """
        p = ops.exp(replicas.gather(self.log_probabilities(logits)))
        labels = replicas.gather(checks.class_indices(labels))
        sums = ops.segment_sum(p, labels, num_segments=self.num_classes)
        counts = ops.segment_sum(ops.ones_like(p[:, :1]), labels, num_segments=self.num_classes)
        old = ops.exp(self.log_centroids)
        new = momentum * old + (1 - momentum) * ops.divide_no_nan(sums, counts)
        smallest = float(np.finfo("float32").tiny)
        log_new = ops.log(ops.maximum(new, smallest))
        self.log_centroids.assign(ops.where(counts > 0, log_new, self.log_centroids))

    def separation(self, logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        """Mean cross entropy `H(P_x, P_u)` over the pairs of a batch with different labels.

        Under replicas, u runs over the global batch and the result is this replica's share: the
        shares add up to the mean. Gradients flow through both outputs; the `pair_wise_CE` that the
        authors of MCMI released stops that of the second, so its weights pull less.

        Args:
            logits: Tensor of shape `(batch, C)`.
            labels: Integer labels, shape `(batch,)`.

        Returns:
            A scalar of at least 0 in the precision of this layer, in nats; 0 without such a pair.
        """
        log_p, labels = self.log_probabilities(logits), checks.class_indices(labels)
        all_log_p, all_labels = replicas.gather(log_p), replicas.gather(labels)
        differ = ops.cast(labels[:, None] != all_labels[None, :], log_p.dtype)
        crossed = -ops.matmul(ops.exp(log_p), ops.transpose(all_log_p))
        pairs = ops.sum(ops.cast(all_labels[:, None] != all_labels[None, :], log_p.dtype))
        return ops.sum(differ * crossed) / ops.maximum(pairs, 1.0)

    def log_probabilities(self, logits: tf.Tensor) -> tf.Tensor:
        """Returns `log P_x` in the precision of this layer, shape `(batch, C)`."""
        check_outputs(logits.shape, self.num_classes)
        logits = ops.cast(logits, self.compute_dtype)
        return ops.log_softmax(logits / self.temperature, axis=-1)

    def call(self, logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        """Compares a batch with the centroids.

        Args:
            logits: Tensor of shape `(batch, C)`.
            labels: Integer labels, shape `(batch,)` or `(batch, 1)`.

        Returns:
            The divergence of every example in nats and in the precision of this layer, shape
            `(batch,)`; `nan` until the centroids are set.
        """
        log_p = self.log_probabilities(logits)
        log_q = ops.take(self.log_centroids, checks.class_indices(labels), axis=0)
        return ops.sum(ops.exp(log_p) * (log_p - log_q), axis=-1)

    def compute_output_shape(
        self, logits_shape: Sequence[int | None], labels_shape: Sequence[int | None]
    ) -> tuple[int | None, ...]:
        return logits_shape[:1]

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "temperature": self.temperature,
        }

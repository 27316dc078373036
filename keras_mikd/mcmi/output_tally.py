"""Accuracy per class, and the number of examples that cannot be measured."""

import numpy as np
from keras import ops

from keras_mikd import checks
from keras_mikd.metrics.sums import Sums


class OutputTally(Sums):
    """Counts the examples that are right, and those that cannot be measured."""

    def __init__(self, num_classes, from_logits):
        super().__init__(name="accuracy", dtype="float64")
        self.num_classes = num_classes
        self.from_logits = from_logits
        self.correct = self._add_sum("correct", (num_classes,))
        self.examples = self._add_sum("examples")
        self.unknown = self._add_sum("unknown")
        self.not_finite = self._add_sum("not_finite")
        self.no_distribution = self._add_sum("no_distribution")

    def update_state(self, y_true, y_pred):
        labels, outputs = checks.class_indices(y_true), ops.cast(y_pred, self.dtype)
        right = ops.cast(
            ops.equal(ops.cast(ops.argmax(outputs, axis=-1), "int32"), labels), "int32"
        )
        known = ops.logical_and(labels >= 0, labels < self.num_classes)
        inside = ops.where(known, labels, -1)
        hits = ops.segment_sum(ops.cast(right, self.dtype), inside, num_segments=self.num_classes)
        self.correct.assign_add(hits)
        self.examples.assign_add(self._number(ops.ones_like(known)))
        self.unknown.assign_add(self._number(ops.logical_not(known)))
        finite = ops.all(ops.isfinite(outputs), axis=-1)
        self.not_finite.assign_add(self._number(ops.logical_not(finite)))
        sums_to_one = ops.abs(ops.sum(outputs, axis=-1) - 1.0) < 1e-2
        distribution = ops.logical_and(sums_to_one, ops.all(outputs >= 0, axis=-1))
        self.no_distribution.assign_add(self._number(ops.logical_not(distribution)))

    def result(self):
        return ops.cast(ops.divide_no_nan(ops.sum(self.correct), self.examples), "float32")

    def correct_per_class(self):
        """Returns how many examples of each class are right, NumPy float64 of shape `(C,)`."""
        return np.asarray(ops.convert_to_numpy(self.correct), "float64")

    def check(self):
        """Raises a `ValueError` if there was an example that cannot be measured."""
        examples = int(ops.convert_to_numpy(self.examples))
        unknown, not_finite, no_distribution = (
            int(ops.convert_to_numpy(v))
            for v in (self.unknown, self.not_finite, self.no_distribution)
        )
        if unknown:
            raise ValueError(
                f"Expected labels to be integers from 0 to {self.num_classes - 1}, one for every "
                f"output of the model. Received: {unknown} of {examples} outside that range."
            )
        if not_finite:
            raise ValueError(
                "Expected finite outputs. Received: nan or inf in the outputs for "
                f"{not_finite} of {examples} examples."
            )
        if no_distribution and not self.from_logits:
            raise ValueError(
                "Expected probabilities that add up to 1, since from_logits is False. Received: "
                f"outputs that do not for {no_distribution} of {examples} examples."
            )

        if self.from_logits and examples > 1 and not no_distribution:
            raise ValueError(
                "Expected logits. Received: outputs that are never negative and add up to 1 for "
                f"all {examples} examples: probabilities. Pass from_logits=False to measure_cmi, "
                "or build the model without its softmax."
            )

    def _number(self, marked):
        return ops.sum(ops.cast(marked, self.dtype))

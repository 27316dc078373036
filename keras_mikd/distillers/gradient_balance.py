"""Weights that give every term of a loss a share of the gradient, measured now and then."""

import warnings

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_mikd import checks
from keras_mikd.distribution import replicas

GRADIENT = "gradient"

_SMALL_SHARE = 0.01

_LARGEST = 1e6
"""Limit of a factor and of its inverse; the weights of the field lie between 0.02 and 30,000."""


class GradientBalance(keras.layers.Layer):
    """Factors beside the weights of terms, so that the weights are ratios of gradients.

        factor of a term = mean norm of the first term's gradient / mean norm of its own,

    of unweighted terms, on the weights of the networks, over the steps that were measured so far.
    A mean over all of them settles, so that a term that has been learned does not grow without
    end. A term without a gradient is left out, and keeps the factor 1. One whose weight was 0 so
    far waits for the next measuring step.

    A measuring step goes back through the networks once for every term. Keras compiles it beside
    the plain step, and the host chooses, because collectives cannot stand in a `tf.cond`.

    Args:
        names: Names of the terms; the first that has a gradient has the factor 1.
        every: Number of steps from one measuring step to the next, at least 1.

    Attributes:
        measures: Whether the step that runs or is traced now is a measuring one.
    """

    def __init__(self, names, every):
        super().__init__(name="gradient_balance", dtype="float32")
        self.names = list(names)
        self.every = every
        self.measures = False
        options = {
            "initializer": "zeros",
            "trainable": False,
            "aggregation": "only_first_replica",
        }
        self.sums = self.add_weight(shape=(len(self.names),), name="sums", **options)
        self.counts = self.add_weight(shape=(len(self.names),), name="counts", **options)
        self.shares = self.add_weight(shape=(len(self.names),), name="shares", **options)
        self.weights_now = self.add_weight(shape=(len(self.names),), name="weights", **options)
        self.steps = self.add_weight(shape=(), dtype="int64", name="steps", **options)
        self.built = True
        self._steps_of_host = None

    def factors(self):
        """Returns the factor of every term, `{name: float32 scalar}`."""
        return dict(zip(self.names, ops.unstack(self._factors()), strict=True))

    def _factors(self):
        norms = self.sums / ops.maximum(self.counts, 1.0)
        known = norms > 0.0
        first = norms[ops.argmax(known)]
        ratio = first / ops.where(known, norms, 1.0)
        factors = ops.where(known, ops.clip(ratio, 1.0 / _LARGEST, _LARGEST), 1.0)
        if self.measures:
            return factors
        # A weight that a schedule has just switched on would pull by the scale of its loss.
        waits = (self.counts == 0.0) & ops.any(self.counts > 0.0)
        return ops.where(waits, 0.0, factors)

    def gradients(self, tape, parts, weights, groups, *, scale, of):
        """Measures the terms, and returns the gradients of their sum with the factors of now.

        Args:
            tape: Persistent tape.
            parts: `{name: term}` with the factors of before, scalars.
            weights: `{name: weight}` without these factors.
            groups: Lists of variables.
            scale: Scale of the gradients.
            of: Identities of the variables whose gradients are measured.

        Returns:
            A list of gradients for every group; `None` where no term has one.
        """
        each = [tape.gradient(parts[name], groups, output_gradients=scale) for name in self.names]
        each = keras.tree.map_structure(_dense, each)
        before = self._factors()
        weighted = before * ops.stack([ops.cast(weights[name], "float32") for name in self.names])
        norms = self._norms(each, groups, of) / ops.cast(scale, "float32")
        unweighted = norms / ops.where(weighted > 0.0, weighted, 1.0)
        # All terms of a step count or none, so that their means are over the same steps.
        counts = ops.all(ops.isfinite(unweighted) | (weighted <= 0.0))
        seen = (weighted > 0.0) & counts
        self.sums.assign_add(ops.where(seen, unweighted, 0.0))
        self.counts.assign_add(ops.cast(seen, "float32"))
        ratios = self._factors() / before
        shares = norms * ratios / ops.maximum(ops.sum(norms * ratios), 1e-30)
        self.shares.assign(ops.where(counts, shares, self.shares))
        self.weights_now.assign(weighted * ratios)
        return [
            [_sum_of(gradients, ratios) for gradients in zip(*of_group, strict=True)]
            for of_group in zip(*each, strict=True)
        ]

    def alternating(self, plain, measuring, executed_at_once):
        """Returns a train function that takes one of two, whose steps are counted by the host."""

        def train_function(iterator):
            if self._steps_of_host is None:
                self.count_anew()
            due = self._steps_of_host % (self.every * executed_at_once) < executed_at_once
            self.measures = due
            try:
                logs = (measuring if due else plain)(iterator)
            finally:
                self.measures = False
            self._steps_of_host += executed_at_once
            return logs

        return train_function

    def count_anew(self):
        """Lets the host count from the number of steps taken: a step alone would wait for it."""
        self._steps_of_host = int(self.steps.numpy())

    def log_names(self):
        """Returns the names of what `logs` returns."""
        return [f"{name}_{what}" for what in ("share", "weight") for name in self.names]

    def logs(self):
        """Returns what an epoch logs: the share and the weight of every term at the last look."""
        values = np.concatenate([self.shares.numpy(), self.weights_now.numpy()])
        return dict(zip(self.log_names(), map(float, values), strict=True))

    def _norms(self, each, groups, of):
        """Returns the norm of every term's gradient on the variables `of`, over all replicas."""
        measured = [id(variable) in of for group in groups for variable in group]
        norms = []
        for gradients in each:
            flat = zip(measured, (g for group in gradients for g in group), strict=True)
            own = [ops.cast(g, "float32") for inside, g in flat if inside and g is not None]
            squares = [ops.sum(ops.square(g)) for g in replicas.sum_over_all(own)]
            norms.append(ops.sqrt(sum(squares, tf.constant(0.0))))
        return ops.stack(norms)


class BalanceLogs(keras.callbacks.Callback):
    """Adds the shares and weights of a `GradientBalance` to the logs of an epoch."""

    def on_epoch_begin(self, epoch, logs=None):
        self.model.gradient_balance.count_anew()

    def on_epoch_end(self, epoch, logs=None):
        logs.update(self.model.gradient_balance.logs())


def checked_every(balance, every):
    """Returns after how many steps a `balance` is measured, or `None` without one."""
    checks.one_of("balance", balance, (None, GRADIENT))
    every = checks.integer("balance_every", every, at_least=1)
    return every if balance else None


def warn_of_small_shares(weights):
    """Warns of terms, `{name: weight}`, to which weights as ratios leave next to nothing."""
    numbers = {name: w for name, w in weights.items() if isinstance(w, float) and w > 0.0}
    total = sum(numbers.values())
    small = [name for name, weight in numbers.items() if weight < _SMALL_SHARE * total]
    if small:
        warnings.warn(
            f"With balance={GRADIENT!r}, weights are ratios of gradients, and {', '.join(small)} "
            f"would have less than {_SMALL_SHARE:.0%} of them beside weights up to "
            f"{max(numbers.values()):g}. Published weights are for losses as they are: take "
            "numbers near 1.",
            stacklevel=4,
        )


def _dense(gradient):
    # Those of embeddings are slices, which can name a row twice.
    return tf.convert_to_tensor(gradient) if isinstance(gradient, tf.IndexedSlices) else gradient


def _sum_of(gradients, ratios):
    known = [
        gradient * ops.cast(ratio, gradient.dtype)
        for gradient, ratio in zip(gradients, ops.unstack(ratios), strict=True)
        if gradient is not None
    ]
    return sum(known[1:], known[0]) if known else None

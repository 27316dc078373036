"""Sums of an epoch, which a metric divides at its end."""

import keras


class Sums(keras.metrics.Metric):
    """A metric that adds up in its own dtype."""

    def _add_sum(self, name, shape=()):
        # Without a dtype Keras would make it float32, whatever the metric's dtype.
        return self.add_variable(shape, initializer="zeros", dtype=self.dtype, name=name)

    def _cast(self, x):
        return keras.ops.cast(x, self.dtype)

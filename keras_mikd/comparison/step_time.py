"""How long a step of `fit` takes."""

import statistics
import time

import keras


class StepTime(keras.callbacks.Callback):
    """Milliseconds of a step, the median over all but the first, which is compiled."""

    def __init__(self):
        super().__init__()
        self.times = []

    def on_train_batch_begin(self, batch, logs=None):
        self._start = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        self.times.append(self._milliseconds())

    def median(self):
        """Returns the median; the time until now if a loss that is not finite ended the first."""
        return statistics.median(self.times[1:] or self.times or [self._milliseconds()])

    def _milliseconds(self):
        return 1000 * (time.perf_counter() - self._start)

"""What an `MCMITeacher` does between the epochs of `fit`."""

import keras

from keras_mikd.mcmi.batch_statistics import BatchStatistics, normalizations
from keras_mikd.mcmi.cmi_report import new_meter


class MCMIEpochs(keras.callbacks.Callback):
    """Measures centroids and statistics when they are due."""

    # Its passes move the order of data that reshuffles, so `ExactResume` repeats them.
    reads_data = True

    def __init__(self, mcmi, data, options):
        super().__init__()
        self._mcmi = mcmi
        self._data = data
        self._options = options
        self._meter = None  # One for all epochs, whose graph is traced once.
        self._fresh = False
        self._statistics = None  # Likewise.
        self._stale = False

    def start(self):
        """Measures the centroids, if they were not measured before."""
        if not self._mcmi.regularizer.has_centroids:
            self._fit_centroids()
            self._fresh = True

    def on_epoch_begin(self, epoch, logs=None):
        if self._mcmi.centroids == "epoch" and not self._fresh:
            self._fit_centroids()
        self._fresh = False
        self._stale = self._mcmi.batch_norm == "measured" and bool(
            normalizations(self._mcmi.teacher)
        )

    def on_test_begin(self, logs=None):
        self._measure_statistics()  # Before the validation, which comes before the epoch's end.

    def _measure_statistics(self):
        if not self._stale:
            return
        self._stale = False
        if self._statistics is None:
            with self._mcmi.distribute_strategy.scope():
                self._statistics = BatchStatistics(self._mcmi.teacher)
                eagerly = self._mcmi.run_eagerly
                self._statistics.compile(run_eagerly=eagerly, jit_compile=False)
        self._statistics.evaluate(*self._data, **{**self._options, "verbose": 0})

    def _fit_centroids(self):
        regularizer = self._mcmi.regularizer
        if self._meter is None:
            self._meter = new_meter(
                self._mcmi.teacher,
                regularizer.num_classes,
                from_logits=True,
                temperature=regularizer.temperature,
                training=self._mcmi.centroids_training,
            )
        self._meter.evaluate(*self._data, **self._options)
        regularizer.set_centroids(self._meter.report().centroids)

    def on_epoch_end(self, epoch, logs=None):
        self._measure_statistics()

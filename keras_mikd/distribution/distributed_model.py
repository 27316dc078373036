"""What `fit` needs to run on several hosts, which Keras 3 itself does not do."""

import contextlib

import keras
import tensorflow as tf
from keras import ops

from keras_mikd.distribution import replicas
from keras_mikd.distribution.worker_callbacks import without_writers
from keras_mikd.keras_internals import ModelBuiltFromSpecs


class DistributedModel(ModelBuiltFromSpecs):
    """A `keras.Model` that fits, evaluates and predicts under every strategy, on several hosts too.

    Under `MultiWorkerMirroredStrategy` a `keras.Model` of Keras 3 fails twice: it averages the
    first batches of all replicas to build itself, and it reduces the logs of a step, which are
    scalars, over axis 0.
    """

    def fit(
        self,
        x=None,
        y=None,
        batch_size=None,
        epochs=1,
        verbose="auto",
        callbacks=None,
        *args,
        **kwargs,
    ):
        """Trains like `keras.Model.fit`.

        On several hosts only the chief writes files, see `without_writers`; a `BackupAndRestore`
        needs a folder that all of them see.

        Raises:
            ValueError: If batches are known to have fewer examples than there are replicas.
            RuntimeError: If another host stopped answering.
        """
        with self.distribute_strategy.scope():
            chief = replicas.is_chief()
            _check_batch(x, batch_size)
        if not chief:
            callbacks = without_writers(callbacks)
        with self._watching():
            return super().fit(x, y, batch_size, epochs, verbose, callbacks, *args, **kwargs)

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        """Returns the metrics of a step, with the axis that `as_logs` adds on several hosts."""
        return as_logs(super().compute_metrics(x, y, y_pred, sample_weight))

    def evaluate(self, *args, **kwargs):
        """Evaluates like `keras.Model.evaluate`.

        Raises:
            RuntimeError: If another host stopped answering.
        """
        with self._watching():
            return super().evaluate(*args, **kwargs)

    def predict(self, *args, **kwargs):
        """Predicts like `keras.Model.predict`.

        Raises:
            RuntimeError: If another host stopped answering.
        """
        with self._watching():
            return super().predict(*args, **kwargs)

    @contextlib.contextmanager
    def _watching(self):
        """Explains the error of a host that stopped answering."""
        with self.distribute_strategy.scope():
            alone = not replicas.on_several_hosts()
        try:
            yield
        except (tf.errors.AbortedError, tf.errors.UnavailableError) as error:
            if alone:
                raise
            raise RuntimeError(
                "Another worker stopped answering, so training cannot continue. Expected all "
                f"workers of TF_CONFIG to run until the end. Received: {error.message}. Start them "
                "all again: with keras.callbacks.BackupAndRestore, training resumes from a backup."
            ) from error


def as_logs(values):
    """Adds to the logs of a step the axis that Keras takes the mean over on several hosts."""
    if not replicas.on_several_hosts():
        return values
    return {name: ops.expand_dims(value, 0) for name, value in values.items()}


def _check_batch(x, batch_size):
    """Refuses batches of a known size that leave a replica without examples."""
    size = batch_size or (32 if hasattr(x, "shape") else None)  # Keras' default for arrays.
    if isinstance(x, tf.data.Dataset):
        size = keras.tree.flatten(x.element_spec)[0].shape[0]
    if size is not None and size < replicas.count():
        raise ValueError(
            f"Expected batches of at least {replicas.count()} examples, one for each replica of "
            f"the strategy. Received: batches of {size}. The batch size is that of all replicas "
            "together."
        )

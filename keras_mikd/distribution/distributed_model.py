"""What `fit` needs to run on several hosts, which Keras 3 itself does not do."""

import contextlib
import os

import keras
import tensorflow as tf
from keras import ops

from keras_mikd.atomic_files import written_whole
from keras_mikd.distribution import replicas
from keras_mikd.distribution.worker_callbacks import without_writers
from keras_mikd.keras_internals import ModelBuiltFromSpecs, begin_at, global_seed

_SEED = "seed_state_"


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

        On several hosts only the chief writes files, see `without_writers`; an `ExactResume` needs
        a folder that all of them see.

        Raises:
            ValueError: If batches are known to have fewer examples than there are replicas.
            RuntimeError: If another host stopped answering.
        """
        with self.distribute_strategy.scope():
            chief = replicas.is_chief()
            _check_batch(x, batch_size)
        if not chief:
            callbacks = without_writers(callbacks)
        try:
            with self._watching():
                return super().fit(x, y, batch_size, epochs, verbose, callbacks, *args, **kwargs)
        finally:
            begin_at(self, None)  # What `ExactResume` has set is for this `fit` alone.

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

    def save(self, filepath, overwrite=True, zipped=None, **kwargs):
        """Saves like `keras.Model.save`; a `.keras` file is written whole or not at all.

        Raises:
            ValueError: If the file is an `.h5`, which holds neither teachers nor all optimizers.
        """
        if str(filepath).endswith((".h5", ".hdf5")):
            raise ValueError(
                "Expected a path that ends in '.keras'. Received: "
                f"filepath={str(filepath)!r}. An .h5 file of a model holds neither its teacher nor "
                "all its optimizers. save_weights writes a '.weights.h5' file without the teacher."
            )
        with _whole(filepath, overwrite, ".keras") as path:
            return super().save(path, overwrite, zipped, **kwargs)

    def save_weights(self, filepath, overwrite=True, max_shard_size=None):
        """Saves like `keras.Model.save_weights`; a single file is written whole or not at all."""
        suffix = ".weights.h5" if max_shard_size is None else None
        with _whole(filepath, overwrite, suffix) as path:
            return super().save_weights(path, overwrite, max_shard_size)

    def save_own_variables(self, store):
        """Saves with the weights what Dropout and augmentation layers draw from."""
        super().save_own_variables(store)
        for number, seed in enumerate(self._seeds()):
            store[f"{_SEED}{number}"] = ops.convert_to_numpy(seed)

    def load_own_variables(self, store):
        seeds = self._seeds()
        own = {name: store[name] for name in store.keys()}
        states = {name: own.pop(name) for name in list(own) if name.startswith(_SEED)}
        super().load_own_variables(own)
        if states and len(states) != len(seeds):
            raise ValueError(
                f"Expected the states of {len(seeds)} random layers, such as Dropout. Received: a "
                f"file with {len(states)}, which is of other networks."
            )
        if states:  # Files of earlier versions have none.
            for number, seed in enumerate(seeds):
                seed.assign(states[f"{_SEED}{number}"])

    def run_variables(self):
        """Returns all variables that a step reads or changes, but those of metrics."""
        return [*self.variables, global_seed()]

    def run_identity(self):
        """Returns what has to be the same where a run goes on, `{name: number or text}`."""
        return {"model": type(self).__name__}

    def _seeds(self):
        weights = {id(weight) for weight in self.weights}
        return [variable for variable in self.variables if id(variable) not in weights]

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
                "all again: with keras_mikd.ExactResume, training goes on from where it was."
            ) from error


@contextlib.contextmanager
def _whole(filepath, overwrite, suffix):
    """Gives the path to write a file to; other targets, and questions to the user, are Keras'."""
    known = isinstance(filepath, (str, os.PathLike)) and suffix is not None
    path = os.fspath(filepath) if known else None
    if not known or "://" in path or not path.endswith(suffix):
        yield filepath
    elif os.path.isdir(path) or (os.path.exists(path) and not overwrite):
        yield filepath
    else:
        with written_whole(path) as unfinished:
            yield unfinished


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

"""What `fit` needs to run on several hosts, which Keras 3 itself does not do."""

import contextlib
import os
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from keras_mikd import weight_files
from keras_mikd.distribution import replicas
from keras_mikd.distribution.worker_callbacks import listed, without_writers
from keras_mikd.keras_internals import ModelBuiltFromSpecs, global_seed

_SEED, _OPTIMIZERS = "seed_state_", "optimizer_names"


class DistributedModel(ModelBuiltFromSpecs):
    """A `keras.Model` that fits, evaluates and predicts under every strategy, on several hosts too.

    Under `MultiWorkerMirroredStrategy` a `keras.Model` of Keras 3 fails twice: it averages the
    first batches of all replicas to build itself, and it reduces the logs of a step, which are
    scalars, over axis 0.
    """

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: str | int = "auto",
        callbacks: Sequence[keras.callbacks.Callback] | keras.callbacks.CallbackList | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> keras.callbacks.History:
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
        weight_files.check_checkpoints(listed(callbacks))
        if not chief:
            callbacks = without_writers(callbacks)
        self.forget_fit()
        try:
            with self._watching():
                return super().fit(x, y, batch_size, epochs, verbose, callbacks, *args, **kwargs)
        finally:
            self.forget_fit()

    def compute_metrics(
        self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None
    ) -> dict[str, Any]:
        """Returns the metrics of a step, with the axis that `as_logs` adds on several hosts."""
        return as_logs(super().compute_metrics(x, y, y_pred, sample_weight))

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluates like `keras.Model.evaluate`.

        Raises:
            RuntimeError: If another host stopped answering.
        """
        with self._watching():
            return super().evaluate(*args, **kwargs)

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Predicts like `keras.Model.predict`.

        Raises:
            RuntimeError: If another host stopped answering.
        """
        with self._watching():
            return super().predict(*args, **kwargs)

    def save(
        self,
        filepath: str | os.PathLike,
        overwrite: bool = True,
        zipped: bool | None = None,
        **kwargs: Any,
    ) -> None:
        """Saves like `keras.Model.save`; a `.keras` file is written whole or not at all.

        Raises:
            ValueError: If the path ends in `.h5`: such a file leaves out teachers and optimizers.
        """
        weight_files.check_suffix(filepath)
        with weight_files.whole(filepath, overwrite, ".keras") as path:
            return super().save(path, overwrite, zipped, **kwargs)

    def save_weights(
        self,
        filepath: str | os.PathLike,
        overwrite: bool = True,
        max_shard_size: float | None = None,
    ) -> None:
        """Saves like `keras.Model.save_weights`; a single file is written whole or not at all."""
        suffix = ".weights.h5" if max_shard_size is None else None
        with weight_files.whole(filepath, overwrite, suffix) as path:
            return super().save_weights(path, overwrite, max_shard_size)

    def load_weights(
        self, filepath: str | os.PathLike, skip_mismatch: bool = False, **kwargs: Any
    ) -> None:
        """Loads like `keras.Model.load_weights`; a file that does not fit changes nothing.

        Raises:
            ValueError: If the file is of other networks, losses or optimizers, or holds numbers
                that are not finite.
        """
        if skip_mismatch:
            return super().load_weights(filepath, skip_mismatch, **kwargs)
        with weight_files.loaded_whole(filepath, self.run_variables()):
            return super().load_weights(filepath, **kwargs)

    def save_own_variables(self, store: Any) -> None:
        """Saves with the weights what Dropout and augmentation layers draw from."""
        super().save_own_variables(store)
        for number, seed in enumerate(self._seeds()):
            store[f"{_SEED}{number}"] = ops.convert_to_numpy(seed)
        store[_OPTIMIZERS] = weight_files.optimizer_names(self.all_optimizers())

    def load_own_variables(self, store: Any) -> None:
        own = {name: store[name] for name in store.keys()}
        states = [own.pop(name) for name in sorted(own, key=_number) if name.startswith(_SEED)]
        names = own.pop(_OPTIMIZERS, None)
        if names is not None:  # Files of earlier versions have neither.
            weight_files.check_optimizer_names(names, self.all_optimizers())
        super().load_own_variables(own)
        seeds = self._seeds() if names is not None else []
        for seed, state in zip(seeds, states, strict=True):
            seed.assign(state)

    def all_optimizers(self) -> list[keras.optimizers.Optimizer]:
        """All optimizers, those of critics or peers too; none before `compile`."""
        return [self.optimizer] if self.optimizer is not None else []

    def run_variables(self) -> list[keras.Variable]:
        """Returns all variables that a step reads or changes, but those of metrics."""
        kept = [variable for each in self.all_optimizers() for variable in each.variables]
        return [*self.variables, *kept, global_seed()]

    def run_identity(self) -> dict[str, Any]:
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


def as_logs(values):
    """Adds to the logs of a step the axis that Keras takes the mean over on several hosts."""
    if not replicas.on_several_hosts():
        return values
    return {name: ops.expand_dims(value, 0) for name, value in values.items()}


def _number(name):
    return int(name.removeprefix(_SEED)) if name.startswith(_SEED) else -1


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

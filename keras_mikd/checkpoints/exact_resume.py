"""A run that is killed goes on, to the weights of the undisturbed one."""

import os
import pathlib
from typing import Any

import keras
import numpy as np

from keras_mikd import checks, keras_internals
from keras_mikd.checkpoints import data_order, run_state
from keras_mikd.checkpoints.student_checkpoint import StudentCheckpoint
from keras_mikd.distribution import replicas

_FILE = "state.npz"
_SHOWN = 5


class ExactResume(keras.callbacks.Callback):
    """Lets a killed `fit` continue where it was, and end with exactly the same weights.

    Start the same script again. `fit` reads the data as far as it was read before, without
    training, restores everything else and continues, even in the middle of an epoch. It keeps all
    variables (networks, losses, optimizers, metrics, seeds of Dropout and of augmentation layers),
    the history, and what the other callbacks have counted: their attributes that are numbers,
    strings, arrays, or lists and dicts of these. One file holds all of this. It is replaced as a
    whole, so a kill at any moment leaves the previous state or the new one. It remains when the run
    has ended: `fit` then returns at once. Remove the folder for a new run.

    ```python
    keras.utils.set_random_seed(0)
    ...  # Networks, data, distiller and compile.
    distiller.fit(train, epochs=60, callbacks=[keras_mikd.ExactResume("runs/resume")])
    ```

    Args:
        folder: Folder of this run alone. On several hosts, all must see it; the chief writes.
        save_freq: `"epoch"`, or the number of batches after which to save within an epoch as well.
        replay_data: Whether earlier epochs are read again, as is necessary if the order of the data
            depends on them. With `False`, the data must begin with epoch `epoch`, such as
            `cache.batches(64, first_epoch=resume.epoch)`.
        verbose: Whether to print where a run continues.

    Attributes:
        epoch: Epoch, counted from 0, with which `fit` continues; 0 for a new run.

    Raises:
        ValueError: Before the first step, if the model is not one of this library's, the order of
            the data cannot be repeated, the folder holds another run's state, or the file is
            damaged.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        *,
        save_freq: str | int = "epoch",
        replay_data: bool = True,
        verbose: bool = True,
    ) -> None:
        super().__init__()
        self.path = pathlib.Path(folder) / _FILE
        if save_freq != "epoch":
            checks.integer("save_freq", save_freq, at_least=1)
        self.save_freq, self.replay_data, self.verbose = save_freq, replay_data, verbose
        self.keep([])

    @property
    def epoch(self) -> int:
        return run_state.read(self.path, arrays=False)["epoch"] if self.path.exists() else 0

    def keep(self, callbacks: list[keras.callbacks.Callback]) -> None:
        """Keeps the state of other callbacks, which come before this one."""
        self._others = callbacks
        for each in callbacks if self.path.exists() else []:
            if isinstance(each, keras.callbacks.CSVLogger):
                each.append = True  # It would write over the epochs before the kill.
            if isinstance(each, StudentCheckpoint):
                each.overwrite = True  # Its files are of this run.

    def set_model(self, model: keras.Model) -> None:
        if not hasattr(model, "run_variables"):
            raise ValueError(
                "Expected a distiller or an MCMITeacher, whose `fit` can go on within an epoch. "
                f"Received: {model!r}. A network alone trains as SelfDistiller(model, [])."
            )
        super().set_model(model)
        with model.distribute_strategy.scope():
            self._writes = replicas.is_chief()

    def set_params(self, params: dict[str, Any]) -> None:
        super().set_params(params)
        # This is the last callback, so the others have their model and the number of epochs.
        self._constructed = [_plain_attributes(each) for each in self._others]

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._identity = {"steps": self.params.get("steps"), **self.model.run_identity()}
        self._first_epoch, self._history, self._began = None, [], False
        self._first_batch = None
        self._state = run_state.read(self.path) if self.path.exists() else None
        if self._state is not None:
            self._resume(self._state)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._epoch, self._saved_batch = epoch, 0
        if self._began:
            return
        self._began = True
        if self._state is None:
            self._first_epoch = epoch
            self._save(epoch, 0, begun=True)
        elif self._state["begun"]:
            # Not before: Keras resets the metrics, and the other callbacks begin this epoch anew.
            self._restore(self._state)
            metrics = self.model.metrics_variables if self._state["batch"] else []
            _assign(metrics, self._state["metrics"], self.path)
        self._saved_batch = self._state["batch"] if self._state else 0
        self._show_history()
        self._state = None

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._check_first_batch()
        due = self.save_freq != "epoch" and batch + 1 - self._saved_batch >= self.save_freq
        if due and not self.model.stop_training:  # Then the end of the epoch comes next.
            self._save(self._epoch, batch + 1, begun=True)
            self._saved_batch = batch + 1

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        kept = {k: v if isinstance(v, float) else np.asarray(v) for k, v in (logs or {}).items()}
        self._history.append([epoch, kept])
        self._save(epoch + 1, 0, begun=False)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        if not self._began:  # Nothing was left to train.
            self._show_history()

    def _resume(self, state):
        _check_same(state["identity"], self._identity, self.path)
        self._first_epoch, self._history = state["first_epoch"], state["history"]
        epoch = max(state["epoch"], self.params["epochs"]) if state["stopped"] else state["epoch"]
        if self.verbose and epoch >= self.params["epochs"]:
            print(f"ExactResume: the run has ended after epoch {state['epoch']} ({self.path}).")
        elif self.verbose:
            batch = f", batch {state['batch'] + 1}" if state["batch"] else ""
            print(f"ExactResume: goes on with epoch {state['epoch'] + 1}{batch} ({self.path}).")
        if self.replay_data:
            self._first_batch = state.get("first_batch")
        self._read_data(state)
        self._check_first_batch()
        if not state["begun"] or epoch >= self.params["epochs"]:
            self._restore(state)
        keras_internals.begin_at(self.model, epoch)

    def _read_data(self, state):
        """Reads the data as far as the run had read it."""
        readers = [each for each in self._others if getattr(each, "reads_data", False)]
        for epoch in range(state["first_epoch"], state["epoch"] if self.replay_data else 0):
            for each in readers:
                each.on_epoch_begin(epoch)
            self.model.read_epoch()
            for each in readers:
                each.on_epoch_end(epoch, {})
        if state["batch"]:
            self.model.skip_batches(state["batch"])

    def _check_first_batch(self):
        """Refuses data whose first batch is another one than in the run that goes on.

        A seed that is drawn anew, as `image_dataset_from_directory` does without one, shows in no
        other way.
        """
        found = None if replicas.on_several_hosts() else self.model.first_batch()
        if self._first_batch is None or found is None:
            self._first_batch = self._first_batch or found
        elif found != self._first_batch:
            raise ValueError(
                f"Expected the data of the run in {str(self.path)!r}, in its order. Received: "
                "another first batch. Give the data a seed, such as "
                "keras.utils.image_dataset_from_directory(..., seed=0), and begin anew in another "
                "folder."
            )

    def _save(self, epoch, batch, begun):
        """Keeps the state before a batch, `begun` if the callbacks have begun its epoch."""
        # Every host reads its variables, since that of a metric sums over all of them.
        variables, metrics = self._values(batch)
        if not self._writes:
            return
        state = {
            "identity": self._identity,
            "first_batch": self._first_batch if self.replay_data else None,
            "first_epoch": self._first_epoch,
            "epoch": epoch,
            "batch": batch,
            "begun": begun,
            "stopped": self.model.stop_training,
            "history": self._history,
            "callbacks": self._changed_attributes(),
            "variables": variables,
            "metrics": metrics,
        }
        run_state.write(self.path, state)

    def _values(self, batch):
        variables = [keras.ops.convert_to_numpy(v) for v in self.model.run_variables()]
        # Before the first batch of an epoch they count nothing, and may not exist.
        metrics = self.model.metrics_variables if batch else []
        return variables, [keras.ops.convert_to_numpy(v) for v in metrics]

    def _restore(self, state):
        _assign(self.model.run_variables(), state["variables"], self.path)
        saved = list(state["callbacks"])
        for each in self._others:
            kinds = [kind for kind, _ in saved]
            if type(each).__name__ in kinds:
                _, attributes = saved.pop(kinds.index(type(each).__name__))
                vars(each).update(attributes)

    def _changed_attributes(self):
        """Returns what training has made of the other callbacks: `[[class, {name: value}], ...]`.

        What it has not changed are arguments, which a new start may give anew.
        """
        changed = []
        for each, before in zip(self._others, self._constructed, strict=True):
            now = _plain_attributes(each)
            names = [name for name in now if not _same(before.get(name), now[name])]
            changed.append([type(each).__name__, {name: vars(each)[name] for name in names}])
        return changed

    def _show_history(self):
        shown = self.model.history
        for epoch, logs in self._history:
            shown.epoch.append(epoch)
            for name, value in logs.items():
                shown.history.setdefault(name, []).append(value)


def check(callbacks, x, shuffle):
    """Refuses several `ExactResume` among callbacks, and data whose order cannot be repeated.

    Returns:
        Whether there is one.

    Raises:
        ValueError: See above.
    """
    number = sum(isinstance(each, ExactResume) for each in callbacks)
    if number > 1:
        raise ValueError(f"Expected one ExactResume in `callbacks`. Received: {number}")
    if number:
        data_order.check_repeatable(x, shuffle)
    return number == 1


def put_last(callbacks):
    """Returns the callbacks of `fit` with an `ExactResume` after those whose state it keeps."""
    others = [each for each in callbacks if not isinstance(each, ExactResume)]
    resume = [each for each in callbacks if isinstance(each, ExactResume)]
    for each in resume:
        each.keep(others)
    return [*others, *resume]


def _plain_attributes(callback):
    """Returns `{name: (structure, arrays)}` of the attributes that a file can hold."""
    plain = {}
    for name, value in vars(callback).items():
        arrays = []
        try:
            if name != "params":
                plain[name] = run_state.packed(value, arrays), arrays
        except (TypeError, RecursionError):
            continue
    return plain


def _same(before, now):
    """Whether an attribute is what it was; callbacks replace arrays and do not write into them."""
    if before is None or before[0] != now[0]:
        return False
    pairs = zip(before[1], now[1], strict=True)
    return all(a is b or (a.ndim == 0 and a == b) for a, b in pairs)


def _assign(variables, values, path):
    shapes = [tuple(v.shape) for v in variables], [value.shape for value in values]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"Expected the networks, losses and optimizers of the run in {str(path)!r}, with "
            f"{len(values)} variables. Received: others, with {len(variables)} variables or other "
            "shapes. Name another folder, or remove this one to begin anew."
        )
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def _check_same(saved, own, path):
    differ = [name for name in {**saved, **own} if saved.get(name) != own.get(name)]
    if differ:
        raise ValueError(
            f"Expected the run in {str(path)!r}, which has {_shown(saved, differ)}. Received: "
            f"{_shown(own, differ)}. Name another folder, or remove this one to begin anew."
        )


def _shown(settings, names):
    shown = [f"{name}={settings.get(name)}" for name in names[:_SHOWN]]
    more = [f"{len(names) - _SHOWN} more"] if len(names) > _SHOWN else []
    return ", ".join([*shown, *more])

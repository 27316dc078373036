"""The student of a run in a file of its own, while the run goes on."""

import glob
import math
import os
import string
import warnings
from typing import Any

import keras

from keras_mikd import checks
from keras_mikd.atomic_files import written_whole

_SUFFIXES = (".keras", ".weights.h5")


class StudentCheckpoint(keras.callbacks.Callback):
    """Saves the student alone, the best so far or that of every epoch, while a distiller trains.

    The file is what you hand over: it needs neither the teacher nor the losses, nor this library,
    unless the student contains its layers, as one from `quantization_aware` does. It holds the
    student of a `Distiller` or `SelfDistiller`, a peer of a `MutualDistiller`, or the tuned teacher
    of an `MCMITeacher`. It is replaced as a whole, so a kill leaves the previous student or the new
    one. On several hosts, the chief writes. With `ExactResume`, a restarted run remembers the best
    value. `keras.callbacks.ModelCheckpoint` saves the whole distiller instead, for further
    training.

    ```python
    best = keras_mikd.StudentCheckpoint("student.keras")
    distiller.fit(train, validation_data=validation, epochs=60, callbacks=[best])
    ```

    Args:
        path: Path that ends in `".keras"`, for the network, or in `".weights.h5"`, for its weights.
            `{epoch}`, counted from 1, and the monitor are filled in, with a format if there is one:
            `"student{epoch:03d}-{val_accuracy:.3f}.keras"`.
        monitor: Name in the logs of the value that makes a student the best; with peers, a name
            such as `"val_peer1_accuracy"`.
        mode: `"max"`: the largest is best; `"min"`: the smallest; `"auto"`: the largest if the name
            ends in `accuracy`, the smallest if it ends in `loss`.
        save_best_only: Whether a student is saved only if it is better than all before. Epochs
            without validation (`validation_freq`) are then skipped, and so is a monitor that is
            NaN.
        network: Which peer of a `MutualDistiller`: `"peer1"`, `"peer2"`, ...
        overwrite: Whether files that another run has left may be replaced.
        verbose: Whether to print what is saved.

    Attributes:
        best: Best value of the monitor so far, a float; `None` before there is one, and always if
            `save_best_only` is false.
        best_epoch: Its epoch, counted from 0, or `None`.

    Raises:
        ValueError: If the path has another suffix or fields, `"auto"` does not know the monitor,
            or `network` is none of the model's; in `fit`, as soon as it is clear that the monitor
            never comes; before the first step, if a `.keras` file cannot hold the network.
        FileExistsError: Before the first step, if there is such a file and `overwrite` is false.
    """

    only_writes = True  # So that workers beside the chief leave it out.

    def __init__(
        self,
        path: str | os.PathLike,
        *,
        monitor: str = "val_accuracy",
        mode: str = "auto",
        save_best_only: bool = True,
        network: str | None = None,
        overwrite: bool = False,
        verbose: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(monitor, str):
            raise ValueError(f"Expected `monitor` to be a name in the logs. Received: {monitor!r}")
        self.path = _checked_path(path, monitor)
        self.monitor, self.mode = monitor, checks.one_of("mode", mode, ("auto", "min", "max"))
        if save_best_only:
            self.mode = _direction(monitor, mode)
        self.save_best_only, self.network = save_best_only, network
        self.overwrite, self.verbose = overwrite, verbose
        self.best = self.best_epoch = None
        self._reads_monitor = save_best_only or monitor in _fields(self.path)
        self._others_log = self._knows_logs = self._has_saved = False
        self._validated = True

    def expect(self, *, validated: bool, others_log: bool) -> None:
        """Refuses a monitor that cannot come; `others_log` says that other callbacks may bring it.

        Raises:
            ValueError: If it is one of validation, and `fit` is not `validated`.
        """
        self._others_log, self._validated = others_log, validated
        of_validation = self._reads_monitor and self.monitor.startswith("val_")
        if of_validation and not validated and not others_log:
            raise ValueError(
                "Expected `validation_data` in `fit`, for a StudentCheckpoint. Received: "
                f"monitor={self.monitor!r} and no validation data. Pass the data, another "
                "`monitor`, or save_best_only=False to save every epoch."
            )

    def set_model(self, model: keras.Model) -> None:
        self._saved = _network(model, self.network)
        super().set_model(model)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        there = [] if self.overwrite else glob.glob(_pattern(self.path))
        if there:
            raise FileExistsError(
                f"Expected a path without a file. Received: path={self.path!r}, and "
                f"{min(there)!r} exists. Name another path, or pass overwrite=True to replace it. "
                "To go on with a run that was killed, use ExactResume beside this callback."
            )
        if self.path.endswith(_SUFFIXES[0]):
            self._check_can_be_saved()
        self.overwrite = True  # From now on, what is there is this run's.

    def _check_can_be_saved(self):
        try:
            keras.saving.serialize_keras_object(self._saved)
        except NotImplementedError as error:
            raise ValueError(
                f"Expected a network that a {_SUFFIXES[0]} file can hold. Received: "
                f"{self._saved.name!r}, whose class {type(self._saved).__name__} has no "
                f"`get_config` for the arguments of its constructor. Write one, or save the "
                f"weights alone: a path that ends in {_SUFFIXES[1]!r}."
            ) from error

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if self._knows_logs or self._others_log or not self._reads_monitor:
            return
        self._knows_logs = True
        of_epochs = [metric.name for metric in self.model.metrics]
        known = [*(logs or {}), *of_epochs]
        if self.monitor.removeprefix("val_") not in known:
            raise ValueError(self._no_monitor(known))

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        value = (logs or {}).get(self.monitor)
        if self._reads_monitor and value is None:
            validated = any(name.startswith("val_") for name in logs or {})
            if self.monitor.startswith("val_") and not validated:
                if epoch == 0 and not self._validated:
                    self._warn("until a callback brings it")
                return
            raise ValueError(self._no_monitor(logs or {}))
        if self.save_best_only and not self._improves(value):
            return
        path = _filled(self.path, self.monitor, epoch + 1, value)
        with written_whole(path) as unfinished:
            save = self._saved.save if path.endswith(_SUFFIXES[0]) else self._saved.save_weights
            save(unfinished)
        self._has_saved = True
        if self.save_best_only:
            self.best, self.best_epoch = float(value), epoch
        if self.verbose:
            reached = "" if value is None else f" with {self.monitor} {float(value):.4f}"
            print(f"\nStudentCheckpoint: saved epoch {epoch + 1}{reached} as {path}")

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        if not self._has_saved and self.best is None:
            self._warn("in the whole run")

    def _warn(self, how_long):
        warnings.warn(
            f"StudentCheckpoint saves nothing to {self.path!r} {how_long}: the logs have no finite "
            f"{self.monitor!r}. Pass `validation_data`, with a `validation_freq` of at most "
            "`epochs`, name another `monitor`, or pass save_best_only=False.",
            stacklevel=2,
        )

    def _improves(self, value):
        if not math.isfinite(value):
            return False
        return self.best is None or (value > self.best if self.mode == "max" else value < self.best)

    def _no_monitor(self, names):
        return (
            f"Expected the logs to have {self.monitor!r}, the monitor of a StudentCheckpoint. "
            f"Received: {sorted(names)}. Name one of them, with 'val_' for its value on validation "
            "data, or add the metric in `compile`."
        )


def check(callbacks, *, validated):
    """Refuses, before the first step, monitors of validation where there is none.

    Raises:
        ValueError: See above, or if averaged weights are validated and others would be saved.
    """
    _check_averages(callbacks)
    packages = {type(each).__module__.partition(".")[0] for each in callbacks}
    others_log = not packages <= {"keras", "keras_mikd"}  # Such as KerasCV's PyCOCOCallback.
    for each in callbacks:
        if isinstance(each, StudentCheckpoint):
            each.expect(validated=validated, others_log=others_log)


def _check_averages(callbacks):
    """Refuses to save weights after they were swapped back, or before they are swapped."""
    averages = (keras.callbacks.SwapEMAWeights,)
    swapping = [i for i, each in enumerate(callbacks) if isinstance(each, averages)]
    saving = [i for i, each in enumerate(callbacks) if isinstance(each, StudentCheckpoint)]
    if not swapping or not saving:
        return
    stays = all(callbacks[i].swap_on_epoch for i in swapping)
    if not stays or max(swapping) > min(saving):
        raise ValueError(
            "Expected SwapEMAWeights(swap_on_epoch=True) before StudentCheckpoint among the "
            "callbacks: otherwise the averaged weights are validated, and the others are saved. "
            f"Received: swap_on_epoch={stays}, "
            f"{[type(callbacks[i]).__name__ for i in sorted(swapping + saving)]}"
        )


def _network(model, name):
    """Returns the network of a distiller that is saved."""
    if not hasattr(model, "trained_networks"):
        raise ValueError(
            f"Expected a distiller or an MCMITeacher. Received: {model!r}. A network that trains "
            "alone is saved by keras.callbacks.ModelCheckpoint."
        )
    networks = model.trained_networks()
    if name is None and len(networks) == 1:
        return next(iter(networks.values()))
    if name not in networks:
        raise ValueError(
            f"Expected `network` to be one of {list(networks)}. Received: network={name!r}"
        )
    return networks[name]


def _checked_path(path, monitor):
    path = str(path)
    try:
        _filled(path, monitor, 1, 0.5)
    except (LookupError, ValueError, AttributeError) as error:
        raise ValueError(
            f"Expected a path in which only {{epoch}} and {{{monitor}}} are filled in. "
            f"Received: path={path!r} ({error!r})"
        ) from error
    if not path.endswith(_SUFFIXES):
        raise ValueError(
            "Expected a path that ends in '.keras' (the network) or '.weights.h5' (its weights). "
            f"Received: path={path!r}"
        )
    return path


def _filled(path, monitor, epoch, value):
    return path.format(**{monitor: value, "epoch": epoch})


def _fields(path):
    return {name for _, name, _, _ in string.Formatter().parse(path) if name is not None}


def _pattern(path):
    """Returns the pattern of `glob` that all files of a path have, whatever is filled in."""
    parts = string.Formatter().parse(path)
    return "".join(glob.escape(text) + "*" * (name is not None) for text, name, _, _ in parts)


def _direction(monitor, mode):
    """Returns whether the largest value of a monitor is best, `"max"`, or the smallest, `"min"`."""
    if mode != "auto":
        return mode
    if not monitor.endswith(("accuracy", "loss")):
        raise ValueError(
            "Expected mode='max' or mode='min' for a monitor whose name ends neither in 'accuracy' "
            f"nor in 'loss'. Received: monitor={monitor!r}, mode='auto'"
        )
    return "min" if monitor.endswith("loss") else "max"

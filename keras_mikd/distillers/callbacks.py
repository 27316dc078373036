"""What `fit` shows of a distiller's logs, on the console and in TensorBoard."""

import warnings
from typing import Any

import keras
import numpy as np

NOT_FINITE = "Expected finite losses."
"""Begins what is said of a term that is not finite."""


class TotalsLogger(keras.callbacks.ProgbarLogger):
    """Keras' progress bar without the terms and read-outs of the losses, which all logs hold."""

    def on_train_batch_end(self, batch, logs=None):
        super().on_train_batch_end(batch, self._shown(logs))

    def on_epoch_end(self, epoch, logs=None):
        super().on_epoch_end(epoch, self._shown(logs))

    def _shown(self, logs):
        groups = log_groups(self.model)
        return {k: v for k, v in (logs or {}).items() if k.removeprefix("val_") not in groups}


class TensorBoard(keras.callbacks.TensorBoard):
    """`keras.callbacks.TensorBoard` with the logs of a distiller in groups.

    The terms of the loss are in the section `epoch_terms`, the read-outs of the losses in
    `epoch_readouts`, weights and shares of the gradient in `epoch_balance`; `loss`, `task_loss` and
    the metrics have sections of their own. With other models, it is the same as Keras' callback. On
    several hosts, only the chief writes.

    ```python
    distiller.fit(train, epochs=60, callbacks=[keras_mikd.TensorBoard("logs")])
    ```

    Args:
        *args: As `keras.callbacks.TensorBoard`.
        **kwargs: Likewise.
    """

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        super().on_epoch_end(epoch, self._grouped(logs))

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        super().on_train_batch_end(batch, self._grouped(logs))

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        super().on_test_end(self._grouped(logs))

    def _grouped(self, logs):
        groups = log_groups(self.model)
        return {_in_group(name, groups): value for name, value in (logs or {}).items()}


class FiniteEpochs(keras.callbacks.Callback):
    """Stops after an epoch in which a term was not finite, where a step cannot stop by itself."""

    def on_epoch_end(self, epoch, logs=None):
        terms = [loss.name for loss in self.model.distillation_losses]
        for name in (*terms, "task_loss", "loss"):
            if not np.all(np.isfinite((logs or {}).get(name, 0.0))):
                raise ValueError(
                    f"{NOT_FINITE} Received: NaN or infinity in `{name}` in epoch {epoch + 1}. "
                    "XLA compiles no stop: such steps had no gradient, and training went on. "
                    "Lower the learning rate or the weight of the term. "
                    "compile(..., jit_compile=False) stops at the step itself."
                )


class ReadOutsCame(keras.callbacks.Callback):
    """Warns after the first epoch of `fit` of a read-out to which its loss added nothing."""

    def on_epoch_end(self, epoch, logs=None):
        for loss in self.model.distillation_losses if self.model.readout_turns.logged else ():
            for metric in loss.metrics:
                # Others may have seen no pairs, in batches of one.
                is_mean = isinstance(metric, keras.metrics.Mean)
                if is_mean and not any(np.any(v.numpy()) for v in metric.variables):
                    warnings.warn(
                        f"{metric.name!r} is logged as 0: {loss.name!r} has made this metric, and "
                        "its `call` never updates it.",
                        stacklevel=2,
                    )
        self.on_epoch_end = lambda epoch, logs=None: None


def with_own(given, own):
    """Returns callbacks of `fit` with those of a distiller first, and its progress bar last."""
    shown = any(isinstance(each, keras.callbacks.ProgbarLogger) for each in given)
    return [*own, FiniteEpochs(), ReadOutsCame(), *given, *([] if shown else [TotalsLogger()])]


def log_groups(model):
    """Returns `{name in the logs: group}` of what a distiller's losses log, and its balance."""
    losses = getattr(model, "distillation_losses", ())
    terms = {loss.name: "terms" for loss in losses}
    readouts = {metric.name: "readouts" for loss in losses for metric in loss.metrics}
    balance = getattr(model, "gradient_balance", None)
    return terms | readouts | {name: "balance" for name in (balance.log_names() if balance else ())}


def _in_group(name, groups):
    plain = name.removeprefix("val_")
    prefix = name[: len(name) - len(plain)]
    return f"{prefix}{groups[plain]}/{plain}" if plain in groups else name

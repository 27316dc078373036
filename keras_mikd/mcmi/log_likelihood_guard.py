"""Stops the tuning of a teacher before its log-likelihood is gone."""

from typing import Any

import keras

from keras_mikd import checks


class LogLikelihoodGuard(keras.callbacks.Callback):
    """Stops when the validation log-likelihood falls too low, and restores the best weights.

    The best epoch is the one with the most conditional mutual information among those at or above
    the limit; without one, the weights from before training return. If the limit is never passed,
    the last epoch's weights stay.

    ```python
    before = keras_mikd.measure_cmi(teacher, validation).log_likelihood
    guard = keras_mikd.LogLikelihoodGuard(before - 0.1)
    mcmi.fit(train, validation_data=validation, epochs=20, callbacks=[guard])
    ```

    Args:
        limit: Smallest log-likelihood accepted, in nats per example, at most 0.
        monitor: Log that is compared with the limit.
        best: Log whose largest value is best.
        verbose: Whether to print why training stopped.

    Attributes:
        stopped_epoch: Epoch, counted from 0, after which training stopped; `None` if it did not.
        best_epoch: Epoch of the best weights; `None` for those from before training.

    Raises:
        ValueError: If `limit` is not a number of at most 0, or the logs lack `monitor` or `best`.
    """

    def __init__(
        self,
        limit: float,
        *,
        monitor: str = "val_log_likelihood",
        best: str = "val_cmi",
        verbose: bool = True,
    ) -> None:
        super().__init__()
        self.limit = checks.number("limit", limit, at_most=0)
        self.monitor = monitor
        self.best = best
        self.verbose = verbose
        self.stopped_epoch = None
        self.best_epoch = None

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self.stopped_epoch = self.best_epoch = None
        self._best_value = None
        self._best_weights = self.model.get_weights()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        value, best = (self._log(name, logs or {}) for name in (self.monitor, self.best))
        if not value >= self.limit:  # NaN is too low as well.
            self._stop(epoch, value)
        elif self._best_value is None or best > self._best_value:
            self._best_value, self.best_epoch = best, epoch
            self._best_weights = self.model.get_weights()

    def _stop(self, epoch, value):
        self.stopped_epoch = epoch
        self.model.stop_training = True
        self.model.set_weights(self._best_weights)
        if self.verbose:
            kept = (
                "before training" if self.best_epoch is None else f"of epoch {self.best_epoch + 1}"
            )
            print(
                f"\nLogLikelihoodGuard: stopped after epoch {epoch + 1}, where {self.monitor} fell "
                f"to {value:.4f} nats, below the limit of {self.limit:.4f}. Restored the weights "
                f"{kept}."
            )

    def _log(self, name, logs):
        if name not in logs:
            raise ValueError(
                f"Expected the logs to have {name!r}: pass `validation_data` to `fit` of an "
                "MCMITeacher, without `validation_terms=False`, or other names. Received: "
                f"logs={sorted(logs)}"
            )
        return logs[name]

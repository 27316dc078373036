import keras
import numpy as np
import pytest
import resumed_run
import tensorflow as tf

import keras_mikd as mikd

KINDS = ["plain", "dropout", "arrays", "mcmi", "mutual", "cached"]


class _Interrupt(keras.callbacks.Callback):
    """Interrupts training at the beginning of a batch."""

    def __init__(self, epoch, batch):
        super().__init__()
        self._at = epoch, batch

    def on_epoch_begin(self, epoch, logs=None):
        self._now = epoch

    def on_train_batch_begin(self, batch, logs=None):
        if (self._now, batch) == self._at:
            raise KeyboardInterrupt


def _interrupted(kind, folder, *moments):
    for moment in moments:
        with pytest.raises(KeyboardInterrupt):
            resumed_run.run(kind, folder, [_Interrupt(*moment)])
    return resumed_run.run(kind, folder)


@pytest.mark.parametrize("saved", ["epochs", "steps"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_goes_on_ends_with_the_weights_and_history_of_an_undisturbed_one(
    kind, saved, tmp_path, deterministic_ops
):
    whole = resumed_run.run(kind, tmp_path / "whole")
    other = _interrupted(f"{kind} {saved}", tmp_path / "other", (0, 3), (1, 5), (3, 0))
    assert whole.keys() == other.keys()
    for name, value in whole.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)

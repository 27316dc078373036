"""Which steps of training update the read-outs of losses, so that the others cost less."""

import contextlib

import keras

from keras_mikd import checks


class ReadoutTurns:
    """Says whether the step that runs or is traced now updates the read-outs.

    Steps with and without them are compiled apart, and the host chooses: a condition inside a step
    would cost an accelerator more than it saves. Outside of `fit` every step updates them.

    Args:
        every: From one such step to the next, the first of an epoch being one; `None` for none.
    """

    def __init__(self, every):
        self.every = checks.integer("readout_every", every, at_least=1, optional=True)
        self.due = True

    @property
    def logged(self):
        """Whether there is anything to log."""
        return self.due or self.every is not None

    @contextlib.contextmanager
    def all(self):
        """Within this scope every step updates them."""
        before, self.due = self.due, True
        try:
            yield
        finally:
            self.due = before


class TakeReadoutTurns(keras.callbacks.Callback):
    """Tells the `ReadoutTurns` of a distiller which step of the epoch comes."""

    def on_train_batch_begin(self, batch, logs=None):
        turns, together = self.model.readout_turns, self.model.steps_per_execution
        turns.due = turns.every is not None and batch % (turns.every * together) < together

    def on_train_end(self, logs=None):
        self.model.readout_turns.due = True

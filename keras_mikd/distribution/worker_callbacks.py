"""Callbacks of a worker that is not the chief, which does not write files."""

import keras

from keras_mikd.keras_internals import Restore

_WRITERS = (
    keras.callbacks.CSVLogger,
    keras.callbacks.ModelCheckpoint,
    keras.callbacks.TensorBoard,
)


def without_writers(callbacks):
    """Returns the callbacks of `fit`, as a list, for a worker that is not the chief.

    `CSVLogger`, `ModelCheckpoint`, `TensorBoard` and what has an attribute `only_writes = True`
    are left out. A `BackupAndRestore` becomes one that restores the chief's backup and writes none.
    All others, the caller's own too, run on every worker.
    """
    return [
        Restore(each.backup_dir) if isinstance(each, keras.callbacks.BackupAndRestore) else each
        for each in listed(callbacks)
        if not (isinstance(each, _WRITERS) or getattr(each, "only_writes", False))
    ]


def listed(callbacks):
    """Returns the callbacks of `fit` as a list."""
    if isinstance(callbacks, keras.callbacks.CallbackList):
        return callbacks.callbacks
    return [] if callbacks is None else keras.tree.flatten(callbacks)

"""Callbacks of a worker that is not the chief: those that write files are left to the chief."""

import keras

from keras_mikd.keras_internals import Restore

_WRITERS = (
    keras.callbacks.CSVLogger,
    keras.callbacks.ModelCheckpoint,
    keras.callbacks.TensorBoard,
)


def without_writers(callbacks):
    """Returns what a worker that is not the chief runs of the callbacks of `fit`.

    `CSVLogger`, `ModelCheckpoint` and `TensorBoard` only write, and are left out. A
    `BackupAndRestore` is replaced by one that restores the chief's backup and writes none. All
    others, those of the caller's own making too, run on every worker.

    Args:
        callbacks: A callback, a list of them, a `CallbackList`, or `None`.

    Returns:
        A list of callbacks.
    """
    if isinstance(callbacks, keras.callbacks.CallbackList):
        callbacks = callbacks.callbacks
    callbacks = keras.tree.flatten(callbacks) if callbacks is not None else []
    return [
        Restore(each.backup_dir) if isinstance(each, keras.callbacks.BackupAndRestore) else each
        for each in callbacks
        if not isinstance(each, _WRITERS)
    ]

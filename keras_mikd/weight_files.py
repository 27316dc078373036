"""Files of a model: written whole, and loaded whole or not at all."""

import contextlib
import json
import os
import warnings

import keras
import numpy as np

from keras_mikd.atomic_files import written_whole

# Keras' words, in warnings: of a state of another kind, and of one that the file does not have.
_SKIPPED, _NO_STATE = "Skipping variable loading for optimizer", "saved optimizer has 0 variables"
_H5 = (".h5", ".hdf5")


def check_suffix(path):
    """Refuses an `.h5` file for a whole model.

    Raises:
        ValueError: If it is one.
    """
    if str(path).endswith(_H5):
        raise ValueError(
            f"Expected a path that ends in '.keras'. Received: {str(path)!r}. An .h5 file of a "
            "model leaves out teachers and optimizers. Weights alone go to a '.weights.h5' file, "
            "with save_weights or ModelCheckpoint(..., save_weights_only=True)."
        )


def check_checkpoints(callbacks):
    """Refuses a `ModelCheckpoint` that `check_suffix` would refuse after an epoch."""
    for each in callbacks:
        if isinstance(each, keras.callbacks.ModelCheckpoint) and not each.save_weights_only:
            check_suffix(each.filepath)


@contextlib.contextmanager
def whole(filepath, overwrite, suffix):
    """Gives the path to write a file to; other targets, and questions to the user, are Keras'."""
    known = isinstance(filepath, (str, os.PathLike)) and suffix is not None
    path = os.fspath(filepath) if known else ""
    plain = path.endswith(suffix or "\0") and "://" not in path and not os.path.isdir(path)
    if not plain or (os.path.exists(path) and not overwrite):
        yield filepath
    else:
        with written_whole(path) as unfinished:
            yield unfinished


@contextlib.contextmanager
def loaded_whole(filepath, variables):
    """Gives back all variables their values if what happens inside fails or brings in NaN.

    Raises:
        ValueError: If a file does not fit, or holds numbers that are not finite.
    """
    before = [keras.ops.convert_to_numpy(v).copy() for v in variables]
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            yield
        _check_optimizers(told)
        _check_finite(variables, before)
    except BaseException as error:
        for variable, value in zip(variables, before, strict=True):
            variable.assign(value)
        if not isinstance(error, (ValueError, KeyError, TypeError)):
            raise
        raise ValueError(
            "Expected a file with finite weights of these networks, losses and optimizers. "
            f"Received: {str(filepath)!r}, which does not fit, so nothing is changed: {error}"
        ) from error
    for each in told:
        warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)


def _check_optimizers(told):
    for each in told:
        if _SKIPPED in str(each.message) and _NO_STATE not in str(each.message):
            raise ValueError(f"it has the state of another optimizer. {each.message}")


def _check_finite(variables, before):
    for variable, value in zip(variables, before, strict=True):
        now = keras.ops.convert_to_numpy(variable)
        # What is not finite already may stay so, such as centroids that were not measured yet.
        if now.dtype.kind in "fV" and np.all(np.isfinite(value.astype("float64"))):
            wrong = int(np.sum(~np.isfinite(now.astype("float64"))))
            if wrong:
                raise ValueError(f"{variable.path} has {wrong} numbers that are not finite.")


def optimizer_names(optimizers):
    """Returns the classes of optimizers as an array, to be saved with what they keep."""
    names = [type(getattr(each, "inner_optimizer", each)).__name__ for each in optimizers]
    return np.frombuffer(json.dumps(names).encode(), "uint8")


def check_optimizer_names(saved, optimizers):
    """Refuses what other optimizers have kept; files of earlier versions do not say which."""
    saved, own = (json.loads(np.asarray(x).tobytes()) for x in (saved, optimizer_names(optimizers)))
    if saved and own and saved != own:
        raise ValueError(f"Expected the state of {', '.join(own)}. Received: {', '.join(saved)}")

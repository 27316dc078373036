"""What `fit` returned, or a CSV file of it, as numbers by epoch."""

import csv
import os
import pathlib

import numpy as np


def history_of(run):
    """Returns `{key: numbers by epoch}` of a run.

    A run is what `fit` returned, its `history`, or the path of a file of
    `keras.callbacks.CSVLogger`.

    Raises:
        ValueError: If it is something else.
        FileNotFoundError: If there is no such file.
    """
    if isinstance(run, (str, os.PathLike)):
        return _read_csv(pathlib.Path(run))
    history = getattr(run, "history", run)
    if not isinstance(history, dict):
        raise ValueError(
            "Expected a run to be what `fit` returned, its `history`, or the path of a CSV file. "
            f"Received: {type(run).__name__}"
        )
    return history


def _read_csv(path):
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    # CSVLogger writes "NA" in epochs without validation.
    return {
        key: [np.nan if row[key] in ("", "NA") else float(row[key]) for row in rows]
        for key in (rows[0] if rows else ())
    }

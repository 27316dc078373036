"""How a teacher moves between log-likelihood and conditional mutual information."""

import os
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from keras_mikd.figures.canvas import as_panels, new_figure
from keras_mikd.figures.histories import history_of


def cmi_trajectory(
    runs: keras.callbacks.History | str | os.PathLike | Mapping[str, Any],
    *,
    cmi: str = "cmi",
    log_likelihood: str = "log_likelihood",
) -> Any:
    """Draws conditional mutual information over log-likelihood, epoch by epoch.

    Each run is a line from its first epoch (a ring) to its last (a disc). A run of one epoch, such
    as the teacher before tuning, is a disc. Up is more context, and right is a better fit. A
    teacher that MCMI improves moves up, and not far to the left.

    Args:
        runs: Mapping `{title: run}`, or one run. A run is what `fit` returned, its `history` (a
            dict of lists), or the path of a CSV file of `keras.callbacks.CSVLogger`.
        cmi: Key of the conditional mutual information, in nats.
        log_likelihood: Key of the mean log-likelihood, in nats.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ValueError: If there are no runs, a run lacks a key, its lists are empty or not of one
            length, or hold no pair of finite numbers.
        FileNotFoundError: If a CSV file does not exist.
        ImportError: If matplotlib is not installed.

    Example:
    ```python
    history = tuner.fit(train, validation_data=validation, epochs=20)
    figure = cmi_trajectory({"weight 0.25": history})
    ```
    """
    keys = (log_likelihood, cmi)
    if isinstance(runs, dict) and all(key in runs for key in keys):
        runs = {"": runs}  # A history, whose keys are no titles.
    lines = {title: _points(run, keys, title) for title, run in as_panels(runs, "runs").items()}
    figure, ((axes,),) = new_figure(1, 1, width=6.0, height=4.5)
    for title, (x, y) in lines.items():
        (line,) = axes.plot(x, y, marker=".", markersize=3, linewidth=1, label=title)
        colour = line.get_color()
        axes.plot(x[:1], y[:1], "o", markersize=8, markerfacecolor="none", color=colour)
        axes.plot(x[-1:], y[-1:], "o", markersize=8, color=colour)
    axes.set(xlabel="log-likelihood, nats", ylabel="conditional mutual information, nats")
    if any(lines):
        axes.legend()
    return figure


def _points(run, keys, title):
    """Returns the finite pairs of a run, two arrays of one length."""
    history = history_of(run)
    missing = [key for key in keys if key not in history]
    if missing:
        raise ValueError(
            f"Expected run {title!r} to have the keys {list(keys)}. "
            f"Received: {sorted(history)}, without {missing}"
        )
    values = [np.asarray(history[key], np.float64) for key in keys]
    if values[0].ndim != 1 or values[0].shape != values[1].shape:
        raise ValueError(
            f"Expected run {title!r} to have a number per epoch of each of {list(keys)}. "
            f"Received: shapes {[each.shape for each in values]}"
        )
    pairs = np.stack(values)
    pairs = pairs[:, np.isfinite(pairs).all(axis=0)]
    if not pairs.size:
        raise ValueError(
            f"Expected run {title!r} to have an epoch with finite {list(keys)}. Received: none of "
            f"{len(values[0])}"
        )
    return pairs

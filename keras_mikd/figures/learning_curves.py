"""What `fit` logs, epoch by epoch."""

import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_mikd.figures.canvas import new_figure
from keras_mikd.figures.histories import history_of

_VALIDATION = "val_"
_TASK = "task_loss"
_TOTAL = "loss"
# Ends of names that a distiller logs, and the panels that they belong to.
_PANELS = {
    "_mi_nats": "mutual information, nats",
    "_gaussian_nats": "explained, nats per channel",
    "_weight": "weights in the total",
    "_share": "shares of the gradient",
}
_BESIDE = ("_mi_nats_se", "_mi_nats_limit")
# The total says little, and a CSV file numbers its epochs.
_NO_CURVES = (_TOTAL, "learning_rate", "epoch")
_COLUMNS = 3
_SATURATED = 2.0
"""Nats below its limit, where a read-out begins to say little."""


def learning_curves(
    run: keras.callbacks.History | str | os.PathLike | Mapping[str, Any],
    *,
    metrics: Sequence[str] | None = None,
) -> Any:
    """Draws what `fit` logged, in one panel for each kind of number.

    The panels are the labels' loss, the metrics, the terms of the loss, mutual information with its
    standard error (a band) and its limit (dotted, where a curve comes within 2 nats of it, and in
    the legend), what VID heads explain, and with `balance="gradient"` weights and shares. Training
    is a thin line, validation a thick one. The total has no panel: bounds fall below zero and
    weights change, so it says little.

    Args:
        run: What `fit` returned, its `history`, or the path of a CSV file of
            `keras.callbacks.CSVLogger`.
        metrics: Names of metrics, without `"val_"`; those that end with `"accuracy"` if `None`.
            Other names are taken for terms of the loss.

    A `history` does not say of which epochs the numbers of `validation_freq=2` are. They are left
    out with a warning; a CSV file has them.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ValueError: If there is nothing to draw, or a metric is not in the run.
        FileNotFoundError: If a CSV file does not exist.
        ImportError: If matplotlib is not installed.

    Example:
    ```python
    history = distiller.fit(train, validation_data=validation, epochs=20)
    figures.save_png(figures.learning_curves(history), "curves.png")
    ```
    """
    history = _by_epoch(history_of(run))
    names = list(dict.fromkeys(key.removeprefix(_VALIDATION) for key in history))
    missing = [name for name in metrics or () if name not in names]
    if missing:
        raise ValueError(f"Expected `metrics` to be among {names}. Received: {missing}")
    panels = _panels(names, metrics)
    if not panels:
        raise ValueError(f"Expected a run with numbers of epochs. Received: {sorted(history)}")
    columns = min(len(panels), _COLUMNS)
    figure, axes = new_figure(-(-len(panels) // columns), columns, width=4.0, height=3.0)
    for axis, (title, members) in zip(axes.flat, panels.items(), strict=False):
        for name in members:
            _draw(axis, history, name)
        axis.set(title=title, xlabel="epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
        # Under the panel and the label of its axis, where it covers nothing.
        place = {"loc": "upper center", "bbox_to_anchor": (0.5, 0.0), "borderaxespad": 5.0}
        axis.legend(fontsize="x-small", **place)
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    return figure


def _by_epoch(history):
    """Returns `{key: number of every epoch}` of what has numbers, NaN where there is none."""
    # A CSV file has columns of validation, even if there never was any.
    numbers = {key: np.asarray(values, np.float64) for key, values in history.items()}
    numbers = {key: values for key, values in numbers.items() if not np.isnan(values).all()}
    epochs = max(map(len, numbers.values()), default=0)
    if short := {key: len(values) for key, values in numbers.items() if len(values) < epochs}:
        warnings.warn(
            f"Left out {sorted(short)}: a history does not say which of the {epochs} epochs have "
            "these numbers. To draw them, pass the file of a keras.callbacks.CSVLogger.",
            stacklevel=3,
        )
    return {key: values for key, values in numbers.items() if key not in short}


def _panels(names, metrics):
    """Returns `{title: names}` of what there is."""
    panels = {title: [] for title in ("the labels' loss", "metrics", "terms, unweighted")}
    panels |= {title: [] for title in _PANELS.values()}
    for name in names:
        ending = next((end for end in _PANELS if name.endswith(end)), None)
        is_metric = name.endswith("accuracy") if metrics is None else name in metrics
        if is_metric:
            panels["metrics"].append(name)
        elif name == _TASK or (name == _TOTAL and _TASK not in names):
            panels["the labels' loss"].append(name)
        elif ending is not None:
            panels[_PANELS[ending]].append(name)
        elif not name.endswith(_BESIDE) and name not in _NO_CURVES:
            panels["terms, unweighted"].append(name)
    return {title: members for title, members in panels.items() if members}


def _draw(axis, history, name):
    """Draws a number in training and in validation, with its band and its limit."""
    colour = None
    for prefix, width in (("", 1.0), (_VALIDATION, 2.5)):
        values, error, limit = (
            history.get(f"{prefix}{name}{end}") for end in ("", "_se", "_limit")
        )
        if values is None:
            continue
        # Across epochs without a number, since a point between two of them would not be seen.
        seen = ~np.isnan(values)
        epochs, values = 1 + np.flatnonzero(seen), values[seen]
        (line,) = axis.plot(epochs, values, linewidth=width, color=colour, label=prefix + name)
        colour = line.get_color()
        if error is not None:
            low, high = values - error[seen], values + error[seen]
            axis.fill_between(epochs, low, high, color=colour, alpha=0.2)
        if limit is None:
            continue
        limit = limit[seen]
        line.set_label(f"{prefix}{name}, limit {limit[-1]:.1f}")
        # A limit far above would press the curves flat.
        if values.max() > np.nanmin(limit) - _SATURATED:
            axis.plot(epochs, limit, ":", linewidth=width, color=colour)

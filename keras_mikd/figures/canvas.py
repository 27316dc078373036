"""Empty figures, and the panels side by side in them."""

import collections.abc

from keras_mikd import checks


def new_figure(rows, columns, *, width, height):
    """Returns a figure and its axes, an array of shape `(rows, columns)`.

    `width` and `height` are those of one of the axes, in inches.
    """
    with checks.extra("figures"):
        # Not pyplot, which keeps every figure alive and chooses a backend for the whole process.
        from matplotlib.figure import Figure
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def as_panels(value, name):
    """Returns `{title: what to draw}` of the argument `name`; no mapping is one untitled panel."""
    if not isinstance(value, collections.abc.Mapping):
        return {"": value}
    if not value:
        raise ValueError(f"Expected `{name}` to have at least one entry. Received: {name}={{}}")
    return {str(title): each for title, each in value.items()}

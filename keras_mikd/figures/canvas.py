"""Empty figures, and one thing or several side by side in them."""

import collections.abc
import contextlib


@contextlib.contextmanager
def figures_extra():
    """Imports in this context say what to install.

    Raises:
        ImportError: If a package that only figures need is not installed.
    """
    try:
        yield
    except ImportError as error:
        raise ImportError(
            f"Figures need the package `{error.name}`, which is not installed: "
            'pip install "keras_mikd[figures]"'
        ) from error


def new_figure(rows, columns, *, width, height, **subplots):
    """Returns a figure and its axes, an array of shape `(rows, columns)`.

    Args:
        rows: Number of rows of axes.
        columns: Number of columns.
        width: Width of one of them, in inches.
        height: Height of one of them, in inches.
        **subplots: Further arguments of `Figure.subplots`.
    """
    with figures_extra():
        # Not pyplot, which keeps every figure alive and chooses a backend for the whole process.
        from matplotlib.figure import Figure
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **subplots)


def as_panels(value, name):
    """Returns `{title: what to draw}`; what is no mapping is one panel without a title.

    Args:
        value: A mapping, or one thing to draw.
        name: Name of the argument, for the message.

    Raises:
        ValueError: If the mapping is empty.
    """
    if not isinstance(value, collections.abc.Mapping):
        return {"": value}
    if not value:
        raise ValueError(f"Expected at least one entry. Received: {name}={{}}")
    return {str(title): each for title, each in value.items()}

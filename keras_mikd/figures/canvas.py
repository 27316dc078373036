"""Empty figures, and the panels side by side in them."""

import collections.abc
import io

from keras_mikd import checks


def new_figure(rows, columns, *, width, height):
    """Returns a figure and its axes, an array of shape `(rows, columns)`.

    `width` and `height` are those of one of the axes, in inches.
    """
    figure = _figure_class()(figsize=(width * columns, height * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _figure_class():
    with checks.extra("figures"):
        # Not pyplot, which keeps every figure alive and chooses a backend for the whole process.
        from matplotlib.figure import Figure

    class ShownFigure(Figure):
        """A figure that a notebook shows, although pyplot does not know it."""

        def _repr_png_(self):
            content = io.BytesIO()
            self.savefig(content, format="png")
            return content.getvalue()

    return ShownFigure


def as_panels(value, name):
    """Returns `{title: what to draw}` of the argument `name`; no mapping is one untitled panel."""
    if not isinstance(value, collections.abc.Mapping):
        return {"": value}
    if not value:
        raise ValueError(f"Expected `{name}` to have at least one entry. Received: {name}={{}}")
    return {str(title): each for title, each in value.items()}

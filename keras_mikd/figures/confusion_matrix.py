"""Which classes a network confuses."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_mikd import checks
from keras_mikd.figures.canvas import as_panels, new_figure
from keras_mikd.figures.class_labels import checked_class_names, checked_labels

# More cells than this are too small for a number.
_MOST_NUMBERED = 20


def confusion_matrix(
    labels: np.ndarray | Sequence[int],
    predictions: np.ndarray | Sequence[int] | Mapping[str, np.ndarray | Sequence[int]],
    *,
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
) -> Any:
    """Draws row-normalised confusion matrices.

    The cell in row i and column j is the fraction of the examples of class i that were classified
    as class j, written as a percentage where there is room for it. The row of a class without
    examples stays empty.

    Args:
        labels: True classes, integers of shape `(n,)`.
        predictions: Predicted classes, integers of shape `(n,)`; or a mapping
            `{title: predictions}`, for one matrix each.
        num_classes: Number of classes; `None` for one more than the largest index that is seen.
        class_names: One name per class; `None` for the indices.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ValueError: If there are no indices, they are no integers, out of range, or of another
            number on the two sides; or if there are not as many names as classes.
        ImportError: If matplotlib or scikit-learn is not installed.

    Example:
    ```python
    predictions = student.predict(images).argmax(axis=1)
    figure = confusion_matrix(labels, {"KD": predictions})
    save_png(figure, "confusion.png")
    ```
    """
    with checks.extra("figures"):
        from sklearn import metrics
    labels = checked_labels(labels, "labels", num_classes=num_classes)
    panels = {
        title: checked_labels(
            each, "predictions", num_examples=len(labels), num_classes=num_classes
        )
        for title, each in as_panels(predictions, "predictions").items()
    }
    if num_classes is None:
        num_classes = 1 + max(each.max() for each in (labels, *panels.values()))
    names = checked_class_names(class_names, num_classes)
    size = 2.0 + 0.4 * min(num_classes, _MOST_NUMBERED)
    figure, (row,) = new_figure(1, len(panels), width=size, height=size)
    for axes, (title, predicted) in zip(row, panels.items(), strict=True):
        matrix = metrics.confusion_matrix(
            labels, predicted, labels=np.arange(num_classes), normalize="true"
        )
        # scikit-learn writes 0 where there is nothing to divide by.
        matrix[np.setdiff1d(np.arange(num_classes), labels)] = np.nan
        image = _draw(axes, matrix, names)
        axes.set(title=title, xlabel="predicted class", ylabel="true class")
    figure.colorbar(image, ax=row, shrink=0.7, label="fraction of the true class")
    return figure


def _draw(axes, matrix, names):
    image = axes.imshow(matrix, cmap="Blues", vmin=0.0, vmax=1.0)
    if len(names) > _MOST_NUMBERED:
        return image
    positions = range(len(names))
    turned = 90 if max(map(len, names)) > 3 else 0
    axes.set_xticks(positions, names, rotation=turned)
    axes.set_yticks(positions, names)
    for (i, j), value in np.ndenumerate(matrix):
        if value > 0:
            colour = "white" if value > 0.5 else "black"
            text = f"{100 * value:.0f}"
            axes.text(j, i, text, ha="center", va="center", color=colour, fontsize=7)
    return image

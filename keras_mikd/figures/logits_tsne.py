"""The logits of a network as a map of points."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_mikd import checks
from keras_mikd.figures.canvas import as_panels, new_figure
from keras_mikd.figures.class_labels import checked_class_names, checked_labels

# With more classes than this, a colour bar stands for the legend.
_MOST_NAMED = 20


def logits_tsne(
    logits: np.ndarray | Mapping[str, np.ndarray],
    labels: np.ndarray | Sequence[int],
    *,
    class_names: Sequence[str] | None = None,
    perplexity: float = 15.0,
    seed: int = 0,
) -> Any:
    """Draws the t-SNE of logits, a colour for each class.

    Neighbours mean something in a t-SNE. Distances between far points do not, nor do the sizes and
    densities of clusters. Two panels are two embeddings, so only shapes can be compared.

    Args:
        logits: Floats of shape `(n, classes)`; or a mapping `{title: logits}` over the same
            examples, for one panel each.
        labels: True classes, integers of shape `(n,)`.
        class_names: One name per class, for the legend; `None` for the indices.
        perplexity: About how many neighbours a point has, above 0 and less than `n`. The MCMI
            authors draw with 15.
        seed: Seed of the embedding.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ValueError: If there are no logits, they are not finite, all the same or not
            two-dimensional, if labels are out of range or not as many, or `perplexity` is out of
            range.
        ImportError: If matplotlib or scikit-learn is not installed.

    References:
        van der Maaten and Hinton, Visualizing Data using t-SNE, JMLR 9, 2008.

    Example:
    ```python
    figure = logits_tsne({"MLL": student(images), "MCMI": other_student(images)}, labels)
    ```
    """
    with checks.extra("figures"):
        from sklearn.manifold import TSNE
        from threadpoolctl import threadpool_limits
    panels = {title: _checked(each) for title, each in as_panels(logits, "logits").items()}
    _check_same_shape(panels)
    num_examples, num_classes = next(iter(panels.values())).shape
    labels = checked_labels(labels, "labels", num_examples=num_examples, num_classes=num_classes)
    names = checked_class_names(class_names, num_classes)
    checks.number("perplexity", perplexity, above=0, below=num_examples)
    figure, (row,) = new_figure(1, len(panels), width=5.0, height=4.5)
    for axes, (title, each) in zip(row, panels.items(), strict=True):
        # The threads of scikit-learn's t-SNE spin while they wait for one another. On a busy
        # machine, one of them is ten times faster than several.
        with threadpool_limits(1, "openmp"):
            embedding = TSNE(perplexity=perplexity, random_state=seed).fit_transform(each)
        points = _scatter(axes, embedding, labels, names)
        axes.set(title=title, xticks=[], yticks=[])
    if len(names) > _MOST_NAMED:
        figure.colorbar(points, ax=row, label="class")
    else:
        figure.legend(*row[0].get_legend_handles_labels(), loc="outside right center")
    return figure


def _scatter(axes, embedding, labels, names):
    if len(names) > _MOST_NAMED:
        return axes.scatter(*embedding.T, c=labels, s=6, cmap="turbo", vmin=0, vmax=len(names) - 1)
    with checks.extra("figures"):
        from matplotlib import colormaps
    palette = colormaps["tab10" if len(names) <= 10 else "tab20"]
    for index, name in enumerate(names):
        points = axes.scatter(*embedding[labels == index].T, s=6, color=palette(index), label=name)
    return points


def _checked(logits):
    logits = np.asarray(logits)
    if logits.ndim != 2 or not logits.size or logits.dtype.kind not in "fiu":
        raise ValueError(
            "Expected `logits` to be floats of shape (n, classes), n > 0. "
            f"Received: logits of shape {logits.shape} and dtype {logits.dtype}"
        )
    if not np.isfinite(logits).all():
        raise ValueError("Expected finite logits. Received: logits with nan or inf")
    if (logits == logits[0]).all():
        raise ValueError(
            f"Expected logits that differ. Received: {len(logits)} times the same logits"
        )
    return logits.astype(np.float32)


def _check_same_shape(panels):
    shapes = {title: logits.shape for title, logits in panels.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(
            f"Expected logits of the same examples and classes. Received: shapes {shapes}"
        )

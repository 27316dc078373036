"""Eigen-CAM of several networks over the same images."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_mikd.figures.canvas import as_panels, new_figure
from keras_mikd.figures.class_labels import check_length
from keras_mikd.figures.eigen_cam import eigen_cam


def eigen_cam_grid(
    models: keras.Model | Mapping[str, keras.Model],
    images: np.ndarray,
    place: str | None = None,
    *,
    captions: Sequence[str] | None = None,
    center: bool = False,
) -> Any:
    """Draws images, and below them, row by row, where each network looks.

    Args:
        models: Mapping `{title: model}`, such as an MLL and an MCMI teacher; or one model.
        images: Floats of shape `(n, height, width, channels)` with 1 or 3 channels, scaled as the
            models expect them. Shown stretched to the range of grey or colour, each by itself.
        place: Place of the feature map in every model (see `eigen_cam`); `None` for the last
            stage of each.
        captions: One text above each image, such as its class; `None` for none.
        center: As in `eigen_cam`.

    Returns:
        A `matplotlib.figure.Figure` with `1 + len(models)` rows of `n` images.

    Raises:
        ValueError: If the images have another number of channels, if captions are not as many, and
            what `eigen_cam` raises.
        ImportError: If matplotlib is not installed.

    Example:
    ```python
    figure = eigen_cam_grid({"MLL": teacher, "MCMI": tuned}, images[:8])
    ```
    """
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise ValueError(
            "Expected images of shape (n, height, width, channels) with 1 or 3 channels. "
            f"Received: images of shape {images.shape}"
        )
    if captions is not None:
        check_length("captions", captions, len(images), "images")
    panels = as_panels(models, "models")
    heats = {title: eigen_cam(each, images, place, center=center) for title, each in panels.items()}
    figure, grid = new_figure(1 + len(panels), len(images), width=1.3, height=1.3)
    shown = [_shown(image) for image in images]
    _draw_row(grid[0], "image", shown)
    for row, (title, heat) in zip(grid[1:], heats.items(), strict=True):
        _draw_row(row, title, shown, heat)
    if captions is not None:
        for axes, caption in zip(grid[0], captions, strict=True):
            axes.set_title(str(caption), fontsize=9)
    return figure


def _draw_row(row, title, images, heats=None):
    for position, axes in enumerate(row):
        axes.imshow(images[position], cmap="gray", vmin=0.0, vmax=1.0)
        if heats is not None:
            axes.imshow(heats[position], cmap="turbo", vmin=0.0, vmax=1.0, alpha=0.55)
        axes.set(xticks=[], yticks=[])
    row[0].set_ylabel(title, fontsize=9)


def _shown(image):
    """Returns an image, however it was scaled, in [0, 1]."""
    lowest, span = image.min(), np.ptp(image)
    return np.squeeze((image - lowest) / (span or 1.0), axis=2 if image.shape[-1] == 1 else ())

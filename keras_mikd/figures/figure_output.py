"""A figure as a PNG file, and as an image in TensorBoard."""

import io
import os
import pathlib
from typing import Any

import tensorflow as tf

from keras_mikd import checks
from keras_mikd.atomic_files import require_free, write_whole


def save_png(
    figure: Any, path: str | os.PathLike, *, dpi: float = 120, overwrite: bool = False
) -> pathlib.Path:
    """Writes a figure as a PNG file.

    The file appears when it is complete. If drawing fails, an older file stays as it was.

    Args:
        figure: `matplotlib.figure.Figure`.
        path: File to write, ending in `.png`. Missing folders are created.
        dpi: Pixels per inch: a figure of 6 x 4 inches at 120 dpi is 720 x 480 pixels.
        overwrite: Whether a file that exists may be replaced.

    Returns:
        The path, a `pathlib.Path`.

    Raises:
        TypeError: If `figure` is no matplotlib figure.
        ValueError: If `path` has another suffix or `dpi` is not above 0.
        FileExistsError: If `path` exists and `overwrite` is false.

    Example:
    ```python
    save_png(cmi_trajectory(history), "runs/1/trajectory.png")
    ```
    """
    path = require_free(path, suffix=".png", overwrite=overwrite)
    write_whole(path, _png(figure, dpi))
    return path


def log_to_tensorboard(
    figure: Any, log_dir: str | os.PathLike, tag: str, *, step: int = 0, dpi: float = 100
) -> None:
    """Writes a figure as an image of TensorBoard.

    It appears in the Images tab as `tag`, with a slider over the steps.

    Args:
        figure: `matplotlib.figure.Figure`.
        log_dir: Folder of the run. It may hold logs already; nothing in it is changed.
        tag: Name of the image.
        step: Epoch or step that the image belongs to.
        dpi: Pixels per inch.

    Returns:
        None.

    Raises:
        TypeError: If `figure` is no matplotlib figure.
        ValueError: If `dpi` is not above 0.
        ImportError: If TensorBoard is not installed.

    Example:
    ```python
    log_to_tensorboard(cmi_trajectory(history), "runs/1/figures", "cmi_trajectory")
    ```
    """
    with checks.extra("figures"):
        import tensorboard  # noqa: F401
    pixels = tf.io.decode_png(_png(figure, dpi), channels=4)
    writer = tf.summary.create_file_writer(str(log_dir))
    # Whatever the caller's own summaries do, this one is recorded.
    with writer.as_default(), tf.summary.record_if(True):
        tf.summary.image(tag, pixels[None], step=step)
    writer.close()


def _png(figure, dpi):
    with checks.extra("figures"):
        from matplotlib.figure import Figure
    if not isinstance(figure, Figure):
        raise TypeError(
            f"Expected a matplotlib.figure.Figure. Received: figure={type(figure).__name__}"
        )
    checks.number("dpi", dpi, above=0)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()

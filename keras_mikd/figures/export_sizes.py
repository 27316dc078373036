"""What a smaller file costs."""

from collections.abc import Mapping
from typing import Any

from keras_mikd.figures.canvas import new_figure


def export_sizes(reports: Mapping[str, Any], latencies: Mapping[str, Any] | None = None) -> Any:
    """Draws the accuracy of `.tflite` files over their size, and over their latency.

    Args:
        reports: `{title: report}` of `export_tflite`, with labels in its `check_on`.
        latencies: `{title: latency}` of `measure_latency`, for the same titles, or `None` for one
            panel.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ValueError: If there are no reports, one has no accuracy, or a latency is missing.
        ImportError: If matplotlib is not installed.

    Example:
    ```python
    files = {"float32": report, "int8": small}
    figure = export_sizes(files, {"float32": latency, "int8": small_latency})
    ```
    """
    without = [title for title, report in reports.items() if report.accuracy is None]
    if not reports or without:
        raise ValueError(
            "Expected reports with an accuracy: pass `check_on` with labels (x, y) to "
            f"`export_tflite`. Received: {without or reports}"
        )
    panels = {"size, kB": {t: report.size_bytes / 1000 for t, report in reports.items()}}
    if latencies is not None:
        if set(latencies) != set(reports):
            raise ValueError(
                f"Expected a latency for each of {list(reports)}. Received: {list(latencies)}"
            )
        panels["median latency, ms"] = {t: each.median_ms for t, each in latencies.items()}
    figure, (row,) = new_figure(1, len(panels), width=4.0, height=3.0)
    for axis, (label, values) in zip(row, panels.items(), strict=True):
        for title, x in values.items():
            y = 100 * reports[title].accuracy
            (point,) = axis.plot([x], [y], "o")
            axis.annotate(
                str(title), (x, y), (4, 4), textcoords="offset points", color=point.get_color()
            )
        axis.set(xlabel=label, ylabel="accuracy, %")
        axis.set_xlim(left=0)
        axis.margins(x=0.2, y=0.2)
        axis.grid(alpha=0.3)
    return figure

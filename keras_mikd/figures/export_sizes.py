"""What a smaller file costs."""

import itertools
from collections.abc import Mapping
from typing import Any

from keras_mikd.figures.canvas import new_figure


def export_sizes(reports: Mapping[str, Any], latencies: Mapping[str, Any] | None = None) -> Any:
    """Draws the accuracy of `.tflite` files over their size, and over their latency.

    Args:
        reports: `{title: report}` of `export_tflite`, with labels in its `check_on`.
        latencies: `{title: Latency}`, each one of the list that `measure_latency` returns, for the
            same titles, or `None` for one panel.

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
        panels["median latency, ms"] = {t: latencies[t].median_ms for t in reports}
    figure, (row,) = new_figure(1, len(panels), width=4.0, height=3.0)
    for axis, (label, values) in zip(row, panels.items(), strict=True):
        for (title, x), marker in zip(values.items(), itertools.cycle("osD^v*PX")):
            # Files may lie on each other: those that come later are smaller.
            size = 11 - 7 * len(axis.lines) / len(values)
            accuracy = 100 * reports[title].accuracy
            axis.plot([x], [accuracy], marker, markersize=size, label=str(title))
        axis.set(xlabel=label, ylabel="accuracy, %")
        axis.set_xlim(left=0)
        axis.margins(x=0.2, y=0.2)
        axis.grid(alpha=0.3)
    row[-1].legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure

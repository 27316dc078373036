"""Accuracy over size and latency of files."""

import pathlib

import pytest

import keras_mikd as mikd
from keras_mikd import Latency, TFLiteReport


def _report(kilobytes, accuracy):
    return TFLiteReport(
        pathlib.Path("a.tflite"), 1000 * kilobytes, 10, 0.1, 1.0, 1.0, accuracy=accuracy
    )


FILES = {"float32": _report(400, 0.75), "int8": _report(100, 0.5)}


def test_points_are_the_reports():
    latencies = {"int8": Latency(1, 0.5, 0.6, 50), "float32": Latency(1, 2.0, 2.5, 50)}
    sizes, times = mikd.figures.export_sizes(FILES, latencies).axes
    assert [tuple(line.get_xydata()[0]) for line in sizes.lines] == [(400, 75), (100, 50)]
    assert [tuple(line.get_xydata()[0]) for line in times.lines] == [(2.0, 75), (0.5, 50)]
    assert [text.get_text() for text in times.get_legend().get_texts()] == ["float32", "int8"]
    assert len(mikd.figures.export_sizes(FILES).axes) == 1


def test_files_that_lie_on_each_other_are_all_seen():
    """From zero, so that a length is a size; later ones smaller, so that none hides another."""
    many = {f"file {i}": _report(100, 0.5) for i in range(9)}
    (axes,) = mikd.figures.export_sizes(many).axes
    assert [line.get_label() for line in axes.lines] == list(many)
    sizes = [line.get_markersize() for line in axes.lines]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 9 and sizes[-1] > 3
    assert axes.get_xlim()[0] == 0


def test_axes_have_their_units():
    latency = Latency(1, 0.5, 0.6, 50)
    axes = mikd.figures.export_sizes(FILES, dict.fromkeys(FILES, latency)).axes
    assert [each.get_xlabel() for each in axes] == ["size, kB", "median latency, ms"]
    assert {each.get_ylabel() for each in axes} == {"accuracy, %"}


@pytest.mark.parametrize(
    "reports, latencies, said",
    [
        ({}, None, "with an accuracy"),
        ({"a": _report(1, None)}, None, "labels .x, y. to `export_tflite`. Received: .'a'."),
        (FILES, {"int8": Latency(1, 0.5, 0.6, 50)}, "for each of .'float32', 'int8'."),
        (FILES, dict.fromkeys([*FILES, "b"], Latency(1, 0.5, 0.6, 50)), "Received: .*'b'"),
    ],
)
def test_what_is_missing_is_said(reports, latencies, said):
    with pytest.raises(ValueError, match=said):
        mikd.figures.export_sizes(reports, latencies)

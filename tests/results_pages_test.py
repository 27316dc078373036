"""The pages of the results say what the JSON beside them says."""

import importlib.util
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("make_results", DOCS / "make_results.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _row(method, mean, interval, **gains):
    numbers = {"weight": None if method == "student" else 3.0, "training_only_weights": 1234}
    values = [mean - 1, mean + 1]
    parts = {"mean": mean, "interval": interval, "values": values, "gains": gains}
    return {"method": method, **numbers, **parts}


def test_pages_are_up_to_date_and_have_their_charts(script):
    found = 0
    for page in script.PAGES:
        text = page.read_text()
        assert script.filled(text) == text, f"Run `python docs/make_results.py`: {page.name}"
        for block in script.BLOCK.finditer(text):
            chart = f"results/{block[2].replace('/', '-')}.svg"
            assert (DOCS / chart).exists()
            assert Path(chart).name in text
            found += 1
    assert found >= 2


def test_a_table_has_every_row_with_its_gains(script):
    rows = [
        _row("vid+kd", 66.04, 1.26, student=(24.04, 2.0), kd=(-0.5, None)),
        _row("student", 42.0, 1.3, kd=(-1.0, 0.5)),
    ]
    lines = script.table({"teacher": 88.62, "rows": rows}).splitlines()
    assert lines[2] == "| teacher | | 88.6 | | | |"
    assert lines[3] == "| VID + KD | 3 | 66.0 ± 1.3 | +24.0 ± 2.0 | -0.5 | 1,234 |"
    assert lines[4] == "| student alone |  | 42.0 ± 1.3 |  | -1.0 ± 0.5 | 1,234 |"
    assert lines[-1].startswith("Seeds: 2.")


def test_a_chart_has_a_line_for_every_row(script):
    rows = [_row("vid", 66.0, 1.0), _row("student", 42.0, None)]
    (axes,) = script.chart({"teacher": 88.0, "rows": rows}).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["student alone", "VID"]

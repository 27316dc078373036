"""The pages of the results say what the JSON beside them says."""

import importlib
import json
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(DOCS)
    return importlib.import_module("make_results")


def _row(method, mean, interval, **gains):
    numbers = {"weight": None if method == "student" else 3.0, "training_only_weights": 1234}
    values = [mean - 1, mean + 1]
    deviation = None if interval is None else 1.41
    parts = {"mean": mean, "deviation": deviation, "interval": interval}
    return {"method": method, **numbers, **parts, "values": values, "gains": gains}


def _comparison(*rows):
    return {"split": "test", "teacher": 88.62, "rows": list(rows)}


def test_pages_are_up_to_date(script):
    blocks = 0
    for page in script.PAGES:
        text = page.read_text()
        assert script.filled(text) == text, f"Run `python docs/make_results.py`: {page.name}"
        blocks += len(script.BLOCK.findall(text))
        # A block that is spelt in another way would never be filled.
        assert text.count("<!-- end -->") == len(script.BLOCK.findall(text))
    assert blocks > 20


def test_every_table_of_a_comparison_has_its_chart_of_the_same_data(script):
    for page in script.PAGES:
        text = page.read_text()
        for path, result in script.charts(text).items():
            assert f"data {script.digest(result)}" in path.read_text()
            assert path.name in text


def test_every_measurement_is_on_a_page_and_says_where_it_is_from(script):
    pages = "".join(page.read_text() for page in script.PAGES)
    for file in sorted((DOCS / "results" / "data").glob("*.json")):
        for key, found in json.loads(file.read_text()).items():
            assert f": {file.stem}/{key} " in pages, f"{file.name}: {key}"
            assert {"commands", "commit", "date"} <= found["source"].keys()


def test_no_number_of_a_result_is_typed_by_hand(script):
    for page in script.RESULTS:
        text = script.BLOCK.sub("", page.read_text())
        text = re.sub(r"```.*?```|`[^`\n]*`|\]\([^)]*\)", "", text, flags=re.DOTALL)
        typed = re.findall(r".*(?:\d\.\d|\d ?%|\d points|± ?\d).*", text)
        assert not typed, f"{page.name}: {typed}"


def test_a_number_in_a_line_does_not_start_it(script):
    """A comment at the start of a line would end the paragraph: CommonMark, HTML blocks."""
    for page in script.PAGES:
        found = re.findall(r"^ *<!-- (?:gain|number): .*", page.read_text(), re.MULTILINE)
        assert not found, f"{page.name}: {found}"


def test_links_of_the_pages_lead_somewhere(script):
    for page in script.RESULTS:
        for link in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_a_block_is_filled_from_the_files(script, monkeypatch, tmp_path):
    source = {"commands": ["a", "b"], "commit": "c0ffee", "date": "2001-02-03", "seeds": 1}
    columns = {"": "", "gain": "+.1f", "gain ": ",d"}
    rows = [["one", [-0.26, 0.5], None], ["two", 1.0, 1234]]
    found = {"source": {**source, "note": "so"}, "columns": columns, "rows": rows}
    (tmp_path / "p.json").write_text(json.dumps({"t": found}))
    monkeypatch.setattr(script.results_tables, "FOLDER", tmp_path)
    page = """x <!-- number: p/t / two / gain -->9<!-- end --> y
<!-- measured: p/t -->
<!-- end -->"""
    expected = """x <!-- number: p/t / two / gain -->+1.0<!-- end --> y
<!-- measured: p/t -->
```sh
a
b
```

|  | gain | gain |
| --- | --- | --- |
| one | -0.3 ± 0.5 |  |
| two | +1.0 | 1,234 |

Measured 2001-02-03, commit `c0ffee`, 1 seed; so.
<!-- end -->"""
    assert script.filled(page) == expected
    assert script.filled(expected) == expected
    with pytest.raises(ValueError):
        script.filled("<!-- number: p/t / two / other -->9<!-- end -->")


def test_a_table_has_every_row_with_its_gains(script):
    rows = [
        _row("vid+kd", 66.04, 1.26, student=(24.04, 2.0), kd=(-0.5, None)),
        _row("student", 42.0, 1.3, kd=(-1.0, 0.5)),
    ]
    lines = script.table(_comparison(*rows)).splitlines()
    assert lines[2] == "| teacher |  | 88.6 |  |  |  |  |"
    assert lines[3] == "| VID + KD | 3 | 66.0 ± 1.3 | 1.4 | +24.0 ± 2.0 | -0.5 | 1,234 |"
    assert lines[4] == "| student alone |  | 42.0 ± 1.3 | 1.4 |  | -1.0 ± 0.5 | 1,234 |"
    assert lines[-1].startswith("2 seeds.")


def test_a_table_without_kd_and_with_a_teacher_of_other_classes_has_no_place_for_them(script):
    rows = [_row("lwf+hint", 66.0, 1.0, student=(24.0, 2.0)), _row("student", 42.0, 1.3)]
    result = {**_comparison(*rows), "teacher": None}
    lines = script.table(result).splitlines()
    assert lines[0].startswith("|  | weight |") and "KD" not in lines[0]
    assert lines[2] == "| LwF + hint (FitNets) | 3 | 66.0 ± 1.0 | 1.4 | +24.0 ± 2.0 | 1,234 |"
    assert lines[3] == "| student alone |  | 42.0 ± 1.3 | 1.4 |  | 1,234 |"
    assert "teacher" not in [text.get_text() for text in script.chart(result).axes[0].texts]


def test_a_gain_stands_in_a_line(script, monkeypatch):
    found = _comparison(_row("vid", 66.0, 1.0, student=(24.04, 2.0)), _row("kd", 50.0, 1.0))
    monkeypatch.setattr(script, "comparison", {"set/5": found}.get)
    page = "gains <!-- gain: set/5 / vid / student -->1<!-- end --> points"
    filled = "gains <!-- gain: set/5 / vid / student -->+24.0 ± 2.0<!-- end --> points"
    assert script.filled(page) == filled


def test_comparisons_stand_side_by_side(script, monkeypatch):
    one = _comparison(_row("student", 42.0, 1.3), _row("vid", 66.0, 1.0, student=(24.0, 2.0)))
    two = _comparison(_row("student", 40.0, 1.3), _row("kd", 39.0, 1.0, student=(-1.0, None)))
    monkeypatch.setattr(script, "comparison", {"set/one": one, "set/b/two": two}.get)
    assert script.beside("set / one, b/two").splitlines()[0] == "|  | one | b, two |"
    assert script.beside("set / one, b/two").splitlines()[2:] == [
        "| VID | 66.0 ± 1.0 |  |",
        "| student alone | 42.0 ± 1.3 | 40.0 ± 1.3 |",
        "| KD |  | 39.0 ± 1.0 |",
    ]
    assert script.beside("set / one, b/two / student").splitlines()[2:] == [
        "| VID | +24.0 ± 2.0 |  |",
        "| KD |  | -1.0 |",
    ]


def test_methods_at_the_edge_of_what_was_tried_are_named(script, monkeypatch):
    rows = [_row("vid", 66.0, 1.0), _row("kd", 50.0, 1.0), _row("student", 42.0, 1.3)]
    tried = {"vid": ({"1.0": 60.0, "10.0": 65.0}, 10.0), "kd": ({"0.3": 50.0, "3.0": 49.0}, 0.3)}
    for row in rows:
        row["trials"], row["weight"] = tried.get(row["method"], ({}, None))
    monkeypatch.setattr(script, "comparison", {"set/5": _comparison(*rows)}.get)
    page = "x <!-- largest: set/5 --><!-- end -->, <!-- smallest: set/5 --><!-- end -->"
    assert script.filled(page) == (
        "x <!-- largest: set/5 -->VID<!-- end -->, <!-- smallest: set/5 -->KD<!-- end -->"
    )


def test_a_method_at_one_size_has_no_row_beside_the_others(script):
    both = _row("vid", 66.0, 1.0)
    results = {10: _comparison(both, _row("kd", 50.0, 1.0)), 50: _comparison(both)}
    lines = script.side_by_side("images", results, at_least=2).splitlines()
    assert lines[2:] == ["| VID | 66.0 ± 1.0 | 66.0 ± 1.0 |"]


def test_a_chart_has_a_line_for_every_row(script):
    found = _comparison(_row("vid", 66.0, 1.0), _row("student", 42.0, None))
    (axes,) = script.chart(found).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["student alone", "VID"]
    assert script.svg(found) == script.svg(found)

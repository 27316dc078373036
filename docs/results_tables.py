"""Tables of measurements as Markdown, for docs/make_results.py.

`docs/results/data/<page>.json` holds the tables of a page by name. Each has

- `source`: `commands` that measured it, the `commit` and the `date` of the numbers, and where
  there are several runs `seeds`; a `note` where the code was another one than today's;
- `columns`: `{title: format}`, a format as in `format(value, ".1f")`. Blanks at the end of a title
  tell columns of the same name apart;
- `rows`: lists of cells. A cell is text, a number, `[mean, spread]`, or `null`.
"""

import json
from pathlib import Path

FOLDER = Path(__file__).parent / "results" / "data"


def load(name):
    """Returns the table of a name such as `speed/step`."""
    page, _, key = name.partition("/")
    return json.loads((FOLDER / f"{page}.json").read_text())[key]


def measured(name):
    """Returns the commands, the table and the date of a name as Markdown."""
    found = load(name)
    source = found["source"]
    parts = [markdown(found), f"{provenance(source)}\n"]
    if source["commands"]:
        parts.insert(0, "```sh\n" + "\n".join(source["commands"]) + "\n```\n")
    return "\n".join(parts)


def markdown(found):
    """Returns a table as Markdown."""
    formats = list(found["columns"].values())
    rows = [[cell(v, f) for v, f in zip(row, formats, strict=True)] for row in found["rows"]]
    return lines([list(found["columns"]), ["---"] * len(formats), *rows])


def lines(rows):
    """Returns rows of texts as lines of Markdown."""
    return "".join("| " + " | ".join(text.strip() for text in row) + " |\n" for row in rows)


def provenance(source):
    """Returns in words when a table was measured, and with how many seeds."""
    words = f"Measured {source['date']}, commit `{source['commit']}`"
    if "seeds" in source:
        words += f", {source['seeds']} seed" + ("s" if source["seeds"] > 1 else "")
    return f"{words}; {source['note']}." if "note" in source else f"{words}."


def number(path):
    """Returns a cell of `<table> / <row> / <column>`."""
    name, row_name, column = (part.strip() for part in path.split(" / "))
    found = load(name)
    titles = [each.strip() for each in found["columns"]]
    place = titles.index(column)
    (row,) = [row for row in found["rows"] if row[0] == row_name]
    return cell(row[place], list(found["columns"].values())[place])


def cell(value, form):
    """Returns the text of a cell."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return f"{value[0]:{form}} ± {value[1]:{form.removeprefix('+')}}"
    return f"{value:{form}}"

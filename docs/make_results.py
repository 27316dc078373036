"""Fills the tables and draws the charts of the results from the JSON files beside them.

    python docs/make_results.py

A table stands in a page between `<!-- table: cifar10/50 -->` and `<!-- end -->`: the comparison in
`docs/results/cifar10/50/comparison.json`, which experiments/compare.py wrote. Its chart is
`docs/results/cifar10-50.svg`. `tests/results_pages_test.py` fails if a page says something else.
"""

import json
import re
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

DOCS = Path(__file__).parent
PAGES = (DOCS.parent / "README.md", DOCS / "results" / "cifar10.md")
BLOCK = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)

INFORMATION = {
    "vid": "VID",
    "mimkd": "MIMKD (reconstruction)",
    "info_nce": "InfoNCE on the stages",
    "mimkd_all": "MIMKD, all negatives",
    "mimkd_nce": "MIMKD, InfoNCE",
    "crd": "CRD",
    "itrd": "ITRD",
}
"""Methods of mutual information."""

NAMES = {
    **INFORMATION,
    "student": "student alone",
    "kd": "KD",
    "hint": "hint (FitNets)",
    "at": "attention transfer",
    "vkd": "VkD (without whitening)",
    "sp": "similarity preserving",
    "cc": "correlation congruence",
}


def comparison(name):
    """Returns the comparison of a name, its rows from the most accurate to the least."""
    result = json.loads((DOCS / "results" / name / "comparison.json").read_text())
    rows = sorted(result["rows"], key=lambda row: -row["mean"])
    return {**result, "rows": rows}


def title(method):
    """Returns the name of a method in a table, `vid+kd` for two of them together."""
    return " + ".join(NAMES.get(part, part) for part in method.split("+"))


def table(result):
    """Returns a comparison as a table of Markdown."""
    head = "| | weight | test accuracy, % | over the student alone | over KD | extra weights |"
    lines = [head, "|---|---|---|---|---|---|", f"| teacher | | {result['teacher']:.1f} | | | |"]
    for row in result["rows"]:
        weight = "" if row["weight"] is None else f"{row['weight']:g}"
        gains = [_signed(row["gains"].get(other)) for other in ("student", "kd")]
        extra = f"{row['training_only_weights']:,}"
        value = _with(row["mean"], row["interval"])
        lines.append("| " + " | ".join([title(row["method"]), weight, value, *gains, extra]) + " |")
    seeds = {len(row["values"]) for row in result["rows"]}
    lines += ["", f"Seeds: {', '.join(map(str, sorted(seeds)))}. ± is the 95 % interval of a mean."]
    return "\n".join(lines) + "\n"


def filled(page):
    """Returns a page with its tables as the data gives them."""
    return BLOCK.sub(lambda found: found[1] + table(comparison(found[2])) + found[3], page)


def chart(result):
    """Draws the mean of every method with its interval and its runs, the most accurate on top."""
    rows = result["rows"][::-1]
    figure = Figure(figsize=(7, 0.8 + 0.32 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for height, row in enumerate(rows):
        informed = row["method"].split("+")[0] in INFORMATION
        colour = "black" if row["method"] == "student" else "tab:blue" if informed else "tab:gray"
        axes.plot(row["values"], [height] * len(row["values"]), "|", color=colour, alpha=0.5)
        options = {"fmt": "o", "color": colour, "capsize": 3}
        axes.errorbar(row["mean"], height, xerr=row["interval"] or 0.0, **options)
    axes.axvline(result["teacher"], color="tab:red", linestyle="--", linewidth=1)
    axes.text(result["teacher"], 0, "teacher ", ha="right", color="tab:red")
    axes.set_yticks(range(len(rows)), [title(row["method"]) for row in rows])
    axes.set_xlabel("test accuracy, %; blue: methods of mutual information")
    axes.grid(axis="x", alpha=0.3)
    return figure


def main():
    # The same data gives the same file.
    matplotlib.rcParams["svg.hashsalt"] = "keras_mikd"
    for page in PAGES:
        text = page.read_text()
        page.write_text(filled(text))
        for name in sorted({found[2] for found in BLOCK.finditer(text)}):
            path = DOCS / "results" / (name.replace("/", "-") + ".svg")
            chart(comparison(name)).savefig(path, metadata={"Date": None})
            print(f"{page.name}: {name}, {path.name}")


def _with(value, interval):
    return f"{value:.1f}" if interval is None else f"{value:.1f} ± {interval:.1f}"


def _signed(gain):
    return "" if gain is None else ("+" if gain[0] >= 0 else "") + _with(*gain)


if __name__ == "__main__":
    main()

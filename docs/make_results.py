"""Fills the pages of the results, and draws their charts, from the JSON files beside them.

    python docs/make_results.py

Every page of `docs/results/`, `docs/methods/` and `docs/howto/`, and README.md, may have blocks
that this script fills, up to the next `<!-- end -->`:

- `<!-- table: cifar10/50 -->`: the comparison that experiments/compare.py wrote to
  `docs/results/cifar10/50/comparison.json`. Its chart is `docs/results/cifar10-50.svg`.
- `<!-- sizes: cifar10 -->`: the accuracies of all its comparisons, `cifar10/10` and so on, side by
  side. Their chart is `docs/results/cifar10.svg`.
- `<!-- beside: augmentation / shared, inside -->`: the accuracies of some comparisons of a folder,
  side by side; with ` / student` behind it, the gains over the student alone.
- `<!-- gain: cifar10/50 / vid / kd -->`: what one method of it gains over `kd` or `student`, in the
  middle of a line.
- `<!-- weight: cifar10/50 / vid -->`: the weight that validation chose for it, likewise.
- `<!-- measured: speed/step -->`: the table `step` of `docs/results/data/speed.json`, between the
  commands that measured it and their date (docs/results_tables.py).
- `<!-- number: speed/cache / KD / epochs -->`: one cell of such a table, in the middle of a line.

`tests/results_pages_test.py` fails if a page or a chart says something else.
"""

import hashlib
import io
import json
import re
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

import results_tables

DOCS = Path(__file__).parent
RESULTS = sorted((DOCS / "results").glob("*.md"))
OTHERS = sorted([*(DOCS / "methods").glob("*.md"), *(DOCS / "howto").glob("*.md")])
PAGES = (DOCS.parent / "README.md", *RESULTS, *OTHERS)
BLOCK = re.compile(
    r"(<!-- (table|sizes|beside|gain|weight|largest|smallest|measured|number): ([^>]+) -->\n?)"
    r".*?(<!-- end -->)",
    re.S,
)

INFORMATION = {
    "vid": "VID",
    "mimkd": "MIMKD (reconstruction)",
    "info_nce": "InfoNCE on the stages",
    "mimkd_8": "MIMKD, 8 negatives",
    "mimkd_all": "MIMKD, all negatives",
    "mimkd_concat": "MIMKD, concatenating critics of 512 units",
    "mimkd_vectors": "MIMKD, global and local level alone",
    "mimkd_maps": "MIMKD, feature level alone",
    "mimkd_nce": "MIMKD, InfoNCE",
    "mimkd_nce_maps": "MIMKD, InfoNCE, feature level alone",
    "muse": "MUSE (reconstruction)",
    "self_muse": "MUSE (reconstruction)",
    "self_jsd": "mutual term of MUSE alone",
    "dml_muse": "DML + MUSE (reconstruction), two peers",
    "crd": "CRD",
    "itrd": "ITRD",
    "vid_unfolded": "VID, unfolded",
    "vid_auto": 'VID, initial_variance="auto"',
    "mi_l": "VID of the logits (MI-L)",
    "mi_i": "VID of the stages (MI-I)",
}
"""Methods of mutual information."""

NAMES = {
    **INFORMATION,
    "student": "student alone",
    "kd": "KD",
    "hint": "hint (FitNets)",
    "at": "attention transfer",
    "lskd": "LSKD",
    "dkd": "DKD",
    "rld": "RLD",
    "dist": "DIST",
    "wttm": "WTTM",
    "vkd": "VkD (without whitening)",
    "ab": "activation boundary",
    "ft": "factor transfer",
    "review_kd": "ReviewKD",
    "nst": "NST",
    "sp": "similarity preserving",
    "cc": "correlation congruence",
    "rkd": "RKD",
    "pkt": "PKT",
    "queue": "queue relation",
    "hint_pooled": "hint between pooled vectors",
    "byot": "be your own teacher",
    "dml": "deep mutual learning (DML), two peers",
    "finetuned": "fine-tuning",
    "lwf": "LwF",
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
    others = {"student": "over the student alone", "kd": "over KD"}
    others = {o: t for o, t in others.items() if any(o in row["gains"] for row in result["rows"])}
    titles = ["", "weight", f"{result['split']} accuracy, %", "deviation"]
    titles += [*others.values(), "extra weights"]
    lines = [titles, ["---"] * len(titles)]
    if result["teacher"] is not None:
        lines.append(["teacher", "", f"{result['teacher']:.1f}", *[""] * (len(titles) - 3)])
    for row in result["rows"]:
        weight = "" if row["weight"] is None else f"{row['weight']:g}"
        gains = [_signed(row["gains"].get(other)) for other in others]
        deviation = "" if row["deviation"] is None else f"{row['deviation']:.1f}"
        values = [_with(row["mean"], row["interval"]), deviation]
        extra = f"{row['training_only_weights']:,}"
        lines.append([title(row["method"]), weight, *values, *gains, extra])
    seeds = ", ".join(map(str, sorted({len(row["values"]) for row in result["rows"]})))
    note = f"\n{seeds} seeds. ± is the 95 % interval of a mean by Student's t; "
    note += "gains are differences between runs with the same seed.\n"
    return results_tables.lines(lines) + note


def sizes(name):
    """Returns `{images per class: comparison}` of a folder, in order."""
    folders = [path.parent.name for path in (DOCS / "results" / name).glob("*/comparison.json")]
    return {n: comparison(f"{name}/{n}") for n in sorted(map(int, folders))}


def _methods(results):
    """Returns `{method: {images per class: row}}`, the best at the most images first."""
    last = {row["method"]: row["mean"] for result in results.values() for row in result["rows"]}
    return {
        method: {
            n: row
            for n, found in results.items()
            for row in found["rows"]
            if row["method"] == method
        }
        for method in sorted(last, key=lambda method: -last[method])
    }


def side_by_side(corner, results, other=None, at_least=1):
    """Returns the accuracies of several comparisons, or the gains over `other`, as Markdown.

    Only methods that are in `at_least` so many of them have a row.
    """
    lines = [[corner, *map(str, results)], ["---"] * (1 + len(results))]
    for method, rows in _methods(results).items():
        if method == other or len(rows) < at_least:
            continue
        cells = [rows[n] if n in rows else None for n in results]
        lines.append([title(method), *("" if row is None else _shown(row, other) for row in cells)])
    return results_tables.lines(lines)


def _shown(row, other):
    return _signed(row["gains"][other]) if other else _with(row["mean"], row["interval"])


def beside(path):
    """Returns the table of `<folder> / <comparison>, <comparison> [/ <other>]`."""
    folder, names, *other = path.split(" / ")
    results = {
        name.replace("/", ", "): comparison(f"{folder}/{name}") for name in names.split(", ")
    }
    return side_by_side("", results, *other)


def gain(path):
    """Returns the gain of `<comparison> / <method> / <other>`."""
    name, method, other = path.split(" / ")
    (row,) = [row for row in comparison(name)["rows"] if row["method"] == method]
    return _signed(row["gains"][other])


def weight(path):
    """Returns the weight that validation chose for `<comparison> / <method>`."""
    name, method = path.split(" / ")
    (row,) = [row for row in comparison(name)["rows"] if row["method"] == method]
    return f"{row['weight']:g}"


def at_edge(name, edge):
    """Returns the methods whose chosen weight is the `edge` (`min` or `max`) of those tried."""
    found = [
        title(row["method"])
        for row in comparison(name)["rows"]
        if len(row["trials"]) > 1 and row["weight"] == edge(map(float, row["trials"]))
    ]
    return "; ".join(found)


def filled(page):
    """Returns a page with its blocks as the data gives them."""
    makers = {
        "table": lambda name: table(comparison(name)),
        "sizes": lambda name: side_by_side("images of each class", sizes(name), at_least=2),
        "beside": beside,
        "gain": gain,
        "weight": weight,
        "largest": lambda name: at_edge(name, max),
        "smallest": lambda name: at_edge(name, min),
        "measured": results_tables.measured,
        "number": results_tables.number,
    }
    return BLOCK.sub(lambda found: found[1] + makers[found[2]](found[3]) + found[4], page)


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
    if result["teacher"] is not None:
        axes.axvline(result["teacher"], color="tab:red", linestyle="--", linewidth=1)
        axes.text(result["teacher"], 0, "teacher ", ha="right", color="tab:red")
    axes.set_yticks(range(len(rows)), [title(row["method"]) for row in rows])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xlabel("test accuracy, %; blue: methods of mutual information")
    axes.grid(axis="x", alpha=0.3)
    return figure


def sizes_chart(results):
    """Draws the mean of every method over the images per class, those at several sizes as lines."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    styles = iter(["o-", "s-", "^-", "D-", "v-", "P-", "X-", "*-", "h-", "<-", ">-"] * 2)
    for method, rows in _methods(results).items():
        if len(rows) < 2:
            continue
        informed = method.split("+")[0] in INFORMATION
        axes.errorbar(
            list(rows),
            [row["mean"] for row in rows.values()],
            yerr=[row["interval"] or 0.0 for row in rows.values()],
            fmt=next(styles),
            color=None if informed else "black" if method == "student" else "gray",
            alpha=1.0 if informed or method == "student" else 0.6,
            capsize=3,
            markersize=5,
            label=title(method),
        )
    axes.set_xscale("log")
    axes.set_xticks(list(results), list(map(str, results)))
    axes.minorticks_off()
    axes.set(xlabel="labelled training images of each class", ylabel="test accuracy, %")
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def digest(result):
    """Returns a name of the data of a chart, which its file holds."""
    return hashlib.sha256(json.dumps(result, sort_keys=True).encode()).hexdigest()[:16]


def svg(result):
    """Returns the chart of a comparison, or of several, as SVG: the same text for the same data."""
    file = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "keras_mikd"}):
        metadata = {"Date": None, "Description": f"data {digest(result)}"}
        drawn = chart(result) if "rows" in result else sizes_chart(result)
        drawn.savefig(file, format="svg", metadata=metadata)
    return file.getvalue()


def charts(page):
    """Returns `{path: data}` of the charts of a page."""
    makers = {"table": comparison, "sizes": sizes}
    found = {(each[2], each[3]) for each in BLOCK.finditer(page) if each[2] in makers}
    return {
        DOCS / "results" / f"{name.replace('/', '-')}.svg": makers[kind](name)
        for kind, name in sorted(found)
    }


def main():
    for page in PAGES:
        text = page.read_text()
        page.write_text(filled(text))
        drawn = charts(text)
        for path, result in drawn.items():
            path.write_text(svg(result))
        print(f"{page.name}: {len(BLOCK.findall(text))} blocks, {len(drawn)} charts")


def _with(value, interval):
    return f"{value:.1f}" if interval is None else f"{value:.1f} ± {interval:.1f}"


def _signed(gain):
    return "" if gain is None else ("+" if gain[0] >= 0 else "") + _with(*gain)


if __name__ == "__main__":
    main()

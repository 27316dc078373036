"""What a comparison found: a table, a figure, and numbers for JSON."""

import dataclasses
import statistics
from typing import Any

import tensorflow as tf

from keras_mikd.comparison.methods import STUDENT
from keras_mikd.comparison.score import ACCURACY, Score, written
from keras_mikd.figures.canvas import new_figure


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What `compare` found. Accuracies are in per cent, gains in points; a metric is as it is.

    Attributes:
        split: `"test"`, or `"validation"` where there is no test data: weights were chosen on it,
            so that methods look better than they are.
        teacher: Accuracy or metric of the teacher, `None` if it has other classes, or none.
        rows: One dict for the student alone and each method, at its chosen weight: `method`,
            `weight`, `values` (by seed), `mean`, `deviation` (standard, of one run), `interval`
            (half of the 95 % interval of the mean, by Student's t), `gains` (`{other: (mean, half
            interval)}` of the paired differences to `"student"` and `"kd"`; deviations and
            intervals are `None` for one seed), `step` (time of a step, that of the student alone
            is 1), `training_only_weights`, and `trials`, the mean on validation of every weight
            tried.
        metric: Name of the metric, `"accuracy"` by default.
        mode: `"max"` if more of it is better, `"min"` if less is.
    """

    split: str
    teacher: float | None
    rows: list
    metric: str = ACCURACY
    mode: str = "max"

    def as_dict(self) -> dict[str, Any]:
        """Returns everything as JSON can hold it."""
        return dataclasses.asdict(self)

    def __str__(self):
        others = [o for o in (STUDENT, "kd") if any(o in row["gains"] for row in self.rows)]
        head = ["method", "weight", f"{self.split} {self._unit()}", *(f"over {o}" for o in others)]
        table = [[*head, "step", "extra weights"]]
        for row in self.rows:
            gains = [self._gain(row, o) if o in row["gains"] else "" for o in others]
            weight = "" if row["weight"] is None else f"{row['weight']:g}"
            value = self._with(row["mean"], row["interval"])
            extra = f"{row['training_only_weights']:,}"
            table.append([row["method"], weight, value, *gains, f"{row['step']:.2f}", extra])
        widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
        lines = [
            "  ".join(
                cell.ljust(width) if i == 0 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            )
            for line in table
        ]
        seeds = len(self.rows[0]["values"])
        value = "" if self.teacher is None else written(self.metric, self.teacher)
        note = f"teacher: {value} {self._unit()}. " if value else ""
        note += f"{seeds} seed{'s' if seeds > 1 else ''}"
        note += "; ± is the 95 % interval of a mean." if seeds > 1 else ": no intervals."
        if self.split == "validation":
            note += " The weights were chosen on the same data."
        return "\n".join([*lines, note, self._verdict()])

    @property
    def best(self) -> str:
        """The method that gains most over the student alone, `"student"` if none surely gains.

        Sure is a gain that is larger than its 95 % interval; with one seed, any gain is taken.
        """
        gains = {row["method"]: row["gains"].get(STUDENT) for row in self.rows}
        sign = 1 if self.mode == "max" else -1
        better = {m: sign * g[0] for m, g in gains.items() if g is not None}
        sure = {m: gain for m, gain in better.items() if gain > (gains[m][1] or 0.0)}
        return max(sure, key=sure.get) if sure else STUDENT

    def _verdict(self):
        alone, best = self.rows[0], self.best
        if best != STUDENT:
            (row,) = [row for row in self.rows if row["method"] == best]
            said = f"{best} gains most over the student alone, {self._gain(row, STUDENT)}"
            sure = "." if len(row["values"]) > 1 else ", from one seed: take three to be sure."
            return said + sure
        beyond = "above" if self.mode == "max" else "below"
        said = f"No method is {beyond} the student alone by more than its interval."
        score = Score(self.metric, self.mode)
        if self.teacher is not None and score.worth(self.teacher) <= score.worth(alone["mean"]):
            said += f" The teacher is not {beyond} it either, so there is no room for a gain."
        return said

    def _unit(self):
        return "%" if self.metric == ACCURACY else self.metric

    def _gain(self, row, other):
        value, interval = row["gains"][other]
        return ("+" if value >= 0 else "") + self._with(value, interval)

    def _with(self, value, interval):
        text = written(self.metric, value)
        return text if interval is None else f"{text} ± {written(self.metric, interval)}"

    def figure(self) -> Any:
        """Draws the mean of every row with its interval and its seeds, beside the teacher.

        Returns:
            A `matplotlib.figure.Figure`.

        Raises:
            ImportError: If matplotlib is not installed.
        """
        figure, ((axes,),) = new_figure(1, 1, width=6.5, height=1.2 + 0.35 * len(self.rows))
        for position, row in enumerate(reversed(self.rows)):
            colour = "black" if row["method"] == STUDENT else "C0"
            axes.plot(row["values"], [position] * len(row["values"]), "|", color=colour, alpha=0.5)
            interval = row["interval"] or 0.0
            axes.errorbar(row["mean"], position, xerr=interval, fmt="o", color=colour, capsize=3)
        alone = self.rows[0]["mean"]
        axes.axvline(alone, color="black", linestyle=":", linewidth=1, label="student alone")
        if self.teacher is not None:
            axes.axvline(self.teacher, color="C3", linestyle="--", linewidth=1, label="teacher")
        axes.set_yticks(range(len(self.rows)), [row["method"] for row in reversed(self.rows)])
        axes.set_ylim(-0.6, len(self.rows) - 0.4)
        unit = ", %" if self.metric == ACCURACY else ""
        axes.set(
            xlabel=f"{self.metric} on the {self.split} data{unit}; small marks are single runs"
        )
        axes.legend()
        return figure


def summarized(method, weight, runs, trials, *, references, split, step):
    """Returns the row of a method.

    Args:
        method: Its name.
        weight: The chosen weight, or `None`.
        runs: Its runs at that weight, by seed.
        trials: `{weight: mean on validation}`.
        references: `{other: values by seed}` to take gains over.
        split: Which data count.
        step: Milliseconds of a step of the student alone.
    """
    values = [run[split] for run in runs]
    return {
        "method": method,
        "weight": weight,
        "values": values,
        "mean": statistics.mean(values),
        "deviation": statistics.stdev(values) if len(values) > 1 else None,
        "interval": half_interval(values),
        "gains": {
            name: _gain(values, others) for name, others in references.items() if name != method
        },
        "step": statistics.median(run["milliseconds"] for run in runs) / step,
        "training_only_weights": runs[0]["training_only_weights"],
        "trials": trials,
    }


def half_interval(values):
    """Returns half of the 95 % interval of the mean by Student's t, or `None` for one value."""
    if len(values) < 2:
        return None
    return _quantile(len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5


def _gain(values, others):
    differences = [a - b for a, b in zip(values, others, strict=True)]
    return statistics.mean(differences), half_interval(differences)


def _quantile(freedom):
    """Returns the 97.5 % quantile of Student's t with so many degrees of freedom."""
    low, high = 0.0, 100.0
    for _ in range(60):
        middle = (low + high) / 2
        x = tf.constant(freedom / (freedom + middle**2), tf.float64)
        half, freedom_half = tf.constant(0.5, tf.float64), tf.constant(freedom / 2, tf.float64)
        tail = 0.5 * float(tf.math.betainc(freedom_half, half, x))
        low, high = (middle, high) if tail > 0.025 else (low, middle)
    return low

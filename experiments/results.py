"""What the experiments keep of their runs, and how they show it.

No script by itself: `import results` works where one of the experiments is started.

A run is a network, or a group of peers, of one seed. Its numbers go to `results.json` when it ends,
and a run that is there is not trained again. So an experiment may be killed and started again, and
its folder may get more methods, weights and seeds later.
"""

import collections
import dataclasses
import functools
import json
import shutil
import statistics
from pathlib import Path

import keras_mikd as mikd
import protocol
from keras_mikd.comparison.cells import name_of


class Results:
    """The runs of an experiment, in `<output_dir>/results.json`.

    Args:
        output_dir: Folder of the experiment.
        **settings: What all its runs share. A folder with runs of other settings is refused.
    """

    def __init__(self, output_dir, **settings):
        self.folder = Path(output_dir)
        self.path = self.folder / "results.json"
        # As it is read back: an optimizer by the name of its function.
        self.settings = json.loads(json.dumps(settings, default=lambda made: made.__name__))
        self.runs = []
        if self.path.exists():
            self._read()

    def _read(self):
        kept = json.loads(self.path.read_text())
        if kept["settings"] != self.settings:
            raise SystemExit(
                f"Expected runs of the same settings in {self.path}. Received: {self.settings}; "
                f"those are of {kept['settings']}. Name another --output_dir."
            )
        self.runs = kept["runs"]

    def run(self, train, **key):
        """Returns the run with a key: that of the file, or what `train(folder, **key)` returns."""
        for run in self.runs:
            if key.items() <= run.items():
                return run
        folder = self.folder / run_name(key)
        if protocol.is_chief():
            shutil.rmtree(folder, ignore_errors=True)  # Half a run, where an experiment was killed.
        self.runs.append({**key, **train(folder, **key)})
        self._write()
        return self.runs[-1]

    def _write(self):
        if not protocol.is_chief():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        whole = self.path.with_suffix(".part")
        whole.write_text(json.dumps({"settings": self.settings, "runs": self.runs}, indent=1))
        whole.replace(self.path)

    def rows(self, *names):
        """Returns `{name: value, ..., "runs": [...]}` of all runs that share the values."""
        groups = collections.defaultdict(list)
        for run in self.runs:
            groups[tuple(run[name] for name in names)].append(run)
        return [{**dict(zip(names, key, strict=True)), "runs": r} for key, r in groups.items()]


def run_name(key):
    """Returns the name of a run's folder, such as `kd-weight3-seed0`."""
    return name_of({name: value for name, value in key.items() if value != ""})


def sweep(results, rows, seeds, train, shown="validation"):
    """Trains every row with every seed, and prints what comes out.

    Args:
        results: `Results`.
        rows: Keys of the rows, dicts.
        seeds: Seeds of every row.
        train: Function `(folder, seed, **row)` that returns a run's numbers.
        shown: The number to print.
    """
    for row in rows:
        print(f"  {run_name(row)}:", end="", flush=True)
        values = []
        for seed in seeds:
            values.append(results.run(train, **row, seed=seed)[shown])
            print(f" {values[-1]:.2f}", end="", flush=True)
        print(f"  ({mean_and_spread(values)})")


def save_figure(figure, output_dir, name):
    """Saves a figure as `<output_dir>/<name>.png` and shows it in TensorBoard."""
    if protocol.is_chief():
        mikd.figures.save_png(figure, Path(output_dir) / f"{name}.png", overwrite=True)
        mikd.figures.log_to_tensorboard(figure, Path(output_dir) / "figures", name)


def mean(row, key):
    """Returns the mean of a number over the runs of a row."""
    return statistics.mean(run[key] for run in row["runs"])


def mean_and_spread(values):
    """Returns `"mean ± standard deviation"`, or the value where there is only one."""
    values = list(values)
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread}"


def spread(row, key):
    """Returns the mean and the standard deviation of a number over the runs of a row, in words."""
    return mean_and_spread(run[key] for run in row["runs"])


def chosen_rows(rows):
    """Keeps, of every method, the row whose weight is best on the validation split."""
    best = {}
    for row in rows:
        other = best.setdefault(row["method"], row)
        if mean(row, "validation") > mean(other, "validation"):
            best[row["method"]] = row
    return list(best.values())


def readouts(row):
    """Returns the mean read-outs of a row on the validation split, in words."""
    runs = [run["nats"] for run in row["runs"]]
    return ", ".join(f"{k} {statistics.mean(nats[k] for nats in runs):.2f}" for k in runs[0])


def weights_of(run):
    """Returns the number of weights, and of those that only train, in words."""
    extra = run["training_only_weights"]
    return f"{run['weights']:,}" + (f" +{extra:,}" if extra else "")


def print_comparison(rows, base, note):
    """Prints the rows that validation chooses, with gains over the method `base`, and a note."""
    rows = chosen_rows(rows)
    alone = next((mean(row, "test") for row in rows if row["method"] == base), None)
    width = max(len(row["method"]) for row in rows)
    titles = f"{'weight':>6} {'test %':>14} {'gain':>6} {'weights':>15} {'ms/step':>8}"
    print(f"\n{'method':{width}} {titles}")
    for row in rows:
        gain = "" if alone is None else f"{mean(row, 'test') - alone:+.2f}"
        print(
            f"{row['method']:{width}} {row['weight']:>6g} {spread(row, 'test'):>14} {gain:>6} "
            f"{weights_of(row['runs'][0]):>15} {mean(row, 'milliseconds'):>8.2f}"
        )
        if found := readouts(row):
            print(f"    nats: {found}")
    print(f"\n{note}")


def compare(results, rows, seeds, train, base, note):
    """Sweeps the rows, then prints the best of every method, and where all of them are."""
    print("Per cent of the validation split, seed by seed:")
    sweep(results, rows, seeds, train)
    print_comparison(results.rows("method", "weight"), base, note)
    print(f"\nEvery run: {results.path}; what it left: a folder beside it")


def compare_designs(results, designs, seeds, epochs, build):
    """Sweeps designs on the validation split of the digits, never on the test split.

    Args:
        results: `Results`.
        designs: Names.
        seeds: Number of students per design.
        epochs: Epochs of a student.
        build: Function `(design, student)` that returns what is fitted.
    """
    settings = dataclasses.replace(protocol.DIGITS, epochs=epochs, labels_per_class=10)

    def one(folder, design, seed):
        made = functools.partial(build, design)
        return protocol.train(made, settings, seed, folder, splits=["validation"])

    # Other seeds than those of the published results.
    sweep(results, [{"design": design} for design in designs], range(100, 100 + seeds), one)
    print(f"\n{'design':38} {'validation %':>15} {'ms/step':>8}")
    for row in results.rows("design"):
        milliseconds = statistics.median(run["milliseconds"] for run in row["runs"])
        print(f"{row['design']:38} {spread(row, 'validation'):>15} {milliseconds:>8.2f}")
    print(f"\nEvery run: {results.path}; what it left: a folder beside it")

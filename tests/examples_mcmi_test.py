"""The scripts about MCMI, run as a reader runs them, on very little."""

import concurrent.futures
import json
import os
import statistics

import keras
import pytest

import keras_mikd as mikd
from tests.example_runs import run_example, tensorboard_tags

TINY = ["--student=digits_cnn", "--epochs=1"]


def _results(folder):
    return json.loads((folder / "results.json").read_text())


def _is_png(path):
    content = path.read_bytes()
    return content.startswith(b"\x89PNG\r\n") and len(content) > 5_000


def _run(folder, name, script, *arguments):
    """Runs a script that writes to `<folder>/<name>`; returns what it printed."""
    teacher, data, output = folder / "teacher.keras", folder / "data", folder / name
    common = [f"--teacher={teacher}", f"--data_dir={data}", f"--output_dir={output}"]
    run = run_example(script, *common, *arguments)
    assert run.returncode == 0, run.stderr
    assert "Traceback" not in run.stderr and "Warning" not in run.stderr, run.stderr
    return run.stdout


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A folder with a teacher and tuned ones, and what was printed."""
    folder = tmp_path_factory.mktemp("mcmi")
    data = mikd.datasets.load_digits(batch_size=50, data_dir=str(folder / "data"))
    keras.utils.set_random_seed(0)
    teacher = mikd.models.resnet8(10, data.image_shape)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    teacher.compile(keras.optimizers.Adam(3e-3), loss, metrics=["accuracy"])
    teacher.fit(data.train, epochs=3, shuffle=False, verbose=0)
    teacher.save(folder / "teacher.keras")
    content = (folder / "teacher.keras").read_bytes()
    tiny = ["--epochs=2", "--batch_size=50", "--learning_rate=1e-3"]
    printed = _run(folder, "tune", "tune_teacher", "--weight=0.1,0.3", *tiny)
    assert (folder / "teacher.keras").read_bytes() == content
    return folder, printed


def test_a_tuned_teacher_is_the_one_in_the_table(tuned):
    folder, printed = tuned
    results = _results(folder / "tune")
    data = mikd.datasets.load_digits(data_dir=str(folder / "data"))
    before = mikd.measure_cmi(
        keras.saving.load_model(folder / "teacher.keras"), data.test, verbose=0
    )
    assert results["before"]["test"]["cmi"] == pytest.approx(before.cmi, rel=1e-4)
    assert [row["weight"] for row in results["rows"]] == [0.1, 0.3]
    for row in results["rows"]:
        path = folder / "tune" / f"weight{row['weight']:g}.keras"
        report = mikd.measure_cmi(keras.saving.load_model(path), data.test, verbose=0)
        numbers = row["after"]["test"]
        assert numbers["cmi"] == pytest.approx(report.cmi, rel=1e-4)
        assert numbers["log_likelihood"] == pytest.approx(report.log_likelihood, rel=1e-4)
        assert numbers["accuracy"] == pytest.approx(100 * report.accuracy, abs=0.01)
        (line,) = (each for each in printed.splitlines() if each.startswith(f"{row['weight']:g} "))
        assert f"{report.cmi:.4f}" in line
    assert f"saved as {folder}/tune/weight{results['chosen']:g}.keras" in printed


def test_the_weight_is_chosen_on_the_validation_split(tuned):
    results = _results(tuned[0] / "tune")
    lowest = results["before"]["validation"]["accuracy"] - 2.0
    after = {row["weight"]: row["after"]["validation"] for row in results["rows"]}
    kept = {weight: each for weight, each in after.items() if each["accuracy"] >= lowest}
    best = max(kept or after, key=lambda w: after[w]["cmi" if kept else "accuracy"])
    assert results["chosen"] == best


def test_the_trajectory_goes_from_the_teacher_to_the_tuned_one(tuned):
    results = _results(tuned[0] / "tune")
    for row in results["rows"]:
        for key in ("cmi", "log_likelihood"):
            curve = row["curve"][key]
            assert len(curve) == 3
            assert curve[0] == results["before"]["validation"][key]
            assert curve[-1] == pytest.approx(row["after"]["validation"][key], rel=1e-3)


def test_figures_and_curves_of_the_tuning(tuned):
    folder = tuned[0] / "tune"
    assert _is_png(folder / "trajectory.png") and _is_png(folder / "eigen_cam.png")
    assert set(tensorboard_tags(folder / "logs" / "figures")) == {"trajectory", "eigen_cam"}
    tags = tensorboard_tags(folder / "logs" / "weight0.3" / "validation")
    assert {"epoch_cmi", "epoch_log_likelihood", "epoch_accuracy"} <= set(tags)


def _mean(row, split):
    return statistics.mean(run[split] for run in row["runs"])


@pytest.mark.slow
def test_the_mcmi_teacher_of_a_method_is_chosen_on_the_validation_split(tuned):
    folder, _ = tuned
    files = f"--mcmi_teacher={folder}/tune/weight0.1.keras,{folder}/tune/weight0.3.keras"
    few = ["--labels_per_class=2", "--batch_size=10", "--methods=kd", "--seeds=2"]
    printed = _run(folder, "few", "few_shot", files, *few, *TINY)
    alone, mll, *mcmi = _results(folder / "few")
    assert (alone["method"], alone["teacher"]) == ("student alone", "")
    assert [row["teacher"] for row in (mll, *mcmi)] == ["MLL", "weight0.1", "weight0.3"]
    assert all(len(row["runs"]) == 2 for row in (alone, mll, *mcmi))
    best = max(mcmi, key=lambda row: _mean(row, "validation"))
    (line,) = (line for line in printed.splitlines() if line.startswith("2 per class    kd"))
    assert line.endswith(best["teacher"])
    plain, informed = _mean(mll, "test"), _mean(best, "test")
    for value in (plain, informed, informed - plain):
        assert f" {value:.2f} ± " in line
    assert _is_png(folder / "few" / "few_shot.png")
    assert "epoch_kd" in tensorboard_tags(
        folder / "few" / "logs" / "2_per_class-kd-MLL-seed1" / "validation"
    )


@pytest.mark.slow
def test_dropped_classes_are_counted_apart(tuned):
    folder, _ = tuned
    file = f"--mcmi_teacher={folder}/tune/weight0.1.keras"
    printed = _run(folder, "zero", "zero_shot", file, "--dropped=9+7", "--batch_size=50", *TINY)
    (row,) = _results(folder / "zero")
    assert row["dropped"] == [9, 7]
    assert list(row["runs"]) == ["labels only", "MLL", "weight0.1"]
    (line,) = (line for line in printed.splitlines() if line.startswith("9+7 "))
    for runs in row["runs"].values():
        (run,) = runs
        low, high = sorted(run["each"].values())
        assert set(run["each"]) == {"9", "7"} and low <= run["dropped"] <= high
        assert f"{run['dropped']:.2f} | {run['kept']:.2f}" in line
    for name in ("confusion_9+7", "tsne_9+7"):
        assert _is_png(folder / "zero" / f"{name}.png")
        assert name in tensorboard_tags(folder / "zero" / "logs" / "figures")


@pytest.mark.slow
def test_information_is_that_of_the_softened_outputs(tuned):
    folder, _ = tuned
    _run(folder, "temperature", "cmi_temperature", "--temperature=8,1", *TINY)
    rows = _results(folder / "temperature")
    assert [row["temperature"] for row in rows] == [1, 8]
    teacher = keras.saving.load_model(folder / "teacher.keras")
    data = mikd.datasets.load_digits(data_dir=str(folder / "data"))
    for row in rows:
        report = mikd.measure_cmi(
            teacher, data.validation, temperature=row["temperature"], verbose=0
        )
        assert row["cmi"] == pytest.approx(report.cmi, rel=1e-4)
        assert all(0 <= run["test"] <= 100 for run in row["runs"])
    assert _is_png(folder / "temperature" / "cmi_temperature.png")


OLD = ["--teacher={folder}/teacher.keras", "--output_dir={folder}"]
NEW = ["--teacher={folder}/teacher.keras", "--output_dir={folder}/new"]
TUNED = "--mcmi_teacher={folder}/weight0.1.keras"
# name -> script, arguments after which {folder} has old files, end of the message on the last line.
REFUSED = {
    "a tuned teacher is kept": (
        "tune_teacher",
        [*OLD, "--weight=0.1"],
        "weight0.1.keras exists and is kept; name another",
    ),
    "two kinds of few images": (
        "few_shot",
        [*NEW, TUNED, "--fraction=0.1", "--labels_per_class=5"],
        "--fraction and --labels_per_class are given; expected one of them",
    ),
    "a missing tuned teacher": (
        "few_shot",
        [*NEW, TUNED + ",{folder}/weight0.2.keras"],
        "weight0.2.keras does not exist; run tune_teacher.py first",
    ),
    "a class that is not there": (
        "zero_shot",
        [*NEW, TUNED, "--dropped=9,9+10"],
        "expected different classes of 0 to 9 joined by +, and one left; got '9+10'",
    ),
    "two kinds of dropped classes": (
        "zero_shot",
        [*NEW, TUNED, "--dropped=9", "--each_class"],
        "--each_class and --dropped are given; expected one of them",
    ),
    "a temperature of 0": (
        "cmi_temperature",
        [*NEW, "--temperature=0"],
        "--temperature: expected numbers above 0; got ['0']",
    ),
}


@pytest.fixture(scope="module")
def short_runs(tmp_path_factory):
    """A folder of old files and all runs that end before they start, several at a time."""
    folder = tmp_path_factory.mktemp("old")
    for name in ("teacher.keras", "weight0.1.keras"):
        (folder / name).write_text("old")
    commands = {
        name: (script, *(argument.format(folder=folder) for argument in arguments))
        for name, (script, arguments, _) in REFUSED.items()
    }
    commands["help"] = ("zero_shot", "--help")
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        runs = pool.map(lambda command: run_example(*command), commands.values())
        return folder, dict(zip(commands, runs, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED)
def test_wrong_flags_end_in_one_line(short_runs, name):
    run = short_runs[1][name]
    assert run.returncode == 1
    assert "Traceback" not in run.stderr
    assert run.stderr.strip().splitlines()[-1].endswith(REFUSED[name][-1])


@pytest.mark.slow
def test_wrong_flags_write_nothing(short_runs):
    folder, _ = short_runs
    files = {path.name: path.read_text() for path in folder.iterdir()}
    assert files == dict.fromkeys(("teacher.keras", "weight0.1.keras"), "old")


@pytest.mark.slow
def test_help_lists_shared_flags_too(short_runs):
    printed = short_runs[1]["help"].stdout
    assert printed.startswith("Trains students that never see some classes")
    for flag in ("output_dir", "teacher", "mcmi_teacher", "dropped", "epochs", "seeds"):
        assert f"--{flag}: " in printed


if __name__ == "__main__":
    pytest.main([__file__])

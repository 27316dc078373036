"""Runs are kept, resumed and summed up, experiments/results.py."""

import json

import pytest

from tests import script_runs


@pytest.fixture(scope="module")
def results():
    with script_runs.module("experiments", "results") as script:
        yield script


def _weight_times_ten(folder, method, weight, seed):
    folder.mkdir(parents=True)
    (folder / "log").write_text("new")
    return {"validation": 10 * weight + seed}


def test_a_run_that_is_kept_is_not_made_again(results, tmp_path, capsys):
    rows = [{"method": "vid", "weight": weight} for weight in (1.0, 3.0)]
    first = results.Results(tmp_path, epochs=2)
    results.sweep(first, rows[:1], range(1), _weight_times_ten)
    made = []

    def noted(folder, **key):
        made.append((key["weight"], key["seed"]))
        return _weight_times_ten(folder, **key)

    again = results.Results(tmp_path, epochs=2)
    results.sweep(again, rows, range(2), noted)
    assert made == [(1.0, 1), (3.0, 0), (3.0, 1)]
    printed = capsys.readouterr().out.splitlines()
    assert printed[1:] == [
        "  vid-weight1: 10.00 11.00  (10.50 ± 0.71)",
        "  vid-weight3: 30.00 31.00  (30.50 ± 0.71)",
    ]
    kept = json.loads((tmp_path / "results.json").read_text())
    assert kept == {"settings": {"epochs": 2}, "runs": again.runs}


def test_an_experiment_that_was_killed_goes_on(results, tmp_path):
    half = tmp_path / "vid-weight2-seed0"
    half.mkdir()
    (half / "events").write_text("of a run that was killed")

    def killed(folder, **key):
        raise KeyboardInterrupt

    kept = results.Results(tmp_path)
    kept.run(_weight_times_ten, method="vid", weight=1.0, seed=0)
    with pytest.raises(KeyboardInterrupt):
        kept.run(killed, method="vid", weight=2.0, seed=0)
    again = results.Results(tmp_path)
    assert [run["weight"] for run in again.runs] == [1.0]
    again.run(_weight_times_ten, method="vid", weight=2.0, seed=0)
    assert [path.name for path in half.iterdir()] == ["log"]


def test_runs_of_other_settings_are_refused_and_kept(results, tmp_path):
    results.Results(tmp_path, epochs=2, optimizer=max).run(lambda folder, seed: {}, seed=0)
    before = (tmp_path / "results.json").read_text()
    assert results.Results(tmp_path, epochs=2, optimizer=max).runs == [{"seed": 0}]
    with pytest.raises(SystemExit, match="Expected runs of the same settings"):
        results.Results(tmp_path, epochs=3, optimizer=max)
    assert (tmp_path / "results.json").read_text() == before


def test_rows_share_what_they_are_called_by(results, tmp_path):
    kept = results.Results(tmp_path)
    kept.runs = [{"m": m, "w": w, "seed": s} for s in (0, 1) for m, w in (("b", 1), ("a", 2))]
    assert [(row["m"], row["w"], len(row["runs"])) for row in kept.rows("m", "w")] == [
        ("b", 1, 2),
        ("a", 2, 2),
    ]


def _run(validation, test, nats=None):
    numbers = {"validation": validation, "test": test, "nats": nats or {}}
    return {**numbers, "milliseconds": 5.0, "weights": 5122, "training_only_weights": 1000}


ROWS = [
    {"method": "plain", "weight": 0.0, "runs": [_run(50, 80.0), _run(50, 82.0)]},
    {"method": "vid", "weight": 1.0, "runs": [_run(60, 99.0), _run(62, 99.0)]},
    {"method": "jsd", "weight": 1.0, "runs": [_run(60, 85.0, {"a_nats": 1.0})]},
    {"method": "vid", "weight": 3.0, "runs": [_run(70, 90.0), _run(64, 91.0)]},
]


def test_of_every_method_the_weight_that_validation_chooses(results):
    assert results.chosen_rows(ROWS) == [ROWS[0], ROWS[3], ROWS[2]]


def test_gains_are_points_above_the_base(results, capsys):
    results.print_comparison(ROWS, "plain", "the note")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["vid", "3", "90.50", "±", "0.71", "+9.50", "5,122", "+1,000", "5.00"] in lines
    assert ["jsd", "1", "85.00", "+4.00", "5,122", "+1,000", "5.00"] in lines
    assert ["nats:", "a_nats", "1.00"] in lines and lines[-1] == ["the", "note"]


def test_readouts_are_means_over_the_seeds(results):
    row = {"runs": [{"nats": {"a_nats": 1.0, "b": 0.5}}, {"nats": {"a_nats": 2.0, "b": 0.5}}]}
    assert results.readouts(row) == "a_nats 1.50, b 0.50"
    assert results.readouts({"runs": [{"nats": {}}]}) == ""


def test_mean_and_standard_deviation(results):
    assert results.mean_and_spread([90.0]) == "90.00"
    assert results.mean_and_spread(iter([90.0, 91.0, 95.0])) == "92.00 ± 2.65"


def test_folders_are_called_by_what_is_in_them(results):
    name = results.run_name({"design": "features only: grid 4", "weight": 0.3, "seed": 100})
    assert name == "features_only_grid_4-weight0.3-seed100"
    assert results.run_name({"method": "student", "teacher": "", "seed": 0}) == "student-seed0"


if __name__ == "__main__":
    pytest.main([__file__])

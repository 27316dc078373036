import json

import keras
import numpy as np
import pytest

import keras_mikd as mikd
from tests import script_runs


@pytest.fixture(scope="module")
def script():
    with script_runs.module("experiments", "estimate_mi") as script:
        yield script


class ExactLogRatio:
    """The critic that a trained one should be: log p(t, s) / p(t) p(s) of correlated Gaussians."""

    def __init__(self, nats, dimension, scale=1.0, offset=0.0):
        self.nats, self.scale, self.offset = nats, scale, offset
        self.correlation = mikd.bounds.gaussian_correlation(nats, dimension)

    def embed_teacher(self, teacher):
        return teacher

    def embed_student(self, student):
        return student

    def score(self, teacher, student):
        rho = self.correlation
        quadratic = rho**2 * (teacher**2 + student**2) - 2 * rho * teacher * student
        log_ratio = self.nats - keras.ops.sum(quadratic, axis=-1) / (2 * (1 - rho**2))
        return self.scale * log_ratio + self.offset


@pytest.mark.slow
def test_a_small_run_prints_and_keeps_estimates_below_the_truth(script, tmp_path, capsys):
    flags = ["--dimensions=5", "--nats=2", "--steps=300", "--seeds=1", f"--output_dir={tmp_path}"]
    script_runs.call(script, *flags)
    printed = capsys.readouterr().out.splitlines()
    kept = json.loads((tmp_path / "results.json").read_text())
    (run,) = kept["runs"]
    assert (run["dimension"], run["nats"], kept["settings"]) == (5, 2.0, {"steps": 300})
    for bound in ("DV", "NWJ", "InfoNCE"):
        estimate, error = run[bound]
        assert 1.7 < estimate < 2.0 + 3 * error and 0.0 < error < 0.03
        assert any(f"{estimate:.3f} +- {error:.3f} +-    -   ok" in line for line in printed)
    assert run["NWJ"][0] <= run["DV"][0] + 1e-6
    assert "against the truth: " in printed[-2]


@pytest.mark.slow
def test_the_table_has_every_row(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(script, "HELD_OUT_NEGATIVES", 2)
    monkeypatch.setattr(
        script,
        "train_critic",
        lambda _, rng, dimension, nats, steps: ExactLogRatio(nats, dimension),
    )
    flags = ["--dimensions=1,5", "--nats=0.5,1", "--seeds=2", f"--output_dir={tmp_path}"]
    script_runs.call(script, *flags)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    rows = [(line[0], line[1]) for line in lines if line[3:4] == ["+-"]]
    assert rows == [("1", "0.50"), ("1", "1.00"), ("5", "0.50"), ("5", "1.00")]


@pytest.mark.parametrize(("nats", "dimension"), [(0.5, 1), (2.0, 20)])
def test_read_out_of_the_exact_critic_gives_the_truth_and_its_error(script, nats, dimension):
    result = script.read_out(
        ExactLogRatio(nats, dimension), np.random.default_rng(0), dimension, nats
    )
    pairs = script.HELD_OUT_BATCHES * script.HELD_OUT_BATCH_SIZE
    variance = dimension * mikd.bounds.gaussian_correlation(nats, dimension) ** 2
    variance += np.expm1(2 * nats) / script.HELD_OUT_NEGATIVES
    for bound in ("DV", "NWJ"):
        estimate, error = result[bound]
        assert error == pytest.approx(np.sqrt(variance / pairs), rel=0.3)
        assert abs(estimate - nats) < 3 * error
    assert 0.8 * nats < result["InfoNCE"][0] < nats


def test_read_out_of_a_wrong_critic_is_below_the_truth(script):
    def read_out(**error):
        critic = ExactLogRatio(2.0, 5, **error)
        return script.read_out(critic, np.random.default_rng(0), 5, 2.0)

    shifted = read_out(offset=1.0)
    assert shifted["DV"] == pytest.approx(read_out()["DV"], rel=1e-3)
    assert shifted["NWJ"][0] == pytest.approx(2.0 + 2.0 - np.e, abs=0.1)
    for bound, (estimate, error) in read_out(scale=0.5).items():
        assert estimate < 2.0 - 10 * error, bound


@pytest.mark.parametrize(("nats", "dimension"), [(0.5, 1), (5.0, 1), (2.0, 20)])
def test_pairs_have_unit_variance_and_the_correlation_of_the_closed_form(script, nats, dimension):
    first, second = script.draw_pairs(np.random.default_rng(0), 100_000, dimension, nats)
    assert first.dtype == second.dtype == "float32"
    assert first.shape == second.shape == (100_000, dimension)
    np.testing.assert_allclose([first.std(0), second.std(0)], np.ones((2, dimension)), atol=0.02)
    residual = second - mikd.bounds.gaussian_correlation(nats, dimension) * first
    np.testing.assert_allclose(residual.std(0), np.exp(-nats / dimension), rtol=0.02)
    assert abs(np.corrcoef(residual[:, 0], first[:, 0])[0, 1]) < 0.02


@pytest.mark.parametrize(
    ("bound", "truth", "value", "verdict"),
    [
        ("DV", 2.0, 1.71, "ok"),
        ("DV", 2.0, 1.69, "low"),
        ("DV", 0.5, 0.41, "ok"),
        ("DV", 0.5, 0.39, "low"),
        ("NWJ", 5.0, 4.2, "low"),
        ("InfoNCE", 5.0, 4.0, "cap"),
        ("InfoNCE", 2.0, 1.0, "low"),
        ("DV", 2.0, 2.02, "ok"),
        ("DV", 2.0, 2.04, "HIGH"),
    ],
)
def test_verdicts(script, bound, truth, value, verdict):
    assert script.judge(bound, truth, value, error=0.01) == verdict


def test_a_cell_sums_up_its_seeds(script):
    cell = script.summarize("DV", 2.0, [(1.9, 0.03), (2.1, 0.04)])
    assert cell["estimate"] == pytest.approx(2.0)
    assert cell["standard_error"] == pytest.approx(0.025)
    assert cell["spread"] == pytest.approx(0.1)
    assert script.summarize("DV", 2.0, [(1.9, 0.03)])["spread"] is None


def test_the_highest_run_is_told_in_its_standard_errors(script):
    runs = [
        {"nats": 2.0, "DV": [2.1, 0.05], "NWJ": [1.9, 0.1], "InfoNCE": [1.0, 0.1]},
        {"nats": 5.0, "DV": [4.9, 0.1], "NWJ": [4.0, 0.1], "InfoNCE": [3.0, 0.1]},
    ]
    assert script.highest(runs) == pytest.approx(2.0)


def test_correlations_that_float32_cannot_hold_are_refused(script):
    script.check_pairs([1, 5], [0.5, 10.0])
    with pytest.raises(SystemExit, match="at most 10 per dimension.*nats=11 in dimension 1"):
        script.check_pairs([1, 5], [0.5, 11.0])


# Czyz et al., Beyond Normal, give these to two digits; the noise by integration below.
PUBLISHED = {
    "normal": 0.41,
    "student_1": 0.22,
    "student_5": 0.45,
    "dense_25": 1.29,
    "sparse_25": 1.02,
    "spiral_25": 1.02,
}


def test_the_truth_of_a_task_is_that_of_the_paper(script):
    tasks = script.known_information.TASKS
    assert len(tasks) == 12
    for name, nats in PUBLISHED.items():
        assert tasks[name].nats == pytest.approx(nats, abs=0.005), name
    # The second variable is trapezoidal: h(y) - h(noise), by the trapezoidal rule.
    y = np.linspace(-0.75, 1.75, 200_001)
    density = np.clip(np.minimum(y + 0.75, 1.75 - y), 0, 1) / 1.5
    entropy = -np.trapezoid(density * np.log(np.maximum(density, 1e-300)), y)
    assert tasks["noise"].nats == pytest.approx(entropy - np.log(1.5), abs=1e-4)


def _ranks(x):
    return np.argsort(np.argsort(x, axis=0), axis=0)


def test_a_task_draws_what_it_says(script):
    tasks, rng = script.known_information.TASKS, np.random.default_rng
    plain = tasks["sparse_25"].draw(rng(0), 4000)
    correlation = np.corrcoef(*[x[:, 0] for x in plain])[0, 1]
    assert correlation == pytest.approx(0.8, abs=0.03)
    assert abs(np.corrcoef(plain[0][:, 2], plain[1][:, 2])[0, 1]) < 0.06
    dense = np.corrcoef(np.hstack(tasks["dense_25"].draw(rng(0), 4000)), rowvar=False)
    np.testing.assert_allclose(dense[np.triu_indices(50, 1)], 0.5, atol=0.06)
    # A map that can be undone keeps order, or length and volume.
    for mapped, source in (("asinh", "normal"), ("half_cube_25", "sparse_25")):
        for one, other in zip(
            tasks[mapped].draw(rng(0), 500), tasks[source].draw(rng(0), 500), strict=True
        ):
            np.testing.assert_array_equal(_ranks(one), _ranks(other))
    spirals, sources = tasks["spiral_25"].draw(rng(0), 500), tasks["sparse_25"].draw(rng(0), 500)
    for plane, turned, source in zip(([0, 1], [1, 2]), spirals, sources, strict=True):
        lengths = [np.linalg.norm(x[:, plane], axis=1) for x in (turned, source)]
        np.testing.assert_allclose(*lengths)
        np.testing.assert_array_equal(turned[:, 3:], source[:, 3:])
        assert np.abs(turned - source).max() > 1.0
    rolled, _ = tasks["swiss_roll"].draw(rng(0), 500)
    angles = 21 * np.linalg.norm(rolled, axis=1)
    assert rolled.shape == (500, 2) and np.all((angles > 4.7) & (angles < 14.2))
    heavy = tasks["student_1"].draw(rng(0), 4000)
    assert np.quantile(np.abs(heavy[0]), 0.75) == pytest.approx(np.tan(0.375 * np.pi), rel=0.1)


def test_unknown_tasks_are_refused(script):
    assert script.checked_tasks(["all"]) == list(script.known_information.TASKS)
    with pytest.raises(SystemExit, match="--tasks of normal, .*Received: --tasks=gauss"):
        script.checked_tasks(["normal", "gauss"])


@pytest.mark.slow
def test_tasks_print_truth_estimate_and_standard_error(script, tmp_path, capsys):
    flags = ["--tasks=normal,student_1", "--pairs=4000", "--fresh_pairs=20000", "--seeds=1"]
    script_runs.call(script, *flags, f"--output_dir={tmp_path}")
    printed = capsys.readouterr().out
    kept = json.loads((tmp_path / "tasks" / "results.json").read_text())
    for run, truth in zip(kept["runs"], (0.413, 0.224), strict=True):
        assert run["nats"] == pytest.approx(truth, abs=1e-3)
        assert 0.0 < run["estimate"] < run["nats"] + 3 * run["standard_error"]
        assert f"{truth:.3f}   {run['estimate']:.3f} +- {run['standard_error']:.3f}" in printed
    assert kept["runs"][0]["estimate"] > 0.3

import importlib.util
import json
import pathlib

import keras
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

import keras_mikd as mikd

SCRIPT = pathlib.Path(__file__).parents[1] / "examples" / "estimate_mi.py"


@pytest.fixture(scope="module")
def script():
    """The example as a module; its flags go with it, since other examples define the same names."""
    before = set(flags.FLAGS)
    spec = importlib.util.spec_from_file_location("estimate_mi", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    for name in set(flags.FLAGS) - before:
        delattr(flags.FLAGS, name)


def _run(script, *arguments):
    with flagsaver.flagsaver():
        flags.FLAGS(["estimate_mi.py", *arguments])
        script.main([])


class ExactLogRatio:
    """The critic that a trained one should be: log p(t, s) / p(t) p(s) of correlated Gaussians."""

    def __init__(self, nats, dimension, scale=1.0, offset=0.0):
        self.nats, self.scale, self.offset = nats, scale, offset
        self.correlation = mikd.bounds.gaussian_correlation(nats, dimension)

    def __call__(self, teacher, student, first, negatives):
        pairs = [keras.ops.roll(student, -k, axis=0) for k in range(1, negatives + 1)]
        joint = self._score(teacher, student)
        return joint, keras.ops.stack([self._score(teacher, other) for other in pairs], axis=1)

    def _score(self, teacher, student):
        rho = self.correlation
        quadratic = rho**2 * (teacher**2 + student**2) - 2 * rho * teacher * student
        log_ratio = self.nats - keras.ops.sum(quadratic, axis=-1) / (2 * (1 - rho**2))
        return self.scale * log_ratio + self.offset


def test_quick_run_prints_and_writes_estimates_below_the_truth(script, tmp_path, capsys):
    path = tmp_path / "mi.json"
    _run(script, "--quick", f"--output={path}")
    printed = capsys.readouterr().out.splitlines()
    written = json.loads(path.read_text())
    (row,) = written["rows"]
    assert (row["dimension"], row["nats"], written["flags"]["seeds"]) == (5, 2.0, 1)
    for bound in ("DV", "NWJ", "InfoNCE"):
        cell = row[bound]
        assert cell["verdict"] == "ok"
        assert 1.7 < cell["estimate"] < 2.0 + 3 * cell["standard_error"]
        assert 0.0 < cell["standard_error"] < 0.03
        assert cell["runs"] == [[cell["estimate"], cell["standard_error"]]]
    assert row["NWJ"]["estimate"] <= row["DV"]["estimate"] + 1e-6
    assert sum(line.startswith("  5   2.00   1.") for line in printed) == 1
    assert "against the truth: " in printed[-1]


@pytest.mark.slow
def test_table_has_every_row_and_nothing_is_written_without_output(
    script, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(script, "HELD_OUT_NEGATIVES", 2)
    monkeypatch.setattr(
        script, "train_critic", lambda _, rng, dimension, nats: ExactLogRatio(nats, dimension)
    )
    _run(script, "--dimensions=1,5", "--nats=0.5,1", "--seeds=2")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    rows = [(line[0], line[1]) for line in lines if line[3:4] == ["+-"]]
    assert rows == [("1", "0.50"), ("1", "1.00"), ("5", "0.50"), ("5", "1.00")]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("nats", "dimension"), [(0.5, 1), (2.0, 5), (2.0, 20)])
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--quick", "--steps=5"], "--steps: --quick sets it"),
        (["--quick", "--nats=2"], "--nats: --quick sets it"),
        (["--dimensions=0"], "--dimensions: expected positive integers"),
        (["--dimensions=1,2.5"], "--dimensions: expected positive integers"),
        (["--dimensions="], "--dimensions: expected positive integers"),
        (["--nats=0"], "--nats: expected positive numbers"),
        (["--nats=2,many"], "--nats: expected positive numbers"),
        (["--nats=nan"], "--nats: expected positive numbers"),
        (["--nats="], "--nats: expected positive numbers"),
        (["--nats=11"], "at most 10 per dimension.*in dimension 1"),
        (["--output=/nowhere/mi.json"], "--output: there is no folder /nowhere"),
    ],
)
def test_wrong_flags_are_refused(script, arguments, message):
    with pytest.raises(SystemExit, match=message):
        _run(script, *arguments)


def test_an_existing_output_is_kept(script, tmp_path):
    path = tmp_path / "mi.json"
    path.write_text("precious")
    with pytest.raises(SystemExit, match="exists and is kept; name another file"):
        _run(script, "--quick", f"--output={path}")
    assert path.read_text() == "precious"

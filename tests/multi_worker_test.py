"""Two processes as two hosts, which train as one. By default one cluster, which is expensive."""

import os
import subprocess
import sys
from pathlib import Path

import cluster_worker
import numpy as np
import pytest
import tensorflow as tf

from keras_mikd.checkpoints import run_state

ROOT = Path(__file__).parents[1]
WORKER = ROOT / "tests" / "cluster_worker.py"
LAUNCHER = ROOT / "examples" / "launch_workers.py"
DEFAULT, *OTHERS = cluster_worker.RUNS
FILES = {"backup", "checkpoint.weights.h5", "log.csv", "logs", "student.keras"}


def launch(folder, *arguments):
    """Starts two workers with these arguments; what they print goes to a folder of its own."""
    command = [LAUNCHER, f"--output_dir={folder}/{len(os.listdir(folder))}", "--", WORKER, folder]
    return subprocess.run(
        [sys.executable, *map(str, command), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=1800,
    )


def _left_by(folder, prefix="worker"):
    return [dict(np.load(folder / f"{prefix}{k}.npz")) for k in range(2)]


def _left_by_chief(tmp_path_factory, *arguments):
    """What the first of two workers leaves, started with these arguments."""
    folder = tmp_path_factory.mktemp("cluster")
    done = launch(folder, *arguments)
    assert not done.returncode, done.stdout + done.stderr
    return _left_by(folder)[0]


def _assert_one_device_does_the_same(chief, name, x, y):
    alone = cluster_worker.run(name, tf.distribute.get_strategy().scope(), x, y)
    together = {k.removeprefix(f"{name}/"): v for k, v in chief.items() if k.startswith(f"{name}/")}
    assert together.keys() == alone.keys()
    for key, value in alone.items():
        tolerance = {"rtol": 1e-3, "atol": 1e-4}
        if key.startswith(("weights", "predict")):
            tolerance = {"rtol": 0, "atol": 1e-5}
        np.testing.assert_allclose(together[key], value, err_msg=key, **tolerance)


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A cluster that trains, and then again, until its second worker is killed; and its folder."""
    folder = tmp_path_factory.mktemp("killed")
    return launch(folder, DEFAULT, "backups", 1), folder


def test_workers_do_what_one_device_does_and_agree_with_each_other(killed):
    chief, other = _left_by(killed[1])
    # With CPUs, the strategy takes one device of every worker.
    assert chief["replicas"] == 2
    assert chief.keys() == other.keys()
    for key, value in chief.items():
        np.testing.assert_array_equal(other[key], value, err_msg=key)
    _assert_one_device_does_the_same(chief, DEFAULT, *cluster_worker.data())


def test_a_killed_worker_ends_the_others_with_a_message(killed):
    done, folder = killed
    state = run_state.read(folder / "backup" / "state.npz", arrays=False)
    assert (state["epoch"], state["batch"]) == (2, 1)
    assert done.returncode == 1
    assert "RuntimeError: Another worker stopped answering" in done.stdout
    assert "Start them all again: with keras_mikd.ExactResume" in done.stdout


def test_files_are_written_by_the_chief_alone(killed):
    _, folder = killed
    assert {path.name for path in folder.iterdir()} - {"0", "worker0.npz", "worker1.npz"} == FILES
    # A header, and a row for every whole epoch.
    assert len((folder / "log.csv").read_text().splitlines()) == 1 + 2
    assert len(list((folder / "logs" / "train").glob("*.tfevents*"))) == 1


@pytest.mark.slow
def test_a_killed_chief_ends_the_others_with_a_message_too(tmp_path):
    done = launch(tmp_path, "backups", 0)
    assert done.returncode == 1
    assert (
        "RuntimeError: Another worker stopped answering"
        in (tmp_path / "0" / "worker1.log").read_text()
    )


@pytest.mark.slow
def test_a_cluster_started_again_reaches_the_weights_of_an_undisturbed_one(tmp_path):
    folder, peaceful = tmp_path / "killed", tmp_path / "peaceful"
    for each, worker in ((folder, 1), (folder, -1), (peaceful, -1)):
        each.mkdir(exist_ok=True)
        done = launch(each, "backups", worker)
        assert bool(done.returncode) == (worker == 1), done.stdout + done.stderr
    for resumed, straight in zip(
        *(_left_by(f, "backups") for f in (folder, peaceful)), strict=True
    ):
        assert (resumed.pop("epochs"), straight.pop("epochs")) == (4, 4)
        for key, value in straight.items():
            np.testing.assert_allclose(resumed[key], value, rtol=0, atol=1e-6, err_msg=key)
    # One header, and a row for every epoch of both runs.
    assert len((folder / "log.csv").read_text().splitlines()) == 1 + 2 + 2


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    return _left_by_chief(tmp_path_factory, *OTHERS)


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_other_runs_on_workers_do_what_one_device_does(others, name):
    _assert_one_device_does_the_same(others, name, *cluster_worker.data())


TWO_DEVICES = [name for name in cluster_worker.RUNS if name not in ("kd_cached", "detector")]


@pytest.fixture(scope="module")
def devices_of_workers(tmp_path_factory):
    """What two workers of two devices each leave."""
    chief = _left_by_chief(tmp_path_factory, "two_devices", *TWO_DEVICES)
    assert chief["replicas"] == 4
    return chief


@pytest.mark.slow
@pytest.mark.parametrize("name", TWO_DEVICES)
def test_two_workers_of_two_devices_do_what_one_device_does(devices_of_workers, name):
    # TensorFlow deals the quarters of a batch out to the workers in turns: to the devices of the
    # first go the first and the third. Negatives are drawn by the place of an example in the batch.
    quarters = np.arange(cluster_worker.EXAMPLES).reshape(-1, 4, cluster_worker.BATCH // 4)
    order = quarters[:, [0, 2, 1, 3]].ravel()
    x, y = cluster_worker.data()
    _assert_one_device_does_the_same(devices_of_workers, name, x[order], y[order])

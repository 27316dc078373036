"""Two processes as two hosts, which train as one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import cluster_worker
import numpy as np
import pytest
import tensorflow as tf

ROOT = Path(__file__).parents[1]
FAST_RUNS = [name for name in cluster_worker.RUNS if name not in cluster_worker.SLOW]
SLOW_RUNS = [*cluster_worker.SLOW, *cluster_worker.SLOW_RUNS]
_KILLED = ROOT / "tests" / "killed_worker.py"
LAUNCHER = ROOT / "examples" / "launch_workers.py"


def launch(*script, workers=2, env=None, flags=()):
    return subprocess.run(
        [sys.executable, LAUNCHER, f"--workers={workers}", *flags, "--", *map(str, script)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
        capture_output=True,
        text=True,
        timeout=600,
    )


def _left_by_workers(tmp_path_factory, *arguments):
    """What each of two workers leaves, started with these arguments."""
    folder = tmp_path_factory.mktemp("cluster")
    script = ROOT / "tests" / "cluster_worker.py"
    done = launch(script, folder, *arguments, flags=[f"--output_dir={folder}"])
    assert not done.returncode, done.stdout + done.stderr
    return [dict(np.load(folder / f"worker{k}.npz")) for k in range(2)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """What two workers leave. With CPUs, the strategy takes one device of every worker."""
    results = _left_by_workers(tmp_path_factory, *FAST_RUNS)
    assert results[0].pop("replicas") == results[1].pop("replicas") == 2
    return results


def _of(results, name):
    return {
        key.removeprefix(f"{name}/"): value
        for key, value in results.items()
        if key.startswith(f"{name}/")
    }


def test_workers_agree_with_each_other(cluster):
    first, second = cluster
    assert first.keys() == second.keys()
    for key, value in first.items():
        np.testing.assert_array_equal(second[key], value, err_msg=key)


@pytest.mark.parametrize("name", FAST_RUNS)
def test_workers_do_what_one_device_does(cluster, name):
    _assert_one_device_does_the_same(cluster[0], name, *cluster_worker.data())


def _assert_one_device_does_the_same(chief, name, x, y):
    alone = cluster_worker.run(name, tf.distribute.get_strategy().scope(), x, y)
    together = _of(chief, name)
    assert together.keys() == alone.keys()
    for key, value in alone.items():
        tolerance = {"rtol": 1e-3, "atol": 1e-4}
        if key.startswith(("weights", "predict")):
            tolerance = {"rtol": 0, "atol": 1e-5}
        np.testing.assert_allclose(together[key], value, err_msg=key, **tolerance)


@pytest.fixture(scope="module")
def slow_cluster(tmp_path_factory):
    return _left_by_workers(tmp_path_factory, *SLOW_RUNS)[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW_RUNS)
def test_slow_runs_on_workers_do_what_one_device_does(slow_cluster, name):
    _assert_one_device_does_the_same(slow_cluster, name, *cluster_worker.data())


@pytest.fixture(scope="module")
def devices_of_workers(tmp_path_factory):
    """What two workers of two devices each leave."""
    results, _ = _left_by_workers(tmp_path_factory, "two_devices", *cluster_worker.RUNS)
    assert results["replicas"] == 4
    return results


@pytest.mark.slow
@pytest.mark.parametrize("name", cluster_worker.RUNS)
def test_two_workers_of_two_devices_do_what_one_device_does(devices_of_workers, name):
    # TensorFlow deals the quarters of a batch out to the workers in turns: to the devices of the
    # first go the first and the third. The next example of the batch, a negative, is another then.
    quarters = np.arange(cluster_worker.EXAMPLES).reshape(-1, 4, cluster_worker.BATCH // 4)
    order = quarters[:, [0, 2, 1, 3]].ravel()
    x, y = cluster_worker.data()
    _assert_one_device_does_the_same(devices_of_workers, name, x[order], y[order])


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A cluster of which a worker is killed, and the folder it wrote to."""
    folder = tmp_path_factory.mktemp("killed")
    return launch(_KILLED, folder, 1, flags=[f"--output_dir={folder}/first"]), folder


def test_a_killed_worker_ends_the_others_with_a_message(killed):
    first, folder = killed
    backup = json.loads((folder / "backup" / "training_metadata.json").read_text())
    assert backup["epoch"] == 2
    assert {path.name for path in folder.iterdir()} >= {"checkpoint.weights.h5", "log.csv", "logs"}
    assert first.returncode == 1
    assert "RuntimeError: Another worker stopped answering" in first.stdout
    assert "Start them all again: with a keras.callbacks.BackupAndRestore" in first.stdout
    assert "worker 1 with SIGKILL" in first.stderr


def test_a_killed_chief_ends_the_others_with_a_message_too(tmp_path):
    done = launch(_KILLED, tmp_path, 0, flags=[f"--output_dir={tmp_path}/logs"])
    assert "worker 0 with SIGKILL, worker 1 with 1" in done.stderr
    output = (tmp_path / "logs" / "worker1.log").read_text()
    assert "RuntimeError: Another worker stopped answering" in output


@pytest.fixture(scope="module")
def again(killed, tmp_path_factory):
    """The folders of the cluster, started again, and of one that is left in peace."""
    _, folder = killed
    files = {path.name for path in folder.iterdir()}
    peaceful = tmp_path_factory.mktemp("peaceful")
    for each in (folder, peaceful):
        done = launch(_KILLED, each, -1, flags=[f"--output_dir={each}/again"])
        assert not done.returncode, done.stdout + done.stderr
    return files, folder, peaceful


@pytest.mark.slow
def test_a_cluster_started_again_reaches_the_weights_of_an_undisturbed_one(again):
    _, folder, peaceful = again
    for k in range(2):
        resumed, straight = (dict(np.load(f / f"worker{k}.npz")) for f in (folder, peaceful))
        assert (resumed.pop("epochs"), straight.pop("epochs")) == (2, 4)
        for key, value in straight.items():
            np.testing.assert_allclose(resumed[key], value, rtol=0, atol=1e-6, err_msg=key)


@pytest.mark.slow
def test_files_are_written_by_the_chief_alone(again):
    files, folder, _ = again
    assert files == {"first", "backup", "checkpoint.weights.h5", "log.csv", "logs"}
    # One header, and a row for every epoch of both runs.
    assert len((folder / "log.csv").read_text().splitlines()) == 1 + 2 + 2
    assert len(list((folder / "logs" / "train").glob("*.tfevents*"))) == 2


if __name__ == "__main__":
    pytest.main([__file__])

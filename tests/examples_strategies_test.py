"""The scripts on several devices and hosts."""

import importlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import keras
import pytest

ROOT = Path(__file__).parents[1]


def _run(script, *arguments, tf_config=None):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("TF_CONFIG", None)
    if tf_config is not None:
        environment["TF_CONFIG"] = tf_config
    return subprocess.run(
        [sys.executable, ROOT / "examples" / f"{script}.py", *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )


@pytest.fixture(scope="module")
def strategies():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "examples")
        return importlib.import_module("strategies")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    done = _run(
        "train_teacher",
        f"--output_dir={folder}",
        "--model=resnet8",
        "--epochs=1",
        "--strategy=mirrored",
        "--logical_cpus=2",
    )
    assert not done.returncode, done.stdout + done.stderr
    return folder / "teacher.keras"


def test_two_workers_distil_and_the_chief_writes(teacher, tmp_path):
    script = ["--", ROOT / "examples" / "distill.py", "--strategy=multi_worker", "--epochs=1"]
    flags = [f"--teacher={teacher}", f"--output_dir={tmp_path}/student", "--methods=kd"]
    done = _run("launch_workers", f"--output_dir={tmp_path}/workers", *script, *flags)
    assert not done.returncode, done.stdout + done.stderr
    (row,) = json.loads((tmp_path / "student" / "results.json").read_text())
    assert row["method"] == "kd" and (tmp_path / "student" / "student.keras").exists()
    assert "Best on the validation split: kd" in done.stdout
    assert "Best" not in (tmp_path / "workers" / "worker1.log").read_text()


@pytest.mark.slow
def test_two_workers_train_a_teacher_and_the_chief_writes(tmp_path):
    script = ["--", ROOT / "examples" / "train_teacher.py", "--strategy=multi_worker"]
    flags = [f"--output_dir={tmp_path}/run", "--model=resnet8", "--epochs=1"]
    done = _run("launch_workers", f"--output_dir={tmp_path}/workers", *script, *flags)
    assert not done.returncode, done.stdout + done.stderr
    assert "of the test split, saved as" in done.stdout
    assert keras.saving.load_model(tmp_path / "run" / "teacher.keras").count_params() > 0
    assert "saved as" not in (tmp_path / "workers" / "worker1.log").read_text()


FEW = ["--student=digits_cnn", "--epochs=1", "--labels_per_class=3", "--batch_size=10"]
# What each of the other scripts that train needs to end soon.
OTHERS = {
    "self_distill": [*FEW, "--methods=plain,muse_multiplicative", "--weights=1"],
    "online_distill": [*FEW, "--methods=alone,dml_muse", "--weights=1"],
    "few_shot": [*FEW, "--methods=vid"],
    "zero_shot": ["--student=digits_cnn", "--epochs=1", "--dropped=9"],
    "cmi_temperature": ["--student=digits_cnn", "--epochs=1", "--temperature=4"],
    "tune_teacher": ["--epochs=1", "--weight=0.1", "--centroids=epoch"],
    "distill_detector": ["--num_scenes=16", "--epochs=1", "--width=2", "--methods=plain,muse"],
}


def _teachers(script, teacher, folder):
    flags = []
    if script in ("few_shot", "zero_shot", "cmi_temperature", "tune_teacher"):
        flags.append(f"--teacher={teacher}")
    if script in ("few_shot", "zero_shot"):
        flags.append(f"--mcmi_teacher={shutil.copy(teacher, folder / 'tuned.keras')}")
    return flags


@pytest.mark.slow
@pytest.mark.parametrize("script", OTHERS)
def test_every_script_that_trains_does_so_on_two_workers(teacher, tmp_path, script):
    flags = ["--strategy=multi_worker", f"--output_dir={tmp_path}/run", *OTHERS[script]]
    flags += _teachers(script, teacher, tmp_path)
    path = ROOT / "examples" / f"{script}.py"
    done = _run("launch_workers", f"--output_dir={tmp_path}/workers", "--", path, *flags)
    assert not done.returncode, done.stdout + done.stderr
    assert json.loads((tmp_path / "run" / "results.json").read_text())
    # Only the chief's TensorBoard wrote.
    events = list((tmp_path / "run" / "logs").rglob("events.out.tfevents.*"))
    assert len({path.name.split(".")[-3] for path in events}) == 1, events


@pytest.mark.slow
@pytest.mark.parametrize("script", OTHERS)
def test_every_script_that_trains_does_so_on_two_devices(teacher, tmp_path, script):
    # The protocol's batch of 25 images is not divided evenly.
    flags = ["--strategy=mirrored", "--logical_cpus=2", f"--output_dir={tmp_path}/run"]
    flags += [flag for flag in OTHERS[script] if not flag.startswith("--batch_size")]
    done = _run(script, *flags, *_teachers(script, teacher, tmp_path))
    assert not done.returncode, done.stdout + done.stderr
    assert json.loads((tmp_path / "run" / "results.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("script", OTHERS)
def test_every_script_that_trains_refuses_a_missing_cluster(teacher, tmp_path, script):
    flags = [f"--output_dir={tmp_path}/run", "--strategy=multi_worker"]
    done = _run(script, *flags, *_teachers(script, teacher, tmp_path))
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "expected TF_CONFIG in the environment" in done.stderr.strip().splitlines()[-1]
    assert not (tmp_path / "run").exists()


CLUSTER = {"cluster": {"worker": ["localhost:1", "localhost:2"]}}


@pytest.mark.parametrize(
    "config, message",
    [
        (None, "expected TF_CONFIG in the environment"),
        ("{worker: 0}", "TF_CONFIG: expected"),
        ("[]", "TF_CONFIG: expected"),
        (json.dumps(CLUSTER), "with a worker of index k; got"),
        (json.dumps({**CLUSTER, "task": {"type": "worker", "index": 2}}), "worker of index k"),
        (json.dumps({**CLUSTER, "task": {"type": "ps", "index": 0}}), "worker of index k"),
        (
            json.dumps({"cluster": {"worker": ["here"]}, "task": {"type": "worker", "index": 0}}),
            "k",
        ),
    ],
)
def test_a_malformed_cluster_is_refused(strategies, config, message):
    with pytest.raises(SystemExit, match=message):
        strategies.cluster(config)


def test_a_cluster_is_its_workers_and_the_own_index(strategies):
    config = json.dumps({**CLUSTER, "task": {"type": "worker", "index": 1}})
    assert strategies.cluster(config) == (["localhost:1", "localhost:2"], 1)


def test_a_worker_that_never_comes_is_a_message_after_the_time_out(teacher, tmp_path):
    with socket.socket() as one, socket.socket() as other:
        one.bind(("localhost", 0))
        other.bind(("localhost", 0))
        ports = one.getsockname()[1], other.getsockname()[1]
    config = {
        "cluster": {"worker": [f"localhost:{port}" for port in ports]},
        "task": {"type": "worker", "index": 0},
    }
    flags = [f"--teacher={teacher}", f"--output_dir={tmp_path}", "--methods=kd"]
    start = time.monotonic()
    done = _run(
        "distill",
        "--strategy=multi_worker",
        "--worker_timeout=2",
        *flags,
        tf_config=json.dumps(config),
    )
    assert done.returncode == 1 and time.monotonic() - start < 200
    assert f"Waiting for the workers localhost:{ports[0]}, localhost:{ports[1]}" in done.stderr
    assert "Timeout (0:00:02)!" in done.stderr


def test_a_port_that_is_taken_is_a_message(teacher, tmp_path):
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        taken.listen()
        own = f"localhost:{taken.getsockname()[1]}"
        task = {"type": "worker", "index": 0}
        config = {"cluster": {"worker": [own, "localhost:1"]}, "task": task}
        flags = [f"--teacher={teacher}", f"--output_dir={tmp_path}", "--strategy=multi_worker"]
        done = _run("distill", *flags, tf_config=json.dumps(config))
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"expected that worker 0 can listen at {own}" in done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--strategy=multi_worker"], "expected TF_CONFIG in the environment"),
        (
            ["--strategy=mirrored", "--logical_cpus=4", "--batch_size=3"],
            "--batch_size: expected an example for each of the 4 replicas; got 3",
        ),
    ],
)
def test_wrong_combinations_are_refused_in_one_line(teacher, tmp_path, flags, message):
    done = _run("distill", f"--teacher={teacher}", f"--output_dir={tmp_path}", *flags)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert message in done.stderr.strip().splitlines()[-1]


def test_the_launcher_refuses_what_it_cannot_start(tmp_path):
    assert "Expected a script" in _run("launch_workers").stderr
    assert "nothing.py does not exist" in _run("launch_workers", "--", "nothing.py").stderr
    (tmp_path / "worker1.log").write_text("old")
    done = _run("launch_workers", f"--output_dir={tmp_path}", "--", __file__)
    assert "worker1.log exists; choose another folder" in done.stderr
    assert (tmp_path / "worker1.log").read_text() == "old"


def test_the_launcher_ends_with_the_status_of_the_first_that_failed(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(
        "import json, os, sys, time\n"
        "if json.loads(os.environ['TF_CONFIG'])['task']['index']: sys.exit(7)\n"
        "time.sleep(600)\n"
    )
    done = _run("launch_workers", f"--output_dir={tmp_path}/logs", "--grace=0.5", "--", script)
    assert done.returncode == 1
    assert "Ended: worker 0 with SIGKILL, worker 1 with 7." in done.stderr


def test_too_few_free_ports_are_a_message(tmp_path):
    # Each port takes one of the files that a process may open.
    launcher = f"{sys.executable} {ROOT}/examples/launch_workers.py --workers=500"
    command = f"ulimit -n 200; {launcher} --output_dir={tmp_path} -- {__file__}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=100)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "--workers: expected 500 free ports on localhost; [Errno 24]" in done.stderr


if __name__ == "__main__":
    pytest.main([__file__])

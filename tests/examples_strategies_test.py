"""The scripts on several devices and hosts."""

import json
import os
import subprocess
import sys
import time

import keras
import pytest

from tests.example_runs import ROOT, run_example, run_on_two_devices, run_on_two_workers

FEW = ["--epochs=1", "--labels_per_class=3", "--batch_size=11"]
# What each script that trains needs to end soon. Two replicas do not divide a batch of 11 evenly.
SCRIPTS = {
    "train_teacher": ["--model=digits_cnn", "--epochs=1", "--batch_size=101"],
    "distill": ["--student=digits_cnn", *FEW, "--methods=student,mimkd"],
    "assistants": ["--chain=digits_cnn,digits_cnn", *FEW],
    "tune_teacher": ["--epochs=1", "--centroids=epoch", "--batch_size=101"],
    "self_distill": ["--student=digits_cnn", *FEW, "--methods=plain,muse"],
    "online_distill": ["--peers=digits_cnn,digits_cnn", *FEW, "--methods=alone,dml_muse"],
    "distill_detector": ["--epochs=1"],
}

TAUGHT = ("distill", "assistants", "tune_teacher")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    done = run_example("train_teacher", f"--output_dir={folder}", *SCRIPTS["train_teacher"])
    assert not done.returncode, done.stderr
    return folder / "teacher.keras"


def _arguments(script, teacher, output):
    given = [f"--teacher={teacher}"] if script in TAUGHT else []
    return [f"--output_dir={output}", *SCRIPTS[script], *given]


def _check_results(script, output):
    if script == "train_teacher":
        assert keras.saving.load_model(output / "teacher.keras").count_params() == 5122
    else:
        assert json.loads((output / "results.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_that_trains_does_so_on_two_workers(teacher, tmp_path, script):
    output, workers = tmp_path / "run", tmp_path / "workers"
    done = run_on_two_workers(workers, script, *_arguments(script, teacher, output))
    assert not done.returncode, done.stdout + done.stderr
    _check_results(script, output)
    # Only the chief prints results, and only its TensorBoard writes.
    assert "Curves: tensorboard" in done.stdout or "curves: tensorboard" in done.stdout
    assert "tensorboard --logdir" not in (workers / "worker1.log").read_text()
    events = (path.name for path in (output / "logs").rglob("events.out.tfevents.*"))
    assert len({name.split(".")[-3] for name in events if not name.endswith(".v2.profile")}) == 1


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_that_trains_does_so_on_two_devices(teacher, tmp_path, script):
    output = tmp_path / "run"
    done = run_on_two_devices(script, *_arguments(script, teacher, output))
    assert not done.returncode, done.stdout + done.stderr
    _check_results(script, output)


def test_the_launcher_refuses_what_it_cannot_start(tmp_path):
    assert "Expected a script and its flags behind --" in run_example("launch_workers").stderr
    (tmp_path / "worker1.log").write_text("old")
    done = run_example("launch_workers", f"--output_dir={tmp_path}", "--", __file__)
    assert f"Received: {tmp_path}/worker1.log exists" in done.stderr
    assert (tmp_path / "worker1.log").read_text() == "old"


def test_the_launcher_stops_the_others_when_a_worker_fails(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(
        "import json, os, sys, time\n"
        "config = json.loads(os.environ['TF_CONFIG'])\n"
        "print(len(config['cluster']['worker']), 'workers', flush=True)\n"
        "if config['task']['index']: sys.exit(7)\n"
        "time.sleep(600)\n"
    )
    logs = tmp_path / "logs"
    done = run_example("launch_workers", f"--output_dir={logs}", "--grace=0.5", "--", script)
    assert done.returncode == 1 and "2 workers" in done.stdout
    assert "Received: exit codes [-9, 7]" in done.stderr


def test_the_launcher_takes_its_workers_with_it(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text("import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(600)\n")
    launcher = [sys.executable, ROOT / "examples" / "launch_workers.py", "--workers=1"]
    command = [*launcher, f"--output_dir={tmp_path / 'logs'}", "--", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as launched:
        worker = int(launched.stdout.readline())
        launched.terminate()
    with pytest.raises(ProcessLookupError):
        for _ in range(100):  # A process that has ended is there until it was waited for.
            os.kill(worker, 0)
            time.sleep(0.1)


if __name__ == "__main__":
    pytest.main([__file__])

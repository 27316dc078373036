r"""Starts a script as several workers on this machine, which train as one cluster.

    python examples/launch_workers.py --workers=2 -- examples/distill.py --strategy=multi_worker \
        --teacher=runs/digits/teacher.keras --output_dir=runs/two_workers --method=vid

Every worker gets `TF_CONFIG` with free local ports. Shown is the output of worker 0, the chief;
`--output_dir` keeps that of all. If a worker fails, the others are stopped, and so is the launcher,
with the exit status of the first that failed.

On a real cluster no launcher is needed: start the same script on every host with

    TF_CONFIG='{"cluster": {"worker": ["host0:2222", "host1:2222"]},
                "task": {"type": "worker", "index": 0}}'

and the index of the host.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from absl import app, flags

FLAGS = flags.FLAGS
flags.DEFINE_integer("workers", 2, "Number of workers.", 1)
flags.DEFINE_string("output_dir", None, "Folder for the output of every worker: worker<k>.log.")
flags.DEFINE_float("grace", 60.0, "Seconds that the others get to end when a worker failed.", 0.0)


def free_ports(count):
    """Returns ports that are free now."""
    sockets = []
    try:
        for _ in range(count):
            each = socket.socket()
            sockets.append(each)
            each.bind(("localhost", 0))
        return [each.getsockname()[1] for each in sockets]
    except OSError as error:
        raise SystemExit(f"--workers: expected {count} free ports on localhost; {error}") from error
    finally:
        for each in sockets:
            each.close()


def start(command, index, ports, log):
    """Starts one worker; its standard output and errors go to a file."""
    config = {
        "cluster": {"worker": [f"localhost:{port}" for port in ports]},
        "task": {"type": "worker", "index": index},
    }
    return subprocess.Popen(
        command,
        env={**os.environ, "TF_CONFIG": json.dumps(config)},
        stdout=log,
        stderr=subprocess.STDOUT,
    )


def wait(workers, show, grace):
    """Waits for all workers; returns the exit status of the first that failed, or 0."""
    failed, deadline = 0, None
    while None in [worker.poll() for worker in workers]:
        show()
        for worker in workers:
            if worker.returncode and not failed:
                failed, deadline = worker.returncode, time.monotonic() + grace
        if deadline is not None and time.monotonic() > deadline:
            for worker in workers:
                worker.kill()
        time.sleep(0.1)
    show()
    return failed or next((w.returncode for w in workers if w.returncode), 0)


def main(argv):
    script = argv[1:]
    if not script:
        raise SystemExit("Expected a script and its flags behind --; got nothing")
    if not Path(script[0]).is_file():
        raise SystemExit(f"Expected a script behind --; {script[0]} does not exist")
    folder = Path(FLAGS.output_dir or tempfile.mkdtemp(prefix="workers-"))
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"worker{index}.log" for index in range(FLAGS.workers)]
    for path in paths:
        if path.exists():
            raise SystemExit(f"--output_dir: {path} exists; choose another folder")
    ports = free_ports(FLAGS.workers)
    workers = []
    try:
        for index, path in enumerate(paths):
            with path.open("wb") as log:
                workers.append(start([sys.executable, *script], index, ports, log))
        with paths[0].open("rb") as chief:
            status = wait(
                workers,
                lambda: print(chief.read().decode(errors="replace"), end="", flush=True),
                FLAGS.grace,
            )
    finally:
        for worker in workers:
            worker.kill()
    if status:
        failed = [i for i, worker in enumerate(workers) if worker.returncode]
        names = {-each: each.name for each in signal.Signals}
        ends = ", ".join(
            f"worker {i} with {names.get(workers[i].returncode, workers[i].returncode)}"
            for i in failed
        )
        raise SystemExit(f"Ended: {ends}. Their output is in {folder}")


if __name__ == "__main__":
    app.run(main)

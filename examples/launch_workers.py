r"""Starts a script as several workers on this machine, which train as one cluster.

    python examples/launch_workers.py --workers=2 -- examples/distill.py --strategy=multi_worker \
        --teacher=runs/digits/teacher.keras --output_dir=runs/two_workers --methods=vid

Every worker gets a `TF_CONFIG` with free local ports. The launcher shows the output of worker 0,
the chief; `--output_dir` keeps that of all. If a worker fails, the others are stopped.

A real cluster needs no launcher: start the same script on every host with

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


def free_addresses(count):
    """Returns addresses of this machine whose ports are free now."""
    sockets = [socket.create_server(("localhost", 0)) for _ in range(count)]
    addresses = [f"localhost:{each.getsockname()[1]}" for each in sockets]
    for each in sockets:
        each.close()
    return addresses


def start(command, index, addresses, log):
    """Starts one worker, whose output goes to a file."""
    config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
    environment = {**os.environ, "TF_CONFIG": json.dumps(config)}
    with log.open("wb") as file:
        return subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)


def wait(workers, show, grace):
    """Shows the output of the chief until all workers have ended; stops them if one failed."""
    deadline = float("inf")
    while None in [worker.poll() for worker in workers]:
        show()
        if any(worker.returncode for worker in workers):
            deadline = min(deadline, time.monotonic() + grace)
        if time.monotonic() > deadline:
            return
        time.sleep(0.1)
    show()


def main(argv):
    script = argv[1:]
    if not script or not Path(script[0]).is_file():
        raise SystemExit(f"Expected a script and its flags behind --. Received: {script}.")
    folder = Path(FLAGS.output_dir or tempfile.mkdtemp(prefix="workers-"))
    logs = [folder / f"worker{index}.log" for index in range(FLAGS.workers)]
    for log in logs:
        if log.exists():
            raise SystemExit(f"Expected a new --output_dir. Received: {log} exists.")
    folder.mkdir(parents=True, exist_ok=True)
    addresses = free_addresses(FLAGS.workers)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # Stops the workers too.
    workers = []
    try:
        for index, log in enumerate(logs):
            workers.append(start([sys.executable, *script], index, addresses, log))
        with logs[0].open(errors="replace") as chief:
            wait(workers, lambda: print(chief.read(), end="", flush=True), FLAGS.grace)
    finally:
        for worker in workers:
            worker.kill()
    ends = [worker.wait() for worker in workers]
    if any(ends):
        raise SystemExit(
            f"Expected all workers to end well. Received: exit codes {ends}, see {folder}."
        )
    print(f"\nThe output of every worker is in {folder}.")


if __name__ == "__main__":
    app.run(main)

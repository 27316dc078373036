"""Kills runs at random moments, starts them again, and compares them with undisturbed ones.

    python tests/kill_runs.py --kills=40 --folder=/somewhere

prints a table, and fails if a run could not go on or ended elsewhere. What is in the folder is not
done again. Each run is a process forked from this one, which has imported TensorFlow once.
"""

import argparse
import json
import os
import pathlib
import random
import signal
import sys
import time
import traceback

import numpy as np
import resumed_run
import tensorflow as tf


def start(name, folder):
    """Starts a run in a process of its own, which writes `ended.npz` at its end."""
    folder.mkdir(parents=True, exist_ok=True)
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        with open(folder / "log.txt", "a") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            tf.config.experimental.enable_op_determinism()
            np.savez(folder / "ended.npz", **resumed_run.RUNS[name](folder))
            status = 0
    except BaseException:
        with open(folder / "log.txt", "a") as log:
            traceback.print_exc(file=log)
    finally:
        os._exit(status)


def undisturbed(name, folder):
    """Returns the seconds that a run takes; its result is in the folder."""
    if not (folder / "seconds.txt").exists():
        begin = time.monotonic()
        if os.waitpid(start(name, folder), 0)[1] != 0:
            raise RuntimeError((folder / "log.txt").read_text())
        (folder / "seconds.txt").write_text(str(time.monotonic() - begin))
    return float((folder / "seconds.txt").read_text())


def killed(name, folder, moments):
    """Starts a run once for each time after which to kill it, and then until it ends.

    Returns the times at which it was killed, and the status of the last start. A start that goes on
    may end before its time.
    """
    hits = []
    for moment in moments:
        process, begin = start(name, folder), time.monotonic()
        while time.monotonic() - begin < moment:
            if os.waitpid(process, os.WNOHANG)[0]:
                break
            time.sleep(0.005)
        else:
            os.kill(process, signal.SIGKILL)
            if os.WIFSIGNALED(os.waitpid(process, 0)[1]):
                hits.append(round(moment, 2))
    return hits, os.waitpid(start(name, folder), 0)[1]


def difference(whole, other):
    """Returns what two results differ in, as a text; empty if nothing."""
    with np.load(whole / "ended.npz") as a, np.load(other / "ended.npz") as b:
        if set(a) != set(b):
            return "other names"
        differ = [n for n in a if a[n].tobytes() != b[n].tobytes()]
    return f"{len(differ)} arrays differ: {differ[:3]}" if differ else ""


def attempt(name, folder, number, rng, kills):
    """Returns the row of a run that is killed some times."""
    whole = folder / "whole" / name
    seconds = undisturbed(name, whole)
    # A start that goes on has less to do.
    moments = [rng.uniform(0, seconds / (i + 1)) for i in range(kills)]
    other = folder / f"killed {number}"
    hits, status = killed(name, other, moments)
    failed = f"the last start failed, see {other}/log.txt" if status else ""
    return {
        "run": name,
        "killed after seconds": hits,
        "of": round(seconds, 2),
        "fault": failed or difference(whole, other),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--folder", type=pathlib.Path, required=True)
    parser.add_argument("--runs", nargs="*", default=list(resumed_run.RUNS))
    parser.add_argument("--kills_of_a_run", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rows, done = [], 0
    while done < arguments.kills:
        number = len(rows)
        row_file = arguments.folder / f"row {number}.json"
        if not row_file.exists():
            name = arguments.runs[number % len(arguments.runs)]
            rng = random.Random(f"{arguments.seed} {number}")
            row = attempt(name, arguments.folder, number, rng, arguments.kills_of_a_run)
            row_file.write_text(json.dumps(row))
        rows.append(json.loads(row_file.read_text()))
        shown = rows[-1]
        done += len(shown["killed after seconds"])
        moments = f"{shown['killed after seconds']!s:>18} of {shown['of']:6} s"
        print(f"{shown['run']:20} {moments}  {shown['fault'] or 'the same to the bit'}", flush=True)
    faults = sum(bool(row["fault"]) for row in rows)
    print(f"{done} kills of {len(rows)} runs, {faults} with a fault")
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())

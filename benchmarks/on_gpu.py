r"""Everything that is to be measured on a GPU, one piece after another, as time allows.

    python benchmarks/on_gpu.py --output_dir=runs/gpu
    python benchmarks/on_gpu.py --output_dir=runs/gpu --pieces=steps,tests
    python benchmarks/on_gpu.py --output_dir=runs/try --pieces=steps --quick   # on a CPU, first

Every piece is a benchmark or the suite in a process of its own, with what it prints in
`<output_dir>/<piece>.log` and its numbers, if it writes any, in `<output_dir>/<piece>.json`. Those
that say most come first. A piece that is through is not run again; one that fails or takes longer
than `--minutes` is reported, and the next one begins. `--minutes` is for each piece.
"""

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from absl import app, flags

FLAGS = flags.FLAGS
flags.DEFINE_string("output_dir", None, "Folder for everything that is written.", required=True)
flags.DEFINE_list("pieces", [], "Some of the pieces; all of them, in order, if not given.")
flags.DEFINE_float("minutes", 8.0, "Most minutes of a piece.", 0.0)
flags.DEFINE_bool("quick", False, "Steps in one round of one step, to see that they run.")

_STEP_TIME = "benchmarks/step_time.py --pair=cifar --output={output}"
_METHODS = "'--methods=KD,VID,VID (no read-outs),MIMKD,Keras (3 features),same in mikd.Distiller'"
_MI = "experiments/estimate_mi.py --dimensions=5,20 --nats=0.5,2 --output_dir={folder}"

# Piece -> arguments of Python, and variables of its process.
PIECES = {
    "steps": (f"{_STEP_TIME} --xla=on --batch_sizes=64,256 --rounds=9 {_METHODS}", {}),
    "tests": ("-m pytest -q -n 8 --dist loadfile --no-loadscope-reorder", {}),
    "operations": ("benchmarks/operations.py --output={output}", {}),
    "torch": (f"{_STEP_TIME} --xla=on --against=torch --methods=KD --rounds=5", {}),
    "cache": (
        "benchmarks/teacher_cache.py --teachers=resnet32x4 --examples=8192 --batch_size=256 "
        "--output={output}",
        {},
    ),
    "large_batches": (f"{_STEP_TIME} --xla=on --batch_sizes=1024 --rounds=5 {_METHODS}", {}),
    "bfloat16": (
        f"{_STEP_TIME} --xla=on --batch_sizes=256 --dtype_policy=mixed_bfloat16 {_METHODS}",
        {},
    ),
    "float16": (
        f"{_STEP_TIME} --xla=on --batch_sizes=256 --dtype_policy=mixed_float16 {_METHODS}",
        {},
    ),
    "no_xla": (f"{_STEP_TIME} --xla=off --batch_sizes=256 {_METHODS}", {}),
    # What TensorFloat-32 does to estimates of information that is known.
    "information": (_MI, {"NVIDIA_TF32_OVERRIDE": "0"}),
    "information_tf32": (_MI, {"NVIDIA_TF32_OVERRIDE": "1"}),
    "critics": ("benchmarks/compiled_critics.py --widths=64,512 --output={output}", {}),
}
_QUICK = ("steps", "large_batches", "bfloat16", "float16", "no_xla")


def command(piece, folder):
    """Returns the command of a piece as a list."""
    arguments, _ = PIECES[piece]
    paths = {"output": folder / f"{piece}.json", "folder": folder / piece}
    found = [sys.executable, *(part.format(**paths) for part in shlex.split(arguments))]
    if FLAGS.quick and piece in _QUICK:
        found.append("--quick")
    return found


def run(piece, folder):
    """Runs a piece; returns how it ended."""
    whole = command(piece, folder)
    (folder / f"{piece}.json").unlink(missing_ok=True)  # Half a piece, of a run that was killed.
    start = time.perf_counter()
    with (folder / f"{piece}.log").open("w") as log:
        try:
            done = subprocess.run(
                whole,
                env=os.environ | PIECES[piece][1],
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=60 * FLAGS.minutes,
                check=False,
            )
            code = done.returncode
        except subprocess.TimeoutExpired:
            code = None
    return {"command": shlex.join(whole), "code": code, "seconds": time.perf_counter() - start}


def main(argv):
    del argv
    pieces = FLAGS.pieces or list(PIECES)
    if unknown := [piece for piece in pieces if piece not in PIECES]:
        raise SystemExit(f"Expected some of {list(PIECES)}. Received: --pieces={unknown[0]}")
    folder = Path(FLAGS.output_dir)
    path = folder / "pieces.json"
    if folder.exists() and any(folder.iterdir()) and not path.exists():
        raise SystemExit(f"Expected a new --output_dir, or one of this script. Received: {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    ended = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(ended, indent=1))
    for number, piece in enumerate(pieces, 1):
        if ended.get(piece, {}).get("code") == 0:
            print(f"[{number}/{len(pieces)}] {piece}: is through", flush=True)
            continue
        print(f"[{number}/{len(pieces)}] {piece} ...", flush=True)
        ended[piece] = run(piece, folder)
        path.write_text(json.dumps(ended, indent=1))
        code = ended[piece]["code"]
        said = "took too long" if code is None else f"ended with {code}"
        print(f"    {said} after {ended[piece]['seconds']:.0f} s: {folder / piece}.log", flush=True)


if __name__ == "__main__":
    app.run(main)

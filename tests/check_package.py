"""Builds the package as a user gets it, and tests what was installed from another folder.

No test by itself: `make package` runs it, and package_test.py tests its parts. In a new folder it
makes the sdist, from that the wheel, compares the wheel with the sources, installs it without its
dependencies, which are those of this Python, and runs `TESTS` where the sources cannot be seen. It
stops with the first thing that is wrong; what has passed goes to the folder `--output`.

    python tests/check_package.py --output=dist
"""

import argparse
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import zipfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "keras_mikd"
TESTS = ["vid_distiller", "student_checkpoint", "datasets_digits", "tflite"]
IMPORT_SECONDS = 0.3
RUNS = 5

_TIME_IMPORT = """
import time, keras, tensorflow
start = time.perf_counter()
import keras_mikd
print(time.perf_counter() - start)
"""


def differences(wheel, package=PACKAGE):
    """Returns what of a package is not in its wheel, or is other there, as lines of text."""
    with zipfile.ZipFile(wheel) as file:
        inside = {n: file.read(n) for n in file.namelist() if ".dist-info/" not in n}
    own = {
        path.relative_to(package.parent).as_posix(): path.read_bytes()
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    lines = [f"missing in the wheel: {name}" for name in sorted(own.keys() - inside.keys())]
    lines += [f"not in the sources: {name}" for name in sorted(inside.keys() - own.keys())]
    both = own.keys() & inside.keys()
    return lines + [f"other in the wheel: {n}" for n in sorted(both) if own[n] != inside[n]]


def median_import_seconds(environment, folder, runs=RUNS):
    """Returns what `import keras_mikd` takes after keras and tensorflow: the median of processes.

    One process more comes first, which compiles the modules.
    """
    command = [sys.executable, "-c", _TIME_IMPORT]
    seconds = [float(_printed(command, environment, folder)) for _ in range(runs + 1)]
    return statistics.median(seconds[1:])


def installed_file(environment, folder):
    """Returns the path from which `import keras_mikd` comes."""
    command = [sys.executable, "-c", "import keras_mikd; print(keras_mikd.__file__)"]
    return pathlib.Path(_printed(command, environment, folder))


def _printed(command, environment, folder):
    done = subprocess.run(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout.splitlines()[-1]


def _run(*command, **options):
    print("$", *command, flush=True)
    subprocess.run(command, check=True, **options)


def built(folder, *options):
    """Builds an sdist and from it a wheel in a new folder; returns their paths, the wheel last."""
    _run(sys.executable, "-m", "build", *options, "--outdir", folder, ROOT)
    return [*folder.glob("*.tar.gz"), *folder.glob("*.whl")]


def installed(wheel, folder):
    """Installs a wheel with all files in a folder of its own; returns the environment to use it.

    Raises:
        SystemExit: If the wheel holds other files than the sources, or others are imported.
    """
    if found := differences(wheel):
        raise SystemExit("\n".join(found))
    site = folder / "site"
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--quiet"]
    _run(*pip, "--target", site, wheel)
    # Before the environment's own packages, where the sources may be installed.
    environment = {**os.environ, "PYTHONPATH": str(site), "TF_CPP_MIN_LOG_LEVEL": "3"}
    found = installed_file(environment, folder)
    if not found.is_relative_to(site):
        raise SystemExit(f"Expected keras_mikd of {site}. Received: {found}")
    return environment


def _check(wheel, folder):
    environment = installed(wheel, folder)
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    files = [f"tests/{name}_test.py" for name in TESTS]
    _run(sys.executable, "-m", "pytest", "-q", *files, cwd=folder, env=environment)
    seconds = median_import_seconds(environment, folder)
    print(
        f"\n{wheel.name}: {len(TESTS)} test files passed from another folder.\n"
        f"import keras_mikd, beyond keras and tensorflow: {seconds:.2f} s, the median of {RUNS}; "
        f"the aim is {IMPORT_SECONDS} s"
    )


def main():
    """Reads the arguments, builds and checks."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=pathlib.Path, required=True, help="for sdist and wheel")
    output = parser.parse_args().output
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder).resolve()
        files = built(folder / "built")
        _check(files[-1], folder)
        output.mkdir(parents=True, exist_ok=True)
        for each in files:
            print(shutil.copy(each, output))


if __name__ == "__main__":
    main()

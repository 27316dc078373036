"""What `make package` and `make test-oldest` look at; sdist and wheel are built here too."""

import os
import pathlib
import re
import subprocess
import sys
import zipfile

import check_package
import floors
import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture
def package(tmp_path):
    """The sources of a small package."""
    folder = tmp_path / "sources" / "small"
    (folder / "inner").mkdir(parents=True)
    for name in ("__init__.py", "py.typed", "inner/__init__.py", "inner/late.py"):
        (folder / name).write_text(f"NAME = {name!r}\n")
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "late.pyc").write_bytes(b"compiled")
    return folder


def _wheel(package, without=(), added=(), changed=()):
    path = package.parent / "small-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("small-1.0.dist-info/METADATA", "Name: small")
        for each in sorted(package.rglob("*")):
            name = each.relative_to(package).as_posix()
            if each.suffix in (".py", ".typed") and name not in without:
                file.writestr(f"small/{name}", "old" if name in changed else each.read_text())
        for name in added:
            file.writestr(name, "")
    return path


def test_a_wheel_with_all_that_the_sources_have(package):
    assert check_package.differences(_wheel(package), package) == []


def test_what_is_missing_in_a_wheel_added_or_other_is_told(package):
    wheel = _wheel(package, without=["inner/late.py"], added=["tests/a.py"], changed=["py.typed"])
    assert check_package.differences(wheel, package) == [
        "missing in the wheel: small/inner/late.py",
        "not in the sources: tests/a.py",
        "other in the wheel: small/py.typed",
    ]


def test_the_check_stops_at_a_module_that_is_missing(package, tmp_path, monkeypatch):
    wheel = _wheel(package, without=["inner/late.py"])
    found = check_package.differences(wheel, package)
    monkeypatch.setattr(check_package, "differences", lambda wheel: found)
    with pytest.raises(SystemExit, match="missing in the wheel: small/inner/late.py"):
        check_package.installed(wheel, tmp_path / "folder")


_USE = """
import keras, numpy as np, keras_mikd as mikd
teacher, student = (mikd.models.digits_cnn(10, (8, 8, 1)) for _ in range(2))
distiller = mikd.VIDDistiller(teacher, student)
distiller.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
x, y = np.random.default_rng(0).normal(size=(8, 8, 8, 1)).astype("float32"), np.arange(8)
distiller.fit(x, y, batch_size=8, verbose=0)
distiller.save("distiller.keras")
print(type(keras.saving.load_model("distiller.keras")).__name__)
"""


def test_what_is_built_trains_and_saves_from_another_folder(tmp_path):
    *sdists, wheel = check_package.built(tmp_path / "built", "--no-isolation")
    assert [path.name.endswith(".tar.gz") for path in sdists] == [True]
    environment = check_package.installed(wheel, tmp_path)
    command = [sys.executable, "-c", _USE]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.split()[-1:] == ["VIDDistiller"], done.stderr


def test_the_package_says_that_it_is_typed():
    assert (ROOT / "keras_mikd" / "py.typed").exists()


@pytest.mark.parametrize("name", check_package.TESTS)
def test_what_runs_against_the_wheel_exists(name):
    assert (ROOT / "tests" / f"{name}_test.py").exists()


@pytest.mark.slow
def test_another_keras_mikd_and_its_import_time_are_seen(tmp_path):
    site = tmp_path / "site" / "keras_mikd"
    site.mkdir(parents=True)
    (site / "__init__.py").write_text("import time\ntime.sleep(0.5)\n")
    environment = {**os.environ, "PYTHONPATH": str(site.parent)}
    found = check_package.installed_file(environment, tmp_path)
    assert found == site / "__init__.py"
    assert 0.5 <= check_package.median_import_seconds(environment, tmp_path, runs=1) < 2.0


def test_the_floors_are_those_of_the_project():
    text = (ROOT / "pyproject.toml").read_text()
    for name, requirement in zip(floors.NAMES, floors.floors(floors.NAMES), strict=True):
        (version,) = re.findall(rf'"{name}>=([\d.]+)"', text)
        assert requirement == f"{name}=={version}"


def test_a_floor_that_is_not_stated_is_an_error():
    with pytest.raises(ValueError, match="'nothing>=<version>' in pyproject.toml"):
        floors.floors(["nothing"])

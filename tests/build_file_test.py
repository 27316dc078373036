"""BUILD covers every Python file. Its Starlark is evaluated here as the Python that it also is."""

import pathlib
import re
import tomllib

import pytest

import keras_mikd

ROOT = pathlib.Path(__file__).parents[1]
RULES = ("py_binary", "py_library", "py_test")


def _glob(patterns, exclude=(), allow_empty=False):
    def matches(some):
        paths = {path for pattern in some for path in ROOT.glob(pattern) if path.is_file()}
        return {path.relative_to(ROOT).as_posix() for path in paths}

    found = sorted(matches(patterns) - matches(exclude))
    assert found or allow_empty, f"Bazel refuses a glob that matches nothing: {patterns}"
    return found


@pytest.fixture(scope="module")
def targets():
    """{name: (rule, attributes)}, as Bazel reads BUILD."""
    found, loaded = {}, set()

    def rule(kind):
        def declare(name, **attributes):
            assert kind in loaded, f"{kind} is not loaded"
            assert name not in found, f"two targets are called {name}"
            found[name] = (kind, attributes)

        return declare

    def load(label, *names):
        assert label == "@rules_python//python:defs.bzl"
        loaded.update(names)

    def ignore(*args, **kwargs):
        pass

    scope = {"__builtins__": {"len": len}, "glob": _glob, "load": load}
    scope |= {kind: rule(kind) for kind in RULES}
    scope |= dict.fromkeys(("package", "licenses", "exports_files"), ignore)
    exec((ROOT / "BUILD").read_text(), scope)
    return found


def _sources(targets, kind):
    return {src for rule, attrs in targets.values() if rule == kind for src in attrs["srcs"]}


def test_library_has_every_module(targets):
    assert targets["keras_mikd"][1]["srcs"] == _glob(["keras_mikd/**/*.py"])


def test_every_test_file_is_a_test_of_its_own(targets):
    files = _glob(["tests/**/*_test.py"])
    assert "tests/build_file_test.py" in files
    for file in files:
        rule, attributes = targets[file.removesuffix(".py")]
        assert (rule, attributes["main"]) == ("py_test", "tests/run_one.py")
        assert set(attributes["srcs"]) == {file, "tests/run_one.py"}
        assert attributes["args"] == [f"$(location {file})"]
    assert sum(rule == "py_test" for rule, _ in targets.values()) == len(files)


def test_every_script_is_a_binary(targets):
    files = _glob(["benchmarks/**/*.py", "examples/**/*.py"])
    files = [file for file in files if "app.run(main)" in (ROOT / file).read_text()]
    assert _sources(targets, "py_binary") == set(files)
    for file in files:
        assert targets[file.removesuffix(".py")][1]["main"] == file


def test_no_python_file_is_left_out(targets):
    covered = set().union(*(_sources(targets, kind) for kind in RULES))
    folders = ("benchmarks", "examples", "keras_mikd", "tests")
    assert covered == set(_glob([f"{folder}/**/*.py" for folder in folders]))


def test_labels_name_targets_or_files(targets):
    for name, (_, attributes) in targets.items():
        for label in attributes.get("deps", []):
            assert label.removeprefix(":") in targets, f"{name} depends on {label}"
        for file in attributes.get("data", []):
            assert (ROOT / file).is_file(), f"{name} needs {file}"


def test_there_is_one_build_file():
    """A BUILD file in a folder would hide the folder from the globs of the one at the root."""
    folders = ("benchmarks", "docs", "examples", "keras_mikd", "tests")
    assert not [p for folder in folders for p in (ROOT / folder).rglob("BUILD*")]


def test_versions_agree():
    module = (ROOT / "MODULE.bazel").read_text()
    (version,) = re.findall(r'^    version = "(.+)",$', module, flags=re.MULTILINE)
    assert version == keras_mikd.__version__
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["hatch"]["version"]["path"] == "keras_mikd/__init__.py"

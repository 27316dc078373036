"""Rules that every public name follows, whatever names there are."""

import importlib
import importlib.metadata
import inspect
import json
import pathlib
import pydoc
import re
import subprocess
import sys

import keras
import pytest

import keras_mikd as mikd

ROOT = pathlib.Path(__file__).parents[1]
PUBLIC = {name: value for name, value in vars(mikd).items() if name[0] != "_"}
CLASSES = {name: value for name, value in PUBLIC.items() if inspect.isclass(value)}
BOUNDS = [
    function
    for name, function in inspect.getmembers(mikd.bounds, inspect.isfunction)
    if name[0] != "_" and {"joint", "product"} <= set(inspect.signature(function).parameters)
]


def _parameters(cls):
    return [p for name, p in inspect.signature(cls.__init__).parameters.items() if name != "self"]


def test_what_is_public_is_the_packages_own():
    modules = {value.__name__ for value in PUBLIC.values() if inspect.ismodule(value)}
    owners = modules | {v.__module__ for v in PUBLIC.values() if not inspect.ismodule(v)}
    assert {name.partition(".")[0] for name in owners} == {"keras_mikd"}


def test_help_on_a_module_of_functions_shows_them():
    for module in (mikd.models, mikd.datasets, mikd.figures, mikd.recipes):
        shown = pydoc.render_doc(module, renderer=pydoc.plaintext)
        for name in module.__all__:
            assert f"\n    {name}(" in shown or f"class {name}(" in shown


def test_layers_and_metrics_are_known_to_keras():
    for name, cls in CLASSES.items():
        saved = issubclass(cls, (keras.layers.Layer, keras.metrics.Metric))
        if saved and cls not in (mikd.DistillationLoss, mikd.Critic):
            assert keras.saving.get_registered_object(f"keras_mikd>{name}") is cls


def test_bounds_are_known_to_keras():
    assert mikd.bounds.jsd in BOUNDS
    for bound in BOUNDS:
        assert keras.saving.get_registered_object(f"keras_mikd>{bound.__name__}") is bound


def test_hyper_parameters_of_losses_and_critics_are_keyword_only():
    for name, cls in CLASSES.items():
        if issubclass(cls, (mikd.DistillationLoss, mikd.Critic)):
            positional = [p for p in _parameters(cls) if p.kind is p.POSITIONAL_OR_KEYWORD]
            assert all(p.default is p.empty for p in positional), name


@pytest.mark.parametrize("cls", CLASSES.values(), ids=CLASSES)
def test_the_docstring_of_a_class_explains_its_arguments(cls):
    """ruff (D417) looks at functions only."""
    for parameter in _parameters(cls) if "__init__" in vars(cls) else []:
        assert re.search(rf"^    \*{{0,2}}{parameter.name}: ", inspect.getdoc(cls), re.M)


def test_versions_agree():
    assert f'version = "{mikd.__version__}"' in (ROOT / "MODULE.bazel").read_text()
    assert f"## [{mikd.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
    try:
        installed = importlib.metadata.version("keras_mikd")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("runs from the sources")
    assert mikd.__version__ == installed


@pytest.mark.slow
def test_importing_needs_keras_and_tensorflow_only():
    code = """
        import json, sys, keras, tensorflow
        before = set(sys.modules)
        import keras_mikd
        new = {name.split(".")[0] for name in set(sys.modules) - before}
        print(json.dumps(sorted(new - sys.stdlib_module_names)))
    """
    command = [sys.executable, "-c", inspect.cleandoc(code)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(json.loads(run.stdout)) <= {"keras", "keras_mikd", "tensorflow"}


def test_another_backend_is_refused(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(ImportError, match="TensorFlow backend.*Received: backend='jax'; set KERAS"):
        importlib.reload(mikd)

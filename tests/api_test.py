"""What is public: exactly these names, each documented, each saved and loaded by Keras."""

import ast
import importlib
import importlib.metadata
import inspect
import pathlib
import re
import subprocess
import sys
import types

import keras
import pytest

import keras_mikd as mikd

ROOT = pathlib.Path(__file__).parents[1]
PUBLIC = {
    mikd: {
        "AttentionTransfer",
        "BeYourOwnTeacher",
        "CMIRegularizer",
        "CMIReport",
        "ConcatCritic",
        "ConditionalMutualInformation",
        "Critic",
        "DetectorDistiller",
        "DistillationLoss",
        "Distiller",
        "FeatureTaps",
        "GaussianInformation",
        "GaussianVIDHead",
        "Hint",
        "JSDCritic",
        "KerasLossAdapter",
        "LogLikelihoodGuard",
        "MCMITeacher",
        "MIMKDDistiller",
        "MUSE",
        "MUSEDistiller",
        "MutualDistiller",
        "MutualInformation",
        "SelfDetectorDistiller",
        "SelfDistiller",
        "SeparableCritic",
        "SoftTargets",
        "TFLiteReport",
        "VIDDistiller",
        "bounds",
        "coco_metrics",
        "datasets",
        "TeacherCache",
        "export_tflite",
        "figures",
        "measure_cmi",
        "models",
        "pair_stages",
        "stages",
    },
    mikd.bounds: {
        "barber_agakov",
        "donsker_varadhan",
        "gaussian_correlation",
        "gaussian_mutual_information",
        "info_nce",
        "jsd",
        "nwj",
        "smile",
        "split_scores",
    },
    mikd.datasets: {
        "Splits",
        "load_cifar10",
        "load_cifar100",
        "load_coco",
        "load_digit_scenes",
        "load_digits",
    },
    mikd.figures: {
        "cmi_trajectory",
        "confusion_matrix",
        "eigen_cam",
        "eigen_cam_grid",
        "log_to_tensorboard",
        "logits_tsne",
        "save_png",
    },
    mikd.models: {
        "cifar_resnet",
        "digits_cnn",
        "resnet110",
        "resnet14",
        "resnet20",
        "resnet32",
        "resnet32x4",
        "resnet44",
        "resnet56",
        "resnet8",
        "resnet8x4",
        "wide_resnet",
        "wrn_16_1",
        "wrn_16_2",
        "wrn_40_1",
        "wrn_40_2",
    },
}
# Their docstrings are one line that names the function with the arguments.
PRESETS = r"resnet\d+(x4)?|wrn_\d+_\d"


def _names(namespace):
    """Names in a namespace, but for private ones and the modules that an import leaves there."""
    modules = (mikd.bounds, mikd.datasets, mikd.figures, mikd.models)
    values = {name: getattr(namespace, name) for name in dir(namespace) if name[0] != "_"}
    return {
        name
        for name, value in values.items()
        if not isinstance(value, types.ModuleType) or value in modules
    }


def _documented():
    """`{name: object}` of everything public that has a docstring of its own."""
    return {
        f"{namespace.__name__}.{name}": getattr(namespace, name)
        for namespace, names in PUBLIC.items()
        for name in sorted(names)
    }


def _public_classes():
    return {name: value for name, value in _documented().items() if inspect.isclass(value)}


OBJECTS = pytest.mark.parametrize("item", _documented().values(), ids=_documented().keys())


@pytest.mark.parametrize("namespace", PUBLIC, ids=lambda module: module.__name__)
def test_exactly_these_names_are_public(namespace):
    assert _names(namespace) == PUBLIC[namespace]


@OBJECTS
def test_every_public_name_has_a_docstring(item):
    assert item.__doc__ and item.__doc__ != object.__doc__
    first_line = item.__doc__.strip().splitlines()[0]
    assert first_line.endswith("."), first_line


def _arguments(item):
    if inspect.isclass(item) and "__init__" not in vars(item):
        return []
    signature = inspect.signature(item.__init__ if inspect.isclass(item) else item)
    parameters = list(signature.parameters.values())[inspect.isclass(item) :]
    return [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


def _section(item):
    """The indented lines under `Args:` (under `Attributes:` for a dataclass)."""
    title = "Attributes" if hasattr(item, "__dataclass_fields__") else "Args"
    found = re.search(rf"^{title}:\n((?:    .*\n|\n)+)", inspect.getdoc(item) + "\n", re.MULTILINE)
    return found.group(1) if found else ""


@OBJECTS
def test_every_argument_is_explained(item):
    if isinstance(item, types.ModuleType) or re.fullmatch(PRESETS, item.__name__):
        return
    explained = re.findall(r"^    \*{0,2}(\w+): \S", _section(item), re.MULTILINE)
    assert set(_arguments(item)) <= set(explained)
    assert explained or not _arguments(item)


def test_presets_name_the_function_that_explains_their_arguments():
    for name in PUBLIC[mikd.models]:
        if re.fullmatch(PRESETS, name):
            assert re.match(r"`(cifar_resnet|wide_resnet)` of ", getattr(mikd.models, name).__doc__)


@OBJECTS
def test_functions_say_what_they_return(item):
    if inspect.isfunction(item) and not re.fullmatch(PRESETS, item.__name__):
        assert re.search(r"^Returns:\n    \S", inspect.getdoc(item), re.MULTILINE)


@pytest.mark.parametrize("cls", _public_classes().values(), ids=_public_classes().keys())
def test_layers_metrics_and_models_are_known_to_keras(cls):
    abstract = (mikd.DistillationLoss, mikd.Critic)
    if issubclass(cls, (keras.layers.Layer, keras.metrics.Metric)) and cls not in abstract:
        name = keras.saving.get_registered_name(cls)
        assert name == f"keras_mikd>{cls.__name__}"
        assert keras.saving.get_registered_object(name) is cls


def test_bounds_are_known_to_keras():
    bounds = ("donsker_varadhan", "info_nce", "jsd", "nwj", "smile")
    for name in bounds:
        registered = keras.saving.get_registered_object(f"keras_mikd>{name}")
        assert registered is getattr(mikd.bounds, name)


def test_hyper_parameters_are_keyword_only():
    positional = {
        "CMIRegularizer": ["num_classes"],
        "ConditionalMutualInformation": ["num_classes"],
        "FeatureTaps": ["model", "places"],
        "GaussianInformation": ["num_channels", "name", "dtype"],
        "KerasLossAdapter": ["keras_loss"],
        "LogLikelihoodGuard": ["limit"],
        "MCMITeacher": ["teacher"],
        "MutualInformation": ["name", "dtype"],
        "TeacherCache": ["teacher", "images", "labels", "places"],
        "Distiller": ["teacher", "student", "distillation_losses"],
    }
    positional |= dict.fromkeys(
        ("MIMKDDistiller", "VIDDistiller", "DetectorDistiller"), positional["Distiller"]
    )
    positional["MutualDistiller"] = ["peers", "distillation_losses"]
    positional |= dict.fromkeys(
        ("SelfDistiller", "MUSEDistiller", "SelfDetectorDistiller"),
        ["model", "distillation_losses"],
    )
    for name, cls in _public_classes().items():
        if not hasattr(cls, "__dataclass_fields__"):
            parameters = inspect.signature(cls.__init__).parameters.values()
            allowed = ["self", *positional.get(name.rpartition(".")[2], [])]
            seen = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
            assert seen == allowed, name


def test_every_public_name_is_in_the_documentation():
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    text = "\n".join(page.read_text() for page in pages)
    code = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`\n]+)`", text))))
    names = {name for names in PUBLIC.values() for name in names}
    assert {name for name in names - code if not re.fullmatch(PRESETS, name)} == set()


def test_the_version_is_that_of_the_installed_package():
    try:
        installed = importlib.metadata.version("keras_mikd")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("runs from the sources")
    assert mikd.__version__ == installed


def test_importing_needs_keras_and_tensorflow_only():
    code = """
        import sys, keras, tensorflow
        before = set(sys.modules)
        import keras_mikd
        print({name.split(".")[0] for name in set(sys.modules) - before} - sys.stdlib_module_names)
    """
    command = [sys.executable, "-c", inspect.cleandoc(code)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert ast.literal_eval(run.stdout) <= {"keras", "keras_mikd", "tensorflow"}


def test_another_backend_is_refused(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(ImportError, match="TensorFlow backend.*Received: backend='jax'; set KERAS"):
        importlib.reload(mikd)


if __name__ == "__main__":
    pytest.main([__file__])

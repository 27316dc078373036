"""The rules of the tree: who may import whom, where things live, which forms are banned."""

import ast
import pathlib
import re
import sys

import pytest

import keras_mikd

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "keras_mikd"
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")
MODULES = {
    path.relative_to(ROOT).with_suffix("").as_posix().replace("/", "."): path for path in FILES
}

# Every module imports only from the rows above its own. Modules of a folder are one row.
ROWS = [
    {"atomic_files", "bounds", "callbacks", "replicas", "grids", "shape_checks", "layer_graph"},
    {"fingerprints"},
    {"cached_batches", "views", "worker_callbacks"},
    {"distributed_model"},
    {"coco_metrics", "datasets", "models", "stages", "tflite"},
    {"places"},
    {"feature_taps"},
    {"distillation_loss", "figures"},
    {"estimators", "baselines"},
    {"output_tally", "teacher_cache"},
    {"cmi_report"},
    {"distillers"},
]
# Parts of estimators, which any of them may use; the other modules there are methods.
PARTS_OF_ESTIMATORS = {
    "conditional_mutual_information",
    "contrast",
    "critics",
    "gaussian_information",
    "mutual_information",
}
# The only modules of a distiller that know a method.
ASSEMBLIES = {"mcmi_teacher", "mimkd_distiller", "muse_distiller", "vid_distiller"}
# Imported where they are used, so that `import keras_mikd` does without them.
OPTIONAL = {
    "coco_metrics": {"pycocotools"},
    "tflite": {"ai_edge_litert"},
    "datasets": {"importlib_resources", "sklearn", "tensorflow_datasets"},
    "figures": {"matplotlib", "sklearn", "tensorboard", "threadpoolctl"},
}
# Modules without a test file of their own, and the files that test them.
TESTED_ELSEWHERE = {
    # What `FeatureTaps` finds goes through all of them.
    "layer_graph": "feature_taps_test.py",
    "places": "feature_taps_test.py",
    "stages": "feature_taps_test.py",
    # Parts of `MCMITeacher`, and of `measure_cmi`.
    "mcmi_checks": "mcmi_teacher_test.py",
    "mcmi_epochs": "mcmi_teacher_test.py",
    "teacher_copy": "mcmi_teacher_test.py",
    "output_tally": "cmi_report_test.py",
    # Every distiller goes through them, the offline one in all of its tests.
    "base_distiller": "distiller_test.py",
    "networks": "distiller_test.py",
    "network_checks": "pair_checks_test.py",
    # A critic with its bound and its negatives, alone in this loss.
    "contrast": "jsd_critic_test.py",
    # What a `TeacherCache` is made of.
    "cached_batches": "teacher_cache_test.py",
    "views": "teacher_cache_test.py",
    # The digits as TFDS has them, and how TFDS is read.
    "digits_builder": "datasets_digits_test.py",
    "digit_scenes_builder": "datasets_digit_scenes_test.py",
    "tfds_arrays": "datasets_digits_test.py",
}
# Public classes in a file of another name: a base class and its kinds, a function's result.
OTHER_FILES = {
    "Critic": "critics",
    "ConcatCritic": "critics",
    "SeparableCritic": "critics",
    "TFLiteReport": "tflite",
}


def _tree(path):
    return ast.parse(path.read_text())


def _imports(path):
    """Full names of the modules that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            inner = {f"{node.module}.{alias.name}" for alias in node.names} & set(MODULES)
            found |= inner or {node.module}
    return found


def _own_imports(path):
    """Parts below the package of the modules of the package that a file imports."""
    return [name.split(".")[1:] for name in _imports(path) if name.startswith("keras_mikd")]


def _where(module):
    parts = module.split(".")[1:]
    return parts[0], parts[-1]


def _calls(tree, name):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _called(node) == name:
            yield node


def _called(call):
    return getattr(call.func, "attr", getattr(call.func, "id", None))


def _unstable(tree):
    """Lines with a logarithm or a clip that loses what a stable form keeps."""
    lines = []
    for log in [*_calls(tree, "log"), *_calls(tree, "log2"), *_calls(tree, "log10")]:
        (argument, *_) = log.args
        inner = {name for name in ("sigmoid", "softmax") if any(_calls(argument, name))}
        plus_one = isinstance(argument, ast.BinOp) and isinstance(argument.op, ast.Add)
        sides = (argument.left, argument.right) if plus_one else ()
        if inner or any(isinstance(side, ast.Constant) and side.value == 1 for side in sides):
            lines.append(log.lineno)
    for clip in _calls(tree, "clip"):
        if any(any(_calls(clip, name)) for name in ("sigmoid", "softmax")):
            lines.append(clip.lineno)
    return lines


def _public_classes():
    return [value for value in vars(keras_mikd).values() if isinstance(value, type)]


def test_imports_point_down():
    assert {_where(module)[0] for module in MODULES} == set().union(*ROWS)
    upwards = []
    for module, path in MODULES.items():
        place, _ = _where(module)
        row = next(i for i, names in enumerate(ROWS) if place in names)
        allowed = set().union(*ROWS[:row])
        if (PACKAGE / place).is_dir():
            allowed |= {place}
        upwards += [(module, i) for i in _own_imports(path) if not i or i[0] not in allowed]
    assert upwards == []


def test_imports_are_absolute_and_by_name():
    for module, path in MODULES.items():
        for node in ast.walk(_tree(path)):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, module
                assert [alias.name for alias in node.names] != ["*"], module


def test_only_keras_numpy_and_tensorflow_come_from_outside():
    for module, path in MODULES.items():
        place, _ = _where(module)
        outside = {name.split(".")[0] for name in _imports(path)}
        outside -= set(sys.stdlib_module_names) | {"keras_mikd"}
        allowed = {"keras", "numpy", "tensorflow"} | OPTIONAL.get(place, set())
        assert outside <= ({"keras"} if place == "bounds" else allowed), module


def test_methods_do_not_know_one_another():
    for module, path in MODULES.items():
        place, _ = _where(module)
        if place in ("estimators", "baselines"):
            allowed = PARTS_OF_ESTIMATORS if place == "estimators" else set()
            known = [i for i in _own_imports(path) if i[0] in ("estimators", "baselines")]
            assert all(i[0] == "estimators" and i[1] in allowed for i in known), module


def test_parts_of_estimators_are_no_methods():
    for name in PARTS_OF_ESTIMATORS:
        assert ["distillation_loss"] not in _own_imports(PACKAGE / "estimators" / f"{name}.py")


def test_distillers_know_no_method():
    for module, path in MODULES.items():
        place, name = _where(module)
        if place == "distillers" and name not in ASSEMBLIES:
            methods = [i for i in _own_imports(path) if i[0] in ("estimators", "baselines")]
            # Keras' own losses are taken as they are, so something has to wrap them.
            wrapper = [["baselines", "keras_loss_adapter"]] if name == "pair_checks" else []
            assert methods == wrapper, module


def test_one_module_knows_distribution_strategies():
    knowing = {
        module
        for module, path in MODULES.items()
        for node in ast.walk(_tree(path))
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "tf.distribute"
    }
    assert knowing == {"keras_mikd.replicas"}


def test_only_stable_forms():
    unstable = {module: _unstable(_tree(path)) for module, path in MODULES.items()}
    assert {module: lines for module, lines in unstable.items() if lines} == {}


@pytest.mark.parametrize(
    "code, found",
    [
        ("ops.log(1 + ops.exp(x))", True),
        ("np.log(np.exp(x) + 1.0)", True),
        ("ops.log(ops.sigmoid(x))", True),
        ("ops.log(keras.activations.softmax(x) + epsilon)", True),
        ("ops.log(ops.clip(ops.softmax(x), 1e-7, 1))", True),
        ("ops.clip(ops.softmax(x), 1e-7, 1)", True),
        ("ops.log_softmax(x) + ops.softplus(x) + ops.log(variance)", False),
        ("ops.softmax(ops.clip(x, -1, 1)) + ops.log1p(x)", False),
    ],
)
def test_unstable_forms_are_recognised(code, found):
    assert bool(_unstable(ast.parse(code))) == found


def test_every_module_has_a_test():
    tests = {path.name for path in (ROOT / "tests").glob("*_test.py")}
    untested = []
    for module in MODULES:
        place, name = _where(module)
        own = {f"{name}_test.py", f"{place}_{name}_test.py"} & tests
        assert not (own and name in TESTED_ELSEWHERE), f"{name} is no exception any more"
        if not own and TESTED_ELSEWHERE.get(name) not in tests:
            untested.append(module)
    assert untested == []


def test_a_public_class_has_a_file_of_its_name():
    for cls in _public_classes():
        words = r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])"
        name = OTHER_FILES.get(cls.__name__, re.sub(words, "_", cls.__name__).lower())
        assert cls.__module__.rpartition(".")[2] == name


def test_a_file_has_one_public_class():
    files = [c.__module__ for c in _public_classes() if OTHER_FILES.get(c.__name__) != "critics"]
    assert len(files) == len(set(files))


def test_no_module_is_a_drawer():
    words = {word for module in MODULES for part in module.split(".") for word in part.split("_")}
    assert not words & {"common", "core", "helpers", "misc", "tools", "util", "utils"}


if __name__ == "__main__":
    pytest.main([__file__])

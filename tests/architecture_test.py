"""Rules between modules, where no linter has them: who may know what, and which forms are banned.

`make lint` checks the rest: import-linter says which room imports which, ruff that private names of
other objects and relative imports are not used.
"""

import ast
import pathlib
import tomllib

import keras
import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "keras_mikd"
TREES = {
    path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text())
    for path in sorted(PACKAGE.rglob("*.py"))
}
KERAS_INTERNALS = "keras_internals.py"


def _nodes(kind, *, but=()):
    """`(file, node)` of every node of a kind, outside of some files."""
    for file, tree in TREES.items():
        if file not in but:
            yield from ((file, node) for node in ast.walk(tree) if isinstance(node, kind))


def _called(call):
    return getattr(call.func, "attr", getattr(call.func, "id", None))


def _calls(tree, *names):
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    return [call for call in calls if _called(call) in names]


def test_the_picture_of_the_rooms_is_what_the_linter_checks():
    root = PACKAGE.parent
    layers = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["importlinter"]
    checked = [set(layer.split(" | ")) for layer in layers["contracts"][0]["layers"]]
    picture = (root / "docs" / "architecture.md").read_text().split("```")[1]
    drawn = [set(line.strip("│ ").split(" | ")) for line in picture.splitlines() if "│" in line]
    assert drawn == [{"__init__"}, *checked]


def test_score_networks_see_no_labels():
    code = TREES["critics/critic.py"]
    names = {getattr(n, field, "") for n in ast.walk(code) for field in ("id", "attr", "arg")}
    assert not {name for name in names if name and ("label" in name or name.startswith("class_"))}


def test_one_module_takes_a_batch_apart():
    takes_apart = {f for f, t in TREES.items() if _calls(t, "unpack_x_y_sample_weight")}
    assert takes_apart == {"batches.py"}


def test_one_module_pads_a_replica_without_examples():
    """A pad is rows of zeros behind a tensor; TensorFlow's own pads fill up rows and columns."""
    joins = {f: _calls(t, "concat", "concatenate", "append") for f, t in TREES.items()}
    rows = "zeros", "zeros_like", "filled"
    pads = {f for f, calls in joins.items() if any(_calls(c, *rows) for c in calls)}
    assert pads == {"distribution/replicas.py"}


def test_one_module_names_distribution_strategies():
    """Others enter the strategy that a model has."""
    known = {f for f, node in _nodes(ast.Attribute) if ast.unparse(node) == "tf.distribute"}
    assert known == {"distribution/replicas.py"}


def test_one_module_uses_private_names_of_keras():
    """Names that the package does not define; ruff (SLF001) sees those of objects beside `self`."""
    definitions = (ast.FunctionDef, ast.ClassDef)
    own = {node.name for _, node in _nodes(definitions)}
    own |= {n.id for _, n in _nodes(ast.Name) if isinstance(n.ctx, ast.Store)}
    own |= {n.attr for _, n in _nodes(ast.Attribute) if isinstance(n.ctx, ast.Store)}
    used = [(f, n.attr) for f, n in _nodes(ast.Attribute, but=[KERAS_INTERNALS])]
    private = [(f, name) for f, name in used if name[0] == "_" and name[:2] != "__"]
    namedtuple = {"_asdict", "_fields", "_replace"}
    assert [(f, name) for f, name in private if name not in own | namedtuple] == []


def test_one_module_overrides_private_names_of_keras():
    bases = (keras.Model, keras.metrics.Metric, keras.callbacks.BackupAndRestore)
    theirs = {name for base in bases for name in dir(base) if name[0] == "_" and name[:2] != "__"}
    methods = _nodes(ast.FunctionDef, but=[KERAS_INTERNALS])
    assert [(f, method.name) for f, method in methods if method.name in theirs] == []


def _unstable(tree):
    """Lines with a logarithm or a clip that loses what a stable form keeps."""
    lines = []
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    for function in functions:
        assigned = [node for node in ast.walk(function) if isinstance(node, ast.Assign)]
        targets = [n.targets[0] for n in assigned if _calls(n.value, "sigmoid", "softmax")]
        names = {target.id for target in targets if isinstance(target, ast.Name)}
        for log in _calls(function, "log", "log2", "log10"):
            if isinstance(log.args[0], ast.Name) and log.args[0].id in names:
                lines.append(log.lineno)
    for log in _calls(tree, "log", "log2", "log10"):
        (argument, *_) = log.args
        plus_one = isinstance(argument, ast.BinOp) and isinstance(argument.op, ast.Add)
        sides = (argument.left, argument.right) if plus_one else ()
        one = any(isinstance(side, ast.Constant) and side.value == 1 for side in sides)
        if one or _calls(argument, "sigmoid", "softmax"):
            lines.append(log.lineno)
    clips = [clip for clip in _calls(tree, "clip") if _calls(clip, "sigmoid", "softmax")]
    return lines + [clip.lineno for clip in clips]


def test_only_stable_forms():
    unstable = {file: _unstable(tree) for file, tree in TREES.items()}
    assert {file: lines for file, lines in unstable.items() if lines} == {}


@pytest.mark.parametrize(
    "code, found",
    [
        ("ops.log(1 + ops.exp(x))", True),
        ("np.log(np.exp(x) + 1.0)", True),
        ("ops.log(ops.sigmoid(x))", True),
        ("ops.log(keras.activations.softmax(x) + epsilon)", True),
        ("ops.log(ops.clip(ops.softmax(x), 1e-7, 1))", True),
        ("ops.clip(ops.softmax(x), 1e-7, 1)", True),
        ("def f(x):\n    p = ops.softmax(x, axis=-1)\n    return ops.log(p)", True),
        ("def f(x):\n    p = ops.softmax(x)\n    return p * ops.log(x)", False),
        ("ops.log_softmax(x) + ops.softplus(x) + ops.log(variance)", False),
        ("ops.softmax(ops.clip(x, -1, 1)) + ops.log1p(x)", False),
    ],
)
def test_unstable_forms_are_recognised(code, found):
    assert bool(_unstable(ast.parse(code))) == found

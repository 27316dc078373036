"""Public signatures: every argument and result has an annotation, and all of them resolve."""

import importlib
import inspect
import pathlib
import typing

import keras
import pytest

import keras_mikd as mikd

DOCS = pathlib.Path(__file__).parents[1] / "docs"


@pytest.fixture
def public_names(monkeypatch):
    monkeypatch.syspath_prepend(DOCS / "_extensions")
    return importlib.import_module("public_names").public_names


def _functions(names):
    """`{name: function}` of functions, constructors, public methods and properties of our own."""
    found = {}
    for name, value in names.items():
        if inspect.isclass(value):
            found |= {f"{name}.{own}": each for own, each in _methods(value).items()}
        else:
            found[name] = value
    return found


def _methods(cls):
    """Also those of bases in the package, but what only a record or Keras defines."""
    found = {}
    for base in reversed(cls.__mro__):
        if base.__module__.partition(".")[0] != cls.__module__.partition(".")[0]:
            continue
        for name, value in vars(base).items():
            value = getattr(value, "fget", None) or getattr(value, "__func__", value)
            public = name[0] != "_" or name in ("__init__", "__call__")
            if public and inspect.isfunction(value):
                found[name] = value
    return found


def _parameters(function):
    parameters = inspect.signature(function).parameters.values()
    return [p for p in parameters if p.name not in ("self", "cls")]


def _unannotated(functions):
    missing = []
    for name, function in functions.items():
        empty = inspect.Parameter.empty
        missing += [f"{name}({p.name})" for p in _parameters(function) if p.annotation is empty]
        if inspect.signature(function).return_annotation is empty:
            missing.append(f"{name} ->")
    return missing


def _none_unsaid(functions):
    """Arguments with a default of `None` whose annotation leaves it out."""
    wrong = []
    for name, function in functions.items():
        hints = typing.get_type_hints(function)
        for parameter in _parameters(function):
            hint = hints.get(parameter.name, typing.Any)
            said = hint is typing.Any or type(None) in typing.get_args(hint)
            if parameter.default is None and not said:
                wrong.append(f"{name}({parameter.name})")
    return wrong


def test_functions_constructors_methods_and_properties_are_looked_at(public_names):
    functions = _functions(public_names())
    assert functions["recipes.vid"] is mikd.recipes.vid
    assert functions["Hint.__init__"] is mikd.Hint.__init__
    assert functions["Hint.weight_at"] is mikd.DistillationLoss.weight_at
    assert functions["Hint.from_config"] is mikd.DistillationLoss.from_config.__func__
    assert functions["Hint.joined"] is mikd.DistillationLoss.joined.fget
    assert not {"Hint.add_weight", "Hint._places", "Splits.__eq__"} & set(functions)


def test_every_public_argument_and_result_has_an_annotation(public_names):
    assert _unannotated(_functions(public_names())) == []


def test_what_has_no_annotation_is_found(public_names, monkeypatch):
    class Critic(mikd.Critic):
        @property
        def units(self):
            return 1

        @classmethod
        def wide(cls, width: int, **options) -> "Critic":
            return cls(width=width, **options)

    def stages(model, depth: int):
        return model, depth

    Critic.__module__ = mikd.Critic.__module__
    monkeypatch.setattr(mikd, "Critic", Critic)
    monkeypatch.setattr(mikd, "stages", stages)
    missing = _unannotated(_functions(public_names()))
    assert missing == ["Critic.units ->", "Critic.wide(options)", "stages(model)", "stages ->"]


def test_annotations_resolve_and_say_where_none_is_taken(public_names):
    assert _none_unsaid(_functions(public_names())) == []


def test_annotations_that_do_not_resolve_or_leave_none_out_are_found():
    def load(path: str = None, model: keras.Model | None = None, other: typing.Any = None): ...

    assert _none_unsaid({"load": load}) == ["load(path)"]

    def save(model: "Unknown"): ...  # noqa: F821

    with pytest.raises(NameError, match="Unknown"):
        _none_unsaid({"save": save})

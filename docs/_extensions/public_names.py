"""The public names of the package, and what their docstrings leave out."""

import ast
import inspect
import re
from pathlib import Path

import keras_mikd

_SECTION = re.compile(r"^(?:Args|Attributes):\n((?:    .*\n|\n)*)", re.MULTILINE)


def public_names():
    """Returns the objects by the name that a user writes after `keras_mikd.`, in their order.

    Of a module of names, such as `recipes`, these are its functions and classes.
    """
    names = {}
    for name in _exported(keras_mikd):
        value = getattr(keras_mikd, name)
        if inspect.ismodule(value):
            names.update({f"{name}.{own}": getattr(value, own) for own in _exported(value)})
        else:
            names[name] = value
    return names


def modules():
    """Returns the modules among the public names, by name."""
    values = {name: getattr(keras_mikd, name) for name in _exported(keras_mikd)}
    return {name: value for name, value in values.items() if inspect.ismodule(value)}


def options(value):
    """Returns `(argument, default, text)` of a class or function; the default may be `empty`."""
    if inspect.isclass(value) and "__init__" not in vars(value) and not _is_record(value):
        return []
    texts = _arguments(inspect.getdoc(value) or "")
    return [
        (name, parameter.default, texts.get(name, ""))
        for name, parameter in inspect.signature(value).parameters.items()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]


def undocumented():
    """Returns what has no text: names without a docstring, and `name(argument)`."""
    missing = []
    for name, value in public_names().items():
        if not value.__doc__:
            missing.append(name)
        missing += [f"{name}({argument})" for argument, _, text in options(value) if not text]
    return missing


def _exported(module):
    """Names of `__all__`, or what a module imports `as` itself or defines."""
    if hasattr(module, "__all__"):
        return module.__all__
    tree = ast.parse(Path(inspect.getsourcefile(module)).read_text())
    names = []
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            names += [each.asname for each in node.names if each.asname == each.name]
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.append(node.name)
    return [name for name in names if not name.startswith("_")]


def _is_record(value):
    return hasattr(value, "__dataclass_fields__")


def _arguments(docstring):
    """Reads the `Args:` or `Attributes:` of a docstring in Google's style."""
    section = _SECTION.search(docstring + "\n")
    texts, names = {}, []
    for line in section.group(1).splitlines() if section else []:
        entry = re.match(r"    (\*{0,2}[\w, ]+): (.*)", line)
        if entry:
            names = [each.strip() for each in entry.group(1).split(",")]
            texts.update(dict.fromkeys(names, entry.group(2)))
        elif line.strip():
            for each in names:
                texts[each] += " " + line.strip()
    return texts

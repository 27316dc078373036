"""What makes two starts of a script the same run: its settings, as numbers and texts by name."""

import functools

import numpy as np

# Names are numbered anew in every process, and so are seeds that nobody gives, whose state a run
# keeps; the rest is how Keras finds a class.
_LEFT_OUT = ("name", "seed", "module", "registered_name", "build_config", "shared_object_id")


def settings(name, value):
    """Returns `{name: number or text}` of a setting, and of all that is inside of it.

    `settings("optimizer", SGD(0.1))` has `"optimizer": "SGD"`, `"optimizer learning_rate": 0.1` and
    so on. Of what has no configuration, such as a function, its name stands for it.
    """
    if isinstance(value, functools.partial):
        value = {"class_name": _named(value.func), "config": value.keywords}
    elif not isinstance(value, type) and hasattr(value, "get_config"):
        value = {"class_name": type(value).__name__, "config": _config(value)}
    if isinstance(value, dict) and {"class_name", "config"} <= value.keys():
        config = value["config"] if isinstance(value["config"], dict) else {}
        kind = value["class_name"] if config or not value["config"] else value["config"]
        return {name: kind, **_inside(name, config)}
    if isinstance(value, dict):
        return _inside(name, value)
    if isinstance(value, (list, tuple)):
        return _inside(name, dict(enumerate(value)))
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return {name: value}
    return {name: _named(value)}


def _inside(name, values):
    found = {}
    for key, value in values.items():
        if key not in _LEFT_OUT:
            found |= settings(f"{name} {key}", value)
    return found


def _config(value):
    try:
        return value.get_config()
    except (NotImplementedError, TypeError, ValueError):  # A class of the user's, never saved.
        return {}


def _named(value):
    return getattr(value, "__qualname__", type(value).__qualname__)

"""Short names of models, functions and data, by which one is told from another in a later run."""

import functools
import hashlib
import json
import types

import keras

from keras_mikd.layer_graph import LayerGraph, has_graph

_SIMPLE = (bool, bytes, float, int, str, type(None))


def of_bytes(*contents):
    """Returns a name of bytes or arrays, one after another: 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for content in contents:
        digest.update(content)
    return digest.hexdigest()[:16]


def of_model(model):
    """Returns a name of a model: its layers, the weights that they have, and how they are wired.

    The wiring of a subclassed model cannot be seen.
    """
    digest = hashlib.sha256()
    if has_graph(model):
        graph = LayerGraph(model)
        wiring = [call.parents for call in graph.calls], graph.outputs
        digest.update(json.dumps(wiring).encode())
    for layer in model._flatten_layers(include_self=False):
        # Automatic names differ from one process to the next.
        inner = list(layer._flatten_layers(include_self=False))
        config = {} if inner else {k: v for k, v in layer.get_config().items() if k != "name"}
        kind = type(layer).__name__
        digest.update(json.dumps([kind, config], sort_keys=True, default=_kind).encode())
    for weight in model.weights:
        value = keras.ops.convert_to_numpy(weight)
        digest.update(repr((value.shape, str(value.dtype))).encode())
        digest.update(value.tobytes())
    return digest.hexdigest()[:16]


def of_function(function):
    """Returns a name of a function: its code, defaults and what it encloses, or of `None`.

    What is told apart are constants and other functions. Of anything else, and of what lies behind
    the names of modules, the kind alone is known.
    """
    return of_bytes(json.dumps(_described(function)).encode())


def _described(value):
    if isinstance(value, _SIMPLE):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return [_described(each) for each in value]
    if isinstance(value, functools.partial):
        return [_described(value.func), _described(value.args), _described_dict(value.keywords)]
    if isinstance(value, types.MethodType):
        return _described(value.__func__)
    if isinstance(value, types.CodeType):
        constants = [_described(each) for each in value.co_consts]
        return [value.co_code.hex(), constants, list(value.co_names)]
    if isinstance(value, types.FunctionType):
        enclosed = [_described(cell.cell_contents) for cell in value.__closure__ or ()]
        defaults = [_described(value.__defaults__), _described_dict(value.__kwdefaults__)]
        return [_described(value.__code__), defaults, enclosed]
    return _kind(value)


def _described_dict(values):
    return {name: _described(value) for name, value in (values or {}).items()}


def _kind(value):
    return type(value).__name__

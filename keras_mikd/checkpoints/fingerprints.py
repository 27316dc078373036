"""Short names of models, functions and data, to recognise them in a later run."""

import functools
import hashlib
import json
import types

import keras

from keras_mikd import keras_internals
from keras_mikd.checkpoints import run_identity
from keras_mikd.features.layer_graph import LayerGraph, has_graph

_SIMPLE = (bool, bytes, float, int, str, type(None))


def of_bytes(*contents):
    """Returns a name of bytes or arrays, one after another: 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for content in contents:
        digest.update(content)
    return digest.hexdigest()[:16]


def of_model(model):
    """Returns a name of a model or a layer, by its layers, their weights and their wiring.

    The wiring of subclassed models does not count.
    """
    digest = hashlib.sha256()
    if has_graph(model):
        graph = LayerGraph(model)
        wiring = [call.parents for call in graph.calls], graph.outputs
        digest.update(json.dumps(wiring).encode())
        if operations := [found for call in graph.calls if (found := _operation(call))]:
            digest.update(json.dumps(operations, default=str).encode())
    itself = not isinstance(model, keras.Model)
    for layer in keras_internals.layers_of(model, include_self=itself):
        # Automatic names differ from one process to the next.
        inner = list(keras_internals.layers_of(layer, include_self=False))
        config = {} if inner else keras_internals.unshared(layer.get_config())
        config.pop("name", None)
        if inner and not isinstance(layer, keras.Model):
            config = run_identity.settings("", layer)
        kind = type(layer).__name__
        digest.update(json.dumps([kind, config], sort_keys=True, default=_kind).encode())
    for weight in keras_internals.weights_as_saved(model):
        value = keras.ops.convert_to_numpy(weight)
        digest.update(repr((value.shape, str(value.dtype))).encode())
        digest.update(value.tobytes())
    return digest.hexdigest()[:16]


def of_structure(model):
    """Returns a name of the layers of a model and their wiring, whatever its weights are."""
    digest = hashlib.sha256()
    if has_graph(model):
        graph = LayerGraph(model)
        calls = [
            [call.parents, type(call.layer).__name__, _operation(call)] for call in graph.calls
        ]
        digest.update(json.dumps([calls, graph.outputs], default=str).encode())
    for layer in keras_internals.layers_of(model, include_self=False):
        if not isinstance(layer, keras.Model):
            found = run_identity.settings("", layer)
            digest.update(json.dumps(found, sort_keys=True, default=_kind).encode())
    return digest.hexdigest()[:16]


def of_teacher(model, steps=None):
    """Returns a name of a teacher and of the steps that make its inputs, see `TeacherInputs`."""
    if not steps:
        return of_model(model)
    names = [of_model(s) if isinstance(s, keras.layers.Layer) else of_function(s) for s in steps]
    return of_bytes(json.dumps([of_model(model), *names]).encode())


def of_function(function):
    """Returns a name of a function, or of `None`, by its code, defaults and what it encloses.

    The text of a docstring does not count. Constants and functions count by their content, anything
    else by its type alone. So do global numbers and texts. Another global name counts as a name,
    whatever it stands for.
    """
    return of_bytes(json.dumps(_described(function)).encode())


def _described(value, around=()):
    """Returns what JSON can hold of a value; the values `around` enclose it."""
    if isinstance(value, _SIMPLE):
        return repr(value)
    if any(value is each for each in around):  # A function can enclose itself.
        return _kind(value)
    around = (*around, value)
    parts = None
    if isinstance(value, (list, tuple)):
        parts = value
    elif isinstance(value, dict):
        parts = list(value.items())
    elif isinstance(value, functools.partial):
        parts = [value.func, value.args, value.keywords]
    elif isinstance(value, types.MethodType):
        parts = [value.__func__]
    elif isinstance(value, types.CodeType):
        parts = [value.co_code, value.co_consts, value.co_names]
    elif isinstance(value, types.FunctionType):
        enclosed = [cell.cell_contents for cell in value.__closure__ or ()]
        code = value.__code__
        code = code.replace(co_consts=_without_docstring(code.co_consts, value.__doc__))
        parts = [code, value.__defaults__, value.__kwdefaults__, enclosed]
        known = {n: value.__globals__.get(n) for n in value.__code__.co_names}
        if numbers := {n: v for n, v in known.items() if v is not None and isinstance(v, _SIMPLE)}:
            parts.append(numbers)
    return [_kind(value), *(_described(each, around) for each in parts or ())]


def _without_docstring(constants, docstring):
    """Returns the constants of a function as they are without its docstring, the first of them."""
    if docstring is None or constants[:1] != (docstring,):
        return constants
    return (None, *constants[1:])


def _operation(call):
    """Returns the constants of a call: of `x / 255.0` the number, of a reshape the shape."""
    config = {}
    if not isinstance(call.layer, keras.layers.Layer):
        config = run_identity.settings("", call.layer)
    arguments = [_constant(x) for x in call.arguments]
    return [config, arguments] if config or arguments else []


def _constant(value):
    if keras.ops.is_tensor(value) or hasattr(value, "tobytes"):
        return of_bytes(keras.ops.convert_to_numpy(value).tobytes())
    if isinstance(value, slice):
        return [_constant(each) for each in (value.start, value.stop, value.step)]
    return repr(value) if isinstance(value, _SIMPLE) else _kind(value)


def _kind(value):
    return type(value).__name__

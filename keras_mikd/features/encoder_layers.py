"""Layers that attend, and those that hold several blocks which do: opened as models, to be read."""

import contextlib
import functools
import weakref

import keras

from keras_mikd.keras_internals import layers_of, nodes_behind

_OPENED = weakref.WeakKeyDictionary()


def attends(layer, word="attention"):
    """Whether a layer is an attention or holds one: a class with `word` in its name."""
    return isinstance(layer, keras.layers.Layer) and any(
        word in base.__name__.lower() for part in layers_of(layer) for base in type(part).__mro__
    )


def opened(layer, tensor):
    """Returns a model of the layers inside a layer, which computes the same, or `None`.

    The encoders of KerasHub's ViT, DeiT and DINOv2 are one layer each: their blocks are in no graph
    of the model. Called on a symbolic tensor, such a layer makes a graph of its own. That is the
    same computation if it does nothing but call layers, so others stay closed. The model shares the
    layers, and is made once for each layer.

    Args:
        layer: A layer. Closed are all that do not hold several layers with attention.
        tensor: `KerasTensor` that it is called on, its only one.
    """
    if not isinstance(layer, keras.layers.Layer) or isinstance(layer, keras.Model):
        return None
    if layer not in _OPENED:
        parts = [p for p in layers_of(layer, include_self=False, recursive=False) if attends(p)]
        _OPENED[layer] = _model_of(layer, parts, tensor) if len(parts) > 1 else None
    return _OPENED[layer]


def _model_of(layer, parts, tensor):
    # A layer casts its inputs when it is called; `call` by itself does not.
    inputs = keras.Input(tensor.shape[1:], dtype=layer.compute_dtype)
    try:
        with _tensors_for_none(parts):
            outputs = keras.tree.flatten(layer.call(inputs))
    except Exception:  # noqa: BLE001 - code of others that needs a real tensor, in any way.
        return None
    # What is no tensor of the graph is a constant, such as the scores that DeiT does not return.
    outputs = [t for t in outputs if isinstance(t, keras.KerasTensor)]
    operations = [node.operation for node in nodes_behind(outputs) if node.input_tensors]
    if not operations or not all(isinstance(o, keras.layers.Layer) for o in operations):
        return None
    return keras.Model(inputs, outputs, name=layer.name)


@contextlib.contextmanager
def _tensors_for_none(layers):
    """Lets layers return a tensor where they return `None`, as those of DeiT do: a graph has none.

    Nothing reads these. When the graph runs, they are `None` again.
    """
    for layer in layers:
        layer.call = functools.partial(_without_none, layer.call)
    try:
        yield
    finally:
        for layer in layers:
            del layer.call


def _without_none(call, *args, **kwargs):
    def filled(result):
        return keras.ops.zeros((0,)) if result is None else result

    return keras.tree.map_structure(filled, call(*args, **kwargs))

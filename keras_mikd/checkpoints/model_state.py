"""What a model has learned, given to a copy of it: weights, statistics, vocabularies."""

import tempfile

import keras
import numpy as np

from keras_mikd.features.layer_graph import ends, has_graph
from keras_mikd.keras_internals import layers_of


def give(copy, model):
    """Gives a copy of a model all that the model has learned.

    `set_weights` alone leaves out what Normalization computes with, and the tables of lookups.
    """
    copy.set_weights(model.get_weights())
    for layer, original in zip(without_inputs(copy), without_inputs(model), strict=True):
        if hasattr(original, "save_assets"):
            with tempfile.TemporaryDirectory() as folder:
                original.save_assets(folder)
                layer.load_assets(folder)
        elif hasattr(layer, "finalize_state"):
            layer.finalize_state()


def without_inputs(model):
    """Returns the layers of a model, those inside of others too, but for its inputs.

    A nested model that shares its input with the outer one gets its own in a copy.
    """
    return [x for x in layers_of(model) if not isinstance(x, keras.layers.InputLayer)]


def computes_the_same(copy, model):
    """Whether a copy puts out what its model does for drawn inputs; `None` if it is unknown."""
    if not has_graph(model):
        return None
    inputs, _ = ends(model)
    specs = keras.tree.flatten(inputs)
    if any(None in spec.shape[1:] or "string" in spec.dtype for spec in specs):
        return None
    draws = np.random.default_rng(0)
    drawn = [
        keras.ops.cast(draws.normal(size=(2, *spec.shape[1:])), spec.dtype)
        if "float" in spec.dtype
        else keras.ops.zeros((2, *spec.shape[1:]), spec.dtype)
        for spec in specs
    ]
    x = keras.tree.pack_sequence_as(inputs, drawn)
    pairs = zip(*(keras.tree.flatten(m(x, training=False)) for m in (copy, model)), strict=True)
    both = ((keras.ops.convert_to_numpy(keras.ops.cast(t, "float32")) for t in p) for p in pairs)
    return all(np.allclose(a, b, rtol=1e-2, atol=1e-3, equal_nan=True) for a, b in both)

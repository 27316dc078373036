"""A copy of a trained model to train further, so that the caller's own stays as it is."""

import keras

from keras_mikd.checkpoints import model_state
from keras_mikd.checkpoints.model_state import without_inputs
from keras_mikd.features.layer_graph import ends, has_graph


def copied(model):
    """Returns an uncompiled copy of a model with the same weights, names and `trainable` flags.

    Raises:
        ValueError: If a model cannot be rebuilt from its configuration, and those of its layers.
    """
    try:
        copy = _cloned(model) if has_graph(model) else _from_config(model)
        model_state.give(copy, model)
        if model_state.computes_the_same(copy, model) is False:
            raise ValueError("the copy puts out something else")
    except (NotImplementedError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            "Expected a model that get_config and from_config rebuild, to copy. Received: "
            f"{model.name!r}, for which this fails; lambdas and own functions need "
            f"@keras.saving.register_keras_serializable(): {error}"
        ) from error
    return copy


def _cloned(model):
    # `clone_model` would compile the copy of a compiled model; this one never is.
    plain = keras.Model(*ends(model), name=model.name)
    copy = keras.models.clone_model(plain)
    copy.trainable = True  # Sets every layer's flag; the next lines restore them.
    for layer, original in zip(without_inputs(copy), without_inputs(plain), strict=True):
        layer.trainable = original.trainable  # Outer layers first: they set those inside.
    return copy


def _from_config(model):
    copy = type(model).from_config(model.get_config())
    copy.build_from_config(model.get_build_config() or {})
    if len(copy.weights) != len(model.weights):
        raise ValueError("the copy has other weights")
    copy.built = True  # Keras has built its layers, and does not say so of the model.
    return copy

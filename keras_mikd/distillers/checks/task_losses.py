"""What a task loss, of any class, expects of the network that it trains."""

import functools
import inspect

import keras

from keras_mikd.features.places import OUTPUT
from keras_mikd.keras_internals import operation_of

_CLASSES_OF_PROBABILITIES = (
    *(keras.losses.KLDivergence, keras.losses.Dice, keras.losses.Tversky),
    keras.losses.CategoricalGeneralizedCrossEntropy,
)
OF_PROBABILITIES = (
    *_CLASSES_OF_PROBABILITIES,
    *(keras.losses.kl_divergence, keras.losses.dice, keras.losses.tversky),
    keras.losses.categorical_generalized_cross_entropy,
)


_BINARY_CLASSES = (keras.losses.BinaryCrossentropy, keras.losses.BinaryFocalCrossentropy)
_BINARY = (keras.losses.binary_crossentropy, keras.losses.binary_focal_crossentropy)


def by_place(loss, outputs):
    """Returns `[(place of the output, loss)]` of what `compile` takes as `loss`.

    Args:
        loss: A loss, its name, or a list or dict of losses.
        outputs: Symbolic outputs of the network, whose structure a list or dict has, or whose
            names a dict has.
    """
    if isinstance(loss, dict):
        names = _names(outputs)
        return [(names.get(key, OUTPUT), _object(each)) for key, each in loss.items()]
    if isinstance(loss, (list, tuple)):
        several = len(loss) > 1
        return [(f"{OUTPUT}/{i}" if several else OUTPUT, _object(x)) for i, x in enumerate(loss)]
    return [(OUTPUT, _object(loss))]


def expects_logits(loss):
    """Whether a loss takes its predictions for logits; `None` where it says nothing of it."""
    if isinstance(loss, functools.partial) and "from_logits" in loss.keywords:
        return bool(loss.keywords["from_logits"])
    function = loss.func if isinstance(loss, functools.partial) else loss
    if function in OF_PROBABILITIES or isinstance(function, _CLASSES_OF_PROBABILITIES):
        return False
    if not isinstance(loss, keras.losses.Loss):
        return _default_of(function, "from_logits") if callable(function) else None
    said = getattr(loss, "from_logits", None)
    if said is None:
        config = loss.get_config()
        said = config.get("from_logits", config.get("fn_kwargs", {}).get("from_logits"))
    return None if said is None else bool(said)


def is_binary(loss):
    """Whether a task loss, or the only one in a structure, takes one number for two classes."""
    alone = keras.tree.flatten(loss)
    loss = _object(alone[0]) if len(alone) == 1 else None
    loss = loss.func if isinstance(loss, functools.partial) else loss
    return isinstance(loss, _BINARY_CLASSES) or loss in _BINARY


def ignored_class(loss):
    """Returns the class that a task loss, or each of several, leaves out; `None` without one."""
    found = {_ignored(each) for each in keras.tree.flatten(loss) if each is not None}
    return found.pop() if len(found) == 1 else None


def remedy(loss, logits):
    """Returns what to do about a loss that expects `logits`, or probabilities, and meets others."""
    function = loss.func if isinstance(loss, functools.partial) else loss
    if function in OF_PROBABILITIES or isinstance(function, _CLASSES_OF_PROBABILITIES):
        return (
            "It takes no logits: use a cross-entropy from logits, or one of your own that applies "
            "the softmax first."
        )
    if name := class_named(keras.losses, loss):
        return f"Use keras.losses.{name}(from_logits={not logits})."
    return f"Use from_logits={not logits} in it."


def class_named(module, function):
    """Returns the class for a function, as Keras finds it by name; `None` if there is none."""
    name = getattr(function, "__name__", "").replace("_", "")
    return {each.lower(): each for each in dir(module)}.get(name)


def _ignored(loss):
    if isinstance(loss, functools.partial):
        return loss.keywords.get("ignore_class")
    return getattr(loss, "ignore_class", None)


def _object(loss):
    return keras.losses.get(loss) if isinstance(loss, str) else loss


def _default_of(function, argument):
    try:
        default = inspect.signature(function).parameters[argument].default
    except (KeyError, TypeError, ValueError):
        return None
    return None if default is inspect.Parameter.empty else bool(default)


def _names(outputs):
    """Returns `{key in a dict of losses: place}`: keys of a dict of outputs, or layers' names."""
    if isinstance(outputs, dict):
        return {key: f"{OUTPUT}/{key}" for key in outputs}
    if not isinstance(outputs, (list, tuple)):
        return {}
    return {tensor.name: f"{OUTPUT}/{i}" for i, tensor in enumerate(outputs)} | {
        operation_of(tensor).name: f"{OUTPUT}/{i}" for i, tensor in enumerate(outputs)
    }

"""What LiteRT's converter says against a network, as what to do about it."""

import contextlib
import re

import keras
from tensorflow.lite.python.convert_phase import ConverterError

from keras_mikd import keras_internals

_NOT_SUPPORTED = re.compile(r"not yet supported for op: '(\w+)'")
_NO_RANGE = "Empty min/max for tensor"
_OTHERS = {"int16": 'quantize="int8" or "dynamic"', "int8": 'quantize="dynamic"'}


@contextlib.contextmanager
def explained(model, quantize):
    """Raises a ValueError with a way out for what is known of the converter; all else as it is."""
    try:
        yield
    except ConverterError as error:
        rolled = _rolled(model) if "TensorList" in str(error) else []
        if not rolled:
            raise
        raise ValueError(
            "Expected recurrent layers that are unrolled: LiteRT has no operators for the lists "
            f"that their loops need. Received: unroll=False in {', '.join(rolled)}. Build them "
            "with unroll=True, over a known number of steps; or, as weights stay what they are, "
            f"set `unroll = True` on them before the export, as in {_example(model, rolled)}."
        ) from error
    except RuntimeError as error:
        problem = _unquantized(str(error)) if quantize in _OTHERS else None
        if problem is None:
            raise
        raise ValueError(
            f"Expected a network whose operators LiteRT has in {quantize}. Received: {problem}. "
            f"{_OTHERS[quantize]} converts it."
        ) from error


def _rolled(model):
    """Returns the names of recurrent layers that are a loop."""
    layers = keras_internals.layers_of(model)
    return [x.name for x in layers if isinstance(x, keras.layers.RNN) and not x.unroll]


def _example(model, rolled):
    own = [layer.name for layer in model.layers]
    name = next((name for name in rolled if name in own), None)
    # Those inside other layers go by attributes, such as `forward_layer`.
    return "layer.unroll = True" if name is None else f"model.get_layer({name!r}).unroll = True"


def _unquantized(said):
    operators = sorted(set(_NOT_SUPPORTED.findall(said)))
    if operators:
        return f"{', '.join(operators)}, which it has not"
    return "an input of integers, such as tokens" if _NO_RANGE in said else None

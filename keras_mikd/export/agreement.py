"""How far a converted network agrees with the Keras model that it was made from."""

import importlib.util
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

_ARRAY_BATCH = 32


class Agreement(NamedTuple):
    """A file beside its model; see the attributes of `TFLiteReport` with these names."""

    examples: int = 0
    max_difference: float | None = None
    class_agreement: float | None = None
    accuracy: float | None = None
    keras_accuracy: float | None = None


def checked_batches(argument, data, model):
    """Returns `data` as a `tf.data.Dataset` of batches that `model` takes; `None` stays `None`."""
    if data is None:
        return None
    if isinstance(data, (np.ndarray, tf.Tensor)) and data.ndim:
        data = tf.data.Dataset.from_tensor_slices(data).batch(_ARRAY_BATCH)
    if not isinstance(data, tf.data.Dataset):
        raise TypeError(
            f"Expected `{argument}` to be a tf.data.Dataset of batches or one array of examples. "
            f"Received: {argument}={type(data).__name__}. Of images and labels, pass the images."
        )
    if data.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise ValueError(
            f"Expected `{argument}` to be finite. Received: {argument}=an endless data set. "
            "Add .take(batches)."
        )
    spec, inputs = data.element_spec, inputs_of(model)
    spec = keras.tree.flatten(spec[0] if isinstance(spec, tuple) else spec)[0]
    if len(inputs) == 1 and tuple(spec.shape) == tuple(inputs[0].shape[1:]):
        raise ValueError(
            f"Expected `{argument}` to be a data set of batches. Received: {argument}=single "
            f"examples of shape {tuple(spec.shape)}. Add .batch(32)."
        )
    if len(inputs) == 1 and not _fits(spec.shape, inputs[0].shape):
        raise ValueError(
            f"Expected `{argument}` to be what {model.name!r} takes, examples of shape "
            f"{tuple(inputs[0].shape[1:])}. Received: {argument}=examples of shape "
            f"{tuple(spec.shape[1:])}. Resize them, or put back an axis of channels."
        )
    return data


def _fits(batch, wanted):
    """Whether a batch is of a shape, or of one that Keras makes it of: an axis of 1 at the end."""
    if batch.rank is None:
        return True
    sizes = list(batch)
    if len(sizes) == len(wanted) - 1 and wanted[-1] == 1:
        sizes.append(1)
    if len(sizes) == len(wanted) + 1 and sizes[-1] == 1:
        sizes.pop()
    return len(sizes) == len(wanted) and all(
        None in pair or pair[0] == pair[1] for pair in zip(sizes[1:], wanted[1:], strict=True)
    )


def inputs_of(model):
    """Returns the symbolic inputs of a model; none of a subclassed one."""
    return getattr(model, "inputs", None) or ()


def inputs_in(argument, batches):
    """Yields the inputs of each batch, `x` or `(x, y, ...)`; raises where there are no examples."""
    for x, _ in _examples_in(argument, batches):
        yield x


def _examples_in(argument, batches):
    """Yields `(x, y)` of each batch; `y` is `None` where it has no labels."""
    examples = 0
    for batch in batches:
        x, y = (*batch, None)[:2] if isinstance(batch, tuple) else (batch, None)
        examples += keras.tree.flatten(x)[0].shape[0]
        yield x, y
    if not examples:
        raise ValueError(f"Expected `{argument}` to hold examples. Received: {argument}=[]")


def check_runs(content):
    """Refuses the bytes of a file that LiteRT converts and cannot run, if it is installed."""
    if importlib.util.find_spec("ai_edge_litert") is None:
        return
    interpreter = _interpreter(content)
    signatures = [detail["shape_signature"] for detail in interpreter.get_input_details()]
    if any(-1 in signature[1:] for signature in signatures):
        return  # Of an open size it takes 1, which may be too small for the network.
    try:
        interpreter.allocate_tensors()
    except RuntimeError as error:
        raise RuntimeError(
            "Expected a file that LiteRT can run. Received: one whose operators do not fit "
            f"together: {str(error).strip()!r}. Nothing was written. Another `quantize` may do; "
            "constants that are not finite, such as a padding of -inf, have no int8 or int16."
        ) from error


def compare(model, content, batches):
    """Runs a float32 model and the bytes of its file on the same examples; returns `Agreement`."""
    runner = _interpreter(content).get_signature_runner()
    examples, largest, same, vectors = 0, 0.0, 0, 0
    right = {"file": 0, "keras": 0}
    for x, y in _examples_in("check_on", batches):
        # On a GPU, float32 may mean TF32, which differs by more than a good conversion does.
        with tf.device("CPU"):
            expected = _named(model(x, training=False))
        actual = _floats(runner, runner(**_feed(model, runner, x)))
        size = keras.tree.flatten(x)[0].shape[0]
        examples += size
        for name, value in expected.items():
            largest = np.maximum(largest, _largest_difference(value, actual[name]))
            if value.ndim > 1 and value.shape[-1] > 1:
                agrees = value.argmax(axis=-1) == actual[name].argmax(axis=-1)
                same, vectors = same + agrees.sum(), vectors + agrees.size
        classes = _classes(y, [*expected.values()])
        if right is not None and classes is not None:
            for side, outputs in (("file", actual), ("keras", expected)):
                right[side] += (next(iter(outputs.values())).argmax(axis=-1) == classes).sum()
        else:
            right = None
    accuracies = (None, None) if right is None else [float(n / examples) for n in right.values()]
    agreement = float(same / vectors) if vectors else None
    return Agreement(examples, float(largest), agreement, *accuracies)


def _classes(y, outputs):
    """Returns the class of every example, or `None` where labels are none or mean something else.

    Labels are ints of shape `(batch,)` or `(batch, 1)`, or one-hot rows, beside one output of
    shape `(batch, classes)`.
    """
    if y is None or len(outputs) != 1 or outputs[0].ndim != 2 or keras.tree.is_nested(y):
        return None
    y, (batch, classes) = np.asarray(y), outputs[0].shape
    if y.shape == (batch, classes) and classes > 1:
        one_hot = ((y == 0) | (y == 1)).all() and (y.sum(axis=-1) == 1).all()
        return y.argmax(axis=-1) if one_hot else None
    if y.shape not in ((batch,), (batch, 1)) or y.dtype.kind not in "iu" or classes < 2:
        return None
    are_classes = ((y >= 0) & (y < classes)).all()  # -1 stands for no label.
    return y.reshape(batch) if are_classes else None


def _interpreter(content):
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:  # It is optional; the one inside TensorFlow is deprecated, and says so.
        Interpreter = tf.lite.Interpreter
    return Interpreter(model_content=content)


def _named(outputs):
    """Names Keras' outputs as the file's signature does."""
    if not isinstance(outputs, dict):
        outputs = {f"output_{i}": value for i, value in enumerate(keras.tree.flatten(outputs))}
    return {name: np.asarray(value) for name, value in outputs.items()}


def _feed(model, runner, x):
    """Returns the inputs of a batch as `{name in the file: array}`."""
    details = runner.get_input_details()
    names = [tensor.name for tensor in inputs_of(model)]
    if len(details) == 1:
        names = list(details)
    by_name = isinstance(x, dict) and x.keys() >= set(names)
    values = [x[name] for name in names] if by_name else keras.tree.flatten(x)
    if set(names) != set(details) or len(names) != len(values):
        raise ValueError(
            f"Expected one tensor in a batch of `check_on` for each input of the file, "
            f"{sorted(details)}. Received: {len(values)} tensors, for the inputs {names} of the "
            "model. Several inputs need a Functional model."
        )
    pairs = zip(names, values, strict=True)
    return {name: _as_stored(np.asarray(value), details[name]) for name, value in pairs}


def _as_stored(value, detail):
    """Returns real numbers as a tensor of the file has them, which may be in int8."""
    scale, zero = detail["quantization"]
    if scale and value.dtype.kind == "f":
        limits = np.iinfo(detail["dtype"])
        value = np.clip(np.round(value / scale) + zero, limits.min, limits.max)
    return value.astype(detail["dtype"])


def _floats(runner, outputs):
    """Returns the outputs of the file as real numbers, those in int8 times their scale."""
    details = runner.get_output_details()
    made = {}
    for name, value in outputs.items():
        scale, zero = details[name]["quantization"]
        made[name] = (value.astype("float32") - zero) * np.float32(scale) if scale else value
    return made


def _largest_difference(expected, actual):
    if expected.shape != actual.shape:
        raise RuntimeError(
            f"Expected outputs of the converted network to have the shape {expected.shape}. "
            f"Received: shape={actual.shape}. Nothing was written."
        )
    with np.errstate(invalid="ignore"):  # inf - inf is nan, and nan fails the check.
        return np.max(np.abs(expected.astype("float64") - actual), initial=0.0)

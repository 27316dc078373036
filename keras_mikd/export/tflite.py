"""A trained student as a `.tflite` file that was seen to be the same function."""

import dataclasses
import math
import pathlib
import tempfile

import keras
import numpy as np
import tensorflow as tf

from keras_mikd.atomic_files import require_free, write_whole

_ARRAY_BATCH = 32
_QUANTIZATIONS = ("float16", "dynamic", "int8")
_OTHER_FLOATS = ("mixed_float16", "mixed_bfloat16", "float16", "bfloat16", "float64")


@dataclasses.dataclass(frozen=True)
class TFLiteReport:
    """What `export_tflite` wrote and what it saw.

    Attributes:
        path: The file.
        size_bytes: Its size.
        examples: How many examples were run through both networks; 0 without `check_on`.
        max_difference: Largest absolute difference over all outputs; `None` without `check_on`.
        class_agreement: Fraction of the output vectors, in [0, 1], whose largest entry is in the
            same place; `None` without `check_on`, or where no output has two or more entries.
        tolerance: The largest `max_difference` that was allowed; infinite where any finite one was.
        quantize: What the file was quantized to, or `None` for float32.
    """

    path: pathlib.Path
    size_bytes: int
    examples: int
    max_difference: float | None
    class_agreement: float | None
    tolerance: float
    quantize: str | None = None

    @property
    def ok(self) -> bool:
        """Whether examples were compared and agreed; `False` where nothing was compared."""
        difference = self.max_difference
        return difference is not None and math.isfinite(difference) and difference <= self.tolerance

    def __str__(self):
        text = f"{self.path}: {self.size_bytes / 1000:.1f} kB"
        if self.quantize is not None:
            text += f" ({self.quantize})"
        if self.max_difference is None:
            return f"{text}, not checked"
        text += f", {self.examples} examples, largest difference {self.max_difference:.1e}"
        if self.class_agreement is not None:
            text += f", same class for {self.class_agreement:.2%}"
        return text


def export_tflite(
    model,
    path,
    *,
    check_on=None,
    tolerance=None,
    quantize=None,
    calibrate_on=None,
    overwrite=False,
) -> TFLiteReport:
    """Writes a Keras model as a `.tflite` file, and checks that it is the same function.

    The file uses LiteRT's built-in operators only, so every LiteRT runtime can run it, at any
    batch size. Given `check_on`, the converted network is run on those inputs by the LiteRT
    interpreter and compared with Keras on the CPU, in inference mode. Only then does the file
    appear: a network that fails leaves nothing behind, and an older file at `path` as it was.

    A quantized file is smaller and rounds: how far it differs is reported. Look at
    `class_agreement` before you ship it. Its inputs and outputs stay float32.

    A model with another float policy (`mixed_float16`) is converted, and compared, as a float32
    copy with the same weights. The model itself is not changed.

    ```python
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)])
    report = export_tflite(model, "student.tflite", check_on=np.ones((5, 8)))
    assert report.ok and report.examples == 5
    ```

    Args:
        model: A built `keras.Model`: the student, not the distiller. A subclassed model must have
            been called once, have a single input, and be float32.
        path: The file to write, ending in `.tflite`. Missing folders are created.
        check_on: A finite `tf.data.Dataset` of batches `x` or `(x, y, ...)`, or one array of
            examples of shape `(examples, ...)`. With `None`, nothing is compared.
        tolerance: Largest absolute difference allowed, >= 0, in the units of the outputs. With
            `None`, 1e-4 for float32, and any finite one for a quantized file.
        quantize: `None` for float32; `"float16"`: weights in half precision, about half the size;
            `"dynamic"`: weights in int8, about a quarter of the size, activations in float32;
            `"int8"`: weights and activations in int8, where LiteRT has the operator so, with the
            ranges of the activations taken from `calibrate_on`.
        calibrate_on: For `"int8"`: a hundred or more real examples of the training set, in the
            forms of `check_on`. The model must have a single input.
        overwrite: Whether a file that exists may be replaced.

    Returns:
        A `TFLiteReport`.

    Raises:
        TypeError: If `model` is a distiller or not a Keras model, or `check_on` of another type.
        ValueError: If `model` is not built or cannot be copied in float32, `path` has another
            suffix, `tolerance` is negative or not finite, `check_on` or `calibrate_on` is empty or
            endless, `quantize` is unknown, or it and `calibrate_on` do not go together.
        FileExistsError: If `path` exists and `overwrite` is false.
        RuntimeError: If the two networks differ by more than `tolerance`. (An operator that
            LiteRT does not have raises the converter's own exception.)
    """
    _require_student(model)
    path = require_free(path, suffix=".tflite", overwrite=overwrite)
    _check_quantization(model, quantize, calibrate_on)
    if tolerance is not None and not (math.isfinite(tolerance) and tolerance >= 0):
        raise ValueError(f"Expected a finite tolerance >= 0. Received: tolerance={tolerance}")
    batches = _as_batches("check_on", check_on, model)
    examples = _as_batches("calibrate_on", calibrate_on, model)

    if tolerance is None:
        tolerance = 1e-4 if quantize is None else math.inf
    model = _in_float32(model)
    content = _convert(model, quantize, examples)
    seen = (0, None, None) if batches is None else _compare(model, content, batches)
    report = TFLiteReport(path, len(content), *seen, tolerance, quantize)
    if batches is not None and not report.ok:
        raise RuntimeError(
            f"The converted network differs from Keras by up to {report.max_difference:.3g} over "
            f"{report.examples} examples, so nothing was written. Expected at most "
            f"tolerance={tolerance}. A difference of nan means that one of the two returned nan or "
            "inf on these inputs."
        )
    write_whole(path, content)
    return report


def _require_student(model):
    if hasattr(model, "student"):
        raise TypeError(
            "Expected the network to deploy, not the distiller that trained it: pass "
            f"distiller.student. Received: model={type(model).__name__}"
        )
    if hasattr(model, "peers"):
        raise TypeError(
            "Expected the network to deploy, not the distiller that trained it: pass one of "
            f"distiller.peers. Received: model={type(model).__name__}"
        )
    if not isinstance(model, keras.Model):
        raise TypeError(f"Expected a keras.Model. Received: model={model!r}")
    if not model.built:
        raise ValueError(
            "Expected a built model, since one that is not has no weights: call it on a batch "
            f"first. Received: model={model.name!r}"
        )


def _check_quantization(model, quantize, calibrate_on):
    if quantize not in (None, *_QUANTIZATIONS):
        raise ValueError(
            f"Expected `quantize` to be None or one of {_QUANTIZATIONS}. Received: {quantize=}"
        )
    if (quantize == "int8") != (calibrate_on is not None):
        raise ValueError(
            'Expected `calibrate_on`, real examples, with quantize="int8" and only there. '
            f"Received: {quantize=}, calibrate_on={'None' if calibrate_on is None else 'examples'}"
        )
    if quantize == "int8" and len(getattr(model, "inputs", None) or [None]) > 1:
        raise ValueError(
            'Expected a model with a single input for quantize="int8". Received: '
            f'{len(model.inputs)} inputs; quantize="dynamic" needs no examples'
        )


def _as_batches(argument, data, model):
    if data is None:
        return None
    if isinstance(data, (np.ndarray, tf.Tensor)) and data.ndim:
        data = tf.data.Dataset.from_tensor_slices(data).batch(_ARRAY_BATCH)
    if not isinstance(data, tf.data.Dataset):
        raise TypeError(
            f"Expected {argument} to be a tf.data.Dataset of batches or one array of examples. "
            f"Received: a {type(data).__name__}; of images and labels, pass the images"
        )
    if data.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise ValueError(
            f"Received an endless {argument}. Expected a finite one: add .take(batches)."
        )
    spec, inputs = data.element_spec, getattr(model, "inputs", None) or ()
    spec = keras.tree.flatten(spec[0] if isinstance(spec, tuple) else spec)[0]
    if len(inputs) == 1 and tuple(spec.shape) == tuple(inputs[0].shape[1:]):
        raise ValueError(
            f"Expected {argument} to be a data set of batches: add .batch(32). Received: single "
            f"examples of shape {tuple(spec.shape)}"
        )
    return data


def _in_float32(model):
    """Returns `model`, or a copy in float32: LiteRT's CPU kernels have no half precision."""
    dtypes = {layer.compute_dtype for layer in model._flatten_layers()}
    if dtypes.isdisjoint(_OTHER_FLOATS):
        return model
    # Layers that a custom layer makes without naming a dtype take the global policy.
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32")
    try:
        copy = keras.models.clone_model(model, clone_function=_float32_clone, recursive=True)
        copy.set_weights(model.get_weights())
    except (NotImplementedError, TypeError, ValueError) as error:
        raise ValueError(
            f"Could not make a float32 copy of {model.name!r}, which computes in {sorted(dtypes)}. "
            "Build the same network under the float32 policy, set_weights of this one on it, and "
            "export that."
        ) from error
    finally:
        keras.config.set_dtype_policy(policy)
    return copy


def _float32_clone(layer):
    return type(layer).from_config(_float32_config(layer.get_config()))


def _float32_config(config):
    if isinstance(config, dict):
        return {
            key: "float32"
            if key in ("dtype", "name") and value in _OTHER_FLOATS
            else _float32_config(value)
            for key, value in config.items()
        }
    if isinstance(config, (list, tuple)):
        return type(config)(map(_float32_config, config))
    return config


def _convert(model, quantize=None, examples=None):
    # TFLiteConverter.from_keras_model prints the whole signature, and the defaults of Keras'
    # export let in TensorFlow operators, which a plain LiteRT runtime cannot run.
    target = {"supported_ops": [tf.lite.OpsSet.TFLITE_BUILTINS]}
    options = {"target_spec": target}
    if quantize is not None:
        options["optimizations"] = [tf.lite.Optimize.DEFAULT]
    if quantize == "float16":
        target["supported_types"] = [tf.float16]
    if quantize == "int8":
        options["representative_dataset"] = lambda: _one_by_one(model, examples)
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder, "model.tflite")
        model.export(file, format="litert", verbose=False, **options)
        return file.read_bytes()


def _one_by_one(model, batches):
    """Yields single examples, as the converter takes them."""
    dtype = model.inputs[0].dtype if getattr(model, "inputs", None) else model.input_dtype
    empty = True
    for batch in batches:
        x = batch[0] if isinstance(batch, tuple) else batch
        for example in np.asarray(keras.tree.flatten(x)[0]).astype(dtype):
            empty = False
            yield [example[None]]
    if empty:
        raise ValueError("Received an empty calibrate_on. Expected examples to calibrate on.")


def _compare(model, content, batches):
    """Returns the number of examples, the largest difference and the class agreement."""
    runner = _interpreter(content).get_signature_runner()
    examples, largest, same, vectors = 0, 0.0, 0, 0
    for batch in batches:
        x = batch[0] if isinstance(batch, tuple) else batch
        # On a GPU, float32 may mean TF32, which differs by more than a good conversion does.
        with tf.device("CPU"):
            expected = _named(model(x, training=False))
        actual = runner(**_feed(model, runner, x))
        examples += keras.tree.flatten(x)[0].shape[0]
        for name, value in expected.items():
            largest = np.maximum(largest, _largest_difference(value, actual[name]))
            if value.ndim > 1 and value.shape[-1] > 1:
                agrees = value.argmax(axis=-1) == actual[name].argmax(axis=-1)
                same, vectors = same + agrees.sum(), vectors + agrees.size
    if not examples:
        raise ValueError("Received an empty check_on. Expected examples to compare on.")
    return examples, float(largest), float(same / vectors) if vectors else None


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
    """Returns the batch as {name of the input in the file: array}."""
    details = runner.get_input_details()
    names = [tensor.name for tensor in getattr(model, "inputs", None) or ()]
    if len(details) == 1:
        names = list(details)
    by_name = isinstance(x, dict) and x.keys() >= set(names)
    values = [x[name] for name in names] if by_name else keras.tree.flatten(x)
    if set(names) != set(details) or len(names) != len(values):
        raise ValueError(
            f"Could not match the file's inputs, {sorted(details)}, with the {len(values)} tensors "
            f"of a batch of check_on and the model's inputs, {names}. Several inputs need a "
            "Functional model."
        )
    pairs = zip(names, values, strict=True)
    return {name: np.asarray(value).astype(details[name]["dtype"]) for name, value in pairs}


def _largest_difference(expected, actual):
    if expected.shape != actual.shape:
        raise RuntimeError(
            "The converted network has outputs of another shape, so nothing was written. "
            f"Expected {expected.shape}. Received: {actual.shape}"
        )
    with np.errstate(invalid="ignore"):  # inf - inf is nan, and nan fails the check.
        return np.max(np.abs(expected.astype("float64") - actual), initial=0.0)

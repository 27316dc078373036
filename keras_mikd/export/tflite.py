"""A trained student as a `.tflite` file, checked to compute the same function."""

import dataclasses
import math
import os
import pathlib
import tempfile
import warnings

import keras
import numpy as np
import tensorflow as tf

from keras_mikd import checks, keras_internals
from keras_mikd.atomic_files import require_free, write_whole
from keras_mikd.checkpoints import model_state
from keras_mikd.export.agreement import (
    Agreement,
    check_runs,
    checked_batches,
    compare,
    inputs_in,
    inputs_of,
)
from keras_mikd.export.conversion_errors import explained
from keras_mikd.export.file_contents import float_operators, minimum_runtime
from keras_mikd.export.folding import folded
from keras_mikd.export.quantization_aware import is_quantization_aware

_INTEGERS = {"int8": tf.int8, "int16": tf.int16}
_INT16_ACTIVATIONS = tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
_OTHER_FLOATS = ("mixed_float16", "mixed_bfloat16", "float16", "bfloat16", "float64")
_ENOUGH_AGREEMENT = 0.8
_OF_RANGES = (
    "Calibrate on what the file takes: pixels, if it begins with a layer that rescales them. "
    "Constants that are not finite, such as a padding of -inf, spoil the ranges."
)
_OF_COPY = "Its ranges are those of `quantization_aware`: train it for some more epochs."
"""Share of examples in the class of Keras, below which a quantized file is warned of."""


@dataclasses.dataclass(frozen=True)
class TFLiteReport:
    """What `export_tflite` wrote, and how well it agrees with Keras.

    Attributes:
        path: The file.
        size_bytes: Its size.
        examples: How many examples were run through both networks; 0 without `check_on`.
        max_difference: Largest absolute difference over all outputs; `None` without `check_on`.
        class_agreement: Fraction of the output vectors, in [0, 1], whose largest entry is in the
            same place; `None` without `check_on`, or where no output has two or more entries.
        tolerance: The largest `max_difference` that was allowed; infinite where any finite one was.
        quantize: What the file was quantized to, or `None` for float32.
        accuracy: Fraction of `check_on`, in [0, 1], that the file classifies right; `None` where it
            has no labels `y`, ints or one-hot rows, beside one output of `(batch, classes)`.
        keras_accuracy: The same of the Keras model.
        minimum_runtime: Version of the oldest LiteRT runtime that has all operators of the file.
        float_operators: Operators of an `"int8"` or `"int16"` file that still compute in float32.
    """

    path: pathlib.Path
    size_bytes: int
    examples: int
    max_difference: float | None
    class_agreement: float | None
    tolerance: float
    quantize: str | None = None
    accuracy: float | None = None
    keras_accuracy: float | None = None
    minimum_runtime: str | None = None
    float_operators: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether examples were compared and agreed; `False` where nothing was compared."""
        difference = self.max_difference
        return difference is not None and math.isfinite(difference) and difference <= self.tolerance

    def __str__(self):
        said = [f"{self.path}: {self.size_bytes / 1000:.1f} kB"]
        if self.quantize is not None:
            said[0] += f" ({self.quantize})"
        if self.max_difference is None:
            said.append("not checked")
        else:
            said.append(f"{self.examples} examples")
            said.append(f"largest difference {self.max_difference:.1e}")
        if self.class_agreement is not None:
            said.append(f"same class for {self.class_agreement:.2%}")
        if self.accuracy is not None:
            said.append(f"right for {self.accuracy:.2%} (Keras {self.keras_accuracy:.2%})")
        if self.float_operators:
            said.append(f"in float32 still {' and '.join(self.float_operators)}")
        if self.minimum_runtime is not None:
            said.append(f"LiteRT {self.minimum_runtime} or newer")
        return ", ".join(said)


def export_tflite(
    model: keras.Model,
    path: str | os.PathLike,
    *,
    check_on: tf.data.Dataset | np.ndarray | tf.Tensor | None = None,
    tolerance: float | None = None,
    quantize: str | None = None,
    calibrate_on: tf.data.Dataset | np.ndarray | tf.Tensor | None = None,
    integer_io: bool = False,
    overwrite: bool = False,
) -> TFLiteReport:
    """Writes a Keras model as a `.tflite` file, and checks that it computes the same function.

    The file uses LiteRT's built-in operators only, so every LiteRT runtime can run it, at any
    batch size. With `check_on`, the LiteRT interpreter runs the converted network on those inputs,
    and the outputs are compared with those of Keras on the CPU, in inference mode. A network that
    fails is not written, and an older file at `path` stays as it was.

    A quantized file is smaller, but it rounds. Look at `accuracy` and `class_agreement` before you
    ship it; a warning is given if fewer than 80 % of the predicted classes agree. If it loses too
    much, continue training with `quantization_aware`.

    A model with another float policy (`mixed_float16`) is converted, and compared, as a float32
    copy with the same weights. The model itself is not changed.

    Args:
        model: A built `keras.Model`: the student, not the distiller. A subclassed model needs to
            have been called once, to have a single input, and to be float32.
        path: The file to write, ending in `.tflite`. Missing folders are created.
        check_on: A finite `tf.data.Dataset` of batches `x` or `(x, y, ...)`, or one array of
            examples of shape `(examples, ...)`. With `None`, nothing is compared.
        tolerance: Largest absolute difference allowed, >= 0, in the units of the outputs. With
            `None`, 1e-4 for float32, and any finite one for a quantized file.
        quantize: `None` for float32; `"float16"`: weights in half precision, about half the size;
            `"dynamic"`: weights in int8, about a quarter of the size, activations in float32;
            `"int8"`: weights and activations in int8, where LiteRT has the operator so;
            `"int16"`: the same with activations in int16, larger and slower, and closer; without
            normalization by layer or group, and for inputs of floats only.
        calibrate_on: For `"int8"` and `"int16"`: a hundred or more real examples of the training
            set, in the forms of `check_on`, which give the ranges of the activations. The model
            needs to have a single input. A model of `quantization_aware` has its own ranges.
        integer_io: Whether inputs and outputs are integers as well, as microcontrollers ask. Their
            scales are in the file. Otherwise they stay float32.
        overwrite: Whether a file that exists may be replaced.

    Returns:
        A `TFLiteReport`.

    Raises:
        TypeError: If `check_on` or `calibrate_on` is of another type.
        ValueError: If `model` is a distiller or no Keras model, is not built, cannot be copied in
            float32, or has a weight that is not a number or that the file cannot hold; `path` has
            another suffix, `tolerance` is negative or not finite, `check_on` or `calibrate_on` is
            empty, endless or not of what the model takes, `quantize` is unknown, or it does not fit
            the model, `calibrate_on` or `integer_io`, or a recurrent layer is not unrolled.
        FileExistsError: If `path` exists and `overwrite` is false.
        RuntimeError: If the two networks differ by more than `tolerance`, or a model of
            `quantization_aware` has an operator left in float32, or LiteRT cannot run the file. (An
            operator that LiteRT does not have raises the converter's own exception.)

    Example:
    ```python
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)])
    report = export_tflite(model, "student.tflite", check_on=np.ones((5, 8)))
    assert report.ok and report.examples == 5
    ```
    """
    _check_model(model)
    path = require_free(path, suffix=".tflite", overwrite=overwrite)
    aware = is_quantization_aware(model)
    _check_quantization(model, aware, quantize, calibrate_on, integer_io)
    _check_weights(model, "float16" if quantize == "float16" else "float32")
    checks.number("tolerance", tolerance, at_least=0, optional=True)
    batches = checked_batches("check_on", check_on, model)
    examples = checked_batches("calibrate_on", calibrate_on, model)

    if tolerance is None:
        tolerance = 1e-4 if quantize is None else math.inf
    model = _in_float32(model)
    content = _convert(folded(model) if aware else model, quantize, examples, integer_io)
    check_runs(content)
    agreement = Agreement() if batches is None else compare(model, content, batches)
    report = TFLiteReport(
        path,
        len(content),
        **agreement._asdict(),
        tolerance=tolerance,
        quantize=quantize,
        minimum_runtime=minimum_runtime(content),
        float_operators=float_operators(content) if quantize in _INTEGERS else (),
    )
    if aware and report.float_operators:
        raise RuntimeError(
            "Expected a file with integer operators only. Received: "
            f"{', '.join(report.float_operators)} in float32. Nothing was written. Were layers "
            "changed or added after `quantization_aware`?"
        )
    if batches is not None and not report.ok:
        raise RuntimeError(
            f"Expected outputs within tolerance={tolerance} of those of Keras. Received: "
            f"max_difference={report.max_difference:.3g} over {report.examples} examples. Nothing "
            "was written. A difference of nan means nan or inf in the outputs of one of the two."
        )
    agrees = report.class_agreement
    if quantize is not None and agrees is not None and agrees < _ENOUGH_AGREEMENT:
        warnings.warn(
            f"The quantized file gives the class of Keras for {agrees:.0%} of the examples only. "
            + (_OF_COPY if aware else _OF_RANGES),
            stacklevel=2,
        )
    # Once more: a conversion takes minutes, in which another program may have come first.
    write_whole(require_free(path, suffix=".tflite", overwrite=overwrite), content)
    return report


def _check_model(model):
    checks.any_model("model", model)
    if not model.built:
        raise ValueError(
            f"Expected a built model, with weights. Received: model={model.name!r}. Call it on a "
            "batch first."
        )


def _check_quantization(model, aware, quantize, calibrate_on, integer_io):
    checks.one_of("quantize", quantize, (None, "float16", "dynamic", *_INTEGERS))
    if aware:
        if quantize != "int8" or calibrate_on is not None:
            raise ValueError(
                'Expected quantize="int8" and no `calibrate_on` for a model of '
                f"`quantization_aware`, which has its ranges. Received: {quantize=}, calibrate_on="
                f"{'None' if calibrate_on is None else 'examples'}"
            )
    elif (quantize in _INTEGERS) != (calibrate_on is not None):
        raise ValueError(
            'Expected `calibrate_on`, real examples, with quantize="int8" or "int16" and only '
            f"there. Received: {quantize=}, calibrate_on="
            f"{'None' if calibrate_on is None else 'examples'}"
        )
    if quantize in _INTEGERS and len(inputs_of(model)) > 1:
        raise ValueError(
            f"Expected a model with a single input for {quantize=}. Received: "
            f'{len(model.inputs)} inputs. quantize="dynamic" needs no examples.'
        )
    if integer_io and quantize not in _INTEGERS:
        raise ValueError(
            f'Expected quantize="int8" or "int16" with integer_io=True. Received: {quantize=}'
        )


def _check_weights(model, dtype):
    """Checks that a file of a precision can hold every weight, with or without `check_on`."""
    largest = float(np.finfo(dtype).max)
    for weight in model.weights:
        if "float" not in weight.dtype:
            continue
        values = np.abs(keras.ops.convert_to_numpy(weight).astype("float64"))
        # What is not trained may be a mask with -inf, or statistics that end up in a kernel.
        if not np.all(values <= (largest if weight.trainable else np.inf)):
            raise ValueError(
                f"Expected weights that are numbers of at most {largest:.4g}, the largest {dtype}. "
                f"Received: {weight.path!r} with {np.max(values):.4g}. Export a checkpoint from "
                'before the training diverged; for large weights, another quantize than "float16".'
            )


def _in_float32(model):
    """Returns `model`, or a copy in float32: LiteRT's CPU kernels have no half precision."""
    dtypes = {layer.compute_dtype for layer in keras_internals.layers_of(model)}
    if dtypes.isdisjoint(_OTHER_FLOATS):
        return model
    # Layers that a custom layer makes without naming a dtype take the global policy.
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32")
    try:
        copy = keras.models.clone_model(
            model,
            clone_function=lambda layer: type(layer).from_config(_float32(layer.get_config())),
            recursive=True,
        )
        model_state.give(copy, model)
    except (NotImplementedError, TypeError, ValueError) as error:
        raise ValueError(
            "Expected a model that can be copied in float32. Received: "
            f"model={model.name!r}, which computes in {sorted(dtypes)}. Build the same network "
            "under the float32 policy, set_weights of this one on it, and export that."
        ) from error
    finally:
        keras.config.set_dtype_policy(policy)
    return copy


def _float32(config):
    """Returns a layer's config in which every float policy is float32."""
    if isinstance(config, (list, tuple)):
        return type(config)(map(_float32, config))
    if not isinstance(config, dict):
        return config
    replaced = {key: "float32" for key in ("dtype", "name") if config.get(key) in _OTHER_FLOATS}
    return {key: _float32(value) for key, value in config.items()} | replaced


def _convert(model, quantize=None, examples=None, integer_io=False):
    """Returns the bytes of the file."""
    # TFLiteConverter.from_keras_model prints the whole signature, and the defaults of Keras'
    # export let in TensorFlow operators, which a plain LiteRT runtime cannot run.
    target = {"supported_ops": [tf.lite.OpsSet.TFLITE_BUILTINS]}
    options = {"target_spec": target}
    if quantize is not None:
        options["optimizations"] = [tf.lite.Optimize.DEFAULT]
    if quantize == "float16":
        target["supported_types"] = [tf.float16]
    if quantize == "int16":
        target["supported_ops"] = [_INT16_ACTIVATIONS]
    if examples is not None:
        options["representative_dataset"] = lambda: _one_by_one(model, examples)
    if integer_io:
        options["inference_input_type"] = options["inference_output_type"] = _INTEGERS[quantize]
    logger = tf.get_logger()
    level = logger.level
    logger.setLevel("ERROR")  # It tells of a folder that is gone when this returns.
    try:
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder, "model.tflite")
            with explained(model, quantize):
                model.export(file, format="litert", verbose=False, **options)
            return file.read_bytes()
    finally:
        logger.setLevel(level)


def _one_by_one(model, batches):
    """Yields single examples, as the converter takes them."""
    inputs = inputs_of(model)
    dtype = inputs[0].dtype if inputs else model.input_dtype
    for x in inputs_in("calibrate_on", batches):
        for example in np.asarray(keras.tree.flatten(x)[0]).astype(dtype):
            yield [example[None]]

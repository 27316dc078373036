"""The `.tflite` file computes what the Keras model computes, or is not written."""

import dataclasses
import sys

import cases
import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

from keras_mikd import keras_internals
from keras_mikd.export import tflite
from keras_mikd.export.agreement import checked_batches, compare
from keras_mikd.export.tflite import TFLiteReport, export_tflite


def _cnn():
    """BatchNorm statistics far from their initial values, so that training mode would show."""
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.Conv2D(6, 3, strides=2, use_bias=False),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.Dropout(0.5),
            keras.layers.Flatten(),
            keras.layers.Dense(4),
        ],
        name="cnn",
    )
    norm = model.layers[1]
    norm.moving_mean.assign(np.linspace(-1, 1, 6))
    norm.moving_variance.assign(np.linspace(0.5, 3, 6))
    return model


def _images(n=10):
    return np.random.default_rng(0).normal(size=(n, 8, 8, 3)).astype("float32")


def _run(path, x):
    runner = Interpreter(model_path=str(path)).get_signature_runner()
    (name,) = runner.get_input_details()
    return runner(**{name: x})["output_0"]


def _logit_network(scale):
    """Three inputs pass through, scaled: the outputs are known without any network."""
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3, use_bias=False)])
    model.set_weights([np.eye(3) * scale])
    return model


@pytest.fixture(scope="module")
def cnn():
    """A network and its file."""
    model = _cnn()
    return model, tflite._convert(model)


@pytest.fixture(scope="module")
def identity():
    """A network that returns its inputs, and its file."""
    model = _logit_network(scale=1)
    return model, tflite._convert(model)


def _convert_to(content, monkeypatch):
    monkeypatch.setattr(tflite, "_convert", lambda *_: content)


def test_the_file_computes_the_model_at_any_batch_size(cnn, tmp_path):
    model, content = cnn
    (tmp_path / "cnn.tflite").write_bytes(content)
    for batch in (1, 7):
        x = _images(batch)
        np.testing.assert_allclose(_run(tmp_path / "cnn.tflite", x), model(x), atol=1e-5)


def test_report(tmp_path):
    path = tmp_path / "new" / "folder" / "cnn.tflite"
    data = tf.data.Dataset.from_tensor_slices((_images(10), np.zeros(10))).batch(4)
    report = export_tflite(_cnn(), str(path), check_on=data, tolerance=1e-5)
    assert report == TFLiteReport(
        path,
        path.stat().st_size,
        10,
        report.max_difference,
        1.0,
        tolerance=1e-5,
        minimum_runtime=report.minimum_runtime,
    )
    assert report.minimum_runtime.split(".")[0] == "1"
    assert report.ok and 0 <= report.max_difference <= 1e-5
    assert "10 examples" in str(report) and "same class for 100.00%" in str(report)
    assert [file.name for file in path.parent.iterdir()] == ["cnn.tflite"]


@pytest.mark.parametrize(
    "check_on",
    [
        _images(40),
        tf.constant(_images(40)),
        tf.data.Dataset.from_tensor_slices(_images(40).astype("float64")).batch(16),
        tf.data.Dataset.from_tensor_slices((_images(40), range(40), range(40))).batch(16),
    ],
    ids=["array", "tensor", "float64 x", "x, y, sample_weight"],
)
def test_every_example_of_check_on_is_compared(cnn, check_on):
    model, content = cnn
    assert compare(model, content, checked_batches("check_on", check_on, model))[0] == 40


def test_unchecked_is_not_ok(identity, tmp_path, monkeypatch):
    model, content = identity
    _convert_to(content, monkeypatch)
    report = export_tflite(model, tmp_path / "a.tflite")
    assert (report.examples, report.max_difference, report.class_agreement) == (0, None, None)
    assert not report.ok and "kB, not checked" in str(report)


@pytest.mark.parametrize("older", [None, b"older"], ids=["no file", "older file"])
def test_wrong_conversion_is_refused_and_leaves_the_folder_as_it_was(
    identity, tmp_path, monkeypatch, older
):
    path = tmp_path / "a.tflite"
    if older:
        path.write_bytes(older)
    before = sorted(tmp_path.iterdir())
    _convert_to(identity[1], monkeypatch)
    x = np.array([[1.0, 2.0, -4.0], [0.0, 1.0, 0.0]], "float32")
    message = "tolerance=0.99 .* Received: max_difference=1 over 2 examples. Nothing was written"
    with pytest.raises(RuntimeError, match=message):
        export_tflite(_logit_network(scale=1.25), path, check_on=x, tolerance=0.99, overwrite=True)
    assert sorted(tmp_path.iterdir()) == before
    assert older is None or path.read_bytes() == older


def test_difference_and_agreement_are_the_known_ones(identity, tmp_path, monkeypatch):
    """The network -x has its largest entry where x has its smallest."""
    _convert_to(identity[1], monkeypatch)
    x = np.array([[1.0, 2.0, -4.0], [0.0, 0.0, 0.0], [0.5, 0.0, 0.0], [-1, -1, -1]], "float32")
    report = export_tflite(_logit_network(-1), tmp_path / "a.tflite", check_on=x, tolerance=8.0)
    assert report.max_difference == 8.0
    assert report.class_agreement == 0.5


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A network that tells the brightest channel of an image, images, and its report in float32."""
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).normal(size=(600, 8, 8, 3)).astype("float32")
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.Conv2D(32, 3, padding="same", activation="relu"),
            keras.layers.Conv2D(64, 3, padding="same", activation="relu"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(3, use_bias=False),
        ]
    )
    # Fitted by least squares, since training takes seconds.
    features = keras.Model(model.inputs[0], model.layers[-2].output)(x[:400])
    model.layers[-1].set_weights(np.linalg.lstsq(features, 100 * x[:400].mean((1, 2)))[:1])
    path = tmp_path_factory.mktemp("whole") / "whole.tflite"
    return model, x[:400], x[400:], export_tflite(model, path, check_on=x[400:])


@pytest.mark.parametrize(
    ("quantize", "shrinks_to", "agrees"), [("float16", 0.6, 0.99), ("dynamic", 0.4, 0.9)]
)
def test_a_quantized_file_is_smaller_and_says_how_far_it_agrees(
    trained, quantize, shrinks_to, agrees, tmp_path
):
    model, _, x, whole = trained
    small = export_tflite(model, tmp_path / "small.tflite", check_on=x, quantize=quantize)
    assert small.size_bytes == (tmp_path / "small.tflite").stat().st_size
    assert small.size_bytes < shrinks_to * whole.size_bytes
    assert small.ok and small.max_difference > whole.max_difference
    assert small.class_agreement >= agrees and small.quantize == quantize
    assert f"kB ({quantize}), 200 examples" in str(small)
    expected, actual = np.asarray(model(x)), _run(tmp_path / "small.tflite", x)
    assert np.abs(expected - actual).max() == pytest.approx(small.max_difference, rel=1e-3)
    assert np.mean(expected.argmax(-1) == actual.argmax(-1)) == small.class_agreement


@pytest.mark.filterwarnings("ignore:The quantized file gives the class of Keras for")
def test_int8_takes_its_ranges_from_the_examples(trained, tmp_path):
    model, examples, x, whole = trained
    good, poor = (
        export_tflite(
            model, tmp_path / f"{name}.tflite", check_on=x, quantize="int8", calibrate_on=data
        )
        for name, data in (
            ("good", tf.data.Dataset.from_tensor_slices((examples, examples)).batch(50)),
            ("poor", examples[:100] / 100),
        )
    )
    assert good.ok and good.class_agreement > 0.9
    assert poor.max_difference > 2 * good.max_difference
    assert good.size_bytes < 0.4 * whole.size_bytes
    runner = Interpreter(model_path=str(tmp_path / "good.tflite")).get_signature_runner()
    (details,) = runner.get_input_details().values()
    assert details["dtype"] == np.float32


def test_a_quantized_file_beyond_the_tolerance_is_not_written(trained, tmp_path):
    model, _, x, _ = trained
    with pytest.raises(RuntimeError, match="tolerance=1e-06"):
        export_tflite(model, tmp_path / "a.tflite", check_on=x, quantize="dynamic", tolerance=1e-6)
    assert not list(tmp_path.iterdir())


def test_a_file_that_never_agrees_is_told_too(identity, tmp_path, monkeypatch):
    model, _ = identity
    found = tflite.Agreement(examples=2, max_difference=1.0, class_agreement=0.0)
    monkeypatch.setattr(tflite, "compare", lambda *_: found)
    x = np.zeros((2, *model.input_shape[1:]), "float32")
    with pytest.warns(UserWarning, match="for 0% of the examples only"):
        export_tflite(model, tmp_path / "a.tflite", check_on=x, quantize="dynamic")


def test_a_file_that_was_calibrated_on_other_inputs_is_told(trained, tmp_path):
    model, x, *_ = trained
    pixels = keras.Sequential([keras.Input(x.shape[1:]), keras.layers.Rescaling(1 / 64), model])
    options = {"check_on": 64 * x, "quantize": "int8"}
    with pytest.warns(UserWarning, match="class of Keras for .* Calibrate on what the file takes"):
        report = export_tflite(pixels, tmp_path / "a.tflite", calibrate_on=x, **options)
    right = export_tflite(pixels, tmp_path / "b.tflite", calibrate_on=64 * x, **options)
    assert report.class_agreement < 0.8 < right.class_agreement


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_inf_never_pass(identity, tmp_path, monkeypatch, bad):
    model, content = identity
    _convert_to(content, monkeypatch)
    x = np.array([[0.0, 1.0, bad], [1.0, 1.0, 1.0]], "float32")
    with pytest.raises(RuntimeError, match="nan"):
        export_tflite(model, tmp_path / "a.tflite", check_on=x, tolerance=1e9)
    assert not list(tmp_path.iterdir())


def test_no_class_agreement_without_classes(tmp_path):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    report = export_tflite(model, tmp_path / "a.tflite", check_on=np.ones((2, 3)))
    assert report.ok and report.class_agreement is None


def test_model_is_left_unchanged_and_nothing_is_printed(tmp_path, capfd):
    model = _cnn()
    model.layers[0].trainable = False
    x, weights, config = _images(), model.get_weights(), model.get_config()
    outputs = model(x).numpy()
    export_tflite(model, tmp_path / "a.tflite", check_on=x)
    assert model.get_config() == config
    assert not model.layers[0].trainable
    for before, after in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)
    np.testing.assert_array_equal(model(x), outputs)
    assert capfd.readouterr().out == ""


def test_a_half_precision_model_becomes_float32(tmp_path):
    keras.config.set_dtype_policy("mixed_float16")
    model = _cnn()
    report = export_tflite(model, tmp_path / "a.tflite", check_on=_images())
    assert report.ok
    assert model.layers[0].dtype_policy.name == "mixed_float16"
    outputs = _run(tmp_path / "a.tflite", _images())
    assert outputs.dtype == "float32"
    np.testing.assert_allclose(outputs, tf.cast(model(_images()), "float32"), atol=0.05)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float64"])
def test_the_float32_copy_is_the_same_network(policy):
    keras.config.set_dtype_policy(policy)
    model = _cnn()
    copy = tflite._in_float32(model)
    assert keras.config.dtype_policy().name == policy
    assert {layer.compute_dtype for layer in keras_internals.layers_of(copy)} == {"float32"}
    np.testing.assert_allclose(copy(_images()), tf.cast(model(_images()), "float32"), atol=0.05)


class Block(keras.layers.Layer):
    """Not registered for serialization, and its inner layer names no dtype."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = keras.layers.Dense(6)

    def build(self, shape):
        self.dense.build(shape)

    def call(self, x):
        return self.dense(x)


def test_float32_copy_reaches_into_nested_models_and_layers():
    keras.config.set_dtype_policy("mixed_float16")
    inner = keras.Sequential([keras.Input((4, 6)), keras.layers.Dense(6), Block()])
    x = inputs = keras.Input((4, 6))
    x = keras.layers.MultiHeadAttention(2, 3)(x, inner(x))
    x = keras.layers.GlobalAveragePooling1D()(inner(x) * 2.0)
    model = keras.Model(inputs, keras.layers.Dense(3, dtype="float32")(x))
    copy = tflite._in_float32(model)
    layers = keras_internals.layers_of(copy)
    assert len(layers) == len(keras_internals.layers_of(model))
    assert {layer.compute_dtype for layer in layers} == {"float32"}
    data = np.random.default_rng(0).normal(size=(5, 4, 6))
    np.testing.assert_allclose(copy(data), model(data), atol=0.02)


_INT8 = {"quantize": "int8", "calibrate_on": _images(2)}


def _two_inputs(as_dict):
    first, second = keras.Input((4,), name="z_first"), keras.Input((4,), name="a_second")
    inputs = {"z_first": first, "a_second": second} if as_dict else [first, second]
    wide = keras.layers.Dense(3)(first - 2.0 * second)
    narrow = keras.layers.Dense(2)(first)
    return keras.Model(inputs, {"wide": wide, "narrow": narrow} if as_dict else [wide, narrow])


@pytest.mark.parametrize("as_dict", [False, True])
def test_several_inputs_and_outputs(as_dict):
    """The file sorts its inputs by name: here the other order than the model's."""
    model = _two_inputs(as_dict)
    content = tflite._convert(model)
    named = {"z_first": np.full((6, 4), 3.0), "a_second": np.ones((6, 4))}
    for x in [named] if as_dict else [named, tuple(named.values())]:
        data = tf.data.Dataset.from_tensor_slices((x, np.zeros(6))).batch(4)
        examples, difference, agreement, *_ = compare(model, content, data)
        assert (examples, agreement) == (6, 1.0) and difference < 1e-5


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(3)

    def call(self, x):
        return self.dense(x[0] + x[1] if isinstance(x, (list, tuple)) else x)


def test_subclassed_model(tmp_path):
    model = Subclassed()
    model(np.ones((1, 4)))
    assert export_tflite(model, tmp_path / "a.tflite", check_on=np.ones((5, 4))).ok


def test_subclassed_model_with_several_inputs_is_refused(tmp_path):
    model = Subclassed()
    model([np.ones((1, 4)), np.ones((1, 4))])
    data = tf.data.Dataset.from_tensors(((np.ones((2, 4)), np.ones((2, 4))), np.ones(2)))
    with pytest.raises(ValueError, match="need a Functional model"):
        export_tflite(model, tmp_path / "a.tflite", check_on=data)


def test_subclassed_model_in_half_precision_is_refused(tmp_path):
    keras.config.set_dtype_policy("mixed_float16")
    model = Subclassed()
    model(np.ones((1, 4)))
    with pytest.raises(ValueError, match="under the float32 policy"):
        export_tflite(model, tmp_path / "a.tflite")
    assert keras.config.dtype_policy().name == "mixed_float16"


def test_operator_unknown_to_litert_is_refused(tmp_path):
    inputs = keras.Input((4,))
    outputs = keras.layers.Lambda(lambda x: tf.math.betainc(1.0 + x, 1.0 + x, x))(inputs)
    with pytest.raises(Exception, match="Custom ops: Betainc"):
        export_tflite(keras.Model(inputs, outputs), tmp_path / "a.tflite")
    assert not list(tmp_path.iterdir())


def test_existing_file(identity, tmp_path, monkeypatch):
    model, content = identity
    _convert_to(content, monkeypatch)
    path = tmp_path / "a.tflite"
    path.write_bytes(b"older")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        export_tflite(model, path)
    assert path.read_bytes() == b"older"
    export_tflite(model, path, overwrite=True)
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("kind", "network"), [("distiller", "student"), ("mutual", "peers"), ("mcmi", "teacher")]
)
def test_a_distiller_is_refused(kind, network, tmp_path):
    with pytest.raises(ValueError, match=f"Received: the distiller .*`distiller.{network}"):
        export_tflite(cases.distiller(kind), tmp_path / "a.tflite")


def test_report_is_frozen(tmp_path):
    report = TFLiteReport(tmp_path, 1, 0, None, None, 1e-4)
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.examples = 5


def _single_images():
    return tf.data.Dataset.from_tensor_slices(_images(2))


def _endless():
    return tf.data.Dataset.from_tensors(_images(2)).repeat()


def _filtered_to_nothing():
    return tf.data.Dataset.from_tensors(_images(2)).filter(lambda x: False)


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 1)])
def test_an_axis_that_keras_adds_or_takes_away_may_be_missing(shape):
    model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Conv2D(2, 3)])
    batches = checked_batches("check_on", np.ones((2, *shape)), model)
    assert model(next(iter(batches))).shape == (2, 6, 6, 2)
    unknown = keras.Sequential([keras.Input((None, None, 1)), keras.layers.Conv2D(2, 3)])
    assert checked_batches("check_on", np.ones((2, *shape)), unknown) is not None


@pytest.mark.parametrize("nothing", [_images(0), _filtered_to_nothing()])
def test_no_examples_are_refused(cnn, nothing):
    model, content = cnn
    with pytest.raises(ValueError, match=r"`check_on` to hold examples. Received: check_on=\[\]"):
        compare(model, content, checked_batches("check_on", nothing, model))


@pytest.mark.parametrize(
    ("error", "message", "kwargs"),
    [
        (ValueError, "a keras.Model. .*keras.saving.load_model", {"model": "student.keras"}),
        (
            ValueError,
            "Expected a built model",
            {"model": keras.Sequential([keras.layers.Dense(2)])},
        ),
        (ValueError, "ends in '.tflite'", {"path": "student.keras"}),
        (ValueError, "Received: tolerance=-0.0001", {"tolerance": -1e-4}),
        (ValueError, "Received: tolerance=nan", {"tolerance": float("nan")}),
        (ValueError, "Received: quantize='int4'", {"quantize": "int4"}),
        (ValueError, "Expected `calibrate_on`, real examples", {"quantize": "int8"}),
        (
            ValueError,
            "and only there. Received: quantize='dynamic', calibrate_on=examples",
            {"quantize": "dynamic", "calibrate_on": _images(2)},
        ),
        (
            ValueError,
            "Received: calibrate_on=",
            {"quantize": "int8", "calibrate_on": _filtered_to_nothing()},
        ),
        (ValueError, "Received: 2 inputs", {"model": _two_inputs(False), **_INT8}),
        (TypeError, "one array of examples", {"check_on": [_images(2)]}),
        (TypeError, "one array of examples", {"check_on": np.array(1.0)}),
        (ValueError, r"endless data set. Add \.take", {"check_on": _endless()}),
        (ValueError, r"shape \(8, 8, 3\). Add \.batch", {"check_on": _single_images()}),
        (
            ValueError,
            r"`check_on` to be what 'cnn' takes.*\(8, 8, 3\). Received: .* shape \(8, 8, 1\)",
            {"check_on": _images(2)[..., :1]},
        ),
        (
            ValueError,
            r"`calibrate_on` to be what .* shape \(8, 8\). Resize",
            {"quantize": "int8", "calibrate_on": _images(2)[..., 0]},
        ),
        (TypeError, "check_on=tuple. Of images and", {"check_on": (_images(2), [0, 1])}),
    ],
)
def test_bad_arguments(cnn, tmp_path, error, message, kwargs):
    arguments = {"model": cnn[0], "path": "a.tflite"} | kwargs
    arguments["path"] = tmp_path / arguments["path"]
    with pytest.raises(error, match=message):
        export_tflite(**arguments)
    assert not list(tmp_path.iterdir())


def test_falls_back_on_the_interpreter_of_tensorflow(cnn, monkeypatch):
    model, content = cnn
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    with pytest.warns(UserWarning, match="ai_edge_litert"):
        assert compare(model, content, checked_batches("check_on", _images(), model))[1] < 1e-4


def test_batches_of_inputs_of_unlike_ranks_are_batches(tmp_path):
    image, score = keras.Input((4, 3), name="image"), keras.Input((3,), name="above")
    merged = keras.layers.Concatenate()([keras.layers.Flatten()(image), score])
    model = keras.Model([image, score], keras.layers.Dense(2)(merged))
    batch = {"image": np.ones((2, 4, 3), "float32"), "above": np.ones((2, 3), "float32")}
    data = tf.data.Dataset.from_tensors(batch)
    assert export_tflite(model, tmp_path / "a.tflite", check_on=data).ok
    flat = keras.Sequential([keras.Input((1,)), keras.layers.Dense(2)])
    assert len(checked_batches("check_on", np.ones(5, "float32"), flat)) == 1


@pytest.mark.parametrize(
    ("value", "quantize"),
    [(np.nan, None), (np.inf, None), (-np.inf, "dynamic"), (np.nan, "float16"), (1e5, "float16")],
)
def test_weights_that_are_no_numbers_are_refused_without_examples_too(tmp_path, value, quantize):
    model = _logit_network(scale=1)
    model.layers[-1].kernel.assign(np.full((3, 3), value))
    with pytest.raises(ValueError, match=r"kernel' with (nan|inf|1e\+05)"):
        export_tflite(model, tmp_path / "a.tflite", quantize=quantize)
    assert not list(tmp_path.iterdir())


def test_statistics_that_are_no_numbers_are_refused(tmp_path):
    model = _cnn()
    model.layers[1].moving_variance.assign(np.full(6, np.nan))
    with pytest.raises(ValueError, match="moving_variance' with nan"):
        export_tflite(model, tmp_path / "a.tflite")


def test_a_file_that_came_while_the_network_was_converted_is_kept(tmp_path, identity, monkeypatch):
    model, content = identity
    path = tmp_path / "a.tflite"

    def convert(*_):
        path.write_bytes(b"another's")
        return content

    monkeypatch.setattr(tflite, "_convert", convert)
    with pytest.raises(FileExistsError):
        export_tflite(model, path)
    assert path.read_bytes() == b"another's"


def test_a_link_to_nothing_is_replaced_only_if_asked(tmp_path, identity, monkeypatch):
    model, content = identity
    _convert_to(content, monkeypatch)
    path = tmp_path / "a.tflite"
    path.symlink_to(tmp_path / "gone")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        export_tflite(model, path)
    assert path.is_symlink()
    export_tflite(model, path, overwrite=True)
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    "labels, expected",
    [
        (np.arange(6) % 3, (1.0, 1.0)),
        (np.array([[0], [1], [2], [0], [1], [0]]), (5 / 6, 5 / 6)),
        (np.eye(3)[np.arange(6) % 3], (1.0, 1.0)),
        (np.full((6, 3), 1 / 3), (None, None)),
        (np.linspace(0, 2, 6), (None, None)),
        (np.array([0, 1, 2, -1, -1, -1]), (None, None)),
    ],
    ids=["indices", "column", "one-hot", "soft", "real numbers", "some without"],
)
def test_accuracy_is_that_of_labels_that_are_classes(identity, labels, expected):
    model, content = identity
    images = np.eye(3, dtype="float32")[np.arange(6) % 3]
    data = tf.data.Dataset.from_tensor_slices((images, labels)).batch(4)
    agreement = compare(model, content, data)
    assert (agreement.accuracy, agreement.keras_accuracy) == expected


def test_accuracy_is_that_of_the_file(identity):
    """The network -x is wrong wherever x is right."""
    data = tf.data.Dataset.from_tensor_slices((np.eye(3, dtype="float32"), np.arange(3))).batch(2)
    agreement = compare(_logit_network(-1), identity[1], data)
    assert (agreement.accuracy, agreement.keras_accuracy) == (1.0, 0.0)


def test_int16_is_closer_than_int8(trained, tmp_path):
    model, _, x, _ = trained
    reports = [
        export_tflite(model, tmp_path / f"{kind}.tflite", check_on=x, quantize=kind, calibrate_on=x)
        for kind in ("int8", "int16")
    ]
    assert reports[1].max_difference < reports[0].max_difference / 1.5
    assert reports[0].float_operators == reports[1].float_operators == ()


@pytest.mark.parametrize("kind", ["int8", "int16"])
def test_integer_inputs_and_outputs(trained, tmp_path, kind):
    model, _, x, _ = trained
    report = export_tflite(
        model,
        tmp_path / "a.tflite",
        check_on=x,
        quantize=kind,
        calibrate_on=x,
        integer_io=True,
    )
    runner = Interpreter(model_path=str(report.path)).get_signature_runner()
    for details in (runner.get_input_details(), runner.get_output_details()):
        assert [detail["dtype"] for detail in details.values()] == [np.dtype(kind).type]
    assert report.class_agreement > 0.9


def test_what_is_left_in_float_is_said(tmp_path):
    """LiteRT has no integer form of the sine."""
    inputs = keras.Input((8,))
    hidden = keras.ops.sin(keras.layers.Dense(4)(inputs))
    outputs = keras.layers.Dense(4)(hidden)
    x = np.random.default_rng(0).normal(size=(100, 8)).astype("float32")
    report = export_tflite(
        keras.Model(inputs, outputs), tmp_path / "a.tflite", quantize="int8", calibrate_on=x
    )
    assert report.float_operators and ", in float32 still " in str(report)


def test_the_float32_copy_has_the_statistics_of_normalization(tmp_path):
    keras.config.set_dtype_policy("mixed_float16")
    x = 3.0 * _images(32) + 10.0
    normalization = keras.layers.Normalization(dtype="float32")
    normalization.adapt(x)
    head = [keras.layers.Flatten(), keras.layers.Dense(4, dtype="float32")]
    model = keras.Sequential([keras.Input(x.shape[1:]), normalization, *head])
    report = export_tflite(model, tmp_path / "a.tflite", check_on=x)
    assert report.ok
    np.testing.assert_allclose(_run(tmp_path / "a.tflite", x), model(x), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize(
    "layer, said",
    [
        (
            keras.layers.LSTM(4, name="r"),
            r"unroll=False in r\. .*get_layer\('r'\).unroll = T",
        ),
        (
            keras.layers.Bidirectional(keras.layers.GRU(4, name="r")),
            r"unroll=False in backward_r, forward_r\. .*in layer.unroll = True",
        ),
    ],
    ids=["lstm", "bidirectional"],
)
def test_a_recurrent_layer_is_to_be_unrolled(layer, said, tmp_path):
    model = keras.Sequential([keras.Input((3, 2)), layer, keras.layers.Dense(3)])
    x = np.random.default_rng(0).normal(size=(4, 3, 2)).astype("float32")
    expected = model.predict(x, verbose=0)
    with pytest.raises(ValueError, match=said):
        export_tflite(model, tmp_path / "a.tflite")
    # The advice is good, for a model that was trained.
    for each in keras_internals.layers_of(model):
        if hasattr(each, "unroll"):
            each.unroll = True
    assert export_tflite(model, tmp_path / "a.tflite", check_on=x).ok
    np.testing.assert_allclose(_run(tmp_path / "a.tflite", x), expected, atol=1e-5)


def _tokens():
    layers = [keras.layers.Embedding(9, 4), keras.layers.Flatten(), keras.layers.Dense(3)]
    return keras.Sequential([keras.Input((5,), dtype="int32"), *layers])


def _bytes():
    layers = [keras.layers.Rescaling(1 / 255), keras.layers.Flatten(), keras.layers.Dense(3)]
    return keras.Sequential([keras.Input((5,), dtype="uint8"), *layers])


def _normalized():
    layers = [keras.layers.Dense(4), keras.layers.LayerNormalization(), keras.layers.Dense(3)]
    return keras.Sequential([keras.Input((5,)), *layers])


@pytest.mark.parametrize(
    "model, received",
    [
        (_tokens, "an input of integers, such as tokens"),
        (_bytes, "CAST, which it has not"),
        (_normalized, "NEG, which it has not"),
    ],
)
def test_what_int16_cannot_be_is_said_with_a_way_out(model, received, tmp_path):
    model, x = model(), np.random.default_rng(0).integers(0, 9, (20, 5))
    with pytest.raises(ValueError, match=f'in int16. Received: {received}. quantize="int8" or "dy'):
        export_tflite(model, tmp_path / "a.tflite", quantize="int16", calibrate_on=x)
    export_tflite(model, tmp_path / "a.tflite", quantize="int8", calibrate_on=x)
    export_tflite(model, tmp_path / "b.tflite", quantize="dynamic")


def test_a_file_that_cannot_run_is_not_written(tmp_path):
    """A padding of -inf, as of KerasHub's ResNet V2, has no int16; the converter leaves it."""
    image = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, padding="same")(image)
    x = keras.ops.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]], constant_values=float("-inf"))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.MaxPooling2D(3, 2)(x))
    images = np.random.default_rng(0).normal(size=(8, 8, 8, 3)).astype("float32")
    with pytest.raises(RuntimeError, match="that LiteRT can run. Received: .*Nothing was written"):
        export_tflite(
            keras.Model(image, x), tmp_path / "a.tflite", quantize="int16", calibrate_on=images
        )
    assert not list(tmp_path.iterdir())

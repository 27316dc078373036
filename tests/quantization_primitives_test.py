"""Layers and arithmetic that an int8 file computes as several: the copy has them in that form."""

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from keras import layers, ops

import keras_mikd as mikd
from keras_mikd.export import fake_quantization
from keras_mikd.export.fake_quantization import FakeQuantize
from keras_mikd.export.primitives import primitives
from keras_mikd.features.layer_graph import LayerGraph

RNG = np.random.default_rng(0)
# Of different colours, so that averages over a map differ too.
IMAGES = RNG.uniform(0, 255, (32, 8, 8, 3)) * RNG.uniform(0, 1, (32, 1, 1, 3))
IMAGES = IMAGES.astype("float32")
MEAN, VARIANCE = [120.0, 110.0, 100.0], [4000.0, 5000.0, 6000.0]


def _student(build):
    """A network of `build(map)`, behind a convolution of what is in -1 to 1."""
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(6, 3, padding="same", bias_initializer="ones")(image / 127.5 - 1.0)
    x = build(layers.ReLU(name="relu")(x))
    return keras.Model(image, layers.Dense(5, name="logits")(layers.Flatten()(x)))


def _gate(x):
    """The gate of MobileNetV3 in `keras.applications`, which writes its hard sigmoid out."""
    gate = layers.Conv2D(6, 1)(layers.GlobalAveragePooling2D(keepdims=True)(x))
    return layers.Multiply()([x, layers.ReLU(6.0)(gate + 3.0) * (1.0 / 6.0)])


def _vectors(x, then):
    return then(layers.Dense(7, name="vectors")(layers.GlobalAveragePooling2D()(x)))


def _normalized(x):
    normalization = layers.BatchNormalization()
    x = normalization(x)
    width = x.shape[-1]
    low, high = RNG.uniform(0.5, 1.0, width), RNG.uniform(1.0, 2.0, width)
    normalization.set_weights([high, low - 0.5, low, high])
    return x


def _shared(x):
    relu = layers.ReLU(name="shared")
    return relu(layers.Conv2D(6, 3)(relu(layers.Conv2D(6, 3)(x))))


BUILT = {
    "separable": lambda x: layers.SeparableConv2D(8, 3, depth_multiplier=2, padding="same")(x),
    "separable, relu": lambda x: layers.SeparableConv2D(8, 3, activation="relu", name="s")(x),
    "separable, strides": lambda x: layers.SeparableConv2D(8, 3, strides=2, use_bias=False)(x),
    "separable, normalized": lambda x: layers.ReLU()(_normalized(layers.SeparableConv2D(8, 3)(x))),
    "hard_silu": lambda x: layers.Conv2D(6, 3, activation="hard_silu")(x),
    "hard_silu, layer": lambda x: layers.Activation("hard_silu")(layers.Conv2D(6, 3)(x)),
    "hard_sigmoid": lambda x: layers.Conv2D(6, 3, activation="hard_sigmoid")(x),
    "hard_sigmoid, vectors": lambda x: _vectors(x, layers.Activation("hard_sigmoid")),
    "gate": _gate,
    "sum": lambda x: x + layers.Conv2D(6, 3, padding="same")(x),
    "product": lambda x: x * layers.Conv2D(6, 3, padding="same")(x),
    "constant first": lambda x: 2.0 - 0.5 * layers.Conv2D(6, 3)(x),
    "of each channel": lambda x: x * np.linspace(0.1, 2.0, 6, dtype="float32"),
    "operations": lambda x: ops.relu6(layers.Conv2D(6, 3)(ops.silu(layers.Conv2D(6, 3)(x)))),
    "more operations": lambda x: ops.sigmoid(ops.leaky_relu(layers.Conv2D(6, 3)(x), 0.1)),
    "activations": lambda x: keras.activations.relu(layers.Conv2D(6, 3)(x), negative_slope=0.2),
    "normalized vectors": lambda x: _vectors(x, lambda v: _normalized(layers.ReLU()(v))),
    "normalized vectors, relu": lambda x: _vectors(
        x, lambda v: layers.ReLU()(_normalized(layers.ReLU()(v)))
    ),
    "normalized tokens": lambda x: _normalized(layers.Reshape((64, 6))(layers.MaxPooling2D(1)(x))),
    "arithmetic of vectors": lambda x: _vectors(x, lambda v: layers.ReLU()(v * 2.0 + 1.0)),
    "shared relu": _shared,
    "augmented": lambda x: layers.Conv2D(6, 3)(layers.RandomFlip()(layers.RandomRotation(0.1)(x))),
}


def _run(path):
    runner = Interpreter(model_path=str(path)).get_signature_runner()
    (feed,) = runner.get_input_details()
    return runner(**{feed: IMAGES})["output_0"]


@pytest.mark.parametrize("name", BUILT)
def test_the_copy_is_the_student_and_its_file_is_the_copy(name, monkeypatch, tmp_path):
    student = _student(BUILT[name])
    copy = mikd.quantization_aware(student, calibrate_on=IMAGES)
    expected = student(IMAGES, training=False).numpy()
    report = mikd.export_tflite(copy, tmp_path / "a.tflite", quantize="int8", check_on=IMAGES)
    of_file = np.abs(_run(tmp_path / "a.tflite") - expected).mean()
    of_copy = np.abs(copy(IMAGES, training=False) - expected).mean()
    assert report.float_operators == () and of_file <= 1.1 * of_copy
    np.testing.assert_allclose(copy(IMAGES, training=False), expected, atol=0.1 * np.ptp(expected))
    monkeypatch.setattr(fake_quantization, "_rounded", lambda kernel, axis=-1: kernel)
    monkeypatch.setattr(FakeQuantize, "call", lambda self, inputs: inputs)
    np.testing.assert_allclose(copy(IMAGES, training=False), expected, atol=1e-4)


def test_biases_that_are_one_number_keep_it_in_the_file(tmp_path):
    """LiteRT's converter rounds such biases with the scale of the first channel."""
    image = keras.Input((8, 8, 3))
    student = keras.Model(image, layers.Conv2D(6, 3, bias_initializer="ones", name="conv")(image))
    kernel, bias = student.get_weights()
    student.set_weights([kernel * np.linspace(0.2, 3.0, 6), bias])
    copy = mikd.quantization_aware(student, calibrate_on=IMAGES)
    mikd.export_tflite(copy, tmp_path / "a.tflite", quantize="int8")
    difference = np.abs(_run(tmp_path / "a.tflite") - copy(IMAGES))
    assert difference.max() <= 1.01 * np.ptp(copy(IMAGES)) / 255
    np.testing.assert_array_equal(copy.get_layer("conv").bias, 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("make", ["MobileNetV3Small", "EfficientNetB0"])
def test_networks_of_keras_for_phones(make, monkeypatch):
    keras.utils.set_random_seed(0)
    images = RNG.uniform(0, 255, size=(4, 32, 32, 3)).astype("float32")
    student = getattr(keras.applications, make)(
        input_shape=(32, 32, 3), weights=None, classes=5, classifier_activation=None
    )
    copy = mikd.quantization_aware(student, calibrate_on=images)
    monkeypatch.setattr(fake_quantization, "_rounded", lambda kernel, axis=-1: kernel)
    monkeypatch.setattr(FakeQuantize, "call", lambda self, inputs: inputs)
    expected = student(images).numpy()
    np.testing.assert_allclose(copy(images), expected, atol=1e-3 * np.abs(expected).max())


@pytest.mark.parametrize(
    "options", [{}, {"axis": None}, {"invert": True}], ids=["channels", "all", "inverse"]
)
def test_normalization_of_inputs_is_a_rescaling(options, monkeypatch):
    statistics = [MEAN[0], VARIANCE[0]] if options.get("axis", -1) is None else [MEAN, VARIANCE]
    image = keras.Input((8, 8, 3))
    x = layers.Rescaling(0.5, offset=3.0)(image)
    x = layers.Normalization(mean=statistics[0], variance=statistics[1], **options)(x)
    student = keras.Model(image, layers.Conv2D(4, 3)(layers.Rescaling(2.0)(x)))
    calls, outputs = primitives(LayerGraph(student))
    # Three in a row are one.
    assert [type(call.layer).__name__ for call in calls] == ["InputLayer", "Rescaling", "Conv2D"]
    assert outputs == [2]
    copy = mikd.quantization_aware(student, calibrate_on=IMAGES)
    monkeypatch.setattr(fake_quantization, "_rounded", lambda kernel, axis=-1: kernel)
    monkeypatch.setattr(FakeQuantize, "call", lambda self, inputs: inputs)
    expected = student(IMAGES).numpy()
    largest = np.abs(expected).max()
    np.testing.assert_allclose(copy(IMAGES), expected, rtol=1e-4, atol=1e-5 * largest)


def test_what_several_read_is_not_chained():
    """A rescaling that another layer reads as well, or that is an output, stays."""
    image = keras.Input((8, 8, 3))
    first = layers.Rescaling(2.0, name="first")(image)
    second = layers.Rescaling(3.0, name="second")(first)
    for outputs in (layers.Add()([first, second]), [first, second]):
        calls, _ = primitives(LayerGraph(keras.Model(image, outputs)))
        assert [call.layer.scale for call in calls[1:3]] == [2.0, 3.0]


def test_stages_are_those_of_the_student_behind_a_rescaling():
    """Its convolution of 1x1 is no stage: the first one has strides."""
    x = image = keras.Input((16, 16, 3))
    x = layers.Rescaling(1 / 127.5, offset=-1.0)(x)
    for width in (4, 8):
        x = layers.ReLU()(layers.Conv2D(width, 3, strides=2, padding="same")(x))
    student = keras.Model(image, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))
    images = np.random.default_rng(0).uniform(0, 255, (8, 16, 16, 3)).astype("float32")
    copy = mikd.quantization_aware(student, calibrate_on=images)
    of_student, of_copy = (
        {place: stage.shape for place, stage in mikd.stages(each).items()}
        for each in (student, copy)
    )
    assert of_copy == of_student and len(of_student) == 3


def test_constants_are_not_trained_and_the_student_keeps_its_layers():
    student = _student(BUILT["separable"])
    before = student.get_weights()
    copy = mikd.quantization_aware(student, calibrate_on=IMAGES)
    copy.set_weights([weight + 1 for weight in copy.get_weights()])
    for weight, old in zip(student.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, old)
    trained = {weight.path for weight in copy.trainable_variables}
    assert {"separable_conv2d/kernel", "separable_conv2d_depthwise/kernel"} <= trained
    assert not any("subtract" in path and "quantized" not in path for path in trained)


@pytest.mark.parametrize(
    "build, said",
    [
        (lambda x: 2.0 / (x + 1.0), "known in int8: .*TrueDivide"),
        (lambda x: x * np.ones((8, 8, 1), "float32"), "known in int8: .*Multiply"),
        (lambda x: layers.Normalization(axis=1, mean=[0.0] * 8, variance=[1.0] * 8)(x), "axis"),
        (lambda x: ops.exp(x), "known in int8: .*Exp"),
        (
            lambda x: layers.BatchNormalization(name="bn")(layers.Reshape((2, 2, 2, 48))(x)),
            "vectors, tokens or feature maps.*'bn'",
        ),
    ],
    ids=["quotient", "of each place", "rows", "operation", "volumes"],
)
def test_what_has_no_such_form_is_refused(build, said):
    with pytest.raises(ValueError, match=said):
        mikd.quantization_aware(_student(build), calibrate_on=IMAGES)

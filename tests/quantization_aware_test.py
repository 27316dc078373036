"""A copy of `quantization_aware` computes what its int8 file computes, and can be trained."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from keras import layers

import keras_mikd as mikd
from keras_mikd import keras_internals
from keras_mikd.export import fake_quantization, folding, quantization_aware
from keras_mikd.export.fake_quantization import (
    FakeQuantize,
    FakeQuantizedConv2D,
    FakeQuantizedDense,
    FakeQuantizedDepthwiseConv2D,
)

RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(0, 255, size=(48, 8, 8, 3)).astype("float32")


def _normalize(model):
    """Gives every BatchNorm statistics far from those it starts with."""
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            for weight, low, high in (
                (layer.moving_mean, -0.3, 0.3),
                (layer.moving_variance, 0.4, 2.0),
                (layer.gamma, 0.5, 1.5),
                (layer.beta, -0.3, 0.3),
            ):
                weight.assign(RNG.uniform(low, high, weight.shape))
    return model


def _every_layer():
    """Every kind of layer and activation that is known in int8."""
    keras.utils.set_random_seed(1)
    backbone_in = keras.Input((8, 8, 8))
    x = layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2, name="depthwise")(backbone_in)
    x = layers.BatchNormalization(name="depthwise_bn")(x)
    x = layers.ReLU(6.0)(x)
    backbone = keras.Model(backbone_in, layers.Conv2D(8, 1, activation="silu")(x), name="backbone")

    image = keras.Input((8, 8, 3), name="image")
    x = layers.Rescaling(1 / 127.5, offset=-1.0)(image)
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="stem")(x)
    stem = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Add(name="sum")([backbone(stem), stem])
    x = layers.ReLU()(layers.BatchNormalization(name="sum_bn")(x))
    gate = layers.Reshape((1, 1, 8))(layers.GlobalAveragePooling2D()(x))
    gate = layers.Conv2D(8, 1, activation="sigmoid")(gate)
    x = layers.Multiply()([x, gate])
    x = layers.SpatialDropout2D(0.5)(layers.GaussianNoise(0.1)(layers.Identity()(x)))
    x = layers.ZeroPadding2D(1)(layers.LeakyReLU(0.1)(x))
    small = layers.AveragePooling2D(2)(layers.Cropping2D(1)(x))
    x = layers.Concatenate()([small, layers.MaxPooling2D(1)(small)])
    largest = layers.GlobalMaxPooling2D()(layers.ActivityRegularization(0.1)(x))
    x = layers.Activation("relu")(layers.Conv2D(6, 3, groups=2, name="grouped")(x))
    x = layers.Dropout(0.5)(layers.Flatten()(layers.Permute((2, 1, 3))(x)))
    x = layers.Dense(12, activation="tanh")(x)
    x = layers.Dense(12, activation="hard_sigmoid")(layers.Activation("hard_silu")(x))
    x = layers.BatchNormalization(name="vector_bn")(layers.Dense(10, name="before")(x))
    x = layers.Activation("relu6")(x)
    outputs = {
        "logits": layers.Dense(5, name="logits")(x),
        "classes": layers.Dense(4, "softmax")(x),
        "largest": layers.Softmax()(layers.Dense(3)(largest)),
    }
    return _normalize(keras.Model(image, outputs, name="every"))


def _small(classes=4, width=8):
    x = image = keras.Input((8, 8, 3), name="image")
    x = layers.Rescaling(1 / 127.5, offset=-1.0)(x)
    for strides in (1, 2):
        x = layers.Conv2D(width, 3, strides=strides, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.GlobalAveragePooling2D()(x)
    return _normalize(keras.Model(image, layers.Dense(classes, name="logits")(x), name="small"))


def _quantizer(model, name):
    return model.get_layer(f"{name}_quantized")


def _run(path, x, name="output_0"):
    runner = Interpreter(model_path=str(path)).get_signature_runner()
    (feed,) = runner.get_input_details()
    return runner(**{feed: x})[name]


@pytest.fixture(scope="module")
def small():
    keras.utils.set_random_seed(0)
    return _small()


@pytest.fixture(scope="module")
def aware(small):
    return mikd.quantization_aware(small, calibrate_on=IMAGES)


def test_a_tensor_is_rounded_to_the_256_values_of_its_range():
    """By hand, with a zero that is nudged to a level, as the paper's equation 12."""
    layer = FakeQuantize((-1.0, 2.1))
    x = np.concatenate([RNG.uniform(-2, 3, 1000), [0.0]]).astype("float32")
    scale = 3.1 / 255
    zero = np.round(1.0 / scale)
    levels = np.clip(np.floor(x / scale + zero + 0.5), 0, 255)
    np.testing.assert_allclose(layer(x), (levels - zero) * scale, atol=1e-6)
    assert layer(x)[-1] == 0 and len(np.unique(layer(x))) <= 256


def test_gradients_pass_inside_the_range_and_move_its_ends_outside():
    layer = FakeQuantize()
    layer.build((None,))
    x = tf.constant([-3.0, -0.5, 0.25, 2.0, 5.0])
    weights = tf.constant([1.0, 2.0, 3.0, 4.0, 5.0])
    with tf.GradientTape() as tape:
        tape.watch(x)
        total = tf.reduce_sum(layer(x) * weights)
    by_x, low, high = tape.gradient(total, [x, layer.minimum.value, layer.maximum.value])
    np.testing.assert_array_equal(by_x, [0, 2, 3, 0, 0])
    assert (float(low), float(high)) == (1.0, 9.0)


def test_a_range_keeps_zero_in_it():
    layer = FakeQuantize()
    layer.build((None,))
    assert layer.minimum.constraint(tf.constant(0.5)) == 0
    assert layer.maximum.constraint(tf.constant(-0.5)) > 0
    layer.begin_observing()
    values = np.float32([2.0, 3.3])
    np.testing.assert_array_equal(layer(values), values)
    layer(np.float32([1.0, 3.0]))
    low, high = layer.end_observing()
    assert (low, high) == (1.0, np.float32(3.3))
    layer.set_range(low, high)
    assert (float(layer.minimum), float(layer.maximum)) == (0.0, np.float32(3.3))


@pytest.mark.parametrize(
    "make, axes",
    [
        (lambda: FakeQuantizedConv2D(5, 3), (0, 1, 2)),
        (lambda: FakeQuantizedDepthwiseConv2D(3, depth_multiplier=2), (0, 1)),
        (lambda: FakeQuantizedDense(5), (0, 1)),
    ],
    ids=["convolution", "depthwise", "dense"],
)
def test_kernels_have_127_steps_to_their_largest_weight(make, axes):
    layer = make()
    x = RNG.normal(size=(2, 6, 6, 3) if len(axes) != 2 or "depth" in layer.name else (2, 7))
    layer(x.astype("float32"))
    kernel = RNG.normal(size=layer.kernel.shape).astype("float32")
    layer.kernel.assign(kernel)
    scale = np.abs(kernel).max(axis=axes, keepdims=True) / 127
    plain = {
        FakeQuantizedConv2D: layers.Conv2D,
        FakeQuantizedDepthwiseConv2D: layers.DepthwiseConv2D,
        FakeQuantizedDense: layers.Dense,
    }[type(layer)].from_config(layer.get_config() | {"name": "plain"})
    plain(x)
    plain.kernel.assign(np.round(kernel / scale) * scale)
    np.testing.assert_allclose(layer(x), plain(x), atol=2e-5)
    with tf.GradientTape(persistent=True) as tape:
        rounded, exact = [tf.reduce_sum(net(x) ** 2 / 2) for net in (layer, plain)]
    gradients = [
        tape.gradient(value, net.kernel.value) for value, net in ((rounded, layer), (exact, plain))
    ]
    np.testing.assert_allclose(*gradients, atol=1e-3)


def test_the_largest_weight_of_every_channel_has_a_gradient():
    """The range of a channel is a little larger, since its ends round to either side."""
    kernel = tf.constant(np.random.default_rng(0).normal(size=(20, 5000)).astype("float32"))
    with tf.GradientTape() as tape:
        tape.watch(kernel)
        value = tf.reduce_sum(fake_quantization._rounded(kernel))
    gradient = tape.gradient(value, kernel).numpy()
    largest = np.abs(kernel).argmax(0)
    np.testing.assert_array_equal(gradient[largest, np.arange(5000)], 1.0)


def test_without_rounding_the_copy_is_the_student(monkeypatch):
    """Folding changes no value, whatever stands before the normalization."""
    student = _every_layer()
    copy = mikd.quantization_aware(student, calibrate_on=IMAGES)
    monkeypatch.setattr(fake_quantization, "_rounded", lambda kernel, axis=-1: kernel)
    monkeypatch.setattr(FakeQuantize, "call", lambda self, inputs: inputs)
    expected, actual = student(IMAGES), copy(IMAGES)
    for name in ("logits", "classes", "largest"):
        np.testing.assert_allclose(actual[name], expected[name], atol=1e-5)


def test_batch_normalization_goes_on_and_its_file_rounds_to_the_same_values():
    """Rounding by channel and multiplying channels commute."""
    student = _every_layer()
    copy = mikd.quantization_aware(student, calibrate_on=IMAGES)
    normalizations = [x for x in copy.layers if isinstance(x, layers.BatchNormalization)]
    assert len(normalizations) == 3  # That behind a dense layer, of one scale, is in its kernel.
    before = [np.array(layer.moving_mean) for layer in normalizations]
    copy(IMAGES, training=True)
    for layer, old in zip(normalizations, before, strict=True):
        assert np.abs(layer.moving_mean - old).max() > 0
    folded = folding.folded(copy)
    assert not any(isinstance(layer, layers.BatchNormalization) for layer in folded.layers)
    for name in ("logits", "classes", "largest"):
        steps = np.abs(folded(IMAGES)[name] - copy(IMAGES)[name]) * 255 / np.ptp(copy(IMAGES)[name])
        # A value between two steps may fall to either side, and its followers with it.
        assert steps.max() <= 4 and np.median(steps) < 0.5


def test_every_known_layer_and_activation_is_among_those_that_are_tried():
    tried = list(keras_internals.layers_of(_every_layer()))
    assert {*quantization_aware._KNOWN} <= {type(layer) for layer in tried}
    activations = {quantization_aware._activation(layer) for layer in tried}
    assert {*quantization_aware._KNOWN_ACTIVATIONS} <= activations


def test_every_known_layer_is_an_integer_operator_that_computes_the_same(tmp_path):
    student = _every_layer()
    copy = mikd.quantization_aware(student, calibrate_on=IMAGES)
    report = mikd.export_tflite(copy, tmp_path / "a.tflite", quantize="int8", check_on=IMAGES)
    assert report.float_operators == () and report.ok
    for name in ("logits", "classes", "largest"):
        scale = np.ptp(copy(IMAGES)[name]) / 255
        difference = np.abs(_run(tmp_path / "a.tflite", IMAGES, name) - copy(IMAGES)[name])
        assert difference.mean() <= 2 * scale


def test_ranges_of_the_file_are_those_of_the_copy(aware, tmp_path):
    mikd.export_tflite(aware, tmp_path / "a.tflite", quantize="int8", integer_io=True)
    runner = Interpreter(model_path=str(tmp_path / "a.tflite")).get_signature_runner()
    for details, name in (
        (runner.get_input_details(), "image"),
        (runner.get_output_details(), "logits"),
    ):
        (detail,) = details.values()
        assert detail["dtype"] == np.int8
        quantizer = _quantizer(aware, name)
        expected = float(quantizer.maximum - quantizer.minimum) / 255
        assert detail["quantization"][0] == pytest.approx(expected, rel=1e-5)


def test_the_student_is_not_changed(small):
    before = [np.array(weight) for weight in small.get_weights()]
    copy = mikd.quantization_aware(small, calibrate_on=IMAGES, name="other")
    copy.set_weights([weight + 1 for weight in copy.get_weights()])
    for weight, old in zip(small.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, old)
    assert copy.name == "other"


def test_stages_and_names_are_those_of_the_student():
    student = _normalize(mikd.models.wrn_16_1(num_classes=5, input_shape=(16, 16, 3)))
    copy = mikd.quantization_aware(student, calibrate_on=RNG.normal(size=(4, 16, 16, 3)))
    found = {place: stage.shape for place, stage in mikd.stages(student).items()}
    assert {place: stage.shape for place, stage in mikd.stages(copy).items()} == found
    assert {layer.name for layer in student.layers} <= {layer.name for layer in copy.layers}
    assert mikd.pair_stages(student, copy) == [(f"stage{k}",) * 2 for k in (1, 2, 3)]


@pytest.mark.parametrize("jit_compile", [False, True])
def test_any_loss_trains_it_with_its_ranges(small, jit_compile):
    keras.utils.set_random_seed(0)
    teacher = _small(width=12)
    copy = mikd.quantization_aware(small, calibrate_on=IMAGES)
    before = {weight.path: np.array(weight) for weight in copy.trainable_variables}
    distiller = mikd.Distiller(
        teacher, copy, [*mikd.recipes.vid(teacher, copy), *mikd.recipes.kd(teacher, copy)]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    distiller.compile(keras.optimizers.Adam(1e-2), loss, jit_compile=jit_compile)
    history = distiller.fit(IMAGES, np.arange(48) % 4, batch_size=24, epochs=3, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    still = [
        weight.path
        for weight in copy.trainable_variables
        if np.array_equal(weight, before[weight.path])
    ]
    # A ReLU puts out nothing below the start of its range, and its average is seldom beyond.
    assert all("_quantized/" in path for path in still), still
    assert {path for path in before if path.endswith("quantized/maximum")} - {*still}


def test_a_file_of_the_copy_goes_on(aware, tmp_path):
    aware.save(tmp_path / "aware.keras")
    loaded = keras.saving.load_model(tmp_path / "aware.keras")
    np.testing.assert_array_equal(loaded(IMAGES), aware(IMAGES))
    report = mikd.export_tflite(
        loaded, tmp_path / "a.tflite", quantize="int8", check_on=(IMAGES), tolerance=1.0
    )
    assert report.class_agreement > 0.9


def test_a_sequential_student_of_another_precision():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        student = keras.Sequential(
            [keras.Input((8, 8, 3)), layers.Conv2D(4, 3), layers.Flatten(), layers.Dense(3)]
        )
        copy = mikd.quantization_aware(student, calibrate_on=IMAGES / 255)
    finally:
        keras.config.set_dtype_policy("float32")
    assert copy.output.dtype == "float32"
    same = np.argmax(copy(IMAGES / 255), -1) == np.argmax(student(IMAGES / 255), -1)
    assert same.mean() > 0.9


def _with(*extra, shape=(8, 8, 3)):
    return keras.Sequential([keras.Input(shape), layers.Conv2D(4, 3), *extra])


def _twice():
    image = keras.Input((8, 8, 3))
    convolution = layers.Conv2D(3, 3, padding="same", name="shared")
    return keras.Model(image, convolution(convolution(image)))


def _two_inputs():
    inputs = [keras.Input((4,)), keras.Input((4,))]
    return keras.Model(inputs, layers.Dense(2)(layers.Add()(inputs)))


@pytest.mark.parametrize(
    "student, said",
    [
        (
            lambda: _with(
                *(layers.LayerNormalization(), layers.LayerNormalization()),
                layers.Activation("gelu"),
            ),
            "Conv2D, .*silu, .*Received: 2 x LayerNormalization .keras., 1 x activation gelu. exp",
        ),
        (lambda: _with(layers.ReLU(3.0, name="act")), "1 x activation ReLU.max_value.*3.0"),
        (
            lambda: _with(layers.BatchNormalization(axis=1, name="rows")),
            "over the last axis.*'rows' with axis=1",
        ),
        (_twice, "called once.*'shared', called 2 times"),
        (_two_inputs, "one input"),
    ],
    ids=["kinds", "clip", "axis", "twice", "inputs"],
)
def test_what_int8_does_not_know_is_refused(student, said):
    with pytest.raises(ValueError, match=said):
        mikd.quantization_aware(student(), calibrate_on=IMAGES)


def test_a_copy_is_not_copied_again(aware):
    with pytest.raises(ValueError, match="one of `quantization_aware`; train it as it is"):
        mikd.quantization_aware(aware, calibrate_on=IMAGES)


def test_calibration_data_is_checked(small):
    with pytest.raises(ValueError, match="calibrate_on=None"):
        mikd.quantization_aware(small, calibrate_on=None)
    with pytest.raises(ValueError, match="NaN"):
        mikd.quantization_aware(small, calibrate_on=np.full((4, 8, 8, 3), np.nan, "float32"))
    with pytest.raises(ValueError, match=r"`calibrate_on` to be what .* shape \(8, 8\)"):
        mikd.quantization_aware(small, calibrate_on=IMAGES[..., 0])
    with pytest.raises(ValueError, match="keras.saving.load_model"):
        mikd.quantization_aware("student.keras", calibrate_on=IMAGES)


@pytest.mark.parametrize(
    "options", [{}, {"quantize": "dynamic"}, {"quantize": "int8", "calibrate_on": IMAGES}]
)
def test_its_file_is_int8_with_its_own_ranges(aware, tmp_path, options):
    with pytest.raises(ValueError, match='Expected quantize="int8" and no `calibrate_on`'):
        mikd.export_tflite(aware, tmp_path / "a.tflite", **options)


def test_a_float_operator_is_refused(aware, tmp_path):
    longer = keras.Model(aware.input, layers.Activation("gelu")(aware.output))
    with pytest.raises(
        RuntimeError, match="integer operators only. Received: .*Nothing was written"
    ):
        mikd.export_tflite(longer, tmp_path / "a.tflite", quantize="int8")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "activation",
    [layers.ReLU(), layers.LeakyReLU(negative_slope=0.1), layers.ReLU(negative_slope=0.3)],
    ids=["relu", "leaky_relu", "relu with a slope"],
)
@pytest.mark.parametrize("inside", ["kernel", "layer"])
def test_an_activation_may_be_a_layer(activation, inside, tmp_path):
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(6, 3, activation=activation if inside == "kernel" else None)(image)
    x = x if inside == "kernel" else layers.Activation(activation)(x)
    student = keras.Model(image, layers.Dense(4)(layers.GlobalAveragePooling2D()(x)))
    aware = mikd.quantization_aware(student, calibrate_on=IMAGES)
    expected = student(IMAGES).numpy()
    np.testing.assert_allclose(aware(IMAGES), expected, atol=0.05 * np.ptp(expected))
    report = mikd.export_tflite(aware, tmp_path / "a.tflite", quantize="int8", check_on=IMAGES)
    assert report.max_difference < 0.05 * np.ptp(expected)


def _with_dense_map(then):
    """A network with a dense layer on a map, whose bias is not zero, and what is behind it."""
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(6, 3)(layers.Rescaling(1 / 255)(image))
    x = layers.Reshape((36, 6))(x) if then == "tokens" else x
    options = {"activation": "relu"} if then == "relu and batch normalization" else {}
    dense = layers.Dense(5, bias_initializer="ones", **options)(x)
    x = layers.BatchNormalization()(dense) if "batch normalization" in then else dense
    x = layers.Add()([x, dense]) if then.endswith("sum") else x
    return _normalize(keras.Model(image, layers.Dense(4)(layers.Flatten()(x))))


@pytest.mark.parametrize(
    ("then", "kept"),
    [
        ("tokens", 0),
        ("the end", 0),
        ("batch normalization", 0),  # In the kernel.
        ("relu and batch normalization", 1),
        ("batch normalization and a sum", 1),
    ],
)
def test_a_dense_layer_may_be_on_a_map(then, kept, tmp_path):
    student = _with_dense_map(then)
    aware = mikd.quantization_aware(student, calibrate_on=IMAGES)
    expected = student(IMAGES).numpy()
    np.testing.assert_allclose(aware(IMAGES), expected, atol=0.05 * np.ptp(expected))
    found = [x for x in aware.layers if isinstance(x, layers.BatchNormalization)]
    assert len(found) == kept
    report = mikd.export_tflite(aware, tmp_path / "a.tflite", quantize="int8", check_on=IMAGES)
    assert report.max_difference < 0.05 * np.ptp(expected) and report.float_operators == ()


def test_a_dense_layer_on_a_map_takes_any_size():
    image = keras.Input((None, None, 3))
    outputs = layers.GlobalAveragePooling2D()(layers.Dense(5, bias_initializer="ones")(image))
    student = keras.Model(image, outputs)
    aware = mikd.quantization_aware(student, calibrate_on=IMAGES / 255)
    for size in (4, 8):
        x = IMAGES[:3, :size] / 255
        np.testing.assert_allclose(aware(x), student(x), atol=0.05 * np.ptp(student(x)))


def test_what_has_no_name_or_leaves_a_float_operator_is_refused():
    slope = functools.partial(keras.activations.leaky_relu, negative_slope=0.1)
    for options, message in (
        ({"activation": slope}, "Expected layers that are known.*1 x activation"),
        ({"dilation_rate": 2}, "without dilation.*'conv'"),
    ):
        image = keras.Input((8, 8, 3))
        student = keras.Model(image, layers.Conv2D(4, 3, name="conv", **options)(image))
        with pytest.raises(ValueError, match=message):
            mikd.quantization_aware(student, calibrate_on=IMAGES)

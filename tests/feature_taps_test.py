import io
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_mikd.features.feature_taps import FeatureTaps, output_is_probability
from keras_mikd.features.stages import Stage, pair_stages, stages


def _images(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def _conv(x, channels, strides=1, **kwargs):
    return layers.Conv2D(channels, 3, strides=strides, padding="same", **kwargs)(x)


def _residual(x, channels, strides, name):
    """A post-activation block: `<name>_relu` is its output."""
    y = layers.ReLU()(layers.BatchNormalization()(_conv(x, channels, strides)))
    y = layers.BatchNormalization()(_conv(y, channels))
    short = x if strides == 1 else layers.Conv2D(channels, 1, strides=strides)(x)
    return layers.ReLU(name=f"{name}_relu")(layers.Add(name=f"{name}_add")([short, y]))


def _resnet(size=16, channels=4, strides=(1, 2, 2), blocks=1):
    """The first stride is that of the stem, and block 0 does not stride."""
    inputs = keras.Input((size, size, 3))
    x = layers.ReLU()(_conv(inputs, channels, strides[0], name="stem"))
    for k, stride in enumerate(strides):
        for block in range(blocks):
            x = _residual(x, channels * 2**k, stride if k and not block else 1, f"block{k}_{block}")
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, layers.Dense(5, name="logits")(x))


def _backbone(size=16):
    inputs = keras.Input((size, size, 3))
    x = _conv(inputs, 4, name="conv1", kernel_regularizer="l2")
    x = layers.ReLU(name="relu1", activity_regularizer="l2")(
        layers.BatchNormalization(name="bn")(x)
    )
    x = layers.Dropout(0.5)(_conv(x, 6, strides=2, name="conv2"))
    return keras.Model(inputs, x, name="backbone")


def _classifier(backbone, size=16, **kwargs):
    inputs = keras.Input((size, size, 3), name="image")
    x = layers.GlobalAveragePooling2D(name="pool")(
        backbone(layers.Rescaling(0.5)(inputs), **kwargs)
    )
    return keras.Model(inputs, layers.Dense(3, name="logits", kernel_regularizer="l2")(x))


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.hidden = layers.Dense(4, activation="relu")
        self.logits = layers.Dense(2)

    def call(self, x, training=None):
        return self.logits(self.hidden(x))


def _hidden_and_output(model, x, training):
    hidden = model.hidden(x)
    return {"hidden": hidden, "output": model.logits(hidden)}


def _summary(model):
    text = io.StringIO()
    model.summary(print_fn=lambda line: text.write(line), expand_nested=True)
    return text.getvalue()


def test_places_hold_what_the_layers_make():
    model, x = _resnet(), _images(2, 16, 16, 3)
    taps = FeatureTaps(model, ["block1_0_add", None, "pool", "block1_0_add"])
    assert taps.places == ("block1_0_add", "output", "pool")
    read = taps(x, training=False)
    reference = keras.Model(
        model.input, [model.get_layer(n).output for n in ("block1_0_add", "pool")]
    )
    expected = reference(x, training=False)
    assert list(read) == list(taps.places)
    np.testing.assert_array_equal(read["block1_0_add"], expected[0])
    np.testing.assert_array_equal(read["pool"], expected[1])
    np.testing.assert_array_equal(read["output"], model(x, training=False))
    assert {place: spec.shape for place, spec in taps.specs.items()} == {
        "block1_0_add": (None, 8, 8, 8),
        "output": (None, 5),
        "pool": (None, 16),
    }
    assert all(isinstance(spec, keras.KerasTensor) for spec in taps.specs.values())


def test_output_is_always_read():
    taps = FeatureTaps(_resnet(), ["pool"])
    assert taps.places == ("pool", "output")
    assert FeatureTaps(_resnet(), []).places == ("output",)
    assert FeatureTaps(_resnet(), [None, "output"]).places == ("output",)


def test_input_layer_is_a_place():
    x = _images(2, 16, 16, 3)
    for places in (["image"], ["image", "backbone/relu1"]):
        read = FeatureTaps(_classifier(_backbone()), places)(x, training=False)
        np.testing.assert_array_equal(read["image"], x)


def test_every_place_comes_from_one_forward():
    calls = []

    class Counting(layers.Layer):
        def call(self, x):
            calls.append(0)
            return x

    inner_inputs = keras.Input((4,))
    inner = keras.Model(
        inner_inputs, Counting(name="count")(layers.Dense(3)(inner_inputs)), name="inner"
    )
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(2, name="logits")(Counting(name="top")(inner(inputs))))
    taps = FeatureTaps(model, ["inner/count", "top", "inner", "pooled", None])
    calls.clear()
    taps(_images(2, 4), training=True)
    assert len(calls) == 2


@pytest.mark.parametrize("place", ["pool", "backbone/bn"])
def test_training_flag_reaches_dropout(place):
    model, x = _classifier(_backbone()), _images(8, 16, 16, 3)
    taps = FeatureTaps(model, [place])

    def spread(training):
        first, second = (taps(x, training=training)["output"] for _ in range(2))
        return np.abs(first - second).max()

    assert spread(training=False) == 0.0
    assert spread(training=True) > 1e-3


@pytest.mark.parametrize("place", ["pool", "backbone/bn"])
def test_batch_norm_statistics_move_once_and_only_in_training(place):
    model, x = _classifier(_backbone()), _images(8, 16, 16, 3)
    taps, norm = FeatureTaps(model, [place]), model.get_layer("backbone").get_layer("bn")
    start = model.get_weights()
    taps(x, training=False)
    for value, old in zip(model.get_weights(), start, strict=True):
        np.testing.assert_array_equal(value, old)
    model(x, training=True)
    expected = norm.moving_mean.numpy()
    model.set_weights(start)
    taps(x, training=True)
    assert np.abs(expected).max() > 0
    np.testing.assert_array_equal(norm.moving_mean, expected)


def test_place_inside_a_nested_model_is_the_same_computation():
    backbone, x = _backbone(), _images(4, 16, 16, 3)
    model = _classifier(backbone)
    before, weights = model(x, training=False), list(map(id, model.weights))
    taps = FeatureTaps(model, ["backbone/relu1", "backbone", "pool"])
    read = taps(x, training=False)
    np.testing.assert_array_equal(read["output"], before)
    inner = keras.Model(backbone.input, [backbone.get_layer("relu1").output, backbone.output])
    expected = inner(0.5 * x, training=False)
    np.testing.assert_array_equal(read["backbone/relu1"], expected[0])
    np.testing.assert_array_equal(read["backbone"], expected[1])
    assert taps.specs["backbone/relu1"].shape == (None, 16, 16, 4)
    assert list(map(id, model.weights)) == weights
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(taps(x, training=False)["backbone/relu1"])
    gradient = tape.gradient(loss, backbone.get_layer("conv1").kernel.value)
    assert np.abs(gradient).max() > 0


def test_losses_of_the_model_are_those_of_one_forward():
    x = _images(4, 16, 16, 3)
    model = _classifier(_backbone())
    model(x, training=False)
    expected = sorted(float(loss) for loss in model.losses)
    assert len(expected) == 3
    for places in (["pool"], ["backbone/relu1"]):
        taps = FeatureTaps(model, places)
        for _ in range(2):
            taps(x, training=False)
            assert sorted(float(loss) for loss in model.losses) == expected


def test_gradients_are_those_of_the_model():
    x = _images(4, 16, 16, 3)
    model = _classifier(_backbone())
    taps = FeatureTaps(model, ["backbone/conv2"])
    gradients = []
    for run in (model, lambda x, training: taps(x, training)["output"]):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(run(x, training=False) ** 2)
        gradients.append(tape.gradient(loss, [v.value for v in model.trainable_variables]))
    for plain, tapped in zip(*gradients, strict=True):
        np.testing.assert_array_equal(plain, tapped)


def test_tapping_leaves_the_model_as_it_was(tmp_path):
    model, x = _classifier(_backbone()), _images(2, 16, 16, 3)
    model.compile("sgd", "mse")
    parts = [model, *model.layers, *model.get_layer("backbone").layers]

    def state():
        tensors = [model.output, *(part.output for part in parts)]
        return (
            model.to_json(),
            _summary(model),
            [p.trainable for p in parts],
            list(map(id, tensors)),
        )

    before = state()
    for _ in range(2):
        FeatureTaps(model, ["backbone/relu1", "stage1", "pooled", "pool"])(x, training=False)
    assert state() == before
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(x, training=False), model(x, training=False))
    read = FeatureTaps(loaded, ["backbone/relu1"])(x, training=False)
    np.testing.assert_array_equal(read["output"], model(x, training=False))


def test_owner_does_not_track_the_model():
    model = _resnet()

    class Owner(keras.Model):
        def __init__(self):
            super().__init__()
            self.taps = FeatureTaps(model, ["pool"])

    assert Owner().weights == []


def test_freezing_after_tapping_counts():
    backbone, x = _backbone(), _images(8, 16, 16, 3)
    taps = FeatureTaps(_classifier(backbone), ["backbone/bn"])
    backbone.trainable = False
    before = backbone.get_weights()
    taps(x, training=True)
    for value, old in zip(backbone.get_weights(), before, strict=True):
        np.testing.assert_array_equal(value, old)


@pytest.mark.parametrize("fixed", [False, True])
def test_training_argument_fixed_in_the_graph_behaves_as_in_the_model(fixed):
    x = _images(8, 16, 16, 3)
    model = _classifier(_backbone(), training=fixed)
    start, results = model.get_weights(), []
    for run in (model, FeatureTaps(model, ["backbone/relu1"])):
        model.set_weights(start)
        run(x, training=None)
        results.append(model.get_layer("backbone").get_layer("bn").moving_mean.numpy())
    np.testing.assert_array_equal(*results)
    assert np.any(results[0]) == fixed


@pytest.mark.filterwarnings("ignore:Layer 'inner':UserWarning")
def test_nested_model_called_with_a_mask():
    tokens, allowed = keras.Input((5, 4)), keras.Input((5,), dtype="bool")
    inner = keras.Model(tokens, layers.LSTM(3, name="lstm")(tokens), name="inner")
    inputs = keras.Input((5, 4))
    model = keras.Model([inputs, allowed], layers.Dense(2)(inner(inputs, mask=allowed)))
    x = [_images(2, 5, 4), np.array([[True] * 5, [True, False, False, False, False]])]
    read = FeatureTaps(model, ["inner/lstm"])(x, training=False)
    np.testing.assert_array_equal(read["output"], model(x, training=False))
    lstm = inner.get_layer("lstm")
    np.testing.assert_allclose(read["inner/lstm"][1], lstm(x[0][:, :1])[1], rtol=1e-5)


def test_two_levels_of_nesting_and_sequential_models():
    x = _images(2, 16, 16, 3)
    head = keras.Sequential(name="head")
    head.add(keras.Input((8, 8, 6)))
    for layer in (
        layers.Conv2D(2, 1, name="mix"),
        layers.Flatten(),
        layers.Dense(3, name="logits"),
    ):
        head.add(layer)
    middle = keras.Sequential([keras.Input((16, 16, 3)), _backbone(), head], name="middle")
    model = keras.Sequential([keras.Input((16, 16, 3)), layers.Rescaling(0.5), middle])
    places = ["middle/backbone/relu1", "middle/head/mix", "middle/head", "rescaling"]
    taps = FeatureTaps(model, places)
    read = taps(x, training=False)
    features = middle.get_layer("backbone")(0.5 * x, training=False)
    np.testing.assert_array_equal(read["output"], model(x, training=False))
    np.testing.assert_array_equal(read["middle/head/mix"], head.get_layer("mix")(features))
    np.testing.assert_array_equal(read["middle/head"], read["output"])
    assert taps.specs["middle/backbone/relu1"].shape == (None, 16, 16, 4)
    np.testing.assert_array_equal(FeatureTaps(model, [None])(x, training=False)["output"], model(x))


def test_layer_that_another_model_used_first_is_read_in_this_one():
    shared = layers.Dense(3, name="shared")
    other = keras.Input((4,))
    keras.Model(other, shared(other))
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(2)(shared(2.0 * inputs)))
    x = _images(2, 4)
    np.testing.assert_array_equal(
        FeatureTaps(model, ["shared"])(x, training=False)["shared"], shared(2 * x)
    )


def test_the_input_is_a_place():
    model, x = _resnet(), _images(2, 16, 16, 3)
    read = FeatureTaps(model, ["input", "pooled"])(x, training=False)
    np.testing.assert_array_equal(read["input"], x)
    first, second = keras.Input((3,)), keras.Input((3,))
    two = keras.Model([first, second], layers.Add()([first, second]))
    with pytest.raises(ValueError, match="Expected a place of .*Received: 'input'"):
        FeatureTaps(two, ["input"])


def test_dict_inputs_and_outputs():
    image, size = keras.Input((8, 8, 3), name="image"), keras.Input((2,), name="size")
    x = layers.Concatenate(name="joined")([layers.Flatten()(_conv(image, 2, name="conv")), size])
    outputs = {"logits": layers.Dense(3)(x), "boxes": [layers.Dense(4)(x), layers.Dense(1)(x)]}
    model = keras.Model({"image": image, "size": size}, outputs)
    data = {"image": _images(2, 8, 8, 3), "size": _images(2, 2)}
    taps = FeatureTaps(model, ["conv", None, "output/logits", "output/boxes/1"])
    read, expected = taps(data, training=False), model(data, training=False)
    assert set(read["output"]) == {"logits", "boxes"}
    assert taps.specs["output"]["logits"].shape == (None, 3)
    np.testing.assert_array_equal(read["output"]["boxes"][0], expected["boxes"][0])
    np.testing.assert_array_equal(read["output/logits"], expected["logits"])
    np.testing.assert_array_equal(read["output/boxes/1"], expected["boxes"][1])
    assert taps.specs["output/boxes/1"].shape == (None, 1)
    with pytest.raises(ValueError, match=r"output/logits, output/boxes. Received: 'output/scores'"):
        FeatureTaps(model, ["output/scores"])
    with pytest.raises(ValueError, match="one of the outputs: output. Received: 'output/0'"):
        FeatureTaps(_resnet(), ["output/0"])


def test_list_inputs_and_outputs_through_a_nested_model():
    a, b = keras.Input((4,)), keras.Input((4,))
    inner = keras.Model([a, b], [layers.Dense(3, name="d")(layers.Add()([a, b])), a], name="inner")
    c, d = keras.Input((4,)), keras.Input((4,))
    first, second = inner([c, d])
    model = keras.Model([c, d], [layers.Dense(2)(first), second])
    x = [_images(2, 4), 2 * _images(2, 4)]
    read = FeatureTaps(model, ["inner/d", "output/0"])(x, training=False)
    np.testing.assert_array_equal(read["inner/d"], inner.get_layer("d")(x[0] + x[1]))
    np.testing.assert_array_equal(read["output/0"], model(x)[0])
    np.testing.assert_array_equal(read["output"][1], x[0])


def test_inside_a_tf_function():
    model, x = _classifier(_backbone()), _images(2, 16, 16, 3)
    taps = FeatureTaps(model, ["backbone/relu1", "pooled"])
    compiled = tf.function(lambda x: taps(x, training=False))
    eager, graph = taps(x, training=False), compiled(x)
    for place in taps.places:
        np.testing.assert_allclose(graph[place], eager[place], rtol=1e-5, atol=1e-6)
    operations = compiled.get_concrete_function(x).graph.get_operations()
    assert sum(op.type == "Conv2D" for op in operations) == 2


def test_mixed_precision_model_and_another_policy_around_it():
    x = _images(2, 16, 16, 3)
    keras.config.set_dtype_policy("mixed_float16")
    half = _classifier(_backbone())
    keras.config.set_dtype_policy("float32")
    full = _classifier(_backbone())
    for tapping_policy in ("float32", "mixed_float16"):
        keras.config.set_dtype_policy(tapping_policy)
        for model, dtype in ((half, "float16"), (full, "float32")):
            taps = FeatureTaps(model, ["backbone/relu1"])
            read = taps(x, training=False)
            assert read["backbone/relu1"].dtype == taps.specs["backbone/relu1"].dtype == dtype
            np.testing.assert_array_equal(read["output"], model(x, training=False))


def test_unknown_place_lists_the_places_there_are():
    with pytest.raises(ValueError) as error:
        FeatureTaps(_classifier(_backbone()), ["relu1"])
    message = str(error.value)
    assert "Received: 'relu1'. Did you mean 'backbone/relu1'" in message
    for place in ("output", "stage1", "pooled", "backbone/conv2", "pool"):
        assert place in message
    with pytest.raises(
        ValueError, match="Received: 'stage4'.*output, stage1, stage2, stage3, pooled"
    ):
        FeatureTaps(_resnet(), ["stage4"])
    with pytest.raises(ValueError, match="Did you mean 'block2_1_add'"):
        FeatureTaps(_resnet(blocks=3), ["blok2_1_add"])
    with pytest.raises(ValueError, match=r"and \d+ more\.$") as error:
        FeatureTaps(_resnet(blocks=3), ["nothing"])
    assert len(str(error.value)) < 800


def test_wrong_places_argument():
    for places in ("pool", 3, None):
        with pytest.raises(TypeError, match="iterable of places"):
            FeatureTaps(_resnet(), places)
    with pytest.raises(TypeError, match="None or a string. Received: 3"):
        FeatureTaps(_resnet(), [3])


def test_place_of_several_tensors_is_refused():
    inputs = keras.Input((4, 4))
    shared = layers.Dense(4, name="shared")
    x, *states = layers.LSTM(3, return_state=True, name="lstm")(shared(shared(inputs)))
    model = keras.Model(inputs, layers.Add()([x, *states]))
    for place, number in (("shared", 2), ("lstm", 3)):
        with pytest.raises(ValueError, match=f"'{place}', which stands for {number} tensors"):
            FeatureTaps(model, [place])


def test_one_output_of_a_layer_that_has_several():
    inputs = keras.Input((4, 4))
    lstm = layers.LSTM(3, return_state=True, name="lstm")
    model = keras.Model(inputs, layers.Add()(lstm(inputs)))
    outer = keras.Model(model.input, layers.ReLU()(model(model.input)))
    x = _images(2, 4, 4)
    for network, prefix in ((model, ""), (outer, f"{model.name}/")):
        read = FeatureTaps(network, [f"{prefix}lstm/{i}" for i in range(3)])(x, training=False)
        for place, expected in zip(read, lstm(x), strict=False):
            np.testing.assert_allclose(read[place], expected, rtol=1e-6)
    with pytest.raises(ValueError, match="Read one of its outputs: lstm/0, lstm/1, lstm/2"):
        FeatureTaps(model, ["lstm"])
    with pytest.raises(ValueError, match="Received: 'lstm/3'"):
        FeatureTaps(model, ["lstm/3"])


def test_inside_of_a_model_called_twice_is_refused():
    backbone = _backbone()
    a, b = keras.Input((16, 16, 3)), keras.Input((16, 16, 3))
    model = keras.Model([a, b], layers.Add(name="sum")([backbone(a), backbone(b)]))
    with pytest.raises(ValueError, match="'backbone/relu1', which stands for 2 tensors"):
        FeatureTaps(model, ["backbone/relu1"])
    x = [_images(1, 16, 16, 3)] * 2
    np.testing.assert_array_equal(FeatureTaps(model, ["sum"])(x, training=False)["sum"], model(x))


def test_layer_with_the_name_of_a_stage():
    inputs = keras.Input((8, 8, 3))
    x = _conv(inputs, 2, name="stage1")
    x = _conv(layers.ReLU(name="relu")(x), 4, strides=2, name="stage2")
    model = keras.Model(inputs, layers.Dense(2)(layers.GlobalMaxPooling2D(name="pooled")(x)))
    taps = FeatureTaps(model, ["stage2", "pooled"])
    assert taps.specs["stage2"].shape == (None, 4, 4, 4)
    with pytest.raises(ValueError, match="'stage1', which in .* could be any of relu, stage1"):
        FeatureTaps(model, ["stage1"])


def test_pyramid_levels_of_the_outer_model_come_first_and_two_backbones_clash():
    def backbone(name):
        inner = _backbone()
        inner = keras.Model(inner.input, inner.output, name=name)
        inner.pyramid_level_inputs = {"P1": "relu1", "P2": "conv2"}
        return inner

    inputs = keras.Input((16, 16, 3))
    both = layers.Add(name="sum")([backbone("a")(inputs), backbone("b")(inputs)])
    model = keras.Model(inputs, both)
    with pytest.raises(ValueError, match="'P1', which in .* could be any of a/relu1, b/relu1"):
        FeatureTaps(model, ["P1"])
    model.pyramid_outputs = {"P2": both}
    np.testing.assert_array_equal(
        *FeatureTaps(model, ["P2"])(_images(1, 16, 16, 3), False).values()
    )


def test_subclassed_model_gives_its_output():
    model, x = Subclassed(), _images(2, 3)
    with pytest.raises(ValueError, match="not built. Call it once"):
        FeatureTaps(model, [None])
    model(x)
    with pytest.raises(ValueError, match="pass `inputs`"):
        FeatureTaps(model, [None])
    taps = FeatureTaps(model, [None], inputs=keras.Input((3,)))
    assert taps.specs["output"].shape == (None, 2)
    np.testing.assert_array_equal(taps(x, training=False)["output"], model(x))


def test_subclassed_model_needs_features_for_more():
    model, x = Subclassed(), _images(2, 3)
    model(x)
    with pytest.raises(ValueError, match=r"\['hidden'\] inside Subclassed .*pass `features`"):
        FeatureTaps(model, ["hidden"], inputs=keras.Input((3,)))
    taps = FeatureTaps(model, ["hidden"], features=_hidden_and_output, inputs=keras.Input((3,)))
    assert taps.places == ("hidden", "output")
    assert taps.specs["hidden"].shape == (None, 4)
    read = taps(x, training=False)
    np.testing.assert_array_equal(read["hidden"], model.hidden(x))
    np.testing.assert_array_equal(read["output"], model(x))


def test_features_gets_the_training_flag():
    seen = []

    def features(model, x, training):
        seen.append(training)
        return {"output": model(x, training=training)}

    taps = FeatureTaps(_resnet(), [None], features=features)
    seen.clear()
    taps(_images(1, 16, 16, 3), training=True)
    taps(_images(1, 16, 16, 3), training=False)
    assert seen == [True, False]


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda y: y, "a dict {place: tensor}. Received: "),
        (lambda y: {"x": y}, r"return the places \['output'\] as well. Received: \['x'\]"),
        (lambda y: {"output": y}, r"return the places \['x'\] as well. Received: \['output'\]"),
    ],
)
def test_features_must_return_the_places(result, message):
    with pytest.raises(ValueError, match=message):
        FeatureTaps(_resnet(), ["x"], features=lambda model, x, training: result(model(x)))


def test_functional_model_with_a_call_of_its_own_counts_as_subclassed():
    class Doubled(keras.Model):
        def call(self, x, training=None):
            return 2.0 * super().call(x, training=training)

    inputs = keras.Input((4,))
    model, x = Doubled(inputs, layers.Dense(2, name="dense")(inputs)), _images(2, 4)
    with pytest.raises(ValueError, match="pass `features`"):
        FeatureTaps(model, ["dense"])
    taps = FeatureTaps(model, [None], inputs=model.input)
    np.testing.assert_array_equal(taps(x, training=False)["output"], model(x))
    assert output_is_probability(model) is None


def test_sequential_model_without_an_input():
    model = keras.Sequential([layers.Dense(3, name="dense"), layers.Dense(2, name="logits")])
    with pytest.raises(ValueError, match=r"\['dense'\] inside Sequential .*Give it an input"):
        FeatureTaps(model, ["dense"])
    with pytest.raises(ValueError, match="a Sequential one that has an input"):
        stages(model)
    model.build((None, 4))
    assert FeatureTaps(model, ["dense"]).specs["dense"].shape == (None, 3)


def test_stages_of_a_residual_network():
    assert stages(_resnet(blocks=2)) == {
        "stage1": Stage("block0_1_relu", (None, 16, 16, 4)),
        "stage2": Stage("block1_1_relu", (None, 8, 8, 8)),
        "stage3": Stage("block2_1_relu", (None, 4, 4, 16)),
        "pooled": Stage("pool", (None, 16)),
    }


def test_stages_print_as_a_table():
    table = (
        "stage1  (None, 16, 16, 4)  block0_0_relu\n"
        "stage2  (None, 8, 8, 8)    block1_0_relu\n"
        "pooled  (None, 8)          pool"
    )
    assert repr(stages(_resnet(strides=(1, 2)))) == table
    inputs = keras.Input((4,))
    assert repr(stages(keras.Model(inputs, layers.Dense(2)(inputs)))) == "(no stages)"


def test_stages_look_into_nested_models_of_open_size():
    backbone, x = _resnet_body(), _images(2, 24, 24, 3)
    for size in (None, 24):
        model = _classifier(backbone, size)
        assert stages(model) == {
            "stage1": Stage("body/conv1", (None, size, size, 2)),
            "stage2": Stage("body/block_relu", (None, size and 12, size and 12, 4)),
            "pooled": Stage("pool", (None, 4)),
        }
        taps = FeatureTaps(model, ["stage1", "stage2"])
        assert taps(x, training=False)["stage2"].shape == (2, 12, 12, 4)
        assert taps.specs["stage2"].shape[1] == (size and 12)


def _resnet_body():
    inputs = keras.Input((None, None, 3))
    x = _residual(_conv(inputs, 2, name="conv1"), 4, 2, "block")
    return keras.Model(inputs, x, name="body")


def test_padding_and_rescaling_are_not_stages():
    inputs = keras.Input((32, 32, 3))
    x = layers.ZeroPadding2D(1)(layers.Rescaling(2.0)(inputs))
    x = layers.ReLU(name="relu1")(layers.Conv2D(4, 3, strides=2)(x))
    x = layers.ReLU(name="relu2")(layers.Conv2D(4, 3, strides=2)(layers.ZeroPadding2D(1)(x)))
    x = layers.Conv2D(8, 3, strides=2, name="conv3")(
        keras.ops.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]])
    )
    x = layers.Flatten(name="flat")(layers.Cropping2D(0, name="crop")(x))
    found = stages(keras.Model(inputs, layers.Dense(2)(x)))
    assert [stage.layer for stage in found.values()] == ["relu1", "relu2", "crop", "flat"]
    assert [stage.shape[1] for stage in found.values()] == [16, 8, 4, 128]


def test_unpadded_convolutions_stay_in_their_stage():
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(4, 3, activation="relu", name="a"),
            layers.MaxPooling2D(),
            layers.Conv2D(4, 3, activation="relu", name="b"),
            layers.MaxPooling2D(name="c"),
            layers.Flatten(name="flat"),
            layers.Dropout(0.5),
            layers.Dense(10),
        ]
    )
    assert {place: stage.layer for place, stage in stages(model).items()} == {
        "stage1": "a",
        "stage2": "b",
        "stage3": "c",
        "pooled": "flat",
    }


def _pre_activation(size=16):
    inputs = keras.Input((size, size, 3))
    x = _conv(inputs, 4)
    for k, (channels, strides) in enumerate([(4, 1), (8, 2), (8, 1), (16, 2)]):
        act = layers.ReLU(name=f"act{k}")(layers.BatchNormalization()(x))
        squeezed = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(2, 1)(act)))
        widens = strides > 1 or channels != x.shape[-1]
        short = layers.Conv2D(channels, 1, strides=strides)(act) if widens else x
        x = layers.Add(name=f"sum{k}")([short, _conv(squeezed, channels, strides)])
    x = layers.ReLU(name="last")(layers.BatchNormalization()(x))
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, layers.Dense(3)(x))


def test_stages_of_a_pre_activation_bottleneck_network():
    """The 1x1 convolution inside the next block still has the old resolution: it must not count."""
    found = stages(_pre_activation())
    assert [s.layer for s in found.values()] == ["act1", "act3", "last", "pool"]
    assert [s.shape for s in found.values()][:2] == [(None, 16, 16, 4), (None, 8, 8, 8)]


def test_squeeze_and_excitation_and_a_classifier_of_1x1_convolutions():
    """As in MobileNetV3: the classifier is a convolution, and the pooled vector a 1 x 1 map."""
    inputs = keras.Input((16, 16, 3))
    x = _conv(inputs, 4, strides=2, name="conv")
    gate = layers.GlobalAveragePooling2D(keepdims=True)(x)
    gate = layers.Conv2D(4, 1, activation="sigmoid")(layers.Conv2D(2, 1, activation="relu")(gate))
    x = layers.Multiply(name="gated")([x, gate])
    x = layers.GlobalAveragePooling2D(keepdims=True, name="pool")(x)
    x = layers.Flatten()(layers.Conv2D(5, 1, name="logits")(layers.Dropout(0.2)(x)))
    model = keras.Model(inputs, layers.Softmax()(x))
    assert stages(model) == {
        "stage1": Stage("gated", (None, 8, 8, 4)),
        "pooled": Stage("pool", (None, 4)),
    }
    taps = FeatureTaps(model, ["pooled", "pool"])
    read = taps(_images(2, 16, 16, 3), training=False)
    assert taps.specs["pooled"].shape == (None, 4)
    np.testing.assert_array_equal(read["pooled"], read["pool"][:, 0, 0])


def test_pooled_without_a_classifier_and_with_two_heads():
    inputs = keras.Input((8, 8, 3))
    x = layers.GlobalAveragePooling2D(name="pool")(_conv(inputs, 4))
    assert stages(keras.Model(inputs, x))["pooled"].layer == "pool"
    embedding = layers.Dense(6, name="embedding")(x)
    heads = [layers.Dense(2)(embedding), layers.Dense(3)(embedding)]
    assert stages(keras.Model(inputs, heads))["pooled"].layer == "embedding"
    assert stages(keras.Model(inputs, heads[0]))["pooled"].layer == "embedding"
    vector = keras.Input((8,))
    mlp = keras.Model(vector, layers.Dense(2)(layers.Dense(4, name="hidden")(vector)))
    assert stages(mlp) == {"pooled": Stage("hidden", (None, 4))}


def test_a_model_that_is_all_branches_has_no_stages():
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(
        inputs, layers.Add()([layers.Flatten()(_conv(inputs, 1)) for _ in range(2)])
    )
    assert "stage1" not in stages(model)
    with pytest.raises(ValueError, match="Expected a student with stages"):
        pair_stages(_resnet(), model)
    with pytest.raises(ValueError, match="Expected a teacher with stages"):
        pair_stages(model, _resnet())


def test_stages_of_very_deep_networks():
    inputs = keras.Input((8, 8, 3))
    x = _conv(inputs, 2)
    for _ in range(120):
        x = layers.Add()([x, layers.ReLU()(x)])
    assert list(stages(keras.Model(inputs, layers.GlobalMaxPooling2D()(x)))) == ["stage1", "pooled"]


def test_equal_numbers_of_stages_pair_in_order():
    expected = [("stage1", "stage1"), ("stage2", "stage2"), ("stage3", "stage3")]
    assert pair_stages(_resnet(size=32, channels=8), _resnet(size=16)) == expected
    assert pair_stages(_resnet(strides=(2, 2, 2), size=32), _resnet(size=16)) == expected


def test_four_stages_and_three():
    four, three = _resnet(strides=(1, 2, 2, 2), size=32), _resnet(strides=(2, 2, 2), channels=8)
    pairs = [("stage2", "stage1"), ("stage3", "stage2"), ("stage4", "stage3")]
    assert pair_stages(four, three) == pairs
    assert pair_stages(three, four) == [(b, a) for a, b in pairs]
    early = _resnet(strides=(1, 2, 4))
    assert pair_stages(four, early) == [
        ("stage1", "stage1"),
        ("stage2", "stage2"),
        ("stage4", "stage3"),
    ]


def test_last_stages_pair_whatever_their_size():
    one = _resnet(strides=(1,))
    assert pair_stages(_resnet(), one) == [("stage3", "stage1")]
    deep, shallow = _resnet(strides=(2, 2, 2, 2, 2), size=64), _resnet(strides=(1, 2, 2), size=32)
    assert pair_stages(deep, shallow) == [
        ("stage1", "stage1"),
        ("stage2", "stage2"),
        ("stage5", "stage3"),
    ]


def test_stages_of_open_size_pair():
    open_size = _classifier(_resnet_body(), None)
    assert pair_stages(_resnet(), open_size) == [("stage1", "stage1"), ("stage3", "stage2")]


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        (lambda: [layers.Dense(3)], False),
        (lambda: [layers.Dense(3, activation="relu")], False),
        (lambda: [layers.Dense(3, activation="softmax")], True),
        (lambda: [layers.Dense(3, activation=keras.ops.sigmoid)], True),
        (lambda: [layers.Dense(3), layers.Softmax()], True),
        (lambda: [layers.Dense(3), layers.Activation("sigmoid")], True),
        (lambda: [layers.Dense(3, activation="softmax"), layers.Activation("linear")], True),
        (lambda: [layers.Dense(4, activation="softmax"), layers.Reshape((2, 2))], True),
        (lambda: [layers.Dense(4, activation="sigmoid"), layers.Dense(3)], False),
        (lambda: [layers.Dense(4, activation="sigmoid"), layers.Activation("relu")], False),
    ],
)
def test_output_is_probability(last, expected):
    head = keras.Sequential([keras.Input((4,)), layers.Dense(4), *last()])
    assert output_is_probability(head) is expected
    assert output_is_probability(keras.Sequential([keras.Input((4,)), head])) is expected


def test_output_is_probability_of_operations_and_of_several_outputs():
    inputs = keras.Input((4,))
    x = layers.Dense(3)(inputs)
    outputs = {"scores": keras.ops.softmax(x), "logits": x}
    model = keras.Model(inputs, outputs)
    assert output_is_probability(model) is True
    assert output_is_probability(model, "output/scores") is True
    assert output_is_probability(model, "output/logits") is False
    assert output_is_probability(keras.Model(inputs, keras.ops.cast(outputs["scores"], "float16")))
    assert output_is_probability(Subclassed()) is None


def _imported(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name, exc_type=ImportError)


def test_keras_cv_classifier():
    models = _imported("keras_cv").models
    backbone = models.ResNetV2Backbone(
        stackwise_filters=[64, 8],
        stackwise_blocks=[2, 2],
        stackwise_strides=[1, 2],
        include_rescaling=True,
        block_type="basic_block",
        name="backbone",
    )
    model, x = models.ImageClassifier(backbone=backbone, num_classes=3), _images(2, 32, 32, 3)
    assert output_is_probability(model) is True
    assert [s.layer for s in stages(model).values()] == [
        "backbone/conv1_conv",
        "backbone/v2_stack_1_block1_out",
        "backbone/post_relu",
        "avg_pool",
    ]
    places = ["P2", "P3", "backbone/v2_stack_0_block2_out", "stage2", "stage3", "pooled"]
    read = FeatureTaps(model, places)(x, training=False)
    np.testing.assert_array_equal(read["output"], model(x, training=False))
    np.testing.assert_array_equal(read["P2"], read["backbone/v2_stack_0_block2_out"])
    assert [tuple(read[place].shape) for place in places] == [
        (2, 8, 8, 64),
        (2, 4, 4, 8),
        (2, 8, 8, 64),
        (2, 8, 8, 8),
        (2, 4, 4, 8),
        (2, 8),
    ]
    config = model.get_config()
    FeatureTaps(backbone, ["P3", "stage1"])
    assert model.get_config() == config


def test_keras_cv_detector():
    models = _imported("keras_cv").models
    backbone = models.CSPDarkNetBackbone(
        stackwise_channels=[4, 6, 8, 10],
        stackwise_depth=[1, 1, 1, 1],
        include_rescaling=False,
        input_shape=(32, 32, 1),
    )
    # Another pyramid before it, so that this one gets another name.
    models.retinanet.FeaturePyramid()
    model = models.RetinaNet(backbone=backbone, num_classes=3, bounding_box_format="xyxy")
    assert model.feature_pyramid.name != "feature_pyramid"
    pyramid = [f"feature_pyramid/P{i}" for i in (3, 4, 5)]
    levels, x = ["P2", "P3", "P4", "P5"], {"images": _images(2, 32, 32, 1)}
    taps = FeatureTaps(model, [*levels, *pyramid])
    read = taps(x["images"], training=False)
    extractor = keras.Model(
        backbone.input,
        [backbone.get_layer(backbone.pyramid_level_inputs[p]).output for p in levels],
    )
    for place, expected in zip(levels, extractor(x["images"]), strict=True):
        np.testing.assert_allclose(read[place], expected, rtol=1e-5, atol=1e-6)
    expected = model.feature_pyramid({place: read[place] for place in levels[1:]})
    for place, tensor in zip(pyramid, expected, strict=False):
        np.testing.assert_allclose(read[place], tensor, rtol=1e-5, atol=1e-6)
        assert taps.specs[place].shape[1:] == tensor.shape[1:]
    for name, tensor in model(x).items():
        np.testing.assert_allclose(read["output"][name], tensor, rtol=1e-5, atol=1e-5)


def test_pyramid_of_a_detector_that_is_a_model_of_its_own():
    models = _imported("keras_cv").models
    backbone = _backbone()
    backbone.pyramid_level_inputs = {"P3": "conv1", "P4": "relu1", "P5": "conv2"}
    shapes = [backbone.get_layer(name).output.shape[1:] for name in ("conv1", "relu1", "conv2")]
    levels = {p: keras.Input(s, name=p) for p, s in zip(("P3", "P4", "P5"), shapes, strict=True)}
    outputs = [_conv(x, 3, name=f"own_{level}") for level, x in levels.items()]
    pyramid = keras.Model(levels, [*outputs, *outputs[-2:]], name="any")
    model = models.RetinaNet(
        backbone=backbone, num_classes=3, bounding_box_format="xyxy", feature_pyramid=pyramid
    )
    taps = FeatureTaps(model, ["P4", "any/own_P4", "feature_pyramid/P4"])
    read = taps(_images(2, 16, 16, 3), training=False)
    np.testing.assert_array_equal(read["feature_pyramid/P4"], read["any/own_P4"])
    assert read["P4"].shape[-1] != 3 == read["feature_pyramid/P4"].shape[-1]


@pytest.mark.parametrize("pre_activation", [False, True])
def test_keras_hub_classifier(pre_activation):
    models = _imported("keras_hub").models
    backbone = models.ResNetBackbone(
        input_conv_filters=[4],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 4],
        stackwise_num_blocks=[1, 1],
        stackwise_num_strides=[1, 2],
        block_type="bottleneck_block",
        use_pre_activation=pre_activation,
        image_shape=(32, 32, 3),
        name="backbone",
    )
    model, x = models.ImageClassifier(backbone, num_classes=3), _images(2, 32, 32, 3)
    found = stages(model)
    names = ["conv1_conv", "stack1_block0_pre_activation_relu", "post_relu"]
    if not pre_activation:
        names = ["conv1_relu", "stack0_block0_out", "stack1_block0_out"]
    assert [s.layer for s in found.values()] == [*[f"backbone/{n}" for n in names], "pooler"]
    assert [s.shape[1] for s in found.values()] == [16, 8, 4, 16]
    taps = FeatureTaps(model, ["P2", "P3", "stage2"])
    assert [taps.specs[place].shape[1] for place in ("P2", "P3", "stage2")] == [8, 4, 8]
    np.testing.assert_array_equal(taps(x, training=False)["output"], model(x, training=False))


def test_keras_hub_mobilenet():
    models = _imported("keras_hub").models
    backbone = models.MobileNetBackbone(
        stackwise_expansion=[[8], [8, 8]],
        stackwise_num_blocks=[1, 2],
        stackwise_num_filters=[[8], [8, 16]],
        stackwise_kernel_size=[[3], [3, 3]],
        stackwise_num_strides=[[2], [2, 1]],
        stackwise_se_ratio=[[0.25], [None, 0.25]],
        stackwise_activation=[["relu"], ["hard_swish", "hard_swish"]],
        stackwise_padding=[[1], [1, 1]],
        output_num_filters=16,
        input_num_filters=8,
        input_activation="hard_swish",
        output_activation="hard_swish",
        image_shape=(64, 64, 3),
        depthwise_filters=8,
        depthwise_stride=2,
        depthwise_residual=False,
        last_layer_filter=16,
        squeeze_and_excite=0.5,
        name="backbone",
    )
    model = models.MobileNetImageClassifier(backbone, num_classes=3, num_features=12)
    found, x = stages(model), _images(1, 64, 64, 3)
    assert [stage.shape[1] for stage in found.values()] == [32, 16, 8, 4, 12]
    assert found["pooled"].layer == "flatten"
    taps = FeatureTaps(model, found)
    read = taps(x, training=False)
    assert {place: tuple(read[place].shape)[1:] for place in found} == {
        place: stage.shape[1:] for place, stage in found.items()
    }
    np.testing.assert_array_equal(read["output"], model(x, training=False))

import io

import keras
import numpy as np
import pytest
import tapped_networks as networks
import tensorflow as tf
from keras import layers

import keras_mikd as mikd
from keras_mikd.features.feature_taps import FeatureTaps
from keras_mikd.features.probabilities import holds_probabilities
from keras_mikd.features.stages import stages


def _hidden_and_output(model, x, training):
    hidden = model.hidden(x)
    return {"hidden": hidden, "output": model.logits(hidden)}


def _summary(model):
    text = io.StringIO()
    model.summary(print_fn=lambda line: text.write(line), expand_nested=True)
    return text.getvalue()


def test_places_hold_what_the_layers_make():
    model, x = networks.resnet(), networks.images(2, 16, 16, 3)
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
    taps = FeatureTaps(networks.resnet(), ["pool"])
    assert taps.places == ("pool", "output")
    assert FeatureTaps(networks.resnet(), []).places == ("output",)
    assert FeatureTaps(networks.resnet(), [None, "output"]).places == ("output",)


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
    taps(networks.images(2, 4), training=True)
    assert len(calls) == 2


@pytest.mark.parametrize("place", ["pool", "backbone/bn"])
def test_training_flag_reaches_dropout(place):
    model, x = networks.classifier(networks.backbone()), networks.images(8, 16, 16, 3)
    taps = FeatureTaps(model, [place])

    def spread(training):
        first, second = (taps(x, training=training)["output"] for _ in range(2))
        return np.abs(first - second).max()

    assert spread(training=False) == 0.0
    assert spread(training=True) > 1e-3


@pytest.mark.parametrize("place", ["pool", "backbone/bn"])
def test_batch_norm_statistics_move_once_and_only_in_training(place):
    model, x = networks.classifier(networks.backbone()), networks.images(8, 16, 16, 3)
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
    backbone, x = networks.backbone(), networks.images(4, 16, 16, 3)
    model = networks.classifier(backbone)
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
    x = networks.images(4, 16, 16, 3)
    model = networks.classifier(networks.backbone())
    model(x, training=False)
    expected = sorted(float(loss) for loss in model.losses)
    assert len(expected) == 3
    for places in (["pool"], ["backbone/relu1"]):
        taps = FeatureTaps(model, places)
        for _ in range(2):
            taps(x, training=False)
            assert sorted(float(loss) for loss in model.losses) == expected


def test_gradients_are_those_of_the_model():
    x = networks.images(4, 16, 16, 3)
    model = networks.classifier(networks.backbone())
    taps = FeatureTaps(model, ["backbone/conv2"])
    gradients = []
    for run in (model, lambda x, training: taps(x, training)["output"]):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(run(x, training=False) ** 2)
        gradients.append(tape.gradient(loss, [v.value for v in model.trainable_variables]))
    for plain, tapped in zip(*gradients, strict=True):
        np.testing.assert_array_equal(plain, tapped)


def test_tapping_leaves_the_model_as_it_was(tmp_path):
    model, x = networks.classifier(networks.backbone()), networks.images(2, 16, 16, 3)
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
    model = networks.resnet()

    class Owner(keras.Model):
        def __init__(self):
            super().__init__()
            self.taps = FeatureTaps(model, ["pool"])

    assert Owner().weights == []


def test_freezing_after_tapping_counts():
    backbone, x = networks.backbone(), networks.images(8, 16, 16, 3)
    taps = FeatureTaps(networks.classifier(backbone), ["backbone/bn"])
    backbone.trainable = False
    before = backbone.get_weights()
    taps(x, training=True)
    for value, old in zip(backbone.get_weights(), before, strict=True):
        np.testing.assert_array_equal(value, old)


@pytest.mark.parametrize("fixed", [False, True])
def test_training_argument_fixed_in_the_graph_behaves_as_in_the_model(fixed):
    x = networks.images(8, 16, 16, 3)
    model = networks.classifier(networks.backbone(), training=fixed)
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
    x = [networks.images(2, 5, 4), np.array([[True] * 5, [True, False, False, False, False]])]
    read = FeatureTaps(model, ["inner/lstm"])(x, training=False)
    np.testing.assert_array_equal(read["output"], model(x, training=False))
    lstm = inner.get_layer("lstm")
    np.testing.assert_allclose(read["inner/lstm"][1], lstm(x[0][:, :1])[1], rtol=1e-5)


def test_two_levels_of_nesting_and_sequential_models():
    x = networks.images(2, 16, 16, 3)
    head = keras.Sequential(name="head")
    head.add(keras.Input((8, 8, 6)))
    for layer in (
        layers.Conv2D(2, 1, name="mix"),
        layers.Flatten(),
        layers.Dense(3, name="logits"),
    ):
        head.add(layer)
    middle = keras.Sequential([keras.Input((16, 16, 3)), networks.backbone(), head], name="middle")
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
    x = networks.images(2, 4)
    np.testing.assert_array_equal(
        FeatureTaps(model, ["shared"])(x, training=False)["shared"], shared(2 * x)
    )


def test_the_input_is_a_place():
    model, x = networks.resnet(), networks.images(2, 16, 16, 3)
    read = FeatureTaps(model, ["input", "pooled"])(x, training=False)
    np.testing.assert_array_equal(read["input"], x)
    for places in (["image"], ["image", "backbone/relu1"]):
        read = FeatureTaps(networks.classifier(networks.backbone()), places)(x, training=False)
        np.testing.assert_array_equal(read["image"], x)
    first, second = keras.Input((3,)), keras.Input((3,))
    two = keras.Model([first, second], layers.Add()([first, second]))
    with pytest.raises(ValueError, match="Expected a place of .*Received: 'input'"):
        FeatureTaps(two, ["input"])


def test_dict_inputs_and_outputs():
    image, size = keras.Input((8, 8, 3), name="image"), keras.Input((2,), name="size")
    x = layers.Concatenate(name="joined")(
        [layers.Flatten()(networks.conv(image, 2, name="conv")), size]
    )
    outputs = {"logits": layers.Dense(3)(x), "boxes": [layers.Dense(4)(x), layers.Dense(1)(x)]}
    model = keras.Model({"image": image, "size": size}, outputs)
    data = {"image": networks.images(2, 8, 8, 3), "size": networks.images(2, 2)}
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
        FeatureTaps(networks.resnet(), ["output/0"])


def test_list_inputs_and_outputs_through_a_nested_model():
    a, b = keras.Input((4,)), keras.Input((4,))
    inner = keras.Model([a, b], [layers.Dense(3, name="d")(layers.Add()([a, b])), a], name="inner")
    c, d = keras.Input((4,)), keras.Input((4,))
    first, second = inner([c, d])
    model = keras.Model([c, d], [layers.Dense(2)(first), second])
    x = [networks.images(2, 4), 2 * networks.images(2, 4)]
    read = FeatureTaps(model, ["inner/d", "output/0"])(x, training=False)
    np.testing.assert_array_equal(read["inner/d"], inner.get_layer("d")(x[0] + x[1]))
    np.testing.assert_array_equal(read["output/0"], model(x)[0])
    np.testing.assert_array_equal(read["output"][1], x[0])


def test_inside_a_tf_function():
    model, x = networks.classifier(networks.backbone()), networks.images(2, 16, 16, 3)
    taps = FeatureTaps(model, ["backbone/relu1", "pooled"])
    compiled = tf.function(lambda x: taps(x, training=False))
    eager, graph = taps(x, training=False), compiled(x)
    for place in taps.places:
        np.testing.assert_allclose(graph[place], eager[place], rtol=1e-5, atol=1e-6)
    operations = compiled.get_concrete_function(x).graph.get_operations()
    assert sum(op.type == "Conv2D" for op in operations) == 2


def test_mixed_precision_model_and_another_policy_around_it():
    x = networks.images(2, 16, 16, 3)
    keras.config.set_dtype_policy("mixed_float16")
    half = networks.classifier(networks.backbone())
    keras.config.set_dtype_policy("float32")
    full = networks.classifier(networks.backbone())
    for tapping_policy in ("float32", "mixed_float16"):
        keras.config.set_dtype_policy(tapping_policy)
        for model, dtype in ((half, "float16"), (full, "float32")):
            taps = FeatureTaps(model, ["backbone/relu1"])
            read = taps(x, training=False)
            assert read["backbone/relu1"].dtype == taps.specs["backbone/relu1"].dtype == dtype
            np.testing.assert_array_equal(read["output"], model(x, training=False))


def test_unknown_place_lists_the_places_there_are():
    with pytest.raises(ValueError) as error:
        FeatureTaps(networks.classifier(networks.backbone()), ["relu1"])
    message = str(error.value)
    assert "Received: 'relu1'. Did you mean 'backbone/relu1'" in message
    for place in ("output", "stage1", "pooled", "backbone/conv2", "pool"):
        assert place in message
    with pytest.raises(
        ValueError, match="Received: 'stage4'.*output, stage1, stage2, stage3, pooled"
    ):
        FeatureTaps(networks.resnet(), ["stage4"])
    with pytest.raises(ValueError, match="Did you mean 'block2_1_add'"):
        FeatureTaps(networks.resnet(blocks=3), ["blok2_1_add"])
    with pytest.raises(ValueError, match=r"and \d+ more\.$") as error:
        FeatureTaps(networks.resnet(blocks=3), ["nothing"])
    assert len(str(error.value)) < 800


def test_what_is_no_model_says_how_to_get_one():
    distiller = mikd.SelfDistiller(networks.classifier(networks.backbone()), [])
    with pytest.raises(ValueError, match="`model` to be a keras.Model.*`distiller.student`"):
        FeatureTaps(distiller, ["stage1"])
    with pytest.raises(ValueError, match="`model` to be.*keras.saving.load_model"):
        FeatureTaps("model.keras", ["stage1"])


def test_wrong_places_argument():
    for places in ("pool", 3, None):
        with pytest.raises(TypeError, match="iterable of places"):
            FeatureTaps(networks.resnet(), places)
    with pytest.raises(TypeError, match="None or a string. Received: 3"):
        FeatureTaps(networks.resnet(), [3])


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
    x = networks.images(2, 4, 4)
    for network, prefix in ((model, ""), (outer, f"{model.name}/")):
        read = FeatureTaps(network, [f"{prefix}lstm/{i}" for i in range(3)])(x, training=False)
        for place, expected in zip(read, lstm(x), strict=False):
            np.testing.assert_allclose(read[place], expected, rtol=1e-6)
    with pytest.raises(ValueError, match="Read one of its outputs: lstm/0, lstm/1, lstm/2"):
        FeatureTaps(model, ["lstm"])
    with pytest.raises(ValueError, match="Received: 'lstm/3'"):
        FeatureTaps(model, ["lstm/3"])


def test_inside_of_a_model_called_twice_is_read_call_by_call():
    backbone = networks.backbone()
    a, b = keras.Input((16, 16, 3)), keras.Input((16, 16, 3))
    model = keras.Model([a, b], layers.Add(name="sum")([backbone(a), backbone(b)]))
    with pytest.raises(
        ValueError,
        match="'backbone/relu1', which stands for 2 tensors .*Read one of its calls: "
        r"backbone@1/relu1, backbone@2/relu1\.",
    ):
        FeatureTaps(model, ["backbone/relu1"])
    x = [networks.images(1, 16, 16, 3), 2 * networks.images(1, 16, 16, 3)]
    read = FeatureTaps(model, ["sum", "backbone@1/relu1", "backbone@2/relu1"])(x, training=False)
    np.testing.assert_array_equal(read["sum"], model(x))
    inside = keras.Model(backbone.input, backbone.get_layer("relu1").output)
    for number, image in enumerate(x, start=1):
        np.testing.assert_array_equal(read[f"backbone@{number}/relu1"], inside(image))


def _block_called_twice(order=1):
    """Its two calls follow each other, or lie on two paths of unlike length."""
    inputs = keras.Input((8, 8, 3))
    inner_inputs = keras.Input((None, None, 3))
    relu = layers.ReLU(name="relu")
    inner = relu(networks.conv(relu(inner_inputs), 3, name="conv"))
    block = keras.Model(inner_inputs, inner, name="block")
    if order:
        x = block(block(inputs))
    else:
        x = layers.Add()([block(layers.Rescaling(2.0)(layers.ReLU()(inputs))), block(inputs)])
    x = networks.conv(x, 4, strides=2, name="conv")
    return keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))


@pytest.mark.parametrize("outer", [False, True])
def test_a_block_that_is_called_twice_has_stages_and_names_for_each_call(outer):
    model, prefix = _block_called_twice(), ""
    block, conv = model.get_layer("block"), model.get_layer("conv")
    if outer:
        inputs = keras.Input((8, 8, 3))
        model, prefix = keras.Model(inputs, model(inputs)), f"{model.name}/"
    found = {place: stage.layer for place, stage in stages(model).items()}
    assert (found["stage1"], found["stage2"]) == (f"{prefix}block@2/relu@2", f"{prefix}conv")
    x = networks.images(2, 8, 8, 3)
    places = [f"{prefix}block@{k}" for k in (1, 2)]
    places += [f"{prefix}block@2/relu@1", f"{prefix}block@2/conv", "stage1", "stage2"]
    read = FeatureTaps(model, places)(x, training=False)
    first = block(x)
    expected = [first, block(first), first, block.get_layer("conv")(first), block(first)]
    for place, value in zip(places, [*expected, conv(block(first))], strict=True):
        np.testing.assert_allclose(read[place], value, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(read["output"], model(x))
    for place, calls in {
        "block": "block@1, {0}block@2",
        "block@2/relu": "block@2/relu@1, {0}block@2/relu@2",
        "block/conv": "block@1/conv, {0}block@2/conv",
    }.items():
        with pytest.raises(ValueError, match=rf"one of its calls: {prefix}{calls.format(prefix)}"):
            FeatureTaps(model, [prefix + place])
    with pytest.raises(ValueError, match=f"Did you mean '{prefix}block@2/relu@2'"):
        FeatureTaps(model, [f"{prefix}block/relu@2@2"])


def test_calls_are_told_apart_where_keras_makes_them_in_another_order():
    model, x = _block_called_twice(order=0), networks.images(2, 8, 8, 3)
    block = model.get_layer("block")
    read = FeatureTaps(model, ["block@1", "block@2", "block@1/conv", "block@2/conv"])(x, False)
    np.testing.assert_array_equal(read["output"], model(x))
    for number, fed in ((1, keras.ops.relu(x) * 2.0), (2, x)):
        np.testing.assert_allclose(read[f"block@{number}"], block(fed), rtol=1e-6)
        inside = block.get_layer("conv")(keras.ops.relu(fed))
        np.testing.assert_allclose(read[f"block@{number}/conv"], inside, rtol=1e-5, atol=1e-6)


def test_an_output_of_a_layer_with_several_at_each_call():
    inputs = keras.Input((4, 4))
    lstm = layers.LSTM(4, return_sequences=True, return_state=True, name="lstm")
    first = lstm(inputs)
    model = keras.Model(inputs, layers.Add()(lstm(first[0])[1:]))
    x = networks.images(2, 4, 4)
    read = FeatureTaps(model, ["lstm@1/0", "lstm@2/1"])(x, training=False)
    np.testing.assert_allclose(read["lstm@1/0"], lstm(x)[0], rtol=1e-6)
    np.testing.assert_allclose(read["lstm@2/1"], lstm(lstm(x)[0])[1], rtol=1e-6)
    with pytest.raises(ValueError, match="one of its calls: lstm@1/0, lstm@2/0"):
        FeatureTaps(model, ["lstm/0"])


def test_layer_with_the_name_of_a_stage():
    inputs = keras.Input((8, 8, 3))
    x = networks.conv(inputs, 2, name="stage1")
    x = networks.conv(layers.ReLU(name="relu")(x), 4, strides=2, name="stage2")
    model = keras.Model(inputs, layers.Dense(2)(layers.GlobalMaxPooling2D(name="pooled")(x)))
    taps = FeatureTaps(model, ["stage2", "pooled"])
    assert taps.specs["stage2"].shape == (None, 4, 4, 4)
    with pytest.raises(ValueError, match="'stage1', which in .* could be any of relu, stage1"):
        FeatureTaps(model, ["stage1"])


def test_pyramid_levels_of_the_outer_model_come_first_and_two_backbones_clash():
    def backbone(name):
        inner = networks.backbone()
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
        *FeatureTaps(model, ["P2"])(networks.images(1, 16, 16, 3), False).values()
    )


def test_subclassed_model_gives_its_output():
    model, x = networks.Subclassed(), networks.images(2, 3)
    with pytest.raises(ValueError, match="not built. Call it once"):
        FeatureTaps(model, [None])
    model(x)
    with pytest.raises(ValueError, match="Expected `inputs` for Subclassed.*Received: inputs=None"):
        FeatureTaps(model, [None])
    taps = FeatureTaps(model, [None], inputs=keras.Input((3,)))
    assert taps.specs["output"].shape == (None, 2)
    np.testing.assert_array_equal(taps(x, training=False)["output"], model(x))


def test_subclassed_model_needs_features_for_more():
    model, x = networks.Subclassed(), networks.images(2, 3)
    model(x)
    with pytest.raises(ValueError, match=r"to find \['hidden'\] in, not Subclassed.*`features`"):
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

    taps = FeatureTaps(networks.resnet(), [None], features=features)
    seen.clear()
    taps(networks.images(1, 16, 16, 3), training=True)
    taps(networks.images(1, 16, 16, 3), training=False)
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
        FeatureTaps(networks.resnet(), ["x"], features=lambda model, x, training: result(model(x)))


def test_functional_model_with_a_call_of_its_own_counts_as_subclassed():
    class Doubled(keras.Model):
        def call(self, x, training=None):
            return 2.0 * super().call(x, training=training)

    inputs = keras.Input((4,))
    model, x = Doubled(inputs, layers.Dense(2, name="dense")(inputs)), networks.images(2, 4)
    with pytest.raises(ValueError, match="pass `features`"):
        FeatureTaps(model, ["dense"])
    taps = FeatureTaps(model, [None], inputs=model.input)
    np.testing.assert_array_equal(taps(x, training=False)["output"], model(x))
    assert holds_probabilities(model) is None


def test_sequential_model_without_an_input():
    model = keras.Sequential([layers.Dense(3, name="dense"), layers.Dense(2, name="logits")])
    with pytest.raises(ValueError, match=r"to find \['dense'\] in, not Sequential.*an input"):
        FeatureTaps(model, ["dense"])
    with pytest.raises(ValueError, match="the Sequential .* without an input"):
        stages(model)
    model.build((None, 4))
    assert FeatureTaps(model, ["dense"]).specs["dense"].shape == (None, 3)


def _shared_relu():
    inputs = keras.Input((8, 8, 3))
    relu, x = keras.layers.ReLU(name="relu"), inputs
    for stride in (1, 2):
        x = relu(keras.layers.Conv2D(4, 3, strides=stride)(x))
    return keras.Model(inputs, keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(x)))


@pytest.mark.parametrize("nested", [False, True])
def test_a_layer_that_is_called_twice_can_be_read_at_each_call(nested):
    model = inner = _shared_relu()
    prefix = ""
    if nested:
        inputs = keras.Input((8, 8, 3))
        model, prefix = keras.Model(inputs, inner(inputs)), f"{inner.name}/"
    first, second = (layer for layer in inner.layers if isinstance(layer, keras.layers.Conv2D))
    found = [stage.layer for stage in stages(model).values()]
    assert found[:2] == [f"{prefix}relu@1", f"{prefix}relu@2"]
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype("float32")
    read = FeatureTaps(model, ["stage1", "stage2", f"{prefix}relu@2"])(x, training=False)
    expected = keras.ops.relu(first(x))
    np.testing.assert_array_equal(read["stage1"], expected)
    np.testing.assert_array_equal(read["stage2"], keras.ops.relu(second(expected)))
    np.testing.assert_array_equal(read[f"{prefix}relu@2"], read["stage2"])
    with pytest.raises(ValueError, match="called several times"):
        FeatureTaps(model, [f"{prefix}relu"])


def test_masks_that_come_and_go_are_refused():
    inputs = keras.Input((5,), dtype="int32")
    model = keras.Model(inputs, layers.Embedding(9, 4, mask_zero=True)(inputs))

    def features(model, x, training):
        tokens = model(x, training=training)
        return {"output": tokens * 1.0 if training else tokens}

    taps = FeatureTaps(model, [], features=features)
    with pytest.raises(ValueError, match="Expected the masks that"):
        taps(np.ones((2, 5), "int32"), training=True)

import keras
import numpy as np
import pytest
import tapped_networks as networks
from keras import layers

from keras_mikd.features.feature_taps import FeatureTaps
from keras_mikd.features.stages import (
    Stage,
    pair_stages,
    raw_places,
    stages,
    unactivated_places,
)


def test_stages_of_a_residual_network():
    assert stages(networks.resnet(blocks=2)) == {
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
    assert repr(stages(networks.resnet(strides=(1, 2)))) == table
    inputs = keras.Input((4,))
    assert repr(stages(keras.Model(inputs, layers.Dense(2)(inputs)))) == "(no stages)"


def test_stages_look_into_nested_models_of_open_size():
    backbone, x = networks.resnet_body(), networks.images(2, 24, 24, 3)
    for size in (None, 24):
        model = networks.classifier(backbone, size)
        assert stages(model) == {
            "stage1": Stage("body/conv1", (None, size, size, 2)),
            "stage2": Stage("body/block_relu", (None, size and 12, size and 12, 4)),
            "pooled": Stage("pool", (None, 4)),
        }
        taps = FeatureTaps(model, ["stage1", "stage2"])
        assert taps(x, training=False)["stage2"].shape == (2, 12, 12, 4)
        assert taps.specs["stage2"].shape[1] == (size and 12)


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
    x = networks.conv(inputs, 4)
    for k, (channels, strides) in enumerate([(4, 1), (8, 2), (8, 1), (16, 2)]):
        act = layers.ReLU(name=f"act{k}")(layers.BatchNormalization()(x))
        squeezed = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(2, 1)(act)))
        widens = strides > 1 or channels != x.shape[-1]
        short = layers.Conv2D(channels, 1, strides=strides)(act) if widens else x
        x = layers.Add(name=f"sum{k}")([short, networks.conv(squeezed, channels, strides)])
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
    x = networks.conv(inputs, 4, strides=2, name="conv")
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
    read = taps(networks.images(2, 16, 16, 3), training=False)
    assert taps.specs["pooled"].shape == (None, 4)
    np.testing.assert_array_equal(read["pooled"], read["pool"][:, 0, 0])


def test_pooled_without_a_classifier_and_with_two_heads():
    inputs = keras.Input((8, 8, 3))
    x = layers.GlobalAveragePooling2D(name="pool")(networks.conv(inputs, 4))
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
        inputs, layers.Add()([layers.Flatten()(networks.conv(inputs, 1)) for _ in range(2)])
    )
    assert "stage1" not in stages(model)
    with pytest.raises(ValueError, match="Expected a student with stages"):
        pair_stages(networks.resnet(), model)
    with pytest.raises(ValueError, match="Expected a teacher with stages"):
        pair_stages(model, networks.resnet())


def test_stages_of_very_deep_networks():
    inputs = keras.Input((8, 8, 3))
    x = networks.conv(inputs, 2)
    for _ in range(120):
        x = layers.Add()([x, layers.ReLU()(x)])
    assert list(stages(keras.Model(inputs, layers.GlobalMaxPooling2D()(x)))) == ["stage1", "pooled"]


def test_places_before_the_last_activation_of_a_stage():
    model = networks.resnet(blocks=2)
    before = [model.get_layer(name) for name in unactivated_places(model).values()]
    assert list(unactivated_places(model)) == ["stage1", "stage2", "stage3"]
    assert {type(layer) for layer in before} == {layers.Add}
    inputs = keras.Input((16, 16, 3))
    x = layers.Conv2D(4, 3, padding="same", activation="relu", name="conv1")(inputs)
    x = layers.Conv2D(4, 3, strides=2, padding="same", name="conv2")(x)
    x = layers.BatchNormalization(name="bn2")(x)
    x = layers.Activation("relu", name="relu2")(x)
    x = layers.MaxPool2D(name="pool2")(layers.Conv2D(4, 3, padding="same", name="conv3")(x))
    plain = keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x)))
    found = unactivated_places(plain)
    # An activation inside of a layer has no tensor before it, and a pooling is no activation.
    assert found == {"stage1": "conv1", "stage2": "conv3", "stage3": "pool2"}
    x = layers.ReLU(name="relu3")(layers.BatchNormalization(name="bn3")(x))
    plain = keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x)))
    assert unactivated_places(plain)["stage3"] == "bn3"


def test_equal_numbers_of_stages_pair_in_order():
    expected = [("stage1", "stage1"), ("stage2", "stage2"), ("stage3", "stage3")]
    assert pair_stages(networks.resnet(size=32, channels=8), networks.resnet(size=16)) == expected
    assert (
        pair_stages(networks.resnet(strides=(2, 2, 2), size=32), networks.resnet(size=16))
        == expected
    )


def test_four_stages_and_three():
    four, three = (
        networks.resnet(strides=(1, 2, 2, 2), size=32),
        networks.resnet(strides=(2, 2, 2), channels=8),
    )
    pairs = [("stage2", "stage1"), ("stage3", "stage2"), ("stage4", "stage3")]
    assert pair_stages(four, three) == pairs
    assert pair_stages(three, four) == [(b, a) for a, b in pairs]
    early = networks.resnet(strides=(1, 2, 4))
    assert pair_stages(four, early) == [
        ("stage1", "stage1"),
        ("stage2", "stage2"),
        ("stage4", "stage3"),
    ]


def test_last_stages_pair_whatever_their_size():
    one = networks.resnet(strides=(1,))
    assert pair_stages(networks.resnet(), one) == [("stage3", "stage1")]
    deep, shallow = (
        networks.resnet(strides=(2, 2, 2, 2, 2), size=64),
        networks.resnet(strides=(1, 2, 2), size=32),
    )
    assert pair_stages(deep, shallow) == [
        ("stage1", "stage1"),
        ("stage2", "stage2"),
        ("stage5", "stage3"),
    ]


def test_stages_of_open_size_pair():
    open_size = networks.classifier(networks.resnet_body(), None)
    assert pair_stages(networks.resnet(), open_size) == [("stage1", "stage1"), ("stage3", "stage2")]


def test_a_first_stage_of_single_pixels_pairs_with_nothing():
    def network(kernel_size):
        inputs = keras.Input((16, 16, 3))
        x = layers.ReLU(name="stem")(layers.Conv2D(4, kernel_size, padding="same")(inputs))
        for number in (1, 2):
            x = layers.Conv2D(8, 3, strides=2, padding="same", name=f"conv{number}")(x)
        x = layers.GlobalAveragePooling2D()(x)
        return keras.Model(inputs, layers.Dense(3)(x))

    recoloured, seeing = network(1), network(3)
    assert stages(recoloured)["stage1"].layer == stages(seeing)["stage1"].layer == "stem"
    assert pair_stages(seeing, seeing)[0] == ("stage1", "stage1")
    own = [("stage2", "stage2"), ("stage3", "stage3")]
    assert pair_stages(recoloured, recoloured) == own
    # At the same sizes, so the first stage of the other network stays alone.
    assert pair_stages(seeing, recoloured) == own


def test_raw_places_are_outputs_that_the_network_names_so():
    inputs = keras.Input((16, 16, 3))
    x = layers.Conv2D(4, 3, padding="same", name="stage1_output")(inputs)
    x = layers.ReLU(name="relu")(layers.Conv2D(8, 1, name="expansion")(x))
    x = layers.Conv2D(8, 3, strides=2, padding="same", name="conv2")(x)
    backbone = keras.Model(inputs, x, name="backbone")
    outer = keras.Input((16, 16, 3))
    x = layers.GlobalAveragePooling2D()(backbone(outer))
    model = keras.Model(outer, layers.Dense(3)(x))
    assert stages(model)["stage1"].layer == "backbone/relu"
    assert raw_places(model) == {"stage1": "backbone/stage1_output", "stage2": "backbone/conv2"}
    assert raw_places(backbone) == {"stage1": "stage1_output", "stage2": "conv2"}

import keras
import pytest
import tapped_networks as networks
import tensorflow as tf
from keras import layers

from keras_mikd.features.probabilities import ends_linear, holds_probabilities


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
def test_holds_probabilities(last, expected):
    head = keras.Sequential([keras.Input((4,)), layers.Dense(4), *last()])
    assert holds_probabilities(head) is expected
    assert holds_probabilities(keras.Sequential([keras.Input((4,)), head])) is expected


def test_holds_probabilities_of_operations_and_of_several_outputs():
    inputs = keras.Input((4,))
    x = layers.Dense(3)(inputs)
    outputs = {"scores": keras.ops.softmax(x), "logits": x}
    model = keras.Model(inputs, outputs)
    assert holds_probabilities(model) is True
    assert holds_probabilities(model, "output/scores") is True
    assert holds_probabilities(model, "output/logits") is False
    assert holds_probabilities(keras.Model(inputs, keras.ops.cast(outputs["scores"], "float16")))
    assert holds_probabilities(networks.Subclassed()) is None


def test_probabilities_stay_such_when_merged_scaled_or_clipped():
    inputs = keras.Input((4,))
    one, other = (layers.Dense(3, activation="softmax")(inputs) for _ in range(2))
    logits = layers.Dense(3)(inputs)
    for output in (
        layers.Dense(3, activation=tf.nn.softmax)(inputs),  # It is called softmax_v2.
        layers.Average()([one, other]),
        layers.Average()([layers.Reshape((3,))(one), other]),
        (one + other) / 2.0,
        0.5 * one,
        keras.ops.clip(one, 1e-7, 1.0),
        layers.Rescaling(0.5)(one),
    ):
        assert holds_probabilities(keras.Model(inputs, output)) is True
    for output in (layers.Average()([one, logits]), keras.ops.log(one), one - other):
        assert holds_probabilities(keras.Model(inputs, output)) is False


@pytest.mark.parametrize(
    ("last", "certain"),
    [
        ([layers.Dense(3)], True),
        ([layers.Dense(3), layers.Reshape((3, 1)), layers.Flatten()], True),
        ([layers.Dense(3), layers.Activation("linear")], True),
        ([layers.Dense(3, activation="softplus")], False),
        ([layers.Dense(3), layers.Activation("softplus")], False),
        ([layers.Dense(3), layers.Softmax()], False),
        ([layers.Dense(3), layers.Rescaling(2.0)], False),
    ],
)
def test_logits_are_certain_only_of_a_linear_layer(last, certain):
    assert ends_linear(keras.Sequential([keras.Input((4,)), *last])) is certain

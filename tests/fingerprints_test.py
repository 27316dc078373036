import functools

import cases
import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mikd.checkpoints import fingerprints


def _joined(partner, seed=0):
    """Two branches whose outputs are added to a third; every wiring has the same weights."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((4,))
    branches = [keras.layers.Dense(3, name=f"branch{i}")(inputs) for i in range(3)]
    added = keras.layers.Add()([branches[0], branches[partner]])
    # Both branches stay in the model.
    return keras.Model(inputs, [added, *branches])


def test_a_model_is_called_the_same_in_another_session():
    first = fingerprints.of_model(cases.teacher())
    keras.layers.Dense(1)  # Moves automatic names on.
    assert fingerprints.of_model(cases.teacher()) == first


def test_models_of_other_weights_layers_or_wiring_have_other_names():
    one = _joined(1)
    others = [_joined(1, seed=1), _joined(2), cases.teacher(), cases.teacher(dropout=0.5)]
    names = [fingerprints.of_model(model) for model in (one, *others)]
    assert len(set(names)) == len(names)
    np.testing.assert_array_equal(one.get_weights()[0], _joined(2).get_weights()[0])


def _scaled(factor, shift=0.0):
    return lambda image, seed: image * factor + shift


def _other(image, seed):
    return image * 2.0 if seed is None else image


def _with_keyword(amount):
    return lambda image, seed, *, factor=amount: image * factor


FUNCTIONS = {
    "none": None,
    "closure": _scaled(2.0),
    "other closure": _scaled(3.0),
    "other default": _scaled(2.0, 1.0),
    "code": _other,
    "partial": functools.partial(_other, seed=None),
    "other partial": functools.partial(_other, seed=1),
    "nested": lambda image, seed: _scaled(2.0)(image, seed),
    "function of a module": lambda image, seed: tf.image.flip_up_down(image),
    "other function of it": lambda image, seed: tf.image.flip_left_right(image),
    "keyword default": _with_keyword(2.0),
    "other keyword default": _with_keyword(3.0),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_that_differ_have_other_names(name):
    own = fingerprints.of_function(FUNCTIONS[name])
    others = [fingerprints.of_function(f) for key, f in FUNCTIONS.items() if key != name]
    assert own not in others


def test_the_same_function_made_again_has_the_same_name():
    assert fingerprints.of_function(_scaled(2.0)) == fingerprints.of_function(_scaled(2.0))


def test_a_model_with_lora_is_the_same_once_it_was_saved(tmp_path):
    tokens = keras.Input((3,), dtype="int32")
    x = keras.layers.Embedding(5, 4)(tokens)
    x = keras.layers.Conv1D(4, 2)(x)
    model = keras.Model(tokens, keras.layers.Dense(2)(x))
    before = fingerprints.of_model(model)
    for layer in model.layers[1:]:
        layer.enable_lora(2)
    for variable in model.trainable_variables:
        variable.assign(np.random.default_rng(0).normal(size=variable.shape))
    tuned = fingerprints.of_model(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    x = np.arange(6).reshape(2, 3) % 5
    np.testing.assert_allclose(loaded(x), model(x), rtol=1e-5)
    assert fingerprints.of_model(loaded) == tuned != before


def test_the_text_of_a_docstring_does_not_count():
    def named(text, factor=2):
        names = {}
        exec(f"def double(x):\n    {text!r}\n    return {factor!r} * x", names)
        return fingerprints.of_function(names["double"])

    assert named("Twice.") == named("Returns twice a number.")
    assert named("Twice.") != named("Twice.", factor=3)
    assert named("", factor="a") != named("", factor="b")  # Texts of the code count.


def test_a_function_that_encloses_itself_has_a_name():
    def again(factor):
        def halved(image, seed):
            return image if seed is None else halved(image * factor, None)

        return halved

    assert fingerprints.of_function(again(0.5)) == fingerprints.of_function(again(0.5))
    assert fingerprints.of_function(again(0.5)) != fingerprints.of_function(again(0.25))


def test_bytes_that_differ_have_other_names():
    x = np.arange(6.0)
    assert fingerprints.of_bytes(x, x) == fingerprints.of_bytes(x, x)
    assert fingerprints.of_bytes(x) != fingerprints.of_bytes(x + 1)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (lambda x: x / 255.0, lambda x: x / 25.0),
        (lambda x: keras.ops.reshape(x, (-1, 3, 8)), lambda x: keras.ops.reshape(x, (-1, 2, 12))),
        (lambda x: x * np.ones(6, "float32"), lambda x: x * np.zeros(6, "float32")),
        (lambda x: x + 1.0, lambda x: x - 1.0),
        (lambda x: x - 1.0, lambda x: 1.0 - x),
        (lambda x: x * keras.ops.ones(6), lambda x: x * keras.ops.zeros(6)),
        (lambda x: x[:, :2], lambda x: x[:, 2:]),
        (lambda x: x[:, ::2], lambda x: x[:, ::3]),
    ],
)
def test_constants_of_operations_count(first, second):
    def name(change):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((4, 6))
        pooled = keras.layers.GlobalAveragePooling1D()(change(inputs))
        return fingerprints.of_model(keras.Model(inputs, pooled))

    assert name(first) == name(first)
    assert name(first) != name(second)


def test_arguments_of_wrapping_layers_count():
    def name(merge_mode):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((3, 2))
        both = keras.layers.Bidirectional(keras.layers.SimpleRNN(2), merge_mode=merge_mode)
        return fingerprints.of_model(keras.Model(inputs, both(inputs)))

    assert name("sum") == name("sum") != name("ave")


def test_the_structure_is_known_whatever_the_weights_are():
    def name(activation, seed):
        keras.utils.set_random_seed(seed)
        layers = [keras.Input((2,)), keras.layers.Dense(2, activation), keras.layers.Dropout(0.1)]
        return fingerprints.of_structure(keras.Sequential(layers))

    assert name("relu", 0) == name("relu", 1) != name("tanh", 0)


RATE = 1.0


def test_global_numbers_count(monkeypatch):
    def scaled(x):
        return RATE * x

    first = fingerprints.of_function(scaled)
    assert fingerprints.of_function(scaled) == first
    monkeypatch.setitem(globals(), "RATE", 2.0)
    assert fingerprints.of_function(scaled) != first


if __name__ == "__main__":
    pytest.main([__file__])


def test_a_structure_has_the_constants_of_its_operations():
    def name(factor):
        inputs = keras.Input((2,))
        return fingerprints.of_structure(keras.Model(inputs, inputs * factor))

    assert name(2.0) == name(2.0) != name(3.0)


def test_the_order_of_the_outputs_counts():
    inputs = keras.Input((3,))
    first = keras.layers.Dense(3)(inputs)
    second = keras.layers.Dense(3)(first)
    one, other = (keras.Model(inputs, o) for o in ([first, second], [second, first]))
    assert fingerprints.of_model(one) != fingerprints.of_model(other)

"""What an argument or a label has to be, and how a refusal reads."""

import keras
import numpy as np
import pytest

from keras_mikd import checks


@pytest.mark.parametrize("value", [2, 2.5, np.float32(2.5), np.int64(3)])
def test_a_number_comes_back_as_a_float(value):
    kept = checks.number("x", value, above=1, at_most=3)
    assert (type(kept), kept) == (float, value)


@pytest.mark.parametrize(
    ("limits", "fits", "refused", "expected"),
    [
        ({}, [-1e9, 0], [], "a finite number"),
        ({"at_least": 0}, [0, 7], [-1e-9], "a finite number of at least 0"),
        ({"above": 0}, [1e-9], [0, -1], "a finite number above 0"),
        ({"at_most": 0.5}, [0.5, -7], [0.6], "a finite number of at most 0.5"),
        ({"below": 1}, [0.9], [1, 2], "a finite number below 1"),
        (
            {"at_least": 0, "below": 1},
            [0, 0.9],
            [-0.1, 1],
            "a finite number of at least 0 and below 1",
        ),
    ],
)
def test_limits_of_numbers(limits, fits, refused, expected):
    for value in fits:
        assert checks.number("x", value, **limits) == value
    for value in [*refused, float("nan"), float("inf"), "1", None, True, np.True_, [1.0]]:
        with pytest.raises(ValueError) as refusal:
            checks.number("x", value, **limits)
        assert str(refusal.value) == f"Expected `x` to be {expected}. Received: x={value!r}"


@pytest.mark.parametrize("value", [2, np.int32(2)])
def test_an_integer_comes_back_as_an_int(value):
    kept = checks.integer("n", value, at_least=1, at_most=2)
    assert (type(kept), kept) == (int, 2)


@pytest.mark.parametrize("value", [0, 4, 2.0, "2", None, True])
def test_other_integers_are_refused(value):
    with pytest.raises(ValueError) as refusal:
        checks.integer("n", value, at_least=1, at_most=3)
    message = f"Expected `n` to be an int of at least 1 and of at most 3. Received: n={value!r}"
    assert str(refusal.value) == message


def test_what_is_optional_may_be_none():
    assert checks.number("x", None, above=0, optional=True) is None
    assert checks.integer("n", None, at_least=1, optional=True) is None
    with pytest.raises(ValueError, match="above 0 or None. Received: x=0"):
        checks.number("x", 0, above=0, optional=True)
    with pytest.raises(ValueError, match="at least 1 or None. Received: n=0"):
        checks.integer("n", 0, at_least=1, optional=True)


def test_one_of_some_choices():
    choices = (True, False, "auto")
    for choice in choices:
        assert checks.one_of("x", choice, choices) is choice
    for value in (1, 0, "Auto", None):
        with pytest.raises(ValueError, match=f"True, False or 'auto'. Received: x={value!r}"):
            checks.one_of("x", value, choices)


def test_a_single_choice_is_named_alone():
    with pytest.raises(ValueError, match="^Expected `x` to be 'auto'. Received: x='Auto'"):
        checks.one_of("x", "Auto", ("auto",))


def test_a_temperature_has_a_square_in_float32():
    assert checks.temperature("temperature", 4) == 4.0
    with pytest.raises(
        ValueError, match="`temperature` to be a finite number of at least 1e-12 and of at most"
    ):
        checks.temperature("temperature", 0)


def test_a_list_of_numbers_will_do():
    np.testing.assert_array_equal(checks.class_indices([2, 0, 1]), [2, 0, 1])


@pytest.mark.parametrize("dtype", ["int64", "uint8", "float32"])
@pytest.mark.parametrize("shape", [(3,), (3, 1)])
def test_indices_are_one_int32_for_each_example(shape, dtype):
    labels = np.array([2, 0, 1], dtype).reshape(shape)
    for one_hot in (False, True):
        classes = checks.class_indices(labels, one_hot=one_hot)
        assert classes.dtype == "int32"
        np.testing.assert_array_equal(classes, [2, 0, 1])


def test_rows_over_the_classes_are_the_class_of_their_largest_number():
    rows = np.array([[0.2, 0.8, 0.0], [1.0, 0.0, 0.0]])
    np.testing.assert_array_equal(checks.class_indices(rows, one_hot=True), [1, 0])
    with pytest.raises(ValueError, match=r"integers \(batch,\). Received: labels of shape \(2, 3"):
        checks.class_indices(rows)


def test_floats_stay_what_they_are_where_that_is_asked_for():
    labels = np.array([[0.3], [0.7]], "float32")
    np.testing.assert_array_equal(checks.class_indices(labels, dtype=None), labels[:, 0])
    assert checks.class_indices(np.array([1, 2]), dtype=None).dtype == "int32"


@pytest.mark.parametrize(
    ("labels", "received"),
    [
        (None, "labels=None"),
        ({"boxes": np.zeros((2, 3))}, r"labels of shape \{'boxes': \(2, 3\)\}"),
        (np.zeros((2, 3, 1)), r"labels of shape \(2, 3, 1\)"),
        (np.zeros(()), r"labels of shape \(\)"),
    ],
)
def test_other_labels_are_refused_with_a_hint(labels, received):
    with pytest.raises(ValueError, match=f"{received}. One-hot labels become integers with"):
        checks.class_indices(labels)
    with pytest.raises(ValueError, match=rf"or one-hot \(batch, classes\). .*{received}. Leave"):
        checks.class_indices(labels, one_hot=True, hint="Leave them out.")


def test_a_model_without_nan_comes_back():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, name="dense")])
    model.layers[0].bias.assign([-np.inf, 0.0])  # A class that is masked.
    assert checks.without_nan("x", model) is model
    model.layers[0].bias.assign([np.nan, 0.0])
    with pytest.raises(ValueError, match="`x` to have numbers as weights. Received: .*dense/bias"):
        checks.without_nan("x", model)


def test_a_missing_package_is_named_with_what_installs_it():
    with pytest.raises(ImportError, match=r'`no_such_package`.*pip install "keras_mikd\[data\]"'):
        with checks.extra("data"):
            import no_such_package  # noqa: F401

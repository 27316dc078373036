import numpy as np
import pytest

from keras_mikd.figures import confusion_matrix

LABELS = [0, 0, 0, 0, 1, 1, 3]
PREDICTIONS = [0, 0, 0, 1, 1, 3, 3]
# Row i, column j: fraction of class i that was taken for j; class 2 has no example.
EXPECTED = [[0.75, 0.25, 0, 0], [0, 0.5, 0, 0.5], [np.nan] * 4, [0, 0, 0, 1]]


def _matrix(axes):
    return np.ma.filled(axes.images[0].get_array(), np.nan)


def test_rows_are_fractions_of_the_true_class():
    axes, _ = confusion_matrix(LABELS, PREDICTIONS).axes
    np.testing.assert_array_equal(_matrix(axes), EXPECTED)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted class", "true class")


def test_every_cell_that_is_not_zero_has_its_percentage():
    axes, _ = confusion_matrix(LABELS, PREDICTIONS).axes
    cells = {text.get_position()[::-1]: text.get_text() for text in axes.texts}
    assert cells == {(0, 0): "75", (0, 1): "25", (1, 1): "50", (1, 3): "50", (3, 3): "100"}


def test_it_does_not_depend_on_the_order_of_the_examples():
    order = np.random.default_rng(0).permutation(len(LABELS))
    axes, _ = confusion_matrix(np.array(LABELS)[order], np.array(PREDICTIONS)[order]).axes
    np.testing.assert_array_equal(_matrix(axes), EXPECTED)


def test_a_mapping_is_one_matrix_for_each_of_its_entries():
    figure = confusion_matrix(LABELS, {"MLL": PREDICTIONS, "MCMI": LABELS}, num_classes=4)
    mll, mcmi, _ = figure.axes
    assert (mll.get_title(), mcmi.get_title()) == ("MLL", "MCMI")
    np.testing.assert_array_equal(_matrix(mll), EXPECTED)
    np.testing.assert_array_equal(_matrix(mcmi)[[0, 1, 3]], np.eye(4)[[0, 1, 3]])


def test_classes_that_nobody_mentions_count_where_their_number_is_given():
    axes, _ = confusion_matrix([0, 1], [0, 0], num_classes=5).axes
    assert _matrix(axes).shape == (5, 5)
    names = ["a", "b", "c", "d", "e"]
    axes, _ = confusion_matrix([0, 1], [0, 0], num_classes=5, class_names=names).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == names


@pytest.mark.parametrize("labels, predictions", [([0, 3], [0, 1]), ([0, 1], [0, 3])])
def test_the_largest_index_on_either_side_is_the_last_class(labels, predictions):
    axes, _ = confusion_matrix(labels, predictions).axes
    assert _matrix(axes).shape == (4, 4)


def test_all_shades_are_of_one_scale_and_numbers_stand_out():
    """Without a cell of 1, and with one panel beside another, a shade means the same."""
    figure = confusion_matrix([0] * 10, {"a": [0] * 6 + [1] * 4, "b": [0] * 10}, num_classes=2)
    first, second, _ = figure.axes
    assert first.images[0].get_clim() == second.images[0].get_clim() == (0.0, 1.0)
    assert {text.get_text(): text.get_color() for text in first.texts} == {
        "60": "white",
        "40": "black",
    }


def test_names_are_on_both_axes_and_long_ones_are_turned():
    for names, turned in ((["cat", "dog"], 0), (["cat", "aeroplane"], 90)):
        axes, _ = confusion_matrix([0, 1], [0, 1], class_names=names).axes
        for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
            assert [label.get_text() for label in labels] == names
        assert {label.get_rotation() for label in axes.get_xticklabels()} == {turned}


@pytest.mark.parametrize("classes", [20, 21])
def test_twenty_classes_are_the_most_with_numbers(classes):
    axes, _ = confusion_matrix(np.arange(classes), np.arange(classes)).axes
    assert len(axes.texts) == (20 if classes == 20 else 0)


def test_a_hundred_classes_are_drawn_without_numbers():
    labels = np.arange(100)
    axes, _ = confusion_matrix(labels, labels).axes
    np.testing.assert_array_equal(_matrix(axes), np.eye(100))
    assert not axes.texts


@pytest.mark.parametrize(
    "labels, predictions, kwargs, message",
    [
        ([], [], {}, "n > 0"),
        ([0, 1], [0], {}, "each of 2 examples. Received: predictions of length 1"),
        ([0, 1], [[0.1, 0.9], [0.8, 0.2]], {}, "Of logits, pass the argmax"),
        ([0, 4], [0, 1], {"num_classes": 4}, "below 4. Received: labels from 0 to 4"),
        ([0, 1], [0, 9], {"num_classes": 4}, "below 4. Received: predictions from 0 to 9"),
        ([0, 1], [0, 1], {"class_names": ["a"]}, "one entry for each of 2 classes"),
        ([0, 1], {}, {}, "at least one entry"),
    ],
)
def test_bad_input_is_refused(labels, predictions, kwargs, message):
    with pytest.raises(ValueError, match=message):
        confusion_matrix(labels, predictions, **kwargs)


if __name__ == "__main__":
    pytest.main([__file__])

import numpy as np
import pytest

from keras_mikd.figures.class_labels import checked_class_names, checked_labels


@pytest.mark.parametrize("values", [[2, 0, 1], np.array([[2], [0], [1]], "uint8")])
def test_class_indices_become_a_vector_of_integers(values):
    labels = checked_labels(values, "labels", num_examples=3, num_classes=3)
    assert labels.dtype == np.int64
    np.testing.assert_array_equal(labels, [2, 0, 1])


@pytest.mark.parametrize(
    "values, message",
    [
        ([], r"n > 0.*shape \(0,\)"),
        (np.zeros(0, int), r"n > 0.*shape \(0,\)"),
        ([0.0, 1.0], "`labels` to be class indices: integers.*dtype float64"),
        ([[0, 1], [1, 0]], r"Received: labels of shape \(2, 2\)"),
        ([0, -1], "at least 0 and below 3. Received: labels from -1 to 0"),
        ([0, 3], "below 3. Received: labels from 0 to 3"),
        ([0, 1, 2], "each of 2 examples. Received: labels of length 3"),
    ],
)
def test_anything_else_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        checked_labels(values, "labels", num_examples=2, num_classes=3)


def test_names_are_the_given_ones_or_the_indices():
    assert checked_class_names(None, 3) == ["0", "1", "2"]
    assert checked_class_names(("cat", 7), 2) == ["cat", "7"]
    with pytest.raises(ValueError, match="each of 3 classes. Received: class_names of length 1"):
        checked_class_names(["cat"], 3)


if __name__ == "__main__":
    pytest.main([__file__])

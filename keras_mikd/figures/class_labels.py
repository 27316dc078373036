"""Arrays of class indices, and the names that stand for them."""

import numpy as np

from keras_mikd import checks


def checked_labels(values, name, *, num_examples=None, num_classes=None):
    """Returns the argument `name`, integers of shape `(n,)` or `(n, 1)`, as int64 `(n,)`.

    Raises:
        ValueError: If they are none, no integers, of another shape or number than `num_examples`,
            or not below `num_classes`.
    """
    values = np.asarray(values)
    if not values.size or values.dtype.kind not in "iu":
        raise ValueError(
            f"Expected `{name}` to be class indices: integers of shape (n,), n > 0. Received: "
            f"{name} of shape {values.shape} and dtype {values.dtype}. Of logits, pass the argmax."
        )
    labels = np.asarray(checks.class_indices(values), np.int64)
    if num_examples is not None:
        check_length(name, labels, num_examples, "examples")
    low, high = labels.min(), labels.max()
    if low < 0 or (num_classes is not None and high >= num_classes):
        below = "" if num_classes is None else f" and below {num_classes}"
        raise ValueError(
            f"Expected `{name}` to be class indices of at least 0{below}. "
            f"Received: {name} from {low} to {high}"
        )
    return labels


def checked_class_names(class_names, num_classes):
    """Returns one name per class: the given ones, or the indices."""
    if class_names is None:
        return [str(index) for index in range(num_classes)]
    check_length("class_names", class_names, num_classes, "classes")
    return [str(name) for name in class_names]


def check_length(name, values, count, owners):
    """Raises a ValueError unless there is a value for each of the `count` owners."""
    if len(values) != count:
        raise ValueError(
            f"Expected `{name}` to have one entry for each of {count} {owners}. "
            f"Received: {name} of length {len(values)}"
        )

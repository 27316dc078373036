"""Arrays of class indices, and the names that stand for them."""

import numpy as np


def checked_labels(values, name, *, num_examples=None, num_classes=None):
    """Returns class indices as an integer array of shape `(n,)`.

    Args:
        values: Integers, shape `(n,)` or `(n, 1)`.
        name: Name of the argument, for the message.
        num_examples: How many there have to be; `None` for any number but 0.
        num_classes: Number of classes; `None` if it is not known.

    Raises:
        ValueError: If they are none, no integers, of another shape or number, or out of range.
    """
    labels = np.asarray(values)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or not labels.size or labels.dtype.kind not in "iu":
        raise ValueError(
            "Expected class indices: integers of shape (n,), n > 0 (of logits, their argmax). "
            f"Received: {name} of shape {labels.shape} and dtype {labels.dtype}"
        )
    if num_examples is not None and len(labels) != num_examples:
        raise ValueError(
            f"Expected as many class indices as examples, {num_examples}. "
            f"Received: {len(labels)} {name}"
        )
    low, high = labels.min(), labels.max()
    if low < 0 or (num_classes is not None and high >= num_classes):
        below = "" if num_classes is None else f" and less than {num_classes}"
        raise ValueError(
            f"Expected class indices of at least 0{below}. Received: {name} from {low} to {high}"
        )
    return labels.astype(np.int64)


def checked_class_names(class_names, num_classes):
    """Returns one name per class, the index where no names are given.

    Raises:
        ValueError: If there are not as many names as classes.
    """
    if class_names is None:
        return [str(index) for index in range(num_classes)]
    if len(class_names) != num_classes:
        raise ValueError(
            f"Expected one name for each of {num_classes} classes. "
            f"Received: class_names of length {len(class_names)}"
        )
    return [str(name) for name in class_names]

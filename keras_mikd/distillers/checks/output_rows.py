"""Outputs and labels as rows: one for each example, or for each position of a dense output."""

import keras
import numpy as np

from keras_mikd import checks

_MOST = 2**16  # Rows that are looked at; a batch of dense outputs has millions.
_ENOUGH = 32  # Rows, for a verdict about a network.
_NO_SHARE = 0.1  # What probabilities of all classes do not add up to, even those of sigmoids.


def are_shares(outputs):
    """Whether rows over classes are probabilities, or a multiple of them.

    The same row for every example, as dead units put out, says nothing.
    """
    if keras.tree.is_nested(outputs) or len(outputs.shape) < 2 or outputs.shape[-1] < 2:
        return False
    rows = _rows(outputs)
    sums = rows.sum(axis=1)
    if len(rows) < 2 or np.all(rows == rows[0]) or rows.min() < 0 or sums.min() <= 0:
        return False
    # In bfloat16, or rounded to 256 steps, sums are not exact. They then vary far less than shares.
    spread, most = np.ptp(sums) / sums.mean(), np.ptp(rows, axis=0).max() / sums.mean()
    return bool(spread < 1e-5 or (spread < 2e-2 and spread < 0.1 * most))


def are_near_zero(outputs):
    """Whether rows over classes add up to next to nothing, as logits before training may."""
    if keras.tree.is_nested(outputs) or len(outputs.shape) < 2 or outputs.shape[-1] < 2:
        return False
    rows = _rows(outputs)
    return len(rows) > 0 and bool(np.abs(rows).sum(axis=1).max() < _NO_SHARE)


def are_fractions(outputs):
    """Whether all rows over classes lie between 0 and 1, as sigmoids do: enough to be asked about.

    The same row for every example says nothing.
    """
    if keras.tree.is_nested(outputs) or len(outputs.shape) < 2 or outputs.shape[-1] < 2:
        return False
    rows = _rows(outputs)
    varied = len(rows) >= _ENOUGH and not np.all(rows == rows[0])
    return bool(varied and rows.min() >= 0 and rows.max() <= 1)


def are_several_labels(y, rank):
    """Whether labels are rows of 0 and 1, or near them, with several classes or none.

    `rank` is that of the outputs that they are for. Rows that sum to 1 are one class, or shares.
    """
    if keras.tree.is_nested(y) or len(getattr(y, "shape", ())) != rank or y.shape[-1] < 2:
        return False
    rows = _rows(y)
    one_each = np.isclose(rows.sum(axis=1), 1.0, atol=1e-3) | (np.sum(rows > 0.5, axis=1) == 1)
    return bool(rows.min() >= 0 and rows.max() <= 1 and not np.all(one_each))


def classes_of(y, rank):
    """Returns the class of every example, `(batch, ...)`, for outputs of this rank.

    `None` for labels of another kind: several for an example, or none.
    """
    if y is None or keras.tree.is_nested(y) or are_several_labels(y, rank):
        return None
    if rank == 2:
        try:
            return np.asarray(checks.class_indices(y, one_hot=True))
        except ValueError:
            return None
    labels = np.asarray(y)
    if labels.ndim == rank:
        return labels[..., 0] if labels.shape[-1] == 1 else labels.argmax(axis=-1)
    return labels if labels.ndim == rank - 1 else None


def share_of_right(logits, classes, ignored=None):
    """Returns how often the largest logit is that of the class, or `None` without a verdict.

    Labels that are `ignored` do not count. There is no verdict on few labels, labels of less than
    half of the classes, or labels at other positions than the logits.
    """
    if keras.tree.is_nested(logits) or len(logits.shape) < 2 or logits.shape[-1] < 2:
        return None
    if tuple(logits.shape[:-1]) != classes.shape:
        return None
    rows, classes = _rows(logits), _spread(classes.reshape(-1))
    if ignored is not None:
        rows, classes = rows[classes != ignored], classes[classes != ignored]
    seen = len(np.unique(classes))
    if len(classes) < _ENOUGH or seen < min(logits.shape[-1], len(classes)) / 2:
        return None
    if classes.max() >= logits.shape[-1]:
        return None
    return float(np.mean(rows.argmax(axis=1) == classes))


def in_two_columns(outputs, border):
    """Returns one number for each example as scores of two classes, which part at `border`."""
    scores = keras.ops.cast(outputs, "float32") - border
    return keras.ops.concatenate([-scores, scores], axis=-1)


def _rows(outputs):
    flat = keras.ops.reshape(outputs, (-1, outputs.shape[-1]))
    return np.asarray(_spread(flat), "float64")


def _spread(rows):
    # An odd step, so that it does not meet the same column of every image.
    return rows[:: rows.shape[0] // _MOST | 1]

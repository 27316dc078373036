"""What several teachers say together: one target out of the logits of all."""

import keras
from keras import ops

COMBINATIONS = ("mean", "confidence")


def combined(logits, labels, how):
    """Returns the target out of the logits of several teachers, in float32.

    Args:
        logits: List of tensors `(batch, ..., classes)`, one of each teacher.
        labels: Classes of the batch, `(batch, ...)`, or distributions over them; `None` will do for
            `"mean"`.
        how: `"mean"`, whose softmax is the geometric mean of the teachers' probabilities at every
            temperature (Hinton et al., arXiv:1503.02531, section 1); or `"confidence"`, weighted by
            `confidence`.

    Returns:
        Tensor of the shape of each of the logits.
    """
    stacked = ops.stack([ops.cast(each, "float32") for each in logits])
    if how == "mean":
        return ops.mean(stacked, axis=0)
    weights = confidence(stacked, _distributions(labels, stacked.shape))[..., None]
    # Not a product alone: a class that is masked by -inf times 0 is not a number.
    return ops.sum(ops.where(weights > 0.0, weights * stacked, 0.0), axis=0)


def confidence(logits, truth):
    """Returns how far each of `K` teachers is to be believed, for every example.

        weight_k = (1 - exp(H_k) / sum over j of exp(H_j)) / (K - 1),

    with `H_k` the cross-entropy of teacher `k` with the label, in nats. The weights sum to 1.

    Args:
        logits: Float32 tensor `(K, batch, ..., classes)`, `K` at least 2.
        truth: Distributions over the classes, float32 `(batch, ..., classes)`.

    Returns:
        Float32 tensor `(K, batch, ...)`.

    References:
        Zhang, Chen, Wang, Confidence-aware multi-teacher knowledge distillation (arXiv:2201.00007);
        they weight a divergence for every teacher, and here it is the logits.
    """
    log_p = ops.log_softmax(logits, axis=-1)
    errors = -ops.sum(ops.where(truth > 0.0, truth * log_p, 0.0), axis=-1)
    errors = ops.minimum(errors, _LARGEST)  # It is infinite where a teacher masks the true class.
    return (1.0 - ops.softmax(errors, axis=0)) / (logits.shape[0] - 1)


_LARGEST = 1e4


def _distributions(labels, shape):
    """Returns labels as distributions over the classes; those out of range have no class."""
    _, *rows, classes = shape
    if labels is None or keras.tree.is_nested(labels):
        received = "labels=None" if labels is None else f"labels {labels!r}"
        raise ValueError(
            'Expected one array of labels in the data, by which combine="confidence" weights the '
            f'teachers. Received: {received}. Use combine="mean" without labels.'
        )
    labels = ops.convert_to_tensor(labels)
    if len(labels.shape) == len(rows) + 1 and labels.shape[-1] == classes > 1:
        return ops.cast(labels, "float32")
    if len(labels.shape) == len(rows) + 1 and labels.shape[-1] == 1:
        labels = ops.squeeze(labels, axis=-1)
    if len(labels.shape) != len(rows):
        raise ValueError(
            f"Expected labels of one class, or one distribution over {classes} classes, for each "
            f"of the teachers' logits, of shape {tuple(shape[1:])}. Received: labels of shape "
            f"{tuple(labels.shape)}"
        )
    return ops.one_hot(ops.cast(labels, "int32"), classes, dtype="float32")

"""The authors' contrastive representation distillation, in float64."""

import numpy as np

TEMPERATURE = 0.07


def embedded(loss, teacher, student):
    """The two embeddings at length 1, float64."""
    result = []
    for layer, feature in zip(loss.embeddings, (teacher, student), strict=True):
        kernel, bias = (x.astype("float64") for x in layer.get_weights())
        x = feature.reshape(len(feature), -1) @ kernel + bias
        result.append(x / np.linalg.norm(x, axis=1, keepdims=True))
    return result


def contrast(out, examples, epsilon=1e-7):
    """The authors' loss of a direction: `out` has the positives first, divided by Z * examples."""
    negatives, noise = out.shape[1] - 1, 1 / examples
    positive = out[:, 0] / (out[:, 0] + negatives * noise + epsilon)
    negative = negatives * noise / (out[:, 1:] + negatives * noise + epsilon)
    return -(np.log(positive).sum() + np.log(negative).sum()) / len(out)

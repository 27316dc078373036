"""Scores of the public critics in float64 NumPy, one pair of examples at a time."""

import numpy as np

from keras_mikd.critics.critic import ConcatCritic


def score(critic, teacher, student):
    """Scores of one pair, `(locations,)`, from two arrays `(locations or 1, channels)`."""
    locations = max(len(teacher), len(student))
    teacher, student = (
        np.broadcast_to(x, (locations, x.shape[-1])).astype("float64") for x in (teacher, student)
    )
    twin = _concat if isinstance(critic, ConcatCritic) else _separable
    return twin(critic, teacher, student)


def _concat(critic, teacher, student):
    joined = np.concatenate([teacher, student], axis=-1)
    kernels = [np.array(layer.kernel) for layer in (critic.teacher_layer, critic.student_layer)]
    hidden = np.maximum(joined @ np.concatenate(kernels) + np.array(critic.student_layer.bias), 0)
    for layer, activation in ((critic.hidden_layer, np.maximum), (critic.score_layer, np.add)):
        hidden = activation(hidden @ np.array(layer.kernel) + np.array(layer.bias), 0)
    return hidden[:, 0]


def _separable(critic, teacher, student):
    teacher = teacher @ np.array(critic.teacher_layer.kernel)
    student = student @ np.array(critic.student_layer.kernel)
    lengths = np.linalg.norm(teacher, axis=-1) * np.linalg.norm(student, axis=-1)
    cosine = np.sum(teacher * student, axis=-1) / lengths
    return cosine / critic.temperature + float(critic.bias)

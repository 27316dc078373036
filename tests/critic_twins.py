"""Scores of the public critics in float64 NumPy, one pair of examples at a time."""

import numpy as np

from keras_mikd.critics.critic import ConcatCritic


def partners(batch, number, step=0):
    """`{example: its negatives}` in a batch, at a step: the next ones in a shuffled order."""
    order = sorted(range(batch), key=lambda i: _hash((i + step * 0x9E3779B9) % 2**32))
    place = {example: i for i, example in enumerate(order)}
    number = min(number, batch - 1)
    return {i: [order[(place[i] + k) % batch] for k in range(1, number + 1)] for i in range(batch)}


def _hash(key):
    """The finalizer of MurmurHash3, in integers of any size."""
    key = (key ^ (key >> 16)) * 0x85EBCA6B % 2**32
    key = (key ^ (key >> 13)) * 0xC2B2AE35 % 2**32
    return key ^ (key >> 16)


def set_random_weights(owner):
    """Gives every trained weight a size at which it matters, biases too."""
    rng = np.random.default_rng(1)
    for variable in owner.trainable_weights:
        variable.assign(rng.normal(size=variable.shape))


def score(critic, teacher, student):
    """Scores of one pair, `(locations,)`, from two arrays `(locations or 1, channels)`."""
    locations = max(len(teacher), len(student))
    teacher, student = (
        np.broadcast_to(x, (locations, x.shape[-1])).astype("float64") for x in (teacher, student)
    )
    twin = _concat if isinstance(critic, ConcatCritic) else _separable
    return twin(critic, teacher, student)


def _standardized(x, moments):
    mean, square = np.array(moments, "float64")
    if not np.any(square):
        return 2 * np.arcsinh(x / 2)
    spread = np.sqrt(square - mean**2)
    return 2 * np.arcsinh((x - mean * abs(mean)) / (spread * (2 * abs(mean) + spread)) / 2)


def _concat(critic, teacher, student):
    teacher = _standardized(teacher, critic.teacher_moments)
    student = _standardized(student, critic.student_moments)
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

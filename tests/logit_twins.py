"""What the tests of losses on logits share: NumPy in float64, and the gradient of a loss."""

import numpy as np
import tensorflow as tf


def logits(examples, classes, *, seed=0, scale=3.0):
    """Returns random logits of a teacher and a student, and random labels."""
    rng = np.random.default_rng(seed)
    teacher, student = scale * rng.normal(size=(2, examples, classes))
    return (
        teacher.astype("float32"),
        student.astype("float32"),
        rng.integers(classes, size=examples),
    )


def softmax(x, temperature=1.0):
    x = np.asarray(x, "float64") / temperature
    exponentials = np.exp(x - x.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def divergence(p, q):
    """KL of each row; a class without a probability under `p` counts for nothing."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(p > 0, p * (np.log(p) - np.log(q)), 0.0).sum(axis=-1)


def one_against_rest(teacher, student, temperature, *, of_teacher, of_student):
    """Values of `T^2 KL` of one class and the rest in 80 bits, and their gradient (student)."""
    p, q = (_softmax_of_80_bits(x, temperature) for x in (teacher, student))
    rows = np.arange(len(p))
    pairs = []
    for x, chosen in ((p, of_teacher), (q, of_student)):
        rest = x.copy()
        rest[rows, chosen] = 0
        pairs.append((x[rows, chosen], rest.sum(axis=1)))
    (of_p, rest_p), (of_q, rest_q) = pairs
    value = of_p * np.log(of_p / of_q) + rest_p * np.log(rest_p / rest_q)
    # Of d log(q) = 1 - q for the class itself, d log(1 - q) = q's share of the rest - q.
    own = np.eye(p.shape[1])[of_student]
    slope = q - of_p[:, None] * own - rest_p[:, None] * (1 - own) * q / rest_q[:, None]
    return temperature**2 * value, temperature * slope


def _softmax_of_80_bits(x, temperature):
    x = np.longdouble(x) / temperature
    exponentials = np.exp(x - x.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def value_and_gradient(loss, teacher, student, labels=None):
    student = tf.constant(student)
    with tf.GradientTape() as tape:
        tape.watch(student)
        value = loss(tf.constant(teacher), student, labels=labels)
    return value.numpy(), tape.gradient(value, student).numpy()


def slope(loss, teacher, student, labels=None, *, step=1e-2):
    """Returns the gradient of the sum of a loss by central differences, element by element."""
    slopes = np.zeros(student.shape)
    for index in np.ndindex(student.shape):
        moved = np.zeros_like(student)
        moved[index] = step
        ends = [
            np.sum(loss(teacher, student + sign * moved, labels=labels)) for sign in (1.0, -1.0)
        ]
        slopes[index] = (ends[0] - ends[1]) / (2 * step)
    return slopes

"""Pairs of variables whose mutual information is known, made as in "Beyond Normal".

No script by itself: `import known_information` works where one of the experiments is started.

Czyz et al., Beyond Normal: On the Evaluation of Mutual Information Estimators (NeurIPS 2023,
arXiv:2306.11078). Gaussians, Student's t and a uniform variable with noise have closed forms. A
smooth map of one of the sides that can be undone keeps the information.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import numpy as np

CORRELATION, STRONG = 0.75, 0.8


@dataclasses.dataclass(frozen=True)
class Task:
    """A pair of variables: a function `(rng, count) -> two float32 arrays`, and what they share."""

    draw: Callable
    nats: float


def _gaussian(covariance):
    """Two Gaussian vectors of one length, with the covariance of both together."""
    factor = np.linalg.cholesky(covariance)
    size = len(covariance) // 2

    def draw(rng, count):
        both = rng.standard_normal((count, 2 * size)) @ factor.T
        return both[:, :size], both[:, size:]

    (_, first), (_, second), (_, joint) = (
        np.linalg.slogdet(part)
        for part in (covariance[:size, :size], covariance[size:, size:], covariance)
    )
    return Task(draw, (first + second - joint) / 2)


def _dense(size, correlation):
    """Every element of both vectors is correlated with every other one."""
    return _gaussian(
        np.full((2 * size, 2 * size), correlation) + (1 - correlation) * np.eye(2 * size)
    )


def _sparse(size, correlations):
    """The first elements are correlated in pairs, all others are noise."""
    covariance = np.eye(2 * size)
    for i, correlation in enumerate(correlations):
        covariance[i, size + i] = covariance[size + i, i] = correlation
    return _gaussian(covariance)


def _student(size, freedom):
    """Two vectors of Student's t without correlation: they share the size of their outliers."""

    def draw(rng, count):
        both = rng.standard_normal((count, 2 * size))
        both /= np.sqrt(rng.chisquare(freedom, (count, 1)) / freedom)
        return both[:, :size], both[:, size:]

    def term(k):
        return math.lgamma(k / 2) - k / 2 * _digamma(k / 2)

    nats = term(freedom) + term(freedom + 2 * size) - 2 * term(freedom + size)
    return Task(draw, nats)


def _noise(width):
    """A uniform variable on (0, 1), and the same with uniform noise of `width`, 1/2 or more."""

    def draw(rng, count):
        first = rng.uniform(size=(count, 1))
        return first, first + rng.uniform(-width, width, (count, 1))

    return Task(draw, 1 / (4 * width))


def _mapped(task, first, second=None):
    """A task whose sides are mapped, by functions that can be undone."""

    def draw(rng, count):
        x, y = task.draw(rng, count)
        return first(x), (second or first)(y)

    return Task(draw, task.nats)


def _half_cube(x):
    return x * np.sqrt(np.abs(x))


def _swiss_roll(x):
    """A line that is rolled up in the plane."""
    uniform = 0.5 + 0.5 * np.vectorize(math.erf)(x / math.sqrt(2))
    angle = 1.5 * math.pi * (1 + 2 * uniform)
    return np.concatenate([angle * np.cos(angle), angle * np.sin(angle)], axis=1) / 21


def _spiral(x, plane):
    """Turns a plane the more, the further out a point is."""
    angle = np.sum(x**2, axis=1) / x.shape[1]
    first, second = (x[:, i] for i in plane)
    turned = x.copy()
    turned[:, plane[0]] = np.cos(angle) * first - np.sin(angle) * second
    turned[:, plane[1]] = np.sin(angle) * first + np.cos(angle) * second
    return turned


def _digamma(x):
    """Of halves of whole numbers, by recurrence into its asymptotic series."""
    shift = 0.0
    while x < 20:
        shift, x = shift - 1 / x, x + 1
    return shift + math.log(x) - 1 / (2 * x) - 1 / (12 * x**2) + 1 / (120 * x**4)


_NORMAL, _PAIRS = _sparse(1, [CORRELATION]), _sparse(25, [STRONG, STRONG])

TASKS = {
    "normal": _NORMAL,
    "noise": _noise(0.75),
    "asinh": _mapped(_NORMAL, np.arcsinh),
    "half_cube": _mapped(_NORMAL, _half_cube),
    "swiss_roll": _mapped(_NORMAL, _swiss_roll, lambda y: y),
    "student_1": _student(1, freedom=1),
    "student_5": _student(5, freedom=2),
    "asinh_student_5": _mapped(_student(5, freedom=2), np.arcsinh),
    "dense_25": _dense(25, 0.5),
    "sparse_25": _PAIRS,
    "half_cube_25": _mapped(_PAIRS, _half_cube),
    "spiral_25": _mapped(
        _PAIRS,
        functools.partial(_spiral, plane=(0, 1)),
        functools.partial(_spiral, plane=(1, 2)),
    ),
}

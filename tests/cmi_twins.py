"""Float64 NumPy twins of the definitions, two passes and loops over pairs where they have them."""

import numpy as np


def log_softmax(logits, temperature=1.0):
    z = np.asarray(logits, "float64") / temperature
    z = z - z.max(axis=1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=1, keepdims=True))


def softmax(logits, temperature=1.0):
    return np.exp(log_softmax(logits, temperature))


def centroids(p, labels):
    return np.stack([p[labels == y].mean(axis=0) for y in range(p.shape[1])])


def divergence(p, q):
    """`KL(p || q)` of every row, 0 log 0 = 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(p > 0, p * (np.log(p) - np.log(q)), 0.0).sum(axis=1)


def cmi(p, labels):
    return divergence(p, centroids(p, labels)[labels]).mean()


def entropy(p):
    with np.errstate(divide="ignore", invalid="ignore"):
        return -np.where(p > 0, p * np.log(p), 0.0).sum(axis=-1)


def separation(p, labels, rows=None):
    """Mean cross entropy over ordered pairs of different labels, x from `rows`."""
    with np.errstate(divide="ignore"):
        log_p = np.log(p)
    values = [
        -np.sum(np.where(p[x] > 0, p[x] * log_p[u], 0.0))
        for x in (range(len(p)) if rows is None else rows)
        for u in range(len(p))
        if labels[x] != labels[u]
    ]
    return np.mean(values)


def outputs(examples=60, classes=4, scale=3.0, seed=0):
    """Random logits and labels in which every class occurs."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), rng.integers(classes, size=examples - classes)])
    return scale * rng.normal(size=(examples, classes)), labels

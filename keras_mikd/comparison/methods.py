"""The methods that `compare` knows by name, with the weights that it tries."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from keras_mikd import checks
from keras_mikd.comparison.cells import name_of
from keras_mikd.distillers import recipes

STUDENT = "student"
"""The student alone."""


class Method(NamedTuple):
    """How the losses of a method are made, and the weights to choose among."""

    losses: Callable
    """Function `(teacher, student, weight) -> list of losses`, or a distiller of the student."""
    weights: tuple


def _vid(teacher, student, weight):
    return recipes.vid(teacher, student, stage_weight=weight, initial_variance="auto")


def _kd(teacher, student, weight):
    # `compare` takes no other task with one output than that of two classes.
    shape = getattr(student, "output_shape", None)
    binary = isinstance(shape, tuple) and shape[-1] == 1
    return recipes.kd(teacher, student, weight=weight, binary=binary)


def _mimkd(teacher, student, weight):
    levels = dict.fromkeys(("global_weight", "local_weight", "feature_weight"), weight)
    return recipes.mimkd(teacher, student, **levels)


def _weighted(recipe):
    return lambda teacher, student, weight: recipe(teacher, student, weight=weight)


# Weights a decade apart around those of the authors, where there are any.
METHODS = {
    "kd": Method(_kd, (0.3, 3.0, 30.0)),
    "lskd": Method(_weighted(recipes.lskd), (0.9, 9.0, 90.0)),
    "dkd": Method(_weighted(recipes.dkd), (0.1, 1.0, 10.0)),
    "rld": Method(_weighted(recipes.rld), (0.1, 1.0, 10.0)),
    "dist": Method(_weighted(recipes.dist), (0.2, 2.0, 20.0)),
    "wttm": Method(_weighted(recipes.wttm), (0.4, 4.0, 40.0)),
    "hint": Method(_weighted(recipes.hint), (10.0, 100.0, 1000.0)),
    "vkd": Method(_weighted(recipes.vkd), (0.1, 1.0, 10.0)),
    "at": Method(_weighted(recipes.attention_transfer), (10.0, 100.0, 1000.0)),
    "ab": Method(_weighted(recipes.activation_boundary), (0.1, 1.0, 10.0)),
    "ft": Method(_weighted(recipes.factor_transfer), (2.0, 20.0, 200.0)),
    "review_kd": Method(_weighted(recipes.review_kd), (0.5, 5.0, 50.0)),
    "nst": Method(_weighted(recipes.nst), (0.5, 5.0, 50.0)),
    "fsp": Method(_weighted(recipes.fsp), (0.1, 1.0, 10.0)),
    "sp": Method(_weighted(recipes.similarity_preserving), (30.0, 300.0, 3000.0)),
    "cc": Method(_weighted(recipes.correlation_congruence), (0.002, 0.02, 0.2)),
    "rkd": Method(_weighted(recipes.rkd), (0.1, 1.0, 10.0)),
    "pkt": Method(_weighted(recipes.pkt), (300.0, 3000.0, 30000.0)),
    "crd": Method(_weighted(recipes.crd), (0.08, 0.8, 8.0)),
    "queue": Method(_weighted(recipes.queue_relation), (0.1, 1.0, 10.0)),
    "itrd": Method(_weighted(recipes.itrd), (0.1, 1.0, 10.0)),
    "vid": Method(_vid, (1.0, 10.0, 100.0)),
    "mimkd": Method(_mimkd, (0.1, 1.0, 10.0)),
    "info_nce": Method(_weighted(recipes.info_nce), (0.1, 1.0, 10.0)),
    "muse": Method(_weighted(recipes.muse), (0.1, 1.0, 10.0)),
}

BALANCED = (0.3, 1.0, 3.0)
"""Weights to try where they are ratios of gradients."""

DEFAULT = ("kd", "hint", "at", "vid", "mimkd", "info_nce")
"""What `compare` runs if it is not told what to run."""


def checked_methods(methods, weights):
    """Returns `{name: Method}` of what `compare` is given.

    Raises:
        ValueError: If a name is unknown, a method has no weights, some have more than others, or
            two runs would have one name.
    """
    if isinstance(methods, str):
        raise ValueError(
            f"Expected `methods` to be a list, such as [{methods!r}]. Received: {methods!r}"
        )
    given = methods if isinstance(methods, dict) else dict.fromkeys(methods)
    if isinstance(weights, dict) and (unknown := [name for name in weights if name not in given]):
        raise ValueError(
            f"Expected the keys of `weights` to be among the methods {list(given)}. "
            f"Received: {unknown}"
        )
    chosen = {}
    for name, losses in given.items():
        if losses is None and name not in METHODS:
            raise ValueError(
                f"Expected `methods` to be some of {list(METHODS)}, or a dict of functions "
                f"(teacher, student, weight) -> list of losses, or a distiller. Received: {name!r}"
            )
        own = weights.get(name) if isinstance(weights, dict) else weights
        own = METHODS[name].weights if own is None and name in METHODS else own
        if not isinstance(own, Iterable) or isinstance(own, str) or not (own := list(own)):
            raise ValueError(
                f"Expected weights to try for {name!r}: weights={{{name!r}: [0.3, 1, 3]}}. "
                f"Received: weights={weights!r}"
            )
        least = 0.0 if losses is None else None
        own = tuple(checks.number(f"weights of {name}", each, at_least=least) for each in own)
        chosen[name] = Method(METHODS[name].losses if losses is None else losses, own)
    trials = {name: len(method.weights) for name, method in chosen.items()}
    if STUDENT in chosen or not chosen:
        raise ValueError(
            f"Expected at least one method, and none called {STUDENT!r}, which is the student "
            f"alone and always there. Received: methods={list(chosen)}"
        )
    if len(set(trials.values())) > 1:
        raise ValueError(
            "Expected as many weights to try for every method: a method with more of them would "
            f"win by that alone. Received: {trials}"
        )
    _check_names(chosen)
    return chosen


def _check_names(chosen):
    """Refuses methods and weights that would share the names of their runs."""
    of_runs = {}
    for name, method in chosen.items():
        for weight in method.weights:
            run = name_of({"method": name, "weight": weight})
            if run in of_runs:
                raise ValueError(
                    "Expected methods and weights that the names of their runs tell apart. "
                    f"Received: {of_runs[run]} and {(name, weight)}, both {run!r}. Rename a "
                    "method, or leave out a weight."
                )
            of_runs[run] = name, weight

"""Warns at construction about critics that cost more than the student."""

import math
import warnings

from keras_mikd.features.layer_graph import LayerGraph, has_graph

# What is nothing to speak of, whatever the student.
_FEW_WEIGHTS = 100_000
_LITTLE_WORK = 10_000_000


def warn_of_large_critics(loss, model):
    """Warns where critics have more weights than the network that learns, or multiply its step.

    Args:
        loss: Built `DistillationLoss`.
        model: The network; one without a graph is compared by its weights alone.
    """
    if not loss.compares_examples:
        return
    own_weights, own_work = model.count_params(), _multiplications(model)
    weights = sum(math.prod(weight.shape) for weight in loss.trainable_weights)
    work = loss.multiplications or 0
    slower = own_work is not None and work > max(own_work, _LITTLE_WORK)
    if weights > max(own_weights, _FEW_WEIGHTS) or slower:
        share = (
            f"; scoring its pairs costs {work / own_work:.1f} of its forward passes"
            if slower
            else ""
        )
        warnings.warn(
            f"The critics of {loss.name!r} have {weights:,} weights, {model.name!r} has "
            f"{own_weights:,}{share}. Use `critic=keras_mikd.SeparableCritic()` and `grid=8` or "
            "less, or choose places with fewer locations.",
            stacklevel=2,
        )


def _multiplications(model):
    """Returns the multiplications of a forward pass of one example; `None` if unknown."""
    if not has_graph(model):
        return None
    total = 0
    for call in LayerGraph(model).calls:
        kernels = [w for w in getattr(call.layer, "weights", ()) if len(w.shape) > 1]
        places = call.shapes[0][1:-1]
        if None in places:
            return None
        total += sum(math.prod(w.shape) for w in kernels) * math.prod(places)
    return total or None

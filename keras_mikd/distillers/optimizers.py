"""Several optimizers of one model, each with the weights that it trains."""

import contextlib
import itertools

import keras


def check_distinct(optimizers):
    """Checks that optimizers that train different weights are different objects."""
    own = [getattr(optimizer, "inner_optimizer", optimizer) for optimizer in optimizers]
    for first, second in itertools.combinations(own, 2):
        if isinstance(first, keras.optimizers.Optimizer) and first is second:
            raise ValueError(
                "Expected different optimizers, since each keeps the state of the weights that it "
                f"trains. Received: the same {type(first).__name__} twice. Make a new one for each."
            )


@contextlib.contextmanager
def finalizing_each(pairs):
    """At its end, `fit` lets every optimizer finalize (`use_ema`) the weights that it trains.

    Keras would let the first one finalize all of them. `pairs` are optimizers and variables.
    """
    if len(pairs) < 2:
        yield
        return
    own = [(optimizer.finalize_variable_values, variables) for optimizer, variables in pairs]

    def finalize_each(_):
        for finalize, variables in own:
            finalize(variables)

    first, _ = pairs[0]
    first.finalize_variable_values = finalize_each
    try:
        yield
    finally:
        del first.finalize_variable_values


def of_one_dtype(optimizer, gradients):
    """Returns gradients of the widest dtype among them where an optimizer adds up their norms.

    Keras does not mix dtypes there, and casts a gradient to that of its variable afterwards.
    """
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    dtypes = sorted({keras.backend.standardize_dtype(g.dtype) for g in gradients if g is not None})
    if not inner.global_clipnorm or len(dtypes) < 2:
        return gradients
    if inner.gradient_accumulation_steps:
        raise ValueError(
            "Expected weights of one dtype where gradients are accumulated and then clipped by "
            f"their common norm. Received: global_clipnorm={inner.global_clipnorm}, with gradients "
            f"of {' and '.join(dtypes)}. Use `clipnorm`, or no gradient_accumulation_steps."
        )
    widest = keras.backend.result_type(*dtypes)
    return [None if g is None else keras.ops.cast(g, widest) for g in gradients]

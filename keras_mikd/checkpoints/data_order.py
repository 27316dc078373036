"""Whether a process that is started again reads its data in the same order."""

import keras
import tensorflow as tf

from keras_mikd import keras_internals

_NO_GLOBAL_SEED = 87654321  # What `tf.compat.v1.get_seed` has where none is set.


def check_repeatable(x, shuffle):
    """Refuses data that is shuffled without a seed; generators are not looked into.

    Raises:
        ValueError: If the order of `x` is another one in every process.
    """
    if isinstance(x, tf.data.Dataset):
        found = keras_internals.unseeded_draws(x)
        seed_here = f", or give {found} a seed"
    else:
        arrays = all(hasattr(part, "shape") for part in keras.tree.flatten(x))
        found = "shuffle=True" if arrays and shuffle and not _has_global_seed() else None
        seed_here = ", or pass shuffle=False"
    if found:
        raise ValueError(
            "Expected data that a new start reads in the same order, for ExactResume. Received: "
            f"{found} without a seed. Call keras.utils.set_random_seed(seed) at the start of the "
            f"script, before networks and data are made{seed_here}."
        )


def _has_global_seed():
    return tf.compat.v1.get_seed(0)[0] != _NO_GLOBAL_SEED

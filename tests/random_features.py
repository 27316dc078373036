"""Features of networks that nobody trained."""

import numpy as np


def random_features(shapes, seed=0):
    """Returns float32 tensors of these shapes with normal numbers; lists of them for lists."""
    rng = np.random.default_rng(seed)

    def draw(shape):
        if isinstance(shape, list):
            return [draw(each) for each in shape]
        return rng.normal(size=shape).astype("float32")

    return [draw(shape) for shape in shapes]

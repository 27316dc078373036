"""Real digits with a label for every pixel, derived from the scenes with boxes."""

import numpy as np

from keras_mikd.datasets import digit_scenes_builder
from keras_mikd.datasets.digits_builder import digits_by_split

BACKGROUND, CLASSES, IGNORED = 10, 11, 255


def first(scenes=16):
    """Images `(scenes, 64, 64, 1)` in [0, 1] and labels `(scenes, 64, 64)` of the training split.

    A pixel of ink has the class of its digit. The pale edge of a digit is ignored, as VOC ignores
    the borders of its objects.
    """
    random = np.random.RandomState(0)
    digits = digits_by_split()["train"]
    drawn = [digit_scenes_builder._scene(random, *digits) for _ in range(scenes)]
    images = np.float32([canvas for canvas, _, _ in drawn])[..., None] / 255
    return images, np.stack([_labels(*scene) for scene in drawn])


def _labels(canvas, boxes, classes):
    labels = np.full(canvas.shape, BACKGROUND, "uint8")
    for (top, left, bottom, right), kind in zip(boxes, classes, strict=True):
        cell = slice(top, bottom), slice(left, right)
        ink = canvas[cell]
        labels[cell] = np.where(ink > 127, kind, np.where(ink > 0, IGNORED, BACKGROUND))
    return labels

"""Scenes of several handwritten digits on one canvas, as a TFDS builder."""

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from keras_mikd.datasets.digits_builder import CITATION, HOMEPAGE, digits_by_split

SIZE = 64
"""Height and width of a scene, in pixels."""
MAX_DIGITS = 5
"""Most digits in a scene."""

_DESCRIPTION = """\
Scenes for object detection: 64x64 black canvases with one to five handwritten digits of
scikit-learn. Each digit is cut out to its ink, enlarged by a factor of 1.5 to 3.5 (bilinear) and
put where it overlaps no other; its box is the rectangle that it covers. Factors, places and
numbers of digits are uniform, drawn once with a fixed seed; a digit that finds no room in 50
attempts is left out.

The scenes of a split hold digits of the same split of `mikd_digits` only, so that no digit of the
test scenes was seen in training.
"""

_SCENES = {"train": 2000, "validation": 400, "test": 600}
_FACTORS = (1.5, 3.5)
_ATTEMPTS = 50


class MikdDigitScenes(tfds.core.GeneratorBasedBuilder):
    """3,000 scenes of real handwritten digits, read from scikit-learn: nothing is downloaded.

    Importing this module registers the builder with TFDS. `objects` has the form it has in TFDS'
    `coco`: `bbox` is (ymin, xmin, ymax, xmax) relative to the canvas.

    Example:
    ```python
    import tensorflow_datasets as tfds
    import keras_mikd.datasets.digit_scenes_builder

    train, info = tfds.load("mikd_digit_scenes", split="train", with_info=True)
    ```
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "2,000 train, 400 validation and 600 test scenes."}

    def _info(self):
        objects = {
            "bbox": tfds.features.BBoxFeature(),
            "label": tfds.features.ClassLabel(num_classes=10),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(SIZE, SIZE, 1), dtype=np.uint8),
                    "objects": tfds.features.Sequence(objects),
                }
            ),
            homepage=HOMEPAGE,
            citation=CITATION,
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        del dl_manager
        return {
            split: self._generate_examples(images, labels, _SCENES[split], seed)
            for seed, (split, (images, labels)) in enumerate(digits_by_split().items())
        }

    def _generate_examples(self, images, labels, scenes, seed):
        random = np.random.RandomState(seed)
        for key in range(scenes):
            canvas, corners, classes = _scene(random, images, labels)
            boxes = [tfds.features.BBox(*(float(edge) / SIZE for edge in box)) for box in corners]
            objects = [{"bbox": b, "label": c} for b, c in zip(boxes, classes, strict=True)]
            yield key, {"image": canvas[..., np.newaxis], "objects": objects}


def _scene(random, images, labels):
    """Returns a uint8 canvas, its boxes (ymin, xmin, ymax, xmax) in pixels and their classes."""
    canvas = np.zeros((SIZE, SIZE), np.uint8)
    boxes, classes = [], []
    for _ in range(random.randint(1, MAX_DIGITS + 1)):
        index = random.randint(len(labels))
        digit = _enlarged(_ink(images[index, ..., 0]), random.uniform(*_FACTORS))
        box = _free_box(random, digit.shape, boxes)
        if box is not None:
            canvas[box[0] : box[2], box[1] : box[3]] = digit
            boxes.append(box)
            classes.append(int(labels[index]))
    return canvas, boxes, classes


def _ink(image):
    """Cuts an image to the rows and columns that are not empty."""
    rows, columns = (np.flatnonzero(image.any(axis=axis)) for axis in (1, 0))
    return image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _enlarged(counts, factor):
    """Returns uint8 gray levels; `counts` has the 0 to 16 of scikit-learn."""
    size = [round(factor * side) for side in counts.shape]
    levels = tf.image.resize(counts[..., np.newaxis] * (255 / 16), size, method="bilinear")
    return np.clip(np.rint(levels[..., 0]), 0, 255).astype(np.uint8)


def _free_box(random, shape, boxes):
    """Returns a random box of this shape that overlaps none of `boxes`, or None."""
    for _ in range(_ATTEMPTS):
        top, left = (random.randint(SIZE - side + 1) for side in shape)
        bottom, right = top + shape[0], left + shape[1]
        if not any(top < b[2] and b[0] < bottom and left < b[3] and b[1] < right for b in boxes):
            return top, left, bottom, right
    return None

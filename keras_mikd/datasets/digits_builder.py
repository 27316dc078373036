"""The handwritten digits that come with scikit-learn, as a TFDS builder."""

import numpy as np
import tensorflow_datasets as tfds

from keras_mikd import checks
from keras_mikd.datasets.splits import partition_per_class

_DESCRIPTION = """\
1,797 handwritten digits of 8x8 pixels, the copy in scikit-learn of the test part of the UCI data
set "Optical Recognition of Handwritten Digits". A pixel counts the black dots, 0 to 16, in a 4x4
square of the original 32x32 bitmap, and is stored as that count.

The splits are fixed: of each class 50 % train, 20 % validation and 30 % test, drawn once with a
fixed seed. The same 13 people wrote the digits of all three, so test accuracy says nothing about
digits by other hands.
"""

HOMEPAGE = "https://archive.ics.uci.edu/dataset/80"
CITATION = """\
@misc{alpaydin1998optical,
    author = {Alpaydin, E. and Kaynak, C.},
    title = {Optical Recognition of Handwritten Digits},
    year = {1998},
    howpublished = {UCI Machine Learning Repository},
    doi = {10.24432/C50P49},
}
"""

_FRACTIONS = {"train": 0.5, "validation": 0.2, "test": 0.3}


class MikdDigits(tfds.core.GeneratorBasedBuilder):
    """1,797 real handwritten digits, read from scikit-learn: nothing is downloaded.

    Importing this module registers the builder with TFDS.

    Example:
    ```python
    import tensorflow_datasets as tfds
    import keras_mikd.datasets.digits_builder

    train, info = tfds.load("mikd_digits", split="train", with_info=True)
    ```
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "50 % train, 20 % validation, 30 % test of each class."}

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1), dtype=np.uint8),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            homepage=HOMEPAGE,
            citation=CITATION,
            # Keeps the order of scikit-learn, so that a key is a position in its arrays.
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        del dl_manager
        images, labels = _read_scikit_learn()
        return {
            name: self._generate_examples(images, labels, indices)
            for name, indices in _indices_by_split(labels).items()
        }

    def _generate_examples(self, images, labels, indices):
        for index in indices:
            yield int(index), {"image": images[index], "label": int(labels[index])}


def digits_by_split():
    """Returns `{split: (images, labels)}`: uint8 `(n, 8, 8, 1)` of 0 to 16, and integers `(n,)`."""
    images, labels = _read_scikit_learn()
    return {
        name: (images[indices], labels[indices])
        for name, indices in _indices_by_split(labels).items()
    }


def _indices_by_split(labels):
    parts = partition_per_class(labels, list(_FRACTIONS.values()), seed=0)
    return dict(zip(_FRACTIONS, parts, strict=True))


def _read_scikit_learn():
    with checks.extra("data"):
        from sklearn.datasets import load_digits
    digits = load_digits()
    return digits.images[..., np.newaxis].astype(np.uint8), digits.target

"""A folder of pictures as a builder of TFDS, of the files that it is told."""

import random
from typing import NamedTuple

import tensorflow_datasets as tfds


class _Example(NamedTuple):
    image_path: str
    label: str


class PictureFolder(tfds.ImageFolder, skip_registration=True):
    """TFDS' own builder without its look at the folder, which takes hidden ones for classes.

    Args:
        folder: Folder of the data.
        splits: `{split: {class: paths of its pictures}}`.
    """

    def __init__(self, folder, splits):
        self._image_shape = self._image_dtype = None
        super(tfds.ImageFolder, self).__init__(data_dir=folder)
        self._data_dir = folder
        self._split_examples = {name: _mixed(name, classes) for name, classes in splits.items()}
        labels = {label for classes in splits.values() for label in classes}
        self.info.features["label"].names = sorted(labels)
        infos = [
            tfds.core.SplitInfo(name=name, shard_lengths=[len(examples)], num_bytes=0)
            for name, examples in self._split_examples.items()
        ]
        self.info.set_splits(tfds.core.splits.SplitDict(infos))

    def path(self, split, position):
        """Returns the file of an example, by its position in the split."""
        return self._split_examples[split][position].image_path


def _mixed(split, classes):
    """Returns the examples in the order of `tfds.ImageFolder`, which depends on the split alone."""
    examples = [_Example(path, label) for label in sorted(classes) for path in classes[label]]
    random.Random(split).shuffle(examples)
    return examples

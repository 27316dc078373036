"""Train, validation and test pipelines, and how examples are drawn class by class."""

import dataclasses
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_mikd import checks
from keras_mikd.datasets.image_pipeline import ImagePipeline

UNLABELLED = -1


@dataclasses.dataclass(frozen=True)
class Splits:
    """Three pipelines of one data set and the numbers a model needs to be built for it.

    Each pipeline yields `(images, labels)`: float32 `(batch, height, width, channels)` and int32
    `(batch,)`; for detection, the labels are a dict of boxes and classes, as the function that
    loads them says.

    Attributes:
        train: Shuffled anew in every epoch, in full batches only: images that do not fill the last
            one are left out of that epoch, unless `drop_remainder` is False.
        validation: In a fixed order, every image once. None where nothing was held out.
        test: In a fixed order, every image once.
        num_classes: Number of classes.
        image_shape: `(height, width, channels)`.
        num_train: Number of training images, after `labels_per_class` or `train_fraction`; with
            `unlabelled`, those without a label too.
        num_validation: Number of validation images.
        num_test: Number of test images.
        class_names: Names of the classes, in the order of the labels; None where they have none.
        pipeline: How the images were scaled, see `rescaling`; None for detection.
    """

    train: tf.data.Dataset
    validation: tf.data.Dataset | None
    test: tf.data.Dataset
    num_classes: int
    image_shape: tuple[int, int, int]
    num_train: int
    num_validation: int
    num_test: int
    class_names: tuple[str, ...] | None = None
    pipeline: ImagePipeline | None = None

    def rescaling(self) -> keras.layers.Rescaling:
        """Returns a layer that scales pixels as they are stored, 0 to 255, as these images are.

        Put it in front of a network that you hand over: a device has pixels. (Those of the digits
        of scikit-learn are 0 to 16.)

        Raises:
            ValueError: If the images are those of a detector.

        Example:
        ```python
        layers = [keras.Input(data.image_shape), data.rescaling(), student]
        export_tflite(keras.Sequential(layers), "student.tflite")
        ```
        """
        return self._scaling().rescaling()

    def pixels(self, split: tf.data.Dataset) -> tf.data.Dataset:
        """Returns batches `(pixels, labels)` of a split: images as they were before scaling.

        They calibrate and check a file that takes pixels, see `rescaling`.

        Args:
            split: One of the three pipelines.

        Raises:
            ValueError: If the images are those of a detector.

        Example:
        ```python
        export_tflite(deployed, "student.tflite", check_on=data.pixels(data.test))
        ```
        """
        scaling = self._scaling()
        return split.map(lambda images, labels: (scaling.pixels(images), labels))

    def _scaling(self):
        if self.pipeline is None:
            raise ValueError(
                "Expected images of a classifier. Received: those of a detector, whose network "
                "scales them itself."
            )
        return self.pipeline


class LabelledImages(NamedTuple):
    """One split in memory: uint8 images `(n, height, width, channels)`, int32 labels `(n,)`."""

    images: np.ndarray
    labels: np.ndarray

    def take(self, indices):
        """Returns the examples at `indices`, in that order."""
        return LabelledImages(self.images[indices], self.labels[indices])


@dataclasses.dataclass(frozen=True)
class Training:
    """Which training images are used and how they come in batches; checked before data is read.

    Attributes:
        batch_size: Images in a batch.
        seed: Seed of the draw, of the order and of the augmentation.
        augment: Whether images are augmented.
        labels_per_class: Images to keep of each class; None keeps all of them.
        train_fraction: First fraction of the images to keep, in epochs as long as with all of them;
            None keeps all of them.
        drop_remainder: Whether images that do not fill the last batch are left out of an epoch.
        unlabelled: Whether images that `labels_per_class` does not keep stay, labelled -1.

    Raises:
        ValueError: If one of them could not fit any data set.
    """

    batch_size: int
    seed: int
    augment: bool
    labels_per_class: int | None
    train_fraction: float | None
    drop_remainder: bool = True
    unlabelled: bool = False

    def __post_init__(self):
        checks.integer("batch_size", self.batch_size, at_least=1)
        check_seed(self.seed)
        checks.integer("labels_per_class", self.labels_per_class, at_least=1, optional=True)
        checks.number("train_fraction", self.train_fraction, above=0, at_most=1, optional=True)
        if self.train_fraction is not None and self.labels_per_class is not None:
            raise ValueError(
                "Expected `labels_per_class` or `train_fraction`, not both. Received: labels_per_"
                f"class={self.labels_per_class}, train_fraction={self.train_fraction}"
            )

        if self.unlabelled and self.labels_per_class is None:
            raise ValueError(
                "Expected `labels_per_class` beside `unlabelled`: it says how many images keep "
                "their label. Received: labels_per_class=None, unlabelled=True"
            )

    def kept(self, train):
        """Returns the training images to keep, and how many an epoch has."""
        if self.labels_per_class is not None:
            drawn = draw_per_class(train.labels, self.labels_per_class, seed=self.seed)
            if self.unlabelled:
                train = train._replace(labels=only_at(drawn, train.labels))
            else:
                train = train.take(drawn)
        epoch_size = len(train.labels)
        if self.drop_remainder:
            check_batch_size(self.batch_size, epoch_size)
        return train.take(slice(self.first_of(epoch_size))), epoch_size

    def first_of(self, count):
        """Returns how many of `count` training images `train_fraction` keeps."""
        kept = count if self.train_fraction is None else int(self.train_fraction * count)
        if not kept:
            raise ValueError(
                f"Expected `train_fraction` to keep one of {count} training images at least. "
                f"Received: train_fraction={self.train_fraction}"
            )
        return kept


def only_at(indices, labels):
    """Returns the labels with -1, for none, everywhere but at `indices`."""
    return np.where(np.isin(np.arange(len(labels)), indices), labels, UNLABELLED)


def check_seed(seed):
    """Raises a ValueError for what is no seed of NumPy."""
    checks.integer("seed", seed, at_least=0, at_most=2**32 - 1)


def check_batch_size(batch_size, num_train):
    """Raises a ValueError if the training images do not fill a batch."""
    if batch_size > num_train:
        raise ValueError(
            f"Expected `batch_size` to be at most {num_train}, the number of training images: "
            f"only full batches are trained on. Received: batch_size={batch_size}"
        )


def build_splits(
    train: LabelledImages,
    validation: LabelledImages | None,
    test: LabelledImages,
    *,
    num_classes: int,
    pipeline: ImagePipeline,
    training: Training,
    class_names: tuple[str, ...] | None = None,
) -> Splits:
    """Keeps the few training images, if asked to, and puts pipelines on top of the arrays.

    Raises:
        ValueError: If a class is too small for `labels_per_class`, the training set for a batch, or
            `train_fraction` for a single image.
    """
    train, epoch_size = training.kept(train)

    def evaluated(split):
        return pipeline.for_evaluation(*split, batch_size=training.batch_size)

    return Splits(
        train=pipeline.for_training(
            *train,
            batch_size=training.batch_size,
            seed=training.seed,
            augment=training.augment,
            epoch_size=epoch_size,
            drop_remainder=training.drop_remainder,
        ),
        validation=evaluated(validation) if validation else None,
        test=evaluated(test),
        num_classes=num_classes,
        image_shape=tuple(train.images.shape[1:]),
        num_train=len(train.labels),
        num_validation=len(validation.labels) if validation else 0,
        num_test=len(test.labels),
        class_names=class_names,
        pipeline=pipeline,
    )


def partition_per_class(labels, fractions, *, seed):
    """Cuts the examples of every class into parts of the given fractions, which add up to 1.

    Returns one sorted index array for each fraction. Together they hold each of `0..n-1` once. The
    random order depends on the seed alone, not on the machine.
    """
    edges = np.cumsum(fractions)[:-1]
    parts = [
        np.split(indices, np.rint(edges * len(indices)).astype(int))
        for indices in _shuffled_by_class(labels, seed).values()
    ]
    return tuple(np.sort(np.concatenate(part)) for part in zip(*parts, strict=True))


def draw_per_class(labels, count, *, seed):
    """Draws `count` examples of every class at random; a smaller draw is a subset of a larger one.

    Returns a sorted index array of shape `(count * num_classes,)`, the same on every machine.

    Raises:
        ValueError: If a class has fewer than `count` examples.
    """
    shuffled = _shuffled_by_class(labels, seed)
    smallest = min(shuffled, key=lambda label: len(shuffled[label]))
    available = len(shuffled[smallest])
    if count > available:
        raise ValueError(
            f"Expected `labels_per_class` to be at most {available}: class {smallest} has only "
            f"{available} training images. Received: labels_per_class={count}"
        )
    return np.sort(np.concatenate([indices[:count] for indices in shuffled.values()]))


def _shuffled_by_class(labels, seed):
    """Returns `{label: indices of its examples in random order}`."""
    # RandomState rather than default_rng: NumPy promises never to change its stream.
    random = np.random.RandomState(seed)
    return {int(c): random.permutation(np.flatnonzero(labels == c)) for c in np.unique(labels)}

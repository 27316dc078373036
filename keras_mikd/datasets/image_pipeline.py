"""From uint8 images to batches: scaling, cropping, flipping; how single pictures are cut out."""

import dataclasses
from typing import Literal

import keras
import numpy as np
import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class ImagePipeline:
    """How the images of one data set are scaled and augmented.

    Scaling is `(image / max_value - mean) / std`, for each channel. Augmentation pads every side by
    `padding` pixels and crops a window of the original size at random. Or, with `areas`, it cuts
    out a random part of the original picture and resizes it. With `flip`, it then mirrors half of
    the images.

    Attributes:
        max_value: The pixel value that becomes 1 before `mean` and `std` are applied.
        mean: Mean of each channel.
        std: Standard deviation of each channel.
        padding: Pixels added on every side before the crop.
        padding_mode: "CONSTANT" (zeros, that is black) or "REFLECT".
        flip: Whether augmentation mirrors images left to right.
        areas: Smallest and largest share of the picture's area that is cut out, of a width between
            3/4 and 4/3 of its height, as for ImageNet `(0.08, 1.0)`. Without augmentation, the
            shorter side is then resized to 8/7 of the size, and the middle is cut out. None pads
            and crops instead, and resizes whole pictures, whatever their proportions.
    """

    max_value: float
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    padding: int = 0
    padding_mode: Literal["CONSTANT", "REFLECT"] = "CONSTANT"
    flip: bool = False
    areas: tuple[float, float] | None = None

    def rescaling(self) -> keras.layers.Rescaling:
        """Returns a layer that scales pixels as this does."""
        std = np.asarray(self.std)
        scale, offset = 1 / (self.max_value * std), -np.asarray(self.mean) / std
        return keras.layers.Rescaling(scale.tolist(), offset.tolist(), name="rescaling")

    def for_training(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        *,
        batch_size: int,
        seed: int,
        augment: bool,
        epoch_size: int | None = None,
        drop_remainder: bool = True,
    ) -> tf.data.Dataset:
        """Returns batches in a new order in every epoch, full ones of static shapes.

        Args:
            images: uint8, shape `(n, height, width, channels)`.
            labels: int32, shape `(n,)`.
            batch_size: Images in a batch, at most `epoch_size`.
            seed: Seed of the order and of the augmentation. TensorFlow mixes its global seed in.
            augment: Whether to augment.
            epoch_size: Images in an epoch, at least `n`, the default: they come up in turn.
            drop_remainder: Whether images that do not fill the last batch are left out; otherwise
                it is smaller, and shapes are not static.
        """
        with tf.device("CPU"):
            images, labels = tf.constant(images), tf.constant(labels)
        # Indices are shuffled and whole batches gathered, so that no shuffle buffer copies images.
        count = epoch_size or len(labels)
        indices = tf.data.Dataset.range(count).shuffle(count, seed=seed)
        if count > len(labels):
            indices = indices.map(lambda index: index % len(labels))
        batches = indices.batch(
            batch_size, drop_remainder=drop_remainder or count % batch_size == 0
        )
        # Stateless draws from a seed for each batch stay the same however many threads map runs.
        batch_seeds = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True)

        def gather(chosen, batch_seed):
            batch = tf.gather(images, chosen)
            if augment:
                batch = self.augment(batch, batch_seed)
            return self.scale(batch), tf.gather(labels, chosen)

        drawn = tf.data.Dataset.zip((batches, batch_seeds))
        return finished(drawn.map(gather, num_parallel_calls=tf.data.AUTOTUNE))

    def for_evaluation(
        self, images: np.ndarray, labels: np.ndarray, *, batch_size: int
    ) -> tf.data.Dataset:
        """Returns every image once, in the given order; the last batch may be smaller.

        Shapes are static if `batch_size` divides the number of images.
        """
        with tf.device("CPU"):
            examples = tf.data.Dataset.from_tensor_slices((images, labels))
        batches = examples.batch(batch_size, drop_remainder=len(labels) % batch_size == 0)
        scaled = batches.map(
            lambda batch, targets: (self.scale(batch), targets), num_parallel_calls=tf.data.AUTOTUNE
        )
        return finished(scaled)

    def scale(self, images: tf.Tensor) -> tf.Tensor:
        """Returns float32 images, `(image / max_value - mean) / std`."""
        mean, std = np.float32(self.mean), np.float32(self.std)
        return (tf.cast(images, tf.float32) / self.max_value - mean) / std

    def pixels(self, images: tf.Tensor) -> tf.Tensor:
        """Returns float32 pixels of scaled images: the inverse of `scale`."""
        mean, std = np.float32(self.mean), np.float32(self.std)
        return (images * std + mean) * self.max_value

    def augment(self, images: tf.Tensor, seed: int | tf.Tensor) -> tf.Tensor:
        """Returns a batch of the same shape in which each image is cropped and mirrored anew.

        Args:
            images: Shape `(batch, height, width, channels)`.
            seed: Integer scalar. The same seed gives the same result.
        """
        _, height, width, _ = images.shape
        batch = images.shape[0] or tf.shape(images)[0]
        sides = [self.padding, self.padding]
        images = tf.pad(images, [[0, 0], sides, sides, [0, 0]], mode=self.padding_mode)
        corners = tf.random.stateless_uniform(
            (2, batch, 1), [seed, 0], maxval=2 * self.padding + 1, dtype=tf.int32
        )
        images = tf.gather(images, corners[0] + tf.range(height), axis=1, batch_dims=1)
        images = tf.gather(images, corners[1] + tf.range(width), axis=2, batch_dims=1)
        if not self.flip:
            return images
        mirrored = tf.random.stateless_uniform((batch, 1, 1, 1), [seed, 1]) < 0.5
        return tf.where(mirrored, images[:, :, ::-1], images)

    def prepare(
        self, picture: tf.Tensor, size: int, seed: int | tf.Tensor | None = None
    ) -> tf.Tensor:
        """Returns one float32 image `(size, size, channels)` of a picture, augmented by a seed."""
        if self.areas is None:
            image = _resized(picture, size, size)
        elif seed is None:
            image = _middle(picture, size)
        else:
            image = _random_part(picture, size, self.areas, seed)
        if seed is not None:
            # Whole pictures are moved by the padding, parts only mirrored.
            padded = self if self.areas is None else dataclasses.replace(self, padding=0)
            image = padded.augment(image[None], seed)[0]
        return self.scale(image)


def _random_part(picture, size, areas, seed):
    """Resizes a random part of a picture; the whole, where none of ten draws fits into it."""
    begin, extent, _ = tf.image.stateless_sample_distorted_bounding_box(
        tf.shape(picture),
        tf.zeros((1, 0, 4)),
        seed=tf.stack([seed, 2]),
        min_object_covered=0.0,
        aspect_ratio_range=(3 / 4, 4 / 3),
        area_range=areas,
        max_attempts=10,
        use_image_if_no_bounding_boxes=True,
    )
    return _resized(tf.slice(picture, begin, extent), size, size)


def _middle(picture, size):
    """Resizes the shorter side to 8/7 of the size, 256 for 224, and cuts out the middle."""
    sides = tf.cast(tf.shape(picture)[:2], tf.float32)
    sides = tf.cast(tf.round(sides * (size * 8 / 7) / tf.reduce_min(sides)), tf.int32)
    resized = _resized(picture, sides[0], sides[1])
    return tf.image.crop_to_bounding_box(
        resized, (sides[0] - size) // 2, (sides[1] - size) // 2, size, size
    )


def _resized(picture, height, width):
    image = tf.image.resize(picture, (height, width), antialias=True)
    return tf.ensure_shape(image, (*image.shape[:2], picture.shape[-1]))


def finished(batches):
    """Adds what every pipeline ends with: prefetching, and batches shared out among workers."""
    options = tf.data.Options()
    # There are no files to share out between workers; saying so avoids a warning.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return batches.prefetch(tf.data.AUTOTUNE).with_options(options)

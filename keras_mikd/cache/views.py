"""Augmented views of examples, each from a seed of its own, so that it can be made again."""

import itertools

import numpy as np
import tensorflow as tf

from keras_mikd.checkpoints import fingerprints

MIXES = ("mixup", "cutmix")
_PROBES = 16


class Views:
    """The rows `0 ... views * n - 1` of a data set of `n` examples in `views` views each.

    Row `r` is the example `r % n` in the view `r // n`. Its random draws depend on the seed and on
    `r` alone, so the same row is the same tensor in every epoch, process and batch. The arguments
    are those of `TeacherCache`; a mix turns labels into distributions over `num_classes`.
    """

    def __init__(self, images, labels, *, augment, mix, mix_alpha, num_classes, views, seed):
        with tf.device("CPU"):
            self.images, self.labels = tf.constant(images), tf.constant(labels)
        self.augment, self.mix, self.mix_alpha = augment, mix, mix_alpha
        self.num_classes, self.seed = num_classes, seed
        self.examples = len(images)
        self.rows = views * self.examples
        self._check_augmentation()

    def __call__(self, rows):
        """Returns the images and labels of rows, an int64 tensor of shape `(batch,)`."""
        if self.augment is None and self.mix is None:
            chosen = rows % self.examples
            return tf.gather(self.images, chosen), tf.gather(self.labels, chosen)
        image = tf.TensorSpec(self.images.shape[1:], self.images.dtype)
        label = tf.TensorSpec(self.labels.shape[1:], self.labels.dtype)
        if self.mix is not None:
            label = tf.TensorSpec((self.num_classes,), tf.float32)
        return tf.map_fn(self._row, rows, fn_output_signature=(image, label))

    def _check_augmentation(self):
        """Refuses an augmentation that returns an image of another shape or dtype."""
        if self.augment is None or not self.examples:
            return
        image = self.images[0]
        seen = self.augment(image, self._seed(0, 0))
        received = type(seen).__name__
        if hasattr(seen, "shape"):
            seen = tf.convert_to_tensor(seen)
            if (seen.shape, seen.dtype) == (image.shape, image.dtype):
                return
            received = f"{tuple(seen.shape)} {seen.dtype.name}"
        raise ValueError(
            "Expected `augment` to return an image of the shape and dtype that it gets, "
            f"{tuple(image.shape)} {image.dtype.name}. Received: {received}. Bring all `images` to "
            "the shape and dtype that the networks take before, or end `augment` with a tf.cast or "
            "tf.image.resize back."
        )

    def check_repeats(self):
        """Refuses an augmentation that makes a row anew, and other, every time."""
        if self.augment is None:
            return
        (first, _), (second, _) = self._probed(), self._probed()
        if not np.array_equal(first, second):
            raise ValueError(
                "Expected `augment` to draw from its seed alone, as tf.image.stateless_random_crop "
                "does, so that the student sees what the teacher saw. Received: other images from "
                "the same seeds."
            )

    def _probed(self):
        """Returns the images and labels of some rows."""
        probes = np.linspace(0, self.rows - 1, min(_PROBES, self.rows)).astype("int64")
        return [part.numpy() for part in self(tf.constant(probes))]

    def identity(self):
        """Returns everything that a row depends on, to tell other views from these."""
        shown = self._probed()
        return {
            "data": fingerprints.of_bytes(self.images.numpy(), self.labels.numpy()),
            # An augmentation is known by its code and by its results for some of the images.
            "views": {
                "views": self.rows // self.examples,
                "seed": self.seed,
                "mix": self.mix and [self.mix, self.mix_alpha],
                "augment": fingerprints.of_function(self.augment),
                "augmented": fingerprints.of_bytes(*shown),
            },
        }

    def orders(self, seed, first_epoch):
        """Returns a data set of rows: each time, all examples in a new order, in a view each.

        The order and the views follow from the seed and the number of the epoch. It counts the
        times that a row was read: Keras makes iterators that it does not read.
        """
        epochs = itertools.count(first_epoch)

        def order(_):
            epoch = tf.numpy_function(lambda: np.int64(next(epochs)), [], tf.int64)
            epoch = tf.ensure_shape(epoch, ())
            keys = _draws(self.examples, [seed, epoch, 0])
            views = _draws(self.examples, [seed, epoch, 1]) % (self.rows // self.examples)
            return tf.cast(tf.argsort(keys, stable=True), tf.int64) + views * self.examples

        one = tf.data.Dataset.range(1).map(order).unbatch()
        return one.apply(tf.data.experimental.assert_cardinality(self.examples))

    def _row(self, row):
        image, label = self._augmented(row, 0)
        if self.mix is None:
            return image, label
        draws = self._uniform(row, 1, (3,))
        partner = tf.cast(draws[0] * self.examples, tf.int64)
        other, other_label = self._augmented(row - row % self.examples + partner, 2)
        share = self._share(row)
        if self.mix == "mixup":
            of_image = tf.cast(share, image.dtype)
            image = of_image * image + (1 - of_image) * other
        else:
            inside = _box(image.shape[:2], tf.sqrt(1.0 - share), draws[1:])
            image = tf.where(inside[..., None], other, image)
            share = 1.0 - tf.reduce_mean(tf.cast(inside, tf.float32))
        first, second = (
            tf.one_hot(tf.cast(each, tf.int64), self.num_classes) for each in (label, other_label)
        )
        return image, share * first + (1.0 - share) * second

    def _share(self, row):
        """Draws the share of an image from Beta(alpha, alpha), a float32 scalar.

        It is `a / (a + b)` of two draws from Gamma(alpha), which for a small alpha are both too
        small for a float: hence logarithms, of Gamma(alpha + 1) times a power of a uniform number.
        """
        alpha = self.mix_alpha
        seeds = tf.unstack(tf.random.experimental.stateless_split(self._seed(row, 3), 2))
        larger = tf.random.stateless_gamma((2,), seeds[0], [alpha + 1.0] * 2)
        uniform = 1.0 - tf.random.stateless_uniform((2,), seeds[1])
        logs = tf.math.log(larger) + tf.math.log(uniform) / alpha
        return tf.sigmoid(logs[0] - logs[1])

    def _augmented(self, row, purpose):
        image, label = self.images[row % self.examples], self.labels[row % self.examples]
        if self.augment is not None:
            image = tf.ensure_shape(self.augment(image, self._seed(row, purpose)), image.shape)
        return image, label

    def _uniform(self, row, purpose, shape):
        return tf.random.stateless_uniform(shape, self._seed(row, purpose))

    def _seed(self, row, purpose):
        return tf.stack([tf.constant(self.seed * 4 + purpose, tf.int32), tf.cast(row, tf.int32)])


def _draws(number, seeds):
    """Returns int64 numbers of at least 0 that follow from three seeds."""
    first = tf.stack([tf.cast(each, tf.int64) for each in seeds[:2]])
    mixed = tf.random.experimental.stateless_fold_in(first, seeds[2])
    return tf.random.stateless_uniform((number,), mixed, maxval=tf.int64.max, dtype=tf.int64)


def _box(shape, side, centre):
    """Returns the mask of a box of `side` times the size of the image, cut off at its edges."""
    inside = []
    for size, middle in zip(shape, tf.unstack(centre), strict=True):
        pixel = tf.range(size, dtype=tf.float32) + 0.5
        inside.append(tf.abs(pixel - middle * size) < side * size / 2)
    return inside[0][:, None] & inside[1][None, :]

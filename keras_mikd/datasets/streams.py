"""Batches of examples that are read, prepared and drawn one by one."""

import tensorflow as tf

from keras_mikd.datasets.image_pipeline import finished


def for_training(dataset, prepare, *, batch_size, seed, shuffle_buffer, drop_remainder=True):
    """Returns batches in a new order in every epoch, full ones if the remainder is dropped.

    Args:
        dataset: Examples, tuples; of known cardinality.
        prepare: Function `(*example, seed) -> (image, targets)`; `seed` is a new integer scalar for
            every example and epoch.
        batch_size: Images in a batch.
        seed: Seed of the order and of what `prepare` draws. TensorFlow mixes its global seed in.
        shuffle_buffer: Examples among which the next one is drawn.
        drop_remainder: Whether images that do not fill the last batch are left out.
    """
    seeds = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True)
    shuffled = tf.data.Dataset.zip((dataset.shuffle(shuffle_buffer, seed=seed), seeds))
    images = shuffled.map(
        lambda example, drawn: prepare(*example, drawn), num_parallel_calls=tf.data.AUTOTUNE
    )
    even = int(dataset.cardinality()) % batch_size == 0
    return finished(images.batch(batch_size, drop_remainder=drop_remainder or even))


def for_evaluation(dataset, prepare, *, batch_size):
    """Returns every image once, in the order of `dataset`; the last batch may be smaller."""
    images = dataset.map(prepare, num_parallel_calls=tf.data.AUTOTUNE)
    even = int(dataset.cardinality()) % batch_size == 0
    return finished(images.batch(batch_size, drop_remainder=even))

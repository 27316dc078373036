"""Scenes of several digits on one canvas, as ready-made pipelines for detectors."""

import numpy as np
import tensorflow as tf

from keras_mikd import checks
from keras_mikd.datasets import box_pipeline
from keras_mikd.datasets.splits import Splits, check_seed
from keras_mikd.datasets.tfds_arrays import import_tfds, prepared_builder


def load_digit_scenes(
    *,
    batch_size: int = 16,
    num_scenes: int | None = None,
    seed: int = 0,
    data_dir: str | None = None,
) -> Splits:
    """Loads 3,000 scenes of one to five real handwritten digits, without a download.

    The first call writes them as a TFDS data set (`MikdDigitScenes`), which takes some ten seconds.
    Later calls read it. A scene is a black canvas with digits of scikit-learn, enlarged to heights
    of 12 to 28 pixels, none over another. Each split shows the digits of the same split of
    `load_digits`.

    The pipelines yield `(images, {"boxes": boxes, "classes": classes})`. Images are float32
    `(batch, 64, 64, 1)` in [0, 1]. Boxes are float32 `(batch, 5, 4)` in KerasCV's format "xyxy"
    (left, top, right, bottom in pixels). Classes are float32 `(batch, 5)` from 0 to 9. Boxes and
    classes that a scene does not have are -1.

    Args:
        batch_size: Scenes in a batch, at least 1.
        num_scenes: Training scenes to keep, drawn at random with `seed`; None keeps all 2,000. A
            smaller draw is a subset of a larger one.
        seed: Seed of that draw and, mixed with TensorFlow's global seed, of the order of each
            epoch. The scenes do not depend on it.
        data_dir: Folder of the TFDS data sets. None is TFDS' default, `~/tensorflow_datasets`.

    Returns:
        A `Splits` of 2,000 scenes for training, 400 for validation and 600 for the test.

    Raises:
        ValueError: If an argument is out of range.
        ImportError: If tensorflow-datasets or scikit-learn is not installed.

    References:
        Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning
        Repository, 1998, https://doi.org/10.24432/C50P49

    Example:
    ```python
    scenes = load_digit_scenes(num_scenes=500)
    detector.fit(scenes.train, validation_data=scenes.validation, epochs=30, shuffle=False)
    ```
    """
    checks.integer("batch_size", batch_size, at_least=1)
    checks.integer("num_scenes", num_scenes, at_least=1, optional=True)
    check_seed(seed)
    import_tfds()
    from keras_mikd.datasets.digit_scenes_builder import MAX_DIGITS, MikdDigitScenes

    builder = prepared_builder(lambda: MikdDigitScenes(data_dir=data_dir), quiet=True)
    kept = _drawn(builder.info.splits["train"].num_examples, num_scenes, seed)
    train = _in_memory(builder, "train", MAX_DIGITS, kept)
    return box_pipeline.build_splits(
        builder,
        train,
        *(_in_memory(builder, split, MAX_DIGITS) for split in ("validation", "test")),
        prepare=_scaled,
        image_shape=builder.info.features["image"].shape,
        batch_size=batch_size,
        seed=seed,
        shuffle_buffer=len(train),
    )


def _drawn(available, num_scenes, seed):
    """Returns the sorted indices of the training scenes to keep."""
    checks.integer("num_scenes", num_scenes, at_least=1, at_most=available, optional=True)
    # RandomState rather than default_rng: NumPy promises never to change its stream.
    return np.sort(np.random.RandomState(seed).permutation(available)[:num_scenes])


def _in_memory(builder, split, max_digits, kept=slice(None)):
    """Returns a `tf.data.Dataset` of uint8 images and their targets, decoded once."""
    shape = builder.info.features["image"].shape

    def read(scene):
        return scene["image"], box_pipeline.targets(scene["objects"], shape, max_digits)

    scenes = builder.as_dataset(split=split).map(read)
    arrays = scenes.batch(len(scenes)).get_single_element()
    with tf.device("CPU"):
        arrays = tf.nest.map_structure(lambda array: array.numpy()[kept], arrays)
        return tf.data.Dataset.from_tensor_slices(arrays)


def _scaled(image, targets, seed=None):
    del seed  # Nothing is drawn: a mirrored digit would be another sign.
    return tf.cast(image, tf.float32) / 255.0, targets

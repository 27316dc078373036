"""The digits of scikit-learn as ready-made pipelines."""

from keras_mikd.datasets.image_pipeline import ImagePipeline
from keras_mikd.datasets.splits import Splits, Training, build_splits
from keras_mikd.datasets.tfds_arrays import import_tfds, prepared_builder, read_split

_PIPELINE = ImagePipeline(max_value=16.0, padding=1)


def load_digits(
    *,
    batch_size: int = 50,
    labels_per_class: int | None = None,
    unlabelled: bool = False,
    train_fraction: float | None = None,
    seed: int = 0,
    data_dir: str | None = None,
    augment: bool = False,
) -> Splits:
    """Loads 1,797 real handwritten digits of 8x8 pixels, without a download.

    The first call writes them as a TFDS data set (`MikdDigits`), later calls read it. Images are
    float32 of shape `(8, 8, 1)` in [0, 1]: the stored counts of 0 to 16 divided by 16.

    Args:
        batch_size: Images in a batch, at least 1.
        labels_per_class: Training images to keep of each class, drawn at random with `seed`; None
            keeps the whole train split. A smaller draw is a subset of a larger one.
        unlabelled: Whether the other training images stay, with the label -1; see `load_images`.
        train_fraction: Fraction of the training images to keep, above 0 and at most 1: the first
            ones of the file, whatever their classes and the seed. An epoch stays as long as with
            all images. This is the few-shot protocol of MCMI (arXiv 2401.08732), in the order of
            scikit-learn. None keeps all images.
        seed: Seed of the draw and, mixed with TensorFlow's global seed, of the order of each
            epoch and of the augmentation. The three splits do not depend on it.
        data_dir: Folder of the TFDS data sets. None is TFDS' default, `~/tensorflow_datasets`.
        augment: Whether to shift training images at random by up to one pixel.

    Returns:
        A `Splits` with 50 % of each class for training, 20 % for validation, 30 % for the test.

    Raises:
        ValueError: If an argument is out of range, a class is smaller than `labels_per_class`, or
            both it and `train_fraction` are given.
        ImportError: If tensorflow-datasets or scikit-learn is not installed.

    References:
        Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning
        Repository, 1998, https://doi.org/10.24432/C50P49

    Example:
    ```python
    digits = load_digits(labels_per_class=10)
    model.fit(digits.train, validation_data=digits.validation, epochs=60)
    ```
    """
    training = Training(
        batch_size, seed, augment, labels_per_class, train_fraction, unlabelled=unlabelled
    )
    import_tfds()
    from keras_mikd.datasets.digits_builder import MikdDigits

    builder = prepared_builder(lambda: MikdDigits(data_dir=data_dir), quiet=True)
    return build_splits(
        *(read_split(builder, split) for split in ("train", "validation", "test")),
        num_classes=builder.info.features["label"].num_classes,
        pipeline=_PIPELINE,
        training=training,
    )

"""CIFAR-10 and CIFAR-100 as the distillation papers prepare them."""

from keras_mikd.datasets.images import load_images
from keras_mikd.datasets.splits import Splits


def load_cifar10(
    *,
    batch_size: int = 128,
    labels_per_class: int | None = None,
    unlabelled: bool = False,
    train_fraction: float | None = None,
    seed: int = 0,
    data_dir: str | None = None,
    augment: bool = True,
    validation_fraction: float = 0.2,
    drop_remainder: bool = True,
    download: bool = False,
) -> Splits:
    """Loads CIFAR-10 as VID's code prepares it.

    Images are float32 of shape `(32, 32, 3)`, normalised by mean (0.4914, 0.4822, 0.4465) and
    standard deviation (0.247, 0.243, 0.261). Augmentation: reflect 4 pixels on every side, crop
    32x32 at random, mirror half of the images.

    Args:
        batch_size: Images in a batch, at least 1.
        labels_per_class: Training images to keep of each class, drawn at random with `seed`; None
            keeps them all. A smaller draw is a subset of a larger one.
        unlabelled: Whether the other training images stay, with the label -1; see `load_images`.
        train_fraction: Fraction of the training images to keep, above 0 and at most 1: the first
            ones of the file, whatever their classes and the seed. An epoch stays as long as with
            all images. This is the few-shot protocol of MCMI (arXiv 2401.08732), except for the
            order: TFDS shuffles when it writes its files. None keeps all images.
        seed: Seed of the draw and, mixed with TensorFlow's global seed, of the order of each
            epoch and of the augmentation. The three splits do not depend on it.
        data_dir: Folder of the TFDS data sets. None is TFDS' default, `~/tensorflow_datasets`.
        augment: Whether to augment the training images.
        validation_fraction: Fraction of the 50,000 training images of each class that becomes the
            validation split, in [0, 1). With 0 there is no validation split, and
            `Splits.validation` is None. The 10,000 test images are the test split.
        drop_remainder: Whether an epoch leaves out the images that do not fill the last batch, so
            that shapes are static; PyTorch's loaders keep them by default.
        download: Whether to download the data, about 170 MB, if it is not in `data_dir`. Without a
            network, TFDS gives up after some three minutes.

    Returns:
        A `Splits`.

    Raises:
        ValueError: If an argument is out of range, a class is smaller than `labels_per_class`, or
            both it and `train_fraction` are given.
        FileNotFoundError: If the data is not in `data_dir` and `download` is False.
        RuntimeError: If the download fails.
        ImportError: If tensorflow-datasets is not installed.

    References:
        Ahn et al., Variational Information Distillation for Knowledge Transfer, arXiv 1904.05835;
        constants and reflected border from the authors' code (amzn/xfer, var_info_distil).

    Example:
    ```python
    cifar = load_cifar10(labels_per_class=100, download=True)
    model.fit(cifar.train, validation_data=cifar.validation, epochs=200)
    ```
    """
    return load_images(
        "cifar10",
        batch_size=batch_size,
        labels_per_class=labels_per_class,
        unlabelled=unlabelled,
        train_fraction=train_fraction,
        seed=seed,
        data_dir=data_dir,
        augment=augment,
        validation_fraction=validation_fraction,
        drop_remainder=drop_remainder,
        download=download,
    )


def load_cifar100(
    *,
    batch_size: int = 64,
    labels_per_class: int | None = None,
    unlabelled: bool = False,
    train_fraction: float | None = None,
    seed: int = 0,
    data_dir: str | None = None,
    augment: bool = True,
    validation_fraction: float = 0.1,
    drop_remainder: bool = True,
    download: bool = False,
) -> Splits:
    """Loads CIFAR-100 as the CRD benchmark prepares it.

    Images are float32 of shape `(32, 32, 3)`, normalised by mean (0.5071, 0.4867, 0.4408) and
    standard deviation (0.2675, 0.2565, 0.2761). Augmentation: add 4 black pixels on every side,
    crop 32x32 at random, mirror half of the images. The benchmark trains on all 50,000 images in
    782 batches, as with `validation_fraction=0, drop_remainder=False`.

    Args:
        batch_size: As in `load_cifar10`.
        labels_per_class: As in `load_cifar10`.
        unlabelled: As in `load_cifar10`.
        train_fraction: As in `load_cifar10`.
        seed: As in `load_cifar10`.
        data_dir: As in `load_cifar10`.
        augment: As in `load_cifar10`.
        validation_fraction: As in `load_cifar10`.
        drop_remainder: As in `load_cifar10`.
        download: As in `load_cifar10`.

    Returns:
        A `Splits`.

    Raises:
        ValueError, FileNotFoundError, RuntimeError, ImportError: As in `load_cifar10`.

    References:
        Tian et al., Contrastive Representation Distillation, arXiv 1910.10699; constants from the
        authors' code (HobbitLong/RepDistiller, dataset/cifar100.py).

    Example:
    ```python
    cifar = load_cifar100(validation_fraction=0.0, drop_remainder=False, download=True)
    model.fit(cifar.train, epochs=240)
    ```
    """
    return load_images(
        "cifar100",
        batch_size=batch_size,
        labels_per_class=labels_per_class,
        unlabelled=unlabelled,
        train_fraction=train_fraction,
        seed=seed,
        data_dir=data_dir,
        augment=augment,
        validation_fraction=validation_fraction,
        drop_remainder=drop_remainder,
        download=download,
    )

"""TensorFlow Datasets, imported when first needed: prepare a builder, read its splits."""

import contextlib
import io

import numpy as np
import tensorflow as tf

from keras_mikd import checks
from keras_mikd.datasets.picture_files import undecodable
from keras_mikd.datasets.splits import LabelledImages


def import_tfds():
    """Returns the module `tensorflow_datasets`, or says what to install."""
    with checks.extra("data"):
        # TFDS 4.9.10 needs this package and does not declare it (tensorflow/datasets issue 11212).
        import importlib_resources  # noqa: F401
        import tensorflow_datasets
    return tensorflow_datasets


def is_prepared(builder):
    """Whether the data of a `tfds.core.DatasetBuilder` is on disk."""
    # `builder.is_prepared()` logs a warning where it is not.
    return (builder.data_path / "dataset_info.json").exists()


def prepared_builder(make_builder, *, quiet=False):
    """Returns a builder whose data is on disk, and puts it there if it is not.

    TFDS writes to a temporary folder and renames it when complete. So an interrupted run leaves
    nothing half-written, and of two processes that prepare the same data one wins.

    Args:
        make_builder: Function without arguments that returns a new `tfds.core.DatasetBuilder`.
        quiet: Whether to hide the progress bars of TFDS.
    """
    builder = make_builder()
    if is_prepared(builder):
        return builder
    tfds = import_tfds()
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    try:
        with _silence() if quiet else contextlib.nullcontext():
            builder.download_and_prepare(download_config=config)
    except Exception:
        # The rename fails if another process has put the same data there in the meantime.
        if not is_prepared(make_builder()):
            raise
    # A builder reads sizes and statistics when it is made, so one from before knows none.
    return make_builder()


def downloaded_builder(name, *, data_dir, download, size=None):
    """Returns a builder of TFDS whose data is on disk, downloaded if it has to be and may be.

    Messages say how large a download of known `size` is.

    Raises:
        ValueError: If TFDS has no such data set, and neither has `data_dir`.
        FileNotFoundError: If the data is not on disk and `download` is False.
        RuntimeError: If the download fails.
    """
    tfds = import_tfds()
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
        raise ValueError(
            "Expected `name` to be a data set of TensorFlow Datasets, or of the folder `data_dir`. "
            f"Received: name={name!r}, data_dir={data_dir!r}"
        ) from error
    access = f"network access ({size})" if size else "network access"
    advice = (
        f"Received: data_dir={data_dir!r}. Pass `download=True` where there is {access}, or as "
        f"`data_dir` a TFDS folder that already holds `{name}`."
    )
    if not download and not is_prepared(builder):
        raise FileNotFoundError(
            f"Expected {name} at {builder.data_dir}, since `download` is False. {advice}"
        )
    try:
        return prepared_builder(lambda: tfds.builder(name, data_dir=data_dir))
    except (OSError, tfds.download.DownloadError) as error:
        raise RuntimeError(
            f"Expected to download {name} and prepare it at {builder.data_dir}. {advice}"
        ) from error


def read_split(builder, split):
    """Returns a split of a prepared builder as `LabelledImages`, in the order of its files."""
    images, labels = builder.as_dataset(split=split, batch_size=-1, as_supervised=True)
    return LabelledImages(images.numpy(), labels.numpy().astype(np.int32))


def read_resized(builder, split, size):
    """Returns the same, with every image at `(size, size)` pixels, whatever its proportions."""

    def resized(image, label):
        image = tf.image.resize(image, (size, size), antialias=True)
        return tf.cast(tf.round(tf.clip_by_value(image, 0, 255)), tf.uint8), label

    examples = builder.as_dataset(split=split, as_supervised=True)
    examples = examples.map(resized, num_parallel_calls=tf.data.AUTOTUNE)
    channels = builder.info.features[builder.info.supervised_keys[0]].shape[-1]
    images = np.empty((len(examples), size, size, channels), np.uint8)
    labels = np.empty(len(examples), np.int32)
    position = -1
    try:
        for position, example in enumerate(examples.as_numpy_iterator()):
            images[position], labels[position] = example
    except tf.errors.InvalidArgumentError as error:
        # The examples come in the order of the files, so it is the next one that failed.
        damaged = _damaged(builder, split, position + 1)
        if damaged is None:
            raise
        raise damaged from error
    return LabelledImages(images, labels)


def _damaged(builder, split, position):
    """Returns an error that names the file of an example in a folder, or None."""
    if not isinstance(builder, import_tfds().ImageFolder):
        return None
    return undecodable(builder.path(split, position))


def encoded_split(builder, split, *, start=0, stop=None, shuffle_seed=None):
    """Returns a data set of the files of images, not decoded, and their labels.

    Args:
        builder: Prepared builder of an image classifier, or of a folder.
        split: Name of the split.
        start: Position of the first example.
        stop: Position after the last one; None is the end.
        shuffle_seed: Seed of the order in which record files are read, or None for their own. A
            folder has no such files, and its order is TFDS' own, which is mixed and fixed.
    """
    tfds = import_tfds()
    image, label = builder.info.supervised_keys
    stop = builder.info.splits[split].num_examples if stop is None else stop
    options = {"decoders": {image: tfds.decode.SkipDecoding()}}
    if isinstance(builder, tfds.ImageFolder):
        examples = builder.as_dataset(split=split, **options).skip(start).take(stop - start)
    else:
        examples = builder.as_dataset(
            split=f"{split}[{start}:{stop}]",
            shuffle_files=shuffle_seed is not None,
            read_config=tfds.ReadConfig(shuffle_seed=shuffle_seed),
            **options,
        )
    examples = examples.map(lambda example: (example[image], tf.cast(example[label], tf.int32)))
    return examples.apply(tf.data.experimental.assert_cardinality(stop - start))


@contextlib.contextmanager
def _silence():
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield

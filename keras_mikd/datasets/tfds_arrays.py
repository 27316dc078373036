"""TensorFlow Datasets, imported when first needed: prepare a builder, read a split into memory."""

import contextlib
import io

import numpy as np

from keras_mikd import checks
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


def downloaded_builder(name, *, loader, size, data_dir, download):
    """Returns a builder of TFDS whose data is on disk, downloaded if it has to be and may be.

    Messages name the function `loader` that the user called, and the `size` of the download.

    Raises:
        FileNotFoundError: If the data is not on disk and `download` is False.
        RuntimeError: If the download fails.
    """
    tfds = import_tfds()
    builder = tfds.builder(name, data_dir=data_dir)
    advice = (
        f"Received: data_dir={data_dir!r}. Call `{loader}(download=True)` where there is network "
        f"access ({size}), or pass as `data_dir` a TFDS folder that already holds `{name}`."
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


@contextlib.contextmanager
def _silence():
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield

"""A folder of pictures as a builder of TensorFlow Datasets."""

import os
import pathlib
import tempfile

import tensorflow as tf

from keras_mikd.datasets.tfds_arrays import import_tfds

_PICTURES = (".jpg", ".jpeg", ".png")
# A builder reads its files for as long as the process runs. Links are removed when it ends.
_links = []


def folder_builder(folder, train_split):
    """Returns a builder over `folder/<split>/<class>/<picture>`, and whether it has such splits.

    Without them, `folder/<class>/<picture>`, all pictures are the split `train_split`.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it is laid out in another way.
    """
    layout = (
        f"Pictures lie in {folder}/train/<class>/ and {folder}/test/<class>/, or in "
        f"{folder}/<class>/, as .jpg or .png."
    )
    if not tf.io.gfile.isdir(folder):
        raise FileNotFoundError(
            f"Expected `folder` to be a folder. Received: folder={folder!r}. {layout}"
        )
    builder = _image_folder(folder)
    if builder is not None:
        return builder, True
    if _has_classes(folder):
        return _image_folder(_as_split(folder, train_split)), False
    found = sorted(path.split("/")[-1] for path in tf.io.gfile.glob(f"{folder}/*"))
    raise ValueError(
        "Expected `folder` to hold a folder for each split, with a folder for each class in it, or "
        f"a folder for each class. Received: folder={folder!r}. {layout} Found in it: "
        f"{', '.join(found[:5]) or 'nothing'}."
    )


def _image_folder(folder):
    builder = import_tfds().ImageFolder(str(folder))
    counts = [split.num_examples for split in builder.info.splits.values()]
    return builder if any(counts) else None


def _has_classes(folder):
    names = (path.lower() for path in tf.io.gfile.glob(f"{folder}/*/*"))
    return any(name.endswith(_PICTURES) for name in names)


def _as_split(folder, split):
    """Returns a folder in which `folder` is called `split`: TFDS reads no others."""
    link = tempfile.TemporaryDirectory(prefix="keras_mikd_")
    try:
        os.symlink(pathlib.Path(folder).expanduser().resolve(), pathlib.Path(link.name) / split)
    except OSError as error:
        raise ValueError(
            f"Expected a folder for each split, {folder}/train/<class>/, as this machine cannot "
            f"link to {folder}/<class>/ ({error}). Received: folder={folder!r}"
        ) from error
    _links.append(link)
    return link.name

"""A folder of pictures as a builder of TensorFlow Datasets."""

import collections
import os
import warnings
from typing import NamedTuple

import tensorflow as tf

from keras_mikd import checks
from keras_mikd.datasets.picture_files import check_pictures
from keras_mikd.datasets.tfds_arrays import import_tfds

_PICTURES = (".jpg", ".jpeg", ".png")
# TensorFlow takes the palette of a .bmp for gray and fails on a transparent or animated .webp. The
# first picture of a .gif may be one of many, and the others it does not know.
_OTHERS = (".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".tif", ".tiff", ".webp")
_CONVERT = 'Convert them, as PIL.Image.open(path).convert("RGB").save("<name>.png") does'
_VALIDATION = ("validation", "val", "valid")
_SHOWN = 5


class _Folder(NamedTuple):
    """What is in a folder: paths of pictures, suffixes of other files, paths of folders."""

    pictures: list
    others: list
    folders: list


def folder_builder(folder, train_split):
    """Returns a builder over `folder/<split>/<class>/<picture>`, and whether it has such splits.

    Without them, `folder/<class>/<picture>`, all pictures are the split `train_split`. What is
    hidden, its name beginning with a dot, is left out.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it is laid out in another way, a class has no pictures, or a picture is none.
    """
    folder = os.fspath(folder)
    layout = (
        f"Pictures lie in {folder}/train/<class>/ and {folder}/test/<class>/, or in "
        f"{folder}/<class>/, as .jpg or .png."
    )
    if not tf.io.gfile.isdir(folder):
        raise FileNotFoundError(
            f"Expected `folder` to be a folder. Received: folder={folder!r}. {layout}"
        )
    splits, has_splits = _splits(folder, train_split, layout)
    _check_classes(splits)
    _warn_of_others(folder, [found for classes in splits.values() for found in classes.values()])
    splits = {
        split: {_name(path): found.pictures for path, found in classes.items()}
        for split, classes in splits.items()
    }
    check_pictures([path for of in splits.values() for paths in of.values() for path in paths])
    import_tfds()
    from keras_mikd.datasets.picture_folder_builder import PictureFolder

    return PictureFolder(folder, splits), has_splits


def validation_of(builder, taken):
    """Returns the split that a folder has for validation by its name, or None; none of `taken`."""
    named = (name for name in _VALIDATION if name in builder.info.splits and name not in taken)
    return next(named, None)


def _splits(folder, train_split, layout):
    """Returns `{split: {path of a class: what is in it}}`, and whether the folder has splits."""
    tops = _inside(_listed(folder))
    below = {top: _inside(listed) for top, listed in tops.items()}
    if any(_count(found) for found in below.values()):
        _check_split(folder, train_split, tops, below, layout)
        splits = {_name(top): found for top, found in below.items() if _count(found, others=True)}
        return splits, True
    if _count(tops):
        return {train_split: tops}, False
    raise _nothing(folder, [*tops.items(), *_joined(below).items()], layout)


def _listed(folder):
    """Returns what is in a folder and not hidden."""
    names = sorted(name.rstrip("/") for name in tf.io.gfile.listdir(folder))
    paths = [os.path.join(folder, name) for name in names if not name.startswith(".")]
    pictures = [path for path in paths if path.lower().endswith(_PICTURES)]
    paths = [path for path in paths if not path.lower().endswith(_PICTURES)]
    folders = [path for path in paths if tf.io.gfile.isdir(path)]
    others = [os.path.splitext(path)[1].lower() for path in paths if path not in folders]
    return _Folder(pictures, others, folders)


def _inside(folder):
    """Returns `{path: what is in it}` of the folders in a folder."""
    return {path: _listed(path) for path in folder.folders}


def _count(classes, others=False):
    """Returns how many pictures folders hold, those of other formats as well if asked."""
    found = sum(len(each.pictures) for each in classes.values())
    return found + others * sum(suffix in _OTHERS for x in classes.values() for suffix in x.others)


def _joined(below):
    return dict(item for found in below.values() for item in found.items())


def _name(path):
    return os.path.basename(path)


def _check_split(folder, train_split, tops, below, layout):
    """Refuses folders of classes with folders in them, which look like splits."""
    if train_split in (_name(top) for top, found in below.items() if _count(found, others=True)):
        return
    nested = [path for path, found in _joined(below).items() if found.pictures]
    direct = [path for path, found in tops.items() if found.pictures]
    raise ValueError(
        f"Expected `folder` to have pictures in {folder}/{train_split}/<class>/, or in "
        f"{folder}/<class>/ and no deeper. Received: train_split={train_split!r} and pictures in "
        f"{_some(nested)}{' beside those in ' * bool(direct)}{_some(direct)}. {layout} Move what "
        "lies deeper, or name the split for training as `train_split`."
    )


def _check_classes(splits):
    """Refuses classes without a picture; one that others have may be missing in a split."""
    known = {_name(x) for found in splits.values() for x, each in found.items() if each.pictures}
    empty = [
        f"{path} ({_contents(found)})"
        for classes in splits.values()
        for path, found in classes.items()
        if not found.pictures and (found.others or found.folders or _name(path) not in known)
    ]
    if empty:
        raise ValueError(
            "Expected pictures in the folder of every class, as .jpg, .jpeg or .png. Received: "
            f"{_some(empty)}. {_CONVERT}, or remove a folder that is no class."
        )


def _warn_of_others(folder, classes):
    others = [suffix for found in classes for suffix in found.others if suffix in _OTHERS]
    deeper = [path for found in classes for path in found.folders if _listed(path).pictures]
    if others:
        warnings.warn(
            f"Of the pictures in {folder}, {_counted(others)} are left out: only .jpg, .jpeg and "
            f".png are read. {_CONVERT}.",
            stacklevel=5,
        )
    if deeper:
        warnings.warn(
            f"Pictures in {_some(deeper)} are left out: only those that lie in the folder of a "
            "class itself are read. Move them there, or out of the folder.",
            stacklevel=5,
        )


def _nothing(folder, places, layout):
    names = sorted(_name(path) for path in tf.io.gfile.glob(f"{folder}/*"))
    others = [
        f"{path} ({_contents(found)})"
        for path, found in places
        if any(suffix in _OTHERS for suffix in found.others)
    ]
    return ValueError(
        "Expected `folder` to hold a folder for each split, with a folder for each class in it, or "
        f"a folder for each class. Received: folder={folder!r}. {layout} Found in it: "
        f"{', '.join(names[:_SHOWN]) or 'nothing'}."
        + f" Pictures of other formats are in {_some(others)}. {_CONVERT}."
        * bool(others)
    )


def _contents(found):
    inside = [_counted(found.others)] * bool(found.others)
    inside += [f"folders {_some([_name(path) for path in found.folders])}"] * bool(found.folders)
    return ", ".join(inside) or "empty"


def _counted(suffixes):
    counts = collections.Counter(suffix or "without a suffix" for suffix in suffixes)
    return ", ".join(f"{count} {suffix}" for suffix, count in sorted(counts.items()))


def _some(names):
    return checks.listed(names, _SHOWN)

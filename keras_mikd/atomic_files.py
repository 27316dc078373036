"""Writes a file whole or not at all, and never over another one unasked."""

import contextlib
import glob
import os
import pathlib
import platform
import uuid


def require_free(path, *, suffix, overwrite):
    """Checks, before the work starts, that a file may be written; returns its `pathlib.Path`.

    Raises:
        ValueError: If the path has another suffix than `suffix`, such as `".png"`.
        FileExistsError: If it exists, or is a link to nothing, and `overwrite` is false.
    """
    path = pathlib.Path(path)
    if path.suffix != suffix:
        raise ValueError(f"Expected a path that ends in {suffix!r}. Received: path={str(path)!r}")
    if os.path.lexists(path) and not overwrite:
        raise FileExistsError(
            f"Expected a path without a file. Received: path={str(path)!r}. Pass overwrite=True to "
            "replace the file."
        )
    return path


@contextlib.contextmanager
def written_whole(path):
    """Gives a path beside `path` to write to, and at the end puts that file in its place.

    `path` holds the old file or the new one, never a part of either, also where the process is
    killed or the machine loses power. It may be a link: then its target is replaced. Folders that
    are missing are made. What killed processes have left unfinished is removed.
    """
    path = pathlib.Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_unfinished(path)
    unfinished = path.with_name(f"{_own(os.getpid())}-{uuid.uuid4().hex}.{path.name}")
    try:
        yield unfinished
        _to_disk(unfinished)
        os.replace(unfinished, path)
        _to_disk(path.parent)
    finally:
        unfinished.unlink(missing_ok=True)


def write_whole(path, content):
    """Writes bytes to a `pathlib.Path`, which never holds a part of them; makes missing folders."""
    with written_whole(path) as unfinished:
        unfinished.write_bytes(content)


def _own(process):
    """Returns how the unfinished files of a process of this host begin."""
    return f".{platform.node()}-{process}"


def _remove_unfinished(path):
    for left in path.parent.glob(glob.escape(_own("")) + f"*.{glob.escape(path.name)}"):
        process = left.name.removeprefix(_own("")).split("-")[0]
        if process.isdigit() and not _is_alive(int(process)):
            left.unlink(missing_ok=True)


def _is_alive(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _to_disk(path):
    """Waits until the content of a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:  # Some file systems cannot do this for a folder.
        if path.is_file():
            raise
    finally:
        os.close(descriptor)

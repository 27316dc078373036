"""Writes a file whole or not at all, and never over another one unasked."""

import os
import pathlib
import secrets


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


def write_whole(path, content):
    """Writes bytes to a `pathlib.Path`, which never holds a part of them; makes missing folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Another name in every thread and on every host, whatever writes the same path.
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        unfinished.write_bytes(content)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)

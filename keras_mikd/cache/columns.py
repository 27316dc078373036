"""Arrays that are filled row by row, in memory or in a folder that tells damage from data."""

import json
import os
import pathlib
import zlib

import numpy as np

from keras_mikd.atomic_files import write_whole

_MANIFEST = "manifest.json"


class Columns:
    """Arrays of `rows` rows each, of which the first `done` are filled.

    A folder has a `.npy` file for every column, and a manifest: of what they are, how many rows are
    filled, and the checksums of these. The manifest is written before the files and after every
    part of them, so a build that is killed at any moment goes on.

    Args:
        columns: `{name: (shape of a row, dtype)}`.
        rows: Number of rows.
        folder: Folder, or `None` for memory.
        fingerprint: What the rows depend on, `{part: value}` as JSON holds it.

    Raises:
        ValueError: If the folder holds columns of something else, damaged ones, or other files of
            the names that these need.
    """

    def __init__(self, columns, rows, *, folder=None, fingerprint=None):
        self.arrays, self.done, self.rows = None, 0, rows
        self.folder = None if folder is None else pathlib.Path(folder)
        self._columns, self._fingerprint = columns, fingerprint
        self._sums = dict.fromkeys(columns, 0)
        if self.folder is None:
            return
        names = [f"column{number}.npy" for number in range(len(columns))]
        self._files = dict(zip(columns, (self.folder / name for name in names), strict=True))
        if os.path.lexists(self.folder / _MANIFEST):
            self._read_folder()
        else:
            self._check_free()

    def open(self):
        """Makes the arrays, unless they are there; a folder gets all of its space at once."""
        if self.arrays is not None:
            return
        if self.folder is None:
            self.arrays = {n: np.empty((self.rows, *s), t) for n, (s, t) in self._columns.items()}
            return
        if not os.path.lexists(self.folder / _MANIFEST):
            self._check_free()
        for path in self._files.values():
            _check_own(path)
        try:
            self._write_manifest()
            self.arrays = {name: self._made(name) for name in self._columns}
        except OSError as error:
            for path in (*self._files.values(), self.folder / _MANIFEST):
                path.unlink(missing_ok=True)
            raise self._no_room(error) from error

    def write(self, first, values):
        """Fills rows from `first` on with `{name: array}`; `advance` counts them."""
        for name, rows in values.items():
            written = self.arrays[name][first : first + len(rows)]
            written[:] = rows
            self._sums[name] = zlib.crc32(written, self._sums[name])

    def advance(self, done):
        """Says that the first `done` rows are whole."""
        self.done = done
        if self.folder is not None:
            for array in self.arrays.values():
                array.flush()
            self._write_manifest()

    def _write_manifest(self):
        manifest = {"fingerprint": self._fingerprint, "done": self.done, "checksums": self._sums}
        write_whole(self.folder / _MANIFEST, json.dumps(manifest, indent=1).encode())

    def _check_free(self):
        taken = [path for path in self._files.values() if os.path.lexists(path)]
        if os.path.lexists(self.folder) and not self.folder.is_dir():
            taken = [self.folder]
        if taken:
            raise ValueError(
                "Expected `folder` to be a new folder, or that of a TeacherCache. Received: "
                f"{str(taken[0])!r}, which no TeacherCache made. Name another `folder`."
            )

    def _made(self, name):
        """Returns a new file in which every byte has its place on the disk."""
        path, (shape, dtype) = self._files[name], self._columns[name]
        path.unlink(missing_ok=True)  # Of a build that was killed before its first row.
        array = np.lib.format.open_memmap(path, "w+", dtype, (self.rows, *shape))
        _allocate(path)
        return array

    def _read_folder(self):
        """Takes over what is in the folder, after a look at all of it."""
        try:
            manifest = json.loads((self.folder / _MANIFEST).read_text())
            found, done = manifest["fingerprint"], manifest["done"]
            sums = manifest.get("checksums")  # Earlier versions wrote none.
            differ = [part for part, value in self._fingerprint.items() if found.get(part) != value]
            whole = type(done) is int and 0 <= done <= self.rows and isinstance(sums, dict | None)
        except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
            raise self._damaged(_MANIFEST, "cannot be read as that of a TeacherCache") from error
        if differ:
            raise ValueError(
                f"Expected a cache of this teacher, data, views and columns in "
                f"{str(self.folder)!r}. Received: one with other {', '.join(differ)}. Name "
                "another `folder`, or remove this one. A data set that shuffles is another one "
                "each time: pass arrays, or one that does not."
            )
        if not whole:
            raise self._damaged(_MANIFEST, f"says {done=} of {self.rows} rows, {sums=}")
        if not done:
            return  # The files may not be there yet.
        arrays = {name: self._checked(name, done, sums) for name in self._columns}
        if done < self.rows:
            try:
                arrays = {name: self._writable(name) for name in self._columns}
            except OSError as error:
                raise self._no_room(error) from error
        self.arrays, self.done = arrays, done

    def _checked(self, name, done, sums):
        path, (shape, dtype) = self._files[name], self._columns[name]
        try:
            array = np.lib.format.open_memmap(path, "r")
        except Exception as error:  # Of a damaged header, NumPy raises what its parser raises.
            raise self._damaged(path.name, str(error)) from error
        if (array.shape, array.dtype) != ((self.rows, *shape), np.dtype(dtype)):
            raise self._damaged(path.name, f"has shape {array.shape} and dtype {array.dtype}")
        self._sums[name] = zlib.crc32(np.ascontiguousarray(array[:done]))
        if sums is not None and sums.get(name) != self._sums[name]:
            raise self._damaged(path.name, "has another checksum than the rows that were written")
        return array

    def _writable(self, name):
        path = self._files[name]
        _check_own(path)
        _allocate(path)
        return np.lib.format.open_memmap(path, "r+")

    def _no_room(self, error):
        return OSError(
            error.errno,
            f"Expected to take the space of the cache on the disk of {str(self.folder)!r}. "
            f"Received: {error.strerror}. Free some space, or name another `folder`",
        )

    def _damaged(self, file, what):
        return ValueError(
            f"Expected a whole TeacherCache in {str(self.folder)!r}. Received: a damaged one, "
            f"whose {file} {what}. Name another `folder`, or, if nothing else is in this one, "
            "remove it and build the cache again."
        )


def _check_own(path):
    """Refuses to write into a file that stands elsewhere too, by a link."""
    if path.is_symlink() or (path.exists() and path.stat().st_nlink > 1):
        raise ValueError(
            f"Expected a file of the TeacherCache's own to write. Received: {str(path)!r}, a link "
            "to a file that may be another's. Put a copy in its place, or name another `folder`."
        )


def _allocate(path):
    """Takes the space of a file now: on a full disk, a write to a mapped file kills the process.

    macOS and Windows have no call for it. There, a full disk shows when it is full.
    """
    with path.open("r+b") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)

"""Arrays in a folder: killed builds, full disks, damage, and files of others."""

import errno
import json
import os

import numpy as np
import pytest

from keras_mikd.cache.columns import Columns

KINDS = {"map": ((2, 3), "float32"), "output": ((), "float16")}
ROWS = 8


def _columns(folder, *, rows=ROWS, **parts):
    return Columns(KINDS, rows, folder=folder, fingerprint={"teacher": "a", **parts})


def _values(first, last):
    rows = np.arange(first, last)
    return {"map": rows[:, None, None] * np.ones((1, 2, 3), "float32"), "output": rows / 2}


def _filled(folder, done=ROWS):
    columns = _columns(folder)
    columns.open()
    for first in range(0, done, 4):
        columns.write(
            first, {n: v.astype(KINDS[n][1]) for n, v in _values(first, first + 4).items()}
        )
        columns.advance(first + 4)
    return columns


def _content(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("on_disk", [True, False])
def test_what_is_written_is_read(tmp_path, on_disk):
    columns = _filled(tmp_path / "new" if on_disk else None)
    for each in (columns, _columns(tmp_path / "new")) if on_disk else (columns,):
        assert each.done == ROWS
        for name, values in _values(0, ROWS).items():
            np.testing.assert_array_equal(each.arrays[name], values)


def test_a_file_takes_its_space_when_it_is_made(tmp_path):
    Columns({"a": ((1000,), "float32")}, 100, folder=tmp_path, fingerprint={}).open()
    assert (tmp_path / "column0.npy").stat().st_blocks * 512 >= 400_000


def test_a_full_disk_is_told_before_the_first_row_and_nothing_is_lost(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    _filled(tmp_path / "half", done=4)
    half = _content(tmp_path / "half")
    monkeypatch.setattr(os, "posix_fallocate", full)
    for folder, content in ((tmp_path / "new", {}), (tmp_path / "half", half)):
        message = f"the disk of '{folder}'. Received: No space left.*Free some"
        with pytest.raises(OSError, match=message) as error:
            _columns(folder).open()
        assert error.value.errno == errno.ENOSPC
        assert _content(folder) == content


@pytest.mark.parametrize("killed_in", ["_made", "advance"])
def test_a_build_that_was_killed_at_its_start_begins_again(tmp_path, monkeypatch, killed_in):
    with monkeypatch.context() as patch:

        def killed(self, name):
            if killed_in == "advance" or name == "output":
                raise KeyboardInterrupt
            (tmp_path / "column0.npy").write_bytes(b"half")

        patch.setattr(Columns, killed_in, killed)
        with pytest.raises(KeyboardInterrupt):
            _filled(tmp_path)
    _filled(tmp_path)
    np.testing.assert_array_equal(_columns(tmp_path).arrays["output"], _values(0, ROWS)["output"])


def test_a_build_goes_on_where_it_was(tmp_path):
    _filled(tmp_path, done=4)
    columns = _columns(tmp_path)
    assert columns.done == 4
    columns.open()
    columns.write(4, _values(4, 8))
    columns.advance(8)
    np.testing.assert_array_equal(_columns(tmp_path).arrays["map"], _values(0, ROWS)["map"])


@pytest.mark.parametrize("done", [4, 8])
def test_a_folder_of_an_earlier_version_has_no_checksums_and_is_read(tmp_path, done):
    _filled(tmp_path, done)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    del manifest["checksums"]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert _columns(tmp_path).done == done


def _flip(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def _flip_a_value(folder):
    _flip(folder / "column0.npy", -5)


def _flip_the_shape(folder):
    path = folder / "column0.npy"
    path.write_bytes(path.read_bytes().replace(b"(8, 2, 3)", b"(9, 2, 3)"))


def _flip_the_order(folder):
    path = folder / "column0.npy"
    path.write_bytes(path.read_bytes().replace(b"False", b"True "))


def _edit(folder, **values):
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | values))


@pytest.mark.parametrize("done", [4, 8])
@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("column0.npy", lambda folder: _flip(folder / "column0.npy", 128 + 17)),
        ("column0.npy", _flip_the_shape),
        ("column0.npy", _flip_the_order),
        ("column0.npy", lambda folder: _flip(folder / "column0.npy", 3)),
        ("column1.npy", lambda folder: (folder / "column1.npy").unlink()),
        ("column1.npy", lambda folder: os.truncate(folder / "column1.npy", 100)),
        ("column1.npy", lambda folder: os.truncate(folder / "column1.npy", 130)),
        ("column1.npy", lambda folder: (folder / "column1.npy").write_bytes(b"")),
        ("manifest.json", lambda folder: os.truncate(folder / "manifest.json", 20)),
        ("manifest.json", lambda folder: (folder / "manifest.json").write_text("[]")),
        ("manifest.json", lambda folder: (folder / "manifest.json").write_bytes(b"\xff\x00")),
        ("manifest.json", lambda folder: _edit(folder, done=-1)),
        ("manifest.json", lambda folder: _edit(folder, done="4")),
        ("manifest.json", lambda folder: _edit(folder, done=9)),
        ("manifest.json", lambda folder: _edit(folder, checksums=[])),
        ("column0.npy", lambda folder: _edit(folder, done=3)),
        ("column0.npy", lambda folder: _edit(folder, checksums={})),
    ],
)
def test_damage_names_the_folder_the_file_and_the_remedy(tmp_path, done, file, damage):
    _filled(tmp_path, done)
    damage(tmp_path)
    before = _content(tmp_path)
    message = f"{tmp_path}.*a damaged one, whose {file}.*remove it and build the cache again"
    with pytest.raises(ValueError, match=message):
        _columns(tmp_path)
    assert _content(tmp_path) == before


def test_another_cache_is_told_by_its_parts(tmp_path):
    _filled(tmp_path)
    with pytest.raises(ValueError, match=f"in '{tmp_path}'. Received: one with other teacher"):
        _columns(tmp_path, teacher="b")


@pytest.mark.parametrize("name", ["column0.npy", "column1.npy"])
@pytest.mark.parametrize("linked", ["no", "to a file", "to nothing"])
def test_files_of_others_are_refused_and_kept(tmp_path, name, linked):
    folder, outside = tmp_path / "cache", tmp_path / "mine.npy"
    folder.mkdir()
    if linked == "no":
        np.save(folder / name, np.zeros(3))
    else:
        (folder / name).symlink_to(outside)
    if linked == "to a file":
        np.save(outside, np.zeros(3))
    before = outside.read_bytes() if outside.exists() else None
    with pytest.raises(ValueError, match=f"new folder.* Received: '{folder / name}', which no"):
        _columns(folder)
    assert (outside.read_bytes() if outside.exists() else None) == before
    assert [path.name for path in folder.iterdir()] == [name]


def test_files_that_come_between_the_cache_and_its_build_are_kept(tmp_path):
    columns = _columns(tmp_path)
    np.save(tmp_path / "column1.npy", np.zeros(3))
    with pytest.raises(ValueError, match="column1.npy', which no TeacherCache made"):
        columns.open()
    assert [path.name for path in tmp_path.iterdir()] == ["column1.npy"]


@pytest.mark.parametrize("kind", ["symlink_to", "hardlink_to"])
@pytest.mark.parametrize("done", [0, 4])
def test_a_build_never_writes_through_a_link(tmp_path, kind, done):
    folder, outside = tmp_path / "cache", tmp_path / "mine.npy"
    _filled(folder, done)
    (folder / "column0.npy").rename(outside)
    getattr(folder / "column0.npy", kind)(outside)
    before = outside.read_bytes()
    with pytest.raises(ValueError, match="column0.npy', a link to a file .* Put a copy in its"):
        _columns(folder).open()
    assert outside.read_bytes() == before


def test_a_finished_cache_may_be_linked(tmp_path):
    _filled(tmp_path / "cache")
    (tmp_path / "cache" / "column0.npy").rename(tmp_path / "elsewhere.npy")
    (tmp_path / "cache" / "column0.npy").symlink_to(tmp_path / "elsewhere.npy")
    np.testing.assert_array_equal(_columns(tmp_path / "cache").arrays["map"][5, 0, 0], 5)


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match=f"Received: '{tmp_path / 'file'}', which no"):
        _columns(tmp_path / "file")

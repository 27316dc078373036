import concurrent.futures
import functools
import os
import subprocess
import sys

import pytest

from keras_mikd import atomic_files
from keras_mikd.atomic_files import require_free, write_whole


def test_content_is_written_and_folders_are_made(tmp_path):
    path = tmp_path / "new" / "folder" / "a.bin"
    write_whole(path, b"content")
    assert path.read_bytes() == b"content"
    assert [each.name for each in path.parent.iterdir()] == ["a.bin"]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def fail(source, target):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["a.bin"]


def test_a_free_path_comes_back(tmp_path):
    assert require_free(str(tmp_path / "a.png"), suffix=".png", overwrite=False) == (
        tmp_path / "a.png"
    )


def test_another_suffix_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"ends in '\.png'. Received: path='.*a\.jpg'"):
        require_free(tmp_path / "a.jpg", suffix=".png", overwrite=True)


def test_a_file_that_exists_is_refused_unless_asked(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        require_free(path, suffix=".png", overwrite=False)
    assert require_free(path, suffix=".png", overwrite=True) == path


def test_a_link_to_nothing_is_something_that_is_there(tmp_path):
    path = tmp_path / "a.png"
    path.symlink_to(tmp_path / "a disk that is not mounted")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        require_free(path, suffix=".png", overwrite=False)
    assert path.is_symlink()


def test_threads_that_write_one_path_do_not_get_in_each_others_way(tmp_path):
    path, contents = tmp_path / "a.bin", [bytes([i]) * 100_000 for i in range(16)]
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        for _ in range(8):
            list(pool.map(functools.partial(write_whole, path), contents))
            assert path.read_bytes() in contents
    assert [each.name for each in tmp_path.iterdir()] == ["a.bin"]


# The module by its file, since the package would import TensorFlow.
_KILLED = """
import importlib.util, os, pathlib, signal, sys
spec = importlib.util.spec_from_file_location("atomic_files", sys.argv[1])
atomic_files = importlib.util.module_from_spec(spec)
spec.loader.exec_module(atomic_files)
with atomic_files.written_whole(pathlib.Path(sys.argv[2])) as unfinished:
    unfinished.write_bytes(b"a part")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_unfinished_is_removed_and_nothing_else(tmp_path):
    path, other = tmp_path / "file.bin", tmp_path / ".file.bin"
    path.write_bytes(b"old")
    other.write_bytes(b"the user's")
    command = [sys.executable, "-c", _KILLED, atomic_files.__file__, path]
    assert subprocess.run(command, check=False).returncode == -9
    assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 3
    write_whole(path, b"whole")
    assert sorted(tmp_path.iterdir()) == [other, path]


if __name__ == "__main__":
    pytest.main([__file__])

"""Small files: read without surprises, replaced as a whole or not at all."""

import errno
import os
import shutil
import socket
import stat
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from multus.errors import Fault
from multus.files import TEMP_MARK, FileError, read_small, remove, replace, sync_directory


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.fixture(autouse=True)
def no_descriptor_is_left() -> Iterator[None]:
    before = names(Path("/proc/self/fd"))
    yield
    assert len(names(Path("/proc/self/fd"))) == len(before)


@pytest.mark.parametrize("content", [b"", b"x", b"x" * 100, b"\0\xff"])
def test_read(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    (tmp_path / "link").symlink_to("file")
    assert read_small(path, limit=100) == content
    assert read_small(tmp_path / "link", limit=100) == content


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(FileError, match="is larger than 100 bytes") as caught:
        read_small(path, limit=100)
    assert not caught.value.missing


def test_what_is_not_a_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")  # would block until somebody writes
    for path in (tmp_path / "fifo", tmp_path, Path("/dev/zero")):
        with pytest.raises(FileError, match="is not a regular file") as caught:
            read_small(path, limit=100)
        assert not caught.value.missing
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        with pytest.raises(FileError, match="cannot read"):
            read_small(tmp_path / "socket", limit=100)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "broken").symlink_to("nowhere")
    for path in (tmp_path / "none", tmp_path / "none/x", tmp_path / "file/x", tmp_path / "broken"):
        with pytest.raises(FileError, match=f"cannot read {path}: ") as caught:
            read_small(path, limit=100)
        assert caught.value.missing
        assert caught.value.fault is Fault.OPERATOR


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for path in (tmp_path / "loop", tmp_path / ("x" * 300)):
        with pytest.raises(FileError, match="cannot read") as caught:
            read_small(path, limit=100)
        assert not caught.value.missing


def test_what_is_no_path() -> None:
    for path in (Path("/tmp/a\0b"), Path("\0")):
        for act in (lambda p: read_small(p, limit=1), lambda p: replace(p, b"", mode=0o600), remove):
            with pytest.raises(FileError, match="not a path to a file: "):
                act(path)
    with pytest.raises(FileError, match="not a path to a file: '/'"):
        replace(Path("/"), b"", mode=0o600)


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o755])
def test_replaced_with_exactly_this_mode(tmp_path: Path, mode: int) -> None:
    path, before = tmp_path / "file", os.umask(0o077)
    try:
        replace(path, b"one", mode=0o777)
        replace(path, b"two", mode=mode)
    finally:
        os.umask(before)
    assert path.read_bytes() == b"two"
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert names(tmp_path) == ["file"]


def test_a_link_is_replaced_not_what_it_names(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"old")
    (tmp_path / "link").symlink_to("target")
    replace(tmp_path / "link", b"new", mode=0o600)
    assert ((tmp_path / "target").read_bytes(), (tmp_path / "link").is_symlink()) == (b"old", False)


def test_a_program_is_replaced_while_it_runs(tmp_path: Path) -> None:
    program = tmp_path / "program"
    shutil.copy2("/bin/sleep", program)
    with subprocess.Popen([program, "60"]) as running:
        try:
            with pytest.raises(OSError, match="Text file busy"):
                program.open("r+b").close()
            replace(program, b"#!/bin/sh\nexit 7\n", mode=0o755)
            assert subprocess.run([program]).returncode == 7
        finally:
            running.kill()


def test_what_a_crash_left_is_not_in_the_way(tmp_path: Path) -> None:
    """In a container, the next process has the same number."""
    left = tmp_path / f".file{TEMP_MARK}-{os.getpid()}"
    left.write_bytes(b"half")
    replace(tmp_path / "file", b"whole", mode=0o600)
    assert ((tmp_path / "file").read_bytes(), left.read_bytes()) == (b"whole", b"half")


def test_the_data_is_on_the_disk_before_the_name_and_the_name_before_the_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    really, renamed = os.fsync, Path.replace

    def fsync(descriptor: int) -> None:
        done.append("directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "data")
        really(descriptor)

    def rename(self: Path, target: Path) -> Path:
        assert self.read_bytes() == b"new"
        assert self.parent == target.parent
        assert TEMP_MARK in self.name
        done.append("rename")
        return renamed(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", rename)
    replace(tmp_path / "file", b"new", mode=0o600)
    assert done == ["data", "rename", "directory"]
    assert remove(tmp_path / "file")
    assert done[3:] == ["directory"]


@pytest.mark.parametrize(
    ("number", "hint"),
    [
        (errno.ENOSPC, "the file system is full"),
        (errno.EROFS, "the file system is mounted read-only"),
        (errno.EACCES, "run as root, or check the mount"),
        (errno.EIO, ""),
    ],
)
@pytest.mark.parametrize("step", ["open", "fsync", "fchmod"])
def test_a_disk_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, number: int, hint: str
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    path = tmp_path / "file"
    path.write_bytes(b"old")
    with monkeypatch.context() as patched:
        patched.setattr(os, step, fails)
        with pytest.raises(FileError) as caught:
            replace(path, b"new", mode=0o600)
    assert (caught.value.message, caught.value.hint) == (f"cannot write {path}: {os.strerror(number)}", hint)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_a_disk_that_does_not_even_take_the_half_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fails)
        patched.setattr(Path, "unlink", fails)
        with pytest.raises(FileError, match="read-only"):
            replace(tmp_path / "file", b"new", mode=0o600)
    assert [TEMP_MARK in name for name in names(tmp_path)] == [True]


def test_a_place_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    (tmp_path / "directory/inside").mkdir(parents=True)
    for path, missing in (
        (tmp_path / "none/file", True),
        (tmp_path / "file/file", True),
        (tmp_path / "directory", False),
        (tmp_path / ("x" * 250), False),
    ):
        with pytest.raises(FileError, match="cannot write") as caught:
            replace(path, b"new", mode=0o600)
        assert caught.value.missing is missing
    assert names(tmp_path) == ["directory", "file"]


def test_readers_see_one_or_the_other_never_half(tmp_path: Path) -> None:
    path = tmp_path / "file"
    contents = [bytes([letter]) * 50_000 for letter in b"abcd"]
    replace(path, contents[0], mode=0o600)

    def write(data: bytes) -> None:
        for _ in range(10):
            replace(path, data, mode=0o600)

    writers = [threading.Thread(target=write, args=(data,)) for data in contents]
    for writer in writers:
        writer.start()
    try:
        while any(writer.is_alive() for writer in writers):
            assert read_small(path, limit=100_000) in contents
    finally:
        for writer in writers:
            writer.join()
    assert names(tmp_path) == ["file"]


def test_remove(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    (tmp_path / "link").symlink_to("nowhere")
    assert (remove(path), remove(path), remove(tmp_path / "link")) == (True, False, True)
    path.touch()
    assert (remove(tmp_path / "none/file"), remove(path / "file")) == (False, False)
    with pytest.raises(FileError, match="cannot remove"):
        remove(tmp_path)


def test_sync_directory_of_what_is_none(tmp_path: Path) -> None:
    sync_directory(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        sync_directory(tmp_path / "file")

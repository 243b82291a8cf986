"""The socket's file: always one, always listening, only for root."""

import os
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest

from multus.listener import ListenerError, listen, trusted

pytestmark = pytest.mark.anyio

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to be somebody else")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "multus.sock"


def names(path: Path) -> list[str]:
    return sorted(each.name for each in path.parent.iterdir())


async def test_directory_and_socket_are_roots_alone(path: Path) -> None:
    before = os.umask(0)
    try:
        async with await listen(path):
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
            assert stat.S_ISSOCK(path.stat().st_mode)
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert names(path) == ["multus.sock"], "nothing is left of the name that it was bound under"
    finally:
        os.umask(before)


@pytest.mark.parametrize("what", ["a stale socket", "a file", "a dangling link"])
async def test_what_lies_there_is_replaced(path: Path, what: str) -> None:
    path.parent.mkdir()
    if what == "a stale socket":
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(str(path))
    elif what == "a file":
        path.touch()
    else:
        path.symlink_to("nowhere")
    async with await listen(path) as listener, await anyio.connect_unix(path), await listener.accept():
        assert not path.is_symlink()


async def test_a_successor_takes_over_at_one_stroke(path: Path) -> None:
    async with await listen(path) as old:
        early = await anyio.connect_unix(path)
        async with await listen(path) as new:
            late = await anyio.connect_unix(path)
            for listener, client in ((old, early), (new, late)):
                async with client, await listener.accept() as served:
                    await served.send(b"x")
                    assert await client.receive() == b"x"


async def test_what_a_killed_one_left_under_the_other_name_is_no_obstacle(path: Path) -> None:
    path.parent.mkdir()
    left = path.with_name(f".multus.sock.{os.getpid()}")
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(left))
    async with await listen(path):
        assert names(path) == ["multus.sock"]


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o1777])
async def test_a_directory_that_others_can_write_is_refused_and_not_changed(path: Path, mode: int) -> None:
    path.parent.mkdir()
    path.parent.chmod(mode)
    with pytest.raises(ListenerError, match="can be written by others") as caught:
        await listen(path)
    assert "chmod" in caught.value.hint
    assert stat.S_IMODE(path.parent.stat().st_mode) == mode
    assert names(path) == []


@as_root
async def test_a_directory_of_somebody_else_is_refused(path: Path) -> None:
    path.parent.mkdir(mode=0o755)
    os.chown(path.parent, 65534, 65534)
    with pytest.raises(ListenerError, match="others than root"):
        await listen(path)


async def test_a_path_that_is_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ListenerError, match="too long"):
        await listen(tmp_path / ("d" * 100) / "multus.sock")


async def test_a_path_that_cannot_be_a_socket_is_refused_and_left_as_it_was(path: Path) -> None:
    path.mkdir(parents=True)
    with pytest.raises(ListenerError, match="cannot make the socket"):
        await listen(path)
    assert names(path) == ["multus.sock"], "and the name that it was bound under is gone again"
    with pytest.raises(ListenerError):
        await listen(Path("/proc/multus/multus.sock"))
    with pytest.raises(ListenerError):
        await listen(Path("/dev/null/multus.sock"))
    with pytest.raises(ListenerError):
        await listen(path.with_name("nul\0.sock"))


@contextmanager
def somebody() -> Iterator[None]:
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@as_root
async def test_only_root_is_trusted_even_when_somebody_loosened_the_mode(caplog: pytest.LogCaptureFixture) -> None:
    directory = Path(tempfile.mkdtemp(prefix="multus-", dir="/tmp"))
    try:
        directory.chmod(0o755)
        path = directory / "multus.sock"
        async with await listen(path) as listener:
            with socket.socket(socket.AF_UNIX) as client:
                with somebody(), pytest.raises(PermissionError):
                    client.connect(str(path))
                path.chmod(0o666)
                with somebody():
                    client.connect(str(path))
                async with await listener.accept() as served:
                    assert not trusted(served)
            assert f"process {os.getpid()} of user 65534 was refused" in caplog.text
            async with await anyio.connect_unix(path), await listener.accept() as served:
                assert trusted(served)
    finally:
        shutil.rmtree(directory)

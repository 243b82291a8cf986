"""DELs that were stored while no daemon was there: each is carried out, whatever else lies in the directory."""

import logging
import os
import shutil
import stat
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from asyncinotify import Inotify, Mask
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from multus.cni.errors import CNIError, Code
from multus.errors import MultusError
from multus.spool import Spool, SpoolError
from multus.wire import encode_request

pytestmark = pytest.mark.anyio

CONF = b'{"cniVersion":"1.0.0","name":"multus","type":"multus"}'
Asked = list[tuple[str, str]]


def environment(container: str, ifname: str = "eth0", nonce: str = "", command: str = "DEL") -> dict[str, str]:
    env = {"CNI_COMMAND": command, "CNI_CONTAINERID": container, "CNI_IFNAME": ifname, "CNI_NETNS": "/run/netns/x"}
    return {**env, "MULTUS_NONCE": nonce or nonce_at(time.time())}


def nonce_at(seconds: float) -> str:
    return f"{int(seconds * 1e9):016x}0000beef0000cafe"


def store(directory: Path, container: str, *, ifname: str = "eth0", at: float = 0.0, frame: bytes | None = None) -> str:
    """As the shim does it: another name first, then a rename."""
    nonce = nonce_at(at or time.time())
    data = encode_request(environment(container, ifname, nonce), CONF) if frame is None else frame
    temporary = directory / f".{nonce}.tmp"
    temporary.write_bytes(data)
    name = f"{container}-{ifname}.{nonce}.del"
    temporary.rename(directory / name)
    return name


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "cni" / "spool"


@pytest.fixture
def spool(directory: Path) -> Spool:
    """Rechecks come too late for a test to pass by them: events have to do it."""
    made = Spool(directory, recheck=600, retry=(0.01, 0.05))
    made.prepare()
    return made


@asynccontextmanager
async def running(spool: Spool, handle: Callable[[dict[str, str], bytes], object]) -> AsyncIterator[None]:
    async with anyio.create_task_group() as group:
        await group.start(spool.run, handle)
        yield
        group.cancel_scope.cancel()


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(10):
        while not condition():
            await anyio.sleep(0.002)


# ---------------------------------------------------------------- the directory


def test_the_directory_is_roots_alone_whatever_the_umask(tmp_path: Path) -> None:
    directory = tmp_path / "spool"
    before = os.umask(0o277)
    try:
        Spool(directory).prepare()
    finally:
        os.umask(before)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    directory.chmod(0o777)
    Spool(directory).prepare()
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700, "a shim stores nothing where others can write"


def test_a_place_that_cannot_be_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for path in (tmp_path / "file", tmp_path / "file" / "spool", tmp_path / "link"):
        with pytest.raises(SpoolError, match=str(path)):
            Spool(path).prepare()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a directory away")
def test_a_directory_of_somebody_else_is_refused(directory: Path) -> None:
    directory.mkdir(parents=True)
    os.chown(directory, 65534, 65534)
    with pytest.raises(SpoolError, match="belongs to user 65534"):
        Spool(directory).prepare()


def test_what_dead_shims_left_half_written_is_swept(directory: Path, spool: Spool) -> None:
    for name, age in ((".old.tmp", 7200), (".new.tmp", 0)):
        (directory / name).write_bytes(b"\0MUL")
        os.utime(directory / name, (time.time() - age,) * 2)
    spool.prepare()
    assert names(directory) == [".new.tmp"], "a shim may be writing it this moment"


# ---------------------------------------------------------------- entries


def test_entries_come_oldest_first_by_their_nonce(directory: Path, spool: Spool) -> None:
    store(directory, "aaa", at=2000.5)
    store(directory, "zzz", at=1000.25)
    store(directory, "mmm", at=3000.0)
    os.utime(next(directory.glob("mmm*")), (1, 1))  # a copied file's own time is not the DEL's
    entries = spool.pending()
    assert [entry.container_id for entry in entries] == ["zzz", "aaa", "mmm"]
    assert [entry.stored for entry in entries] == [1000.25, 2000.5, 3000.0]
    assert entries[0].ifname == "eth0"
    assert entries[0].env["CNI_COMMAND"] == "DEL"
    assert entries[0].conf == CONF


def test_a_foreign_nonce_leaves_the_files_time(directory: Path, spool: Spool) -> None:
    store(directory, "c", frame=encode_request(environment("c", nonce="by-hand"), CONF))
    (path,) = directory.iterdir()
    os.utime(path, (1234, 1234))
    assert [entry.stored for entry in spool.pending()] == [1234.0]


def test_a_done_entry_is_gone_and_may_be_done_twice(directory: Path, spool: Spool) -> None:
    store(directory, "c")
    (entry,) = spool.pending()
    spool.done(entry)
    spool.done(entry)
    assert spool.pending() == []
    assert list(directory.iterdir()) == []


def test_clearing_takes_one_container_and_no_other(directory: Path, spool: Spool) -> None:
    for container, ifname in (("a", "eth0"), ("a", "net1"), ("a-b", "eth0"), ("b", "eth0"), ("a", "eth0")):
        store(directory, container, ifname=ifname)
    assert spool.clear_container("a", "net1") == 1
    assert spool.clear_container("a") == 2
    assert [entry.container_id for entry in spool.pending()] == ["a-b", "b"]
    assert spool.clear_container("a") == 0


GARBAGE = {
    "empty": b"",
    "half a header": b"\0MULTUS\x01\0\0",
    "another release": b"\0MULTUS\x02" + bytes(8),
    "cut off": encode_request(environment("c"), CONF)[:-1],
    "too much": encode_request(environment("c"), CONF) + b"x",
    "an ADD": encode_request(environment("c", command="ADD"), CONF),
    "no container": encode_request({"CNI_COMMAND": "DEL", "CNI_IFNAME": "eth0"}, CONF),
    "a path for a container": encode_request(environment("../../etc"), CONF),
    "no JSON": encode_request(environment("c"), b"}"),
    "not an object": encode_request(environment("c"), b"[]"),
}


@pytest.mark.parametrize("what", GARBAGE)
def test_garbage_is_set_aside_with_a_word(
    directory: Path, spool: Spool, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    store(directory, "good", at=1000)
    name = store(directory, "bad", at=2000, frame=GARBAGE[what])
    assert [entry.container_id for entry in spool.pending()] == ["good"]
    assert name in caplog.text
    caplog.clear()
    assert [entry.container_id for entry in spool.pending()] == ["good"]
    assert caplog.text == "", "told once"
    assert (directory / name).with_suffix(".bad").read_bytes() == GARBAGE[what], "kept for a person"


def test_what_is_no_file_is_set_aside_and_does_not_block(directory: Path, spool: Spool) -> None:
    (directory / "d.del").mkdir()
    os.mkfifo(directory / "f.del")
    (directory / "l.del").symlink_to("/dev/zero")
    with (directory / "large.del").open("wb") as file:
        file.truncate(1 << 33)
    assert spool.pending() == []
    assert names(directory) == ["d.bad", "f.bad", "l.bad", "large.bad"]


def test_other_files_are_left_alone(directory: Path, spool: Spool) -> None:
    for name in (".x.tmp", "README", "c-eth0.1.bad"):
        (directory / name).touch()
    assert spool.pending() == []
    assert names(directory) == [".x.tmp", "README", "c-eth0.1.bad"]


def test_a_directory_that_is_gone_is_an_error_of_ours(directory: Path, spool: Spool) -> None:
    shutil.rmtree(directory)
    with pytest.raises(SpoolError, match="cannot list"):
        spool.pending()


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_a_file_holds_the_others_are_read(directory: Path, spool: Spool, data: st.DataObject) -> None:
    whole = encode_request(environment("c", nonce="n"), CONF)
    at = data.draw(st.integers(0, len(whole)))
    damaged = whole[:at] + data.draw(st.binary(max_size=8)) + whole[at + data.draw(st.integers(0, 8)) :]
    (directory / "x.del").write_bytes(damaged)
    store(directory, "good", at=1000)
    assert "good" in [entry.container_id for entry in spool.pending()]
    for path in directory.iterdir():
        path.unlink()


# ---------------------------------------------------------------- carrying them out


async def test_what_is_there_at_the_start_is_carried_out(directory: Path, spool: Spool) -> None:
    asked: Asked = []

    async def handle(env: dict[str, str], conf: bytes) -> None:
        assert conf == CONF
        asked.append((env["CNI_CONTAINERID"], env["CNI_COMMAND"]))

    for number in (3, 1, 2):
        store(directory, f"c{number}", at=1000 + number)
    async with running(spool, handle):
        await until(lambda: list(directory.iterdir()) == [])
    assert asked == [("c1", "DEL"), ("c2", "DEL"), ("c3", "DEL")]


async def test_what_comes_later_is_noticed(directory: Path, spool: Spool) -> None:
    asked: Asked = []

    async def handle(env: dict[str, str], _: bytes) -> None:
        asked.append((env["CNI_CONTAINERID"], env["CNI_IFNAME"]))

    async with running(spool, handle):
        store(directory, "soon")
        await until(lambda: asked == [("soon", "eth0")])
        await until(lambda: list(directory.iterdir()) == [])
        store(directory, "later")
        await until(lambda: list(directory.iterdir()) == [])
        (directory / "copied.del").write_bytes(encode_request(environment("by-hand"), CONF))  # by a person, in place
        await until(lambda: list(directory.iterdir()) == [])
    assert [container for container, _ in asked] == ["soon", "later", "by-hand"]


async def test_a_failure_is_tried_again_and_holds_up_nobody_else(
    directory: Path, spool: Spool, caplog: pytest.LogCaptureFixture
) -> None:
    left = {"stuck": 5}
    done: list[str] = []

    async def handle(env: dict[str, str], _: bytes) -> None:
        container = env["CNI_CONTAINERID"]
        if left.get(container, 0):
            left[container] -= 1
            raise CNIError(Code.TRY_AGAIN_LATER, "the API server is away")
        done.append(container)

    for number, container in enumerate(("stuck", "one", "two")):
        store(directory, container, at=1000 + number)
    async with running(spool, handle):
        await until(lambda: sorted(done) == ["one", "stuck", "two"])
        assert done[-1] == "stuck"
        await until(lambda: list(directory.iterdir()) == [])
    assert caplog.text.count("the API server is away") == 3, "told at the 1st, 2nd and 4th time"


async def test_one_that_hangs_holds_up_nobody_else(directory: Path, spool: Spool) -> None:
    done: list[str] = []

    async def handle(env: dict[str, str], _: bytes) -> None:
        if env["CNI_CONTAINERID"] == "hangs":
            await anyio.sleep_forever()
        done.append(env["CNI_CONTAINERID"])

    store(directory, "hangs", at=1000)
    store(directory, "works", at=2000)
    async with running(spool, handle):
        store(directory, "comes")
        await until(lambda: sorted(done) == ["comes", "works"])
        await until(lambda: len(names(directory)) == 1)
    assert [entry.container_id for entry in spool.pending()] == ["hangs"], "it waits for the next daemon"


async def test_dels_of_one_container_are_carried_out_one_after_the_other(directory: Path, spool: Spool) -> None:
    running_now, asked = 0, []

    async def handle(env: dict[str, str], _: bytes) -> None:
        nonlocal running_now
        running_now += 1
        assert running_now == 1
        await anyio.lowlevel.checkpoint()
        asked.append(env["CNI_IFNAME"])
        running_now -= 1

    for number in (2, 0, 1):
        store(directory, "c", ifname=f"eth{number}", at=1000 + number)
    async with running(spool, handle):
        await until(lambda: list(directory.iterdir()) == [])
    assert asked == ["eth0", "eth1", "eth2"]


async def test_a_defect_of_the_handler_is_logged_and_loses_nothing(
    directory: Path, spool: Spool, caplog: pytest.LogCaptureFixture
) -> None:
    failed = threading.Event()

    async def handle(*_: object) -> None:
        if not failed.is_set():
            failed.set()
            raise KeyError("oops")

    store(directory, "c")
    async with running(spool, handle):
        await until(lambda: list(directory.iterdir()) == [])
    assert "KeyError: 'oops'" in caplog.text


async def test_what_was_cleared_meanwhile_is_not_tried_again(directory: Path, spool: Spool) -> None:
    tries = {"c": 0, "other": 0}

    async def handle(env: dict[str, str], _: bytes) -> None:
        tries[env["CNI_CONTAINERID"]] += 1
        raise MultusError("not now")

    store(directory, "c")
    async with running(spool, handle):
        await until(lambda: tries["c"] > 0)
        assert spool.clear_container("c") == 1
        seen = tries["c"] + 1  # one may be under way
        store(directory, "other")
        await until(lambda: tries["other"] > 5)
    assert tries["c"] <= seen
    assert [entry.container_id for entry in spool.pending()] == ["other"]


async def test_nothing_slips_through_before_the_directory_is_watched(
    directory: Path, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Inotify.add_watch

    def late(self: Inotify, path: Path, mask: Mask) -> object:
        store(directory, "between")  # after the first look, before the watch
        return real(self, path, mask)

    async def handle(*_: object) -> None:
        return

    looked = anyio.Event()
    listed = Spool._look

    async def look(self: Spool, *arguments: object) -> None:
        await listed(self, *arguments)  # type: ignore[arg-type]
        looked.set()

    async def watch(self: Spool) -> None:
        await looked.wait()
        await watched(self)

    watched = Spool._watch
    monkeypatch.setattr(Inotify, "add_watch", late)
    monkeypatch.setattr(Spool, "_look", look)
    monkeypatch.setattr(Spool, "_watch", watch)
    async with running(spool, handle):
        await until(lambda: looked.is_set() and names(directory) == [])


async def test_a_directory_that_is_removed_is_made_anew(directory: Path, spool: Spool) -> None:
    asked: list[str] = []

    async def handle(env: dict[str, str], _: bytes) -> None:
        asked.append(env["CNI_CONTAINERID"])

    async with running(spool, handle):
        store(directory, "before")
        await until(lambda: asked == ["before"] and list(directory.iterdir()) == [])
        shutil.rmtree(directory)
        await until(directory.exists)
        store(directory, "after")
        await until(lambda: asked == ["before", "after"])


async def test_without_inotify_the_directory_is_looked_at_now_and_then(
    directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("asyncinotify.Inotify.__init__", refuse)
    monkeypatch.setattr("asyncinotify.Inotify.__del__", lambda _: None, raising=False)
    spool = Spool(directory, recheck=0.02)
    spool.prepare()

    async def handle(*_: object) -> None:
        return

    async with running(spool, handle):
        store(directory, "c")
        await until(lambda: list(directory.iterdir()) == [])
    assert "Too many open files" in caplog.text


async def test_hundreds_at_once(directory: Path, spool: Spool, caplog: pytest.LogCaptureFixture) -> None:
    """A node that was drained while the daemon was down, and more coming."""
    caplog.set_level(logging.ERROR)
    asked: list[str] = []

    async def handle(env: dict[str, str], _: bytes) -> None:
        await anyio.lowlevel.checkpoint()
        asked.append(env["CNI_CONTAINERID"])

    for number in range(150):
        store(directory, f"old{number}", at=1000 + number)
    async with running(spool, handle):
        for number in range(50):
            store(directory, f"new{number}")
        await until(lambda: list(directory.iterdir()) == [])
    assert len(asked) == len(set(asked)) == 200
    assert caplog.text == ""

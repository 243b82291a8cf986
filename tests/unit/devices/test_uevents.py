"""Events of the kernel, of udev and of route netlink, as messages in sockets; and changes that no event tells of."""

import errno
import os
import socket
import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.linux import rtnetlink, uevents
from devices.linux.uevents import NODE, RESCAN, Change, KernelSource, LinkSource, Uevents, change_of, parse_uevent
from tests.fake_sysfs import FakeSysfs

pytestmark = pytest.mark.anyio

PF, VF = "0000:03:00.0", "0000:03:01.0"
DEVICE = f"/devices/pci0000:00/0000:00:02.0/{VF}"


def _uevent(action: str, path: str, subsystem: str) -> bytes:
    lines = (f"{action}@{path}", f"ACTION={action}", f"DEVPATH={path}", f"SUBSYSTEM={subsystem}", "SEQNUM=7")
    return "\0".join(lines).encode() + b"\0"


def _netlink(kind: int, body: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body


def _link_message(name: str, kind: int = rtnetlink.NEWLINK) -> bytes:
    body = rtnetlink.LINK.pack(0, 1, 7, 0, 0) + rtnetlink.attribute(rtnetlink.IFNAME, name.encode() + b"\0")
    return _netlink(kind, body)


@pytest.fixture
def fake(tmp_path: Path) -> FakeSysfs:
    fake = FakeSysfs(tmp_path)
    fake.pf(PF, netdev="ens1f0", total=4, num=1)
    return fake


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        yield ours, theirs


@pytest.mark.parametrize(
    ("message", "change"),
    [
        (_uevent("add", DEVICE, "pci"), Change(subsystem="pci", action="add", bdf=VF)),
        (_uevent("bind", DEVICE, "pci"), Change(subsystem="pci", action="bind", bdf=VF)),
        (_uevent("move", f"{DEVICE}/net/e0", "net"), Change(subsystem="net", action="move", bdf=VF, name="e0")),
        (
            _uevent("add", f"{DEVICE}/virtio0/net/eth0", "net"),
            Change(subsystem="net", action="add", bdf=VF, name="eth0"),
        ),
        (
            _uevent("add", "/devices/virtual/vfio/12", "vfio"),
            Change(subsystem="vfio", action="add", name="12"),
        ),
        (
            _uevent("add", f"{DEVICE}/vfio-dev/vfio3", "vfio-dev"),
            Change(subsystem="vfio-dev", action="add", bdf=VF, name="vfio3"),
        ),
        (_uevent("add", "/devices/virtual/block/loop0", "block"), None),
        (b"libudev\0" + bytes(40), None),
        (b"", None),
        (b"add@/x", None),
        (_uevent("add", "/devices/virtual/net/veth12", "net"), None),
        (b"add@/x\0SUBSYSTEM=pci", None),
        (b"add@/x\0SUBSYSTEM=vfio\0=\0\xff=\xff", Change(subsystem="vfio")),
    ],
)
def test_messages_of_the_kernel(message: bytes, change: Change | None) -> None:
    assert parse_uevent(message) == change


@given(st.binary(max_size=300))
def test_messages_fuzzed(data: bytes) -> None:
    for message in (data, b"add@/\0SUBSYSTEM=pci\0" + data):
        assert isinstance(parse_uevent(message), Change | None)


@given(st.binary(max_size=100), st.integers(0, 200))
def test_route_netlink_fuzzed(data: bytes, kind: int) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        source = LinkSource(Path("/nowhere"), ours)
        for message in (data, _netlink(kind, data)):
            theirs.send(message)
        assert all(isinstance(change, Change) for change in source.drain())


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        (_link_message("ens1f0"), [Change(subsystem="net", action="change", bdf=PF, name="ens1f0")]),
        (_link_message("veth12"), []),
        (_netlink(rtnetlink.NEWADDR, struct.pack("=BBBBI", 2, 24, 0, 0, 7)), [NODE]),
        (_netlink(rtnetlink.NEWADDR, struct.pack("=BBBBI", 10, 64, 0, 253, 7)), []),  # every veth has a link-local one
        (_netlink(21, struct.pack("=BBBBI", 2, 24, 0, 0, 7)), [NODE]),
        (_netlink(rtnetlink.NEWROUTE, struct.pack("=BBBBBBBBI", 2, 0, 0, 0, 254, 3, 0, 1, 0)), [NODE]),
        (_netlink(rtnetlink.DELROUTE, struct.pack("=BBBBBBBBI", 10, 0, 0, 0, 254, 3, 0, 1, 0)), [NODE]),
        (_netlink(rtnetlink.NEWROUTE, struct.pack("=BBBBBBBBI", 2, 32, 0, 0, 254, 3, 0, 1, 0)), []),  # a pod's
        (_link_message("ens1f0")[:-4], [RESCAN]),  # cut short
    ],
)
def test_messages_of_route_netlink(
    fake: FakeSysfs, pair: tuple[socket.socket, socket.socket], message: bytes, changes: list[Change]
) -> None:
    source = LinkSource(fake.sys, pair[0])
    pair[1].send(message)
    assert list(source.drain()) == changes


def test_of_an_interface_that_went_the_device_is_remembered(
    fake: FakeSysfs, pair: tuple[socket.socket, socket.socket]
) -> None:
    source = LinkSource(fake.sys, pair[0])
    fake.remove_netdev("ens1f0v0")
    for _ in range(2):
        pair[1].send(_link_message("ens1f0v0", kind=17))
    assert list(source.drain()) == [Change(subsystem="net", action="remove", bdf=VF, name="ens1f0v0")]


def test_only_the_kernel_is_believed() -> None:
    class Forged(socket.socket):
        def recvfrom(self, *_: int) -> tuple[bytes, object]:
            if not messages:
                raise BlockingIOError
            found = messages.pop(0)
            if isinstance(found, int):
                raise OSError(found, os.strerror(found))
            return found

    add, remove = _uevent("add", DEVICE, "pci"), _uevent("remove", DEVICE, "pci")
    messages: list[tuple[bytes, object] | int] = [(remove, (4711, 1)), errno.ENOBUFS, (add, (0, 1)), errno.EBADF]
    with Forged(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:
        found = list(KernelSource(connection).drain())
    assert found == [RESCAN, change_of("pci", "add", DEVICE)]


class _Told:
    """A source that a test speaks through."""

    def __init__(self, ours: socket.socket) -> None:
        self._source = KernelSource(ours)
        self.closed = False

    def fileno(self) -> int:
        return self._source.fileno()

    def drain(self) -> Iterable[Change]:
        return self._source.drain()

    def close(self) -> None:
        self.closed = True


async def test_events_as_they_come_each_device_once(fake: FakeSysfs, pair: tuple[socket.socket, socket.socket]) -> None:
    source = _Told(pair[0])
    async with Uevents(fake.sys, sources=[lambda: source], check_every=1000) as changes:
        for _ in range(3):
            pair[1].send(_uevent("add", DEVICE, "pci"))
        pair[1].send(_uevent("bind", DEVICE, "pci"))
        with anyio.fail_after(10):
            assert [await anext(changes), await anext(changes)] == [
                Change(subsystem="pci", action="add", bdf=VF),
                Change(subsystem="pci", action="bind", bdf=VF),
            ]
        async with anyio.create_task_group() as group:
            later: list[Change] = []

            async def one() -> None:
                later.append(await anext(changes))

            group.start_soon(one)
            await anyio.wait_all_tasks_blocked()
            assert not later
            pair[1].send(_uevent("remove", DEVICE, "pci"))
        assert later == [Change(subsystem="pci", action="remove", bdf=VF)]
    assert source.closed


async def test_a_change_without_an_event_is_seen_and_looked_for_more_often(
    fake: FakeSysfs, pair: tuple[socket.socket, socket.socket]
) -> None:
    opening: list[Callable[[], uevents.Source]] = [lambda: _Told(pair[0])]
    async with Uevents(fake.sys, sources=opening, check_every=0.02, check_when_silent=0.01) as changes:
        with anyio.fail_after(10):
            fake.grow(PF, 2)
            assert await anext(changes) == RESCAN
            assert changes.silent
            fake.bind(VF, "vfio-pci")
            assert await anext(changes) == RESCAN
            pair[1].send(_uevent("bind", DEVICE, "pci"))
            assert (await anext(changes)).bdf == VF
            assert not changes.silent


async def test_nothing_is_told_when_nothing_changed(fake: FakeSysfs) -> None:
    async with Uevents(fake.sys, sources=[], check_every=0.001) as changes:
        (fake.sys / "class/net/veth12").symlink_to("../../devices/virtual/net/veth12")  # a pod's
        with anyio.move_on_after(0.1) as scope:
            await anext(changes)
    assert scope.cancelled_caught
    assert not changes.silent


async def test_without_any_source_changes_are_seen_all_the_same(fake: FakeSysfs) -> None:
    def refused() -> uevents.Source:
        raise PermissionError(errno.EPERM, "no")

    def missing() -> uevents.Source:
        raise ImportError("no libudev")

    async with Uevents(fake.sys, sources=[refused, missing], check_every=0.01) as changes:
        fake.remove_netdev("ens1f0v0")
        with anyio.fail_after(10):
            assert await anext(changes) == RESCAN


async def test_the_real_sources_open_and_close() -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        async with Uevents(check_every=1000):
            assert len(list(Path("/proc/self/fd").iterdir())) > before
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1  # libudev may keep one for good

"""Where news of the hardware comes from: the kernel's uevents, those of udev, and route netlink; and what each says.

udev tells last, after its rules have renamed an interface, but is silent where it does not run or is not in our network
namespace. The kernel's own uevents come at once. Neither tells of a carrier: route netlink does.
"""

import errno
import os
import re
import socket
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec

from devices.errors import KernelError
from devices.linux import rtnetlink

SUBSYSTEMS: Final = frozenset({"pci", "net", "vfio", "vfio-dev"})

_ADDRESS = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]")
_NETLINK_UEVENT = 15
_KERNEL = 1  # the group that the kernel sends to; udev has the other
_BUFFER = 65536
_QUEUE = 16 << 20  # bytes: 512 VFs at once are 1.5 MiB
_SO_RCVBUFFORCE = 33
_LINK, _IPV4_ADDRESS, _IPV4_ROUTE, _IPV6_ADDRESS, _IPV6_ROUTE = 1, 5, 7, 9, 11  # groups, as RTNLGRP numbers
_SCOPE_LINK = 253
_ADDRESS_SIZE, _ROUTE_SIZE = 8, 12
_DELLINK, _DELADDR = 17, 21


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """Something to look at again.

    `bdf` is the PCI device ("" when it is about none); `name` an interface or a VFIO group. `subsystem` is the
    kernel's, or "rescan" (look at everything: events were lost, or there were none) or "node" (addresses or default
    routes of the node changed, so other NICs may be guarded).
    """

    subsystem: str
    action: str = ""
    bdf: str = ""
    name: str = ""


RESCAN: Final = Change(subsystem="rescan")
NODE: Final = Change(subsystem="node")


class Source(Protocol):
    """Where events come from: something that can be waited for, and then emptied without waiting."""

    def fileno(self) -> int: ...
    def drain(self) -> Iterable[Change]: ...
    def close(self) -> None: ...


class KernelSource:
    """The kernel's own uevents."""

    def __init__(self, connection: socket.socket | None = None) -> None:
        self._socket = connection or _subscribe(_NETLINK_UEVENT, (_KERNEL,))

    def fileno(self) -> int:
        return self._socket.fileno()

    def drain(self) -> Iterable[Change]:
        for data in _received(self._socket):
            change = RESCAN if data is None else parse_uevent(data)
            if change is not None:
                yield change

    def close(self) -> None:
        self._socket.close()


class UdevSource:
    """The events of udev, sent on after its rules ran."""

    def __init__(self) -> None:
        import pyudev

        self._monitor: Any = pyudev.Monitor.from_netlink(pyudev.Context(), source="udev")
        for subsystem in sorted(SUBSYSTEMS):
            self._monitor.filter_by(subsystem)
        self._monitor.start()

    def fileno(self) -> int:
        return int(self._monitor.fileno())

    def drain(self) -> Iterable[Change]:
        while True:
            try:
                device = self._monitor.poll(timeout=0)
            except OSError:  # its queue ran over
                yield RESCAN
                return
            if device is None:
                return
            change = change_of(device.subsystem or "", device.action or "", device.device_path)
            if change is not None:
                yield change

    def close(self) -> None:
        self._monitor = None  # libudev closes its socket with the last reference


class LinkSource:
    """Carriers, names and MTUs of interfaces; and addresses and default routes, by which the node needs a NIC."""

    def __init__(self, sysfs: Path, connection: socket.socket | None = None) -> None:
        groups = (_LINK, _IPV4_ADDRESS, _IPV4_ROUTE, _IPV6_ADDRESS, _IPV6_ROUTE)
        self._socket = connection or _subscribe(socket.NETLINK_ROUTE, groups)
        self._net = sysfs / "class/net"
        self._known: dict[str, str] = {}
        for name in _names(self._net):
            self._address(name)

    def fileno(self) -> int:
        return self._socket.fileno()

    def drain(self) -> Iterable[Change]:
        for data in _received(self._socket):
            if data is None:
                yield RESCAN
                continue
            try:
                for kind, body in rtnetlink.events(data):
                    yield from self._change(kind, body)
            except KernelError:  # cut short: longer than our buffer
                yield RESCAN

    def close(self) -> None:
        self._socket.close()

    def _change(self, kind: int, body: bytes) -> Iterable[Change]:
        if kind in (rtnetlink.NEWADDR, _DELADDR):
            if len(body) >= _ADDRESS_SIZE and body[3] < _SCOPE_LINK:
                yield NODE
        elif kind in (rtnetlink.NEWROUTE, rtnetlink.DELROUTE):
            if len(body) >= _ROUTE_SIZE and body[1] == 0:  # the length of its prefix
                yield NODE
        elif kind in (rtnetlink.NEWLINK, _DELLINK) and len(body) >= rtnetlink.LINK.size:
            found = rtnetlink.attributes(body[rtnetlink.LINK.size :])
            name = rtnetlink.text(found.get(rtnetlink.IFNAME, b""))
            bdf = self._address(name)
            if bdf:  # not a pod's veth
                yield Change(subsystem="net", action="remove" if kind == _DELLINK else "change", bdf=bdf, name=name)

    def _address(self, name: str) -> str:
        """The PCI device of an interface; of one that went, the device it had."""
        try:
            target = os.readlink(self._net / name)  # noqa: PTH115
        except (OSError, ValueError):
            return self._known.pop(name, "")
        found = _ADDRESS.findall(target)
        if found:
            self._known[name] = found[-1]
        return found[-1] if found else ""


def parse_uevent(data: bytes) -> Change | None:
    """A message of the kernel; None for other subsystems, and for what is no such message."""
    head, *lines = data.split(b"\0")
    if b"@/" not in head:
        return None
    told = dict(line.decode("utf-8", "replace").split("=", 1) for line in lines if b"=" in line)
    if told.get("SUBSYSTEM", "") not in SUBSYSTEMS:
        return None
    return change_of(told["SUBSYSTEM"], told.get("ACTION", ""), told.get("DEVPATH", ""))


def change_of(subsystem: str, action: str, devpath: str) -> Change | None:
    """The change that an event about this device tells of: of the PCI device at or above it in the tree.

    None for interfaces that are no device's: every pod brings some.
    """
    addresses = _ADDRESS.findall(devpath)
    if not addresses and subsystem != "vfio":
        return None
    name = "" if subsystem == "pci" else devpath.rpartition("/")[2]
    return Change(subsystem=subsystem, action=action, bdf=addresses[-1] if addresses else "", name=name)


def address_in(path: str) -> str:
    """The last PCI address in a path of sysfs; "" for none."""
    found = _ADDRESS.findall(path)
    return found[-1] if found else ""


def _names(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)  # noqa: PTH208
    except OSError:
        return []


def _subscribe(protocol: int, groups: Iterable[int]) -> socket.socket:
    flags = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    connection = socket.socket(socket.AF_NETLINK, flags, protocol)
    try:
        with suppress(OSError):  # without CAP_NET_ADMIN the queue is shorter, and a burst costs a rescan
            connection.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _QUEUE)
        connection.bind((0, sum(1 << group - 1 for group in groups)))
    except BaseException:
        connection.close()
        raise
    return connection


def _received(connection: socket.socket) -> Iterable[bytes | None]:
    """The messages that wait; None when some were lost. Another process may send to the socket: that is not heeded."""
    while True:
        try:
            data, sender = connection.recvfrom(_BUFFER, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                return
            yield None
            continue
        if not isinstance(sender, tuple) or sender[0] == 0:
            yield data

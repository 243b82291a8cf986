"""The sockets of device plugins: what they are called, which is which, and a server on one."""

import errno
import hashlib
import socket
import struct
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, Final
from weakref import WeakSet

import msgspec
from grpclib.protocol import H2Protocol
from grpclib.server import Server

UPSTREAM_PREFIXES: Final = ("intel.com", "openshift.io")
"""Of resources that upstream's device plugin serves unless it is told otherwise: alone, and from its operator."""

_LONGEST_PATH: Final = 107  # bytes of a Unix socket's address

_UCRED: Final = struct.Struct("3i")  # pid, uid, gid: struct ucred, unix(7)

Identity = tuple[int, int, int]


class Rival(msgspec.Struct, frozen=True, kw_only=True):
    """Another device plugin's socket; `pid` is the program that listens there, 0 when that is not to be seen here."""

    path: Path
    pid: int

    def __str__(self) -> str:
        try:
            name = Path(f"/proc/{self.pid}/comm").read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            name = ""
        return f"{self.path} ({name or 'a process'} {self.pid})" if self.pid else str(self.path)


class HangUpServer(Server):
    """A server that can end its connections; grpclib leaves that to the other side."""

    def __init__(self, handlers: Collection[Any]) -> None:
        super().__init__(handlers)
        self._protocols: WeakSet[H2Protocol] = WeakSet()

    def _protocol_factory(self) -> H2Protocol:
        protocol = super()._protocol_factory()
        self._protocols.add(protocol)
        return protocol

    def hang_up(self) -> None:
        """Close every connection."""
        for protocol in list(self._protocols):
            if hasattr(protocol, "connection"):  # not before it is made
                protocol.connection.close()


def socket_name(resource: str, directory: Path) -> str:
    """intel.com_sriov.sock for intel.com/sriov; one too long for a socket's address ends in a digest instead."""
    plain = resource.replace("/", "_")
    room = _LONGEST_PATH - len(str(directory).encode()) - len("/.sock")
    if len(plain) > room:
        plain = f"{plain[: max(room - 13, 0)]}-{hashlib.sha256(resource.encode()).hexdigest()[:12]}"
    return f"{plain}.sock"


def identity(path: Path) -> Identity | None:
    """Tells one socket from the next of the same name, whose inode may have the same number."""
    try:
        info = path.stat()
    except OSError:
        return None
    return info.st_dev, info.st_ino, info.st_ctime_ns


def listener(path: Path) -> int | None:
    """The process that listens on a socket, 0 when it is of another pid namespace; None when nobody listens.

    It sees a connection that ends at once. Does not block.
    """
    with socket.socket(socket.AF_UNIX) as client:
        client.setblocking(False)
        try:
            client.connect(str(path))
            pid, _, _ = _UCRED.unpack(client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        except OSError as error:
            return 0 if error.errno in (errno.EAGAIN, errno.EACCES) else None  # so many wait there, or it is not ours
    return int(pid)


def rival_of(resource: str, directories: Iterable[Path], *, own: Identity | None) -> Rival | None:
    """Whoever listens where a plugin of that resource would, other than on the socket `own`.

    Upstream's sockets are called the same.
    """
    for directory in directories:
        path = directory / socket_name(resource, directory)
        there = identity(path)
        if there is not None and there != own:
            pid = listener(path)
            if pid is not None:
                return Rival(path=path, pid=pid)
    return None


def rivals(
    directories: Iterable[Path],
    prefixes: Collection[str],
    *,
    own: Collection[int | None],
    served: Collection[Path | None] = (),
) -> tuple[Rival, ...]:
    """Device plugins of resources with one of these prefixes or upstream's, other than `own` processes and what is
    `served` here.

    Two programs that give out the same hardware give some of it twice, whatever their resources are called.
    """
    beginnings = tuple(f"{prefix}_" for prefix in {*prefixes, *UPSTREAM_PREFIXES})
    found = []
    for directory in directories:
        for path in sorted(directory.glob("*.sock")):
            if path not in served and path.name.startswith(beginnings):
                pid = listener(path)
                if pid is not None and pid not in own:
                    found.append(Rival(path=path, pid=pid))
    return tuple(found)

"""The sockets of device plugins: what they are called, which is which, and a server on one."""

import hashlib
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final
from weakref import WeakSet

from grpclib.protocol import H2Protocol
from grpclib.server import Server

_LONGEST_PATH: Final = 107  # bytes of a Unix socket's address

Identity = tuple[int, int, int]


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

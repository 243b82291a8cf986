"""The real kernel for what `devices.vf` does: sysfs, and a netlink socket in whichever namespace it is about."""

import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from devices.errors import NamespaceError
from devices.linux import addressing, netdevs, rtnetlink, vfs
from devices.linux import netns as namespaces
from devices.linux.addressing import NewRoute
from devices.linux.netdevs import Change, Netdev
from devices.linux.sysfs import PciRecord, Sysfs
from devices.linux.vfs import Step, VFState


class LinuxKernel:
    """Stands in the namespace of the thread that calls, which must be the host's; "" is that one."""

    def __init__(self, sysfs: Sysfs | None = None) -> None:
        self._sysfs = sysfs or Sysfs()

    def device(self, bdf: str) -> PciRecord | None:
        """The device, as sysfs shows it."""
        return self._sysfs.read_one(bdf)

    def states(self, pf_ifindex: int) -> Mapping[int, VFState]:
        """The VFs of a PF by number."""
        with rtnetlink.connect() as connection:
            return vfs.read(connection, pf_ifindex)

    def set_vf(self, pf_ifindex: int, vf: int, step: Step) -> None:
        """Change a VF through its PF."""
        with rtnetlink.connect() as connection:
            vfs.apply(connection, pf_ifindex, vf, step)

    def netdevs(self, netns: str) -> Sequence[Netdev]:
        """All interfaces of a namespace."""
        with _socket(netns) as connection:
            return netdevs.read(connection)

    def change(self, netns: str, index: int, wanted: Change) -> None:
        """Change an interface."""
        with _socket(netns) as connection:
            netdevs.change(connection, index, wanted)

    def move(self, source: str, index: int, target: str, name: str) -> None:
        """Move an interface to another namespace, under a name there."""
        with _socket(source) as connection:
            try:
                descriptor = os.open(target or namespaces.HERE, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                code = error.errno or 0
                raise NamespaceError(f"network namespace {target}: {error.strerror}", code=code, gone=True) from None
            try:
                netdevs.move(connection, index, descriptor, name)
            finally:
                os.close(descriptor)

    def add_altname(self, netns: str, index: int, name: str) -> None:
        """Give an interface one more name."""
        with _socket(netns) as connection:
            netdevs.add_altname(connection, index, name)

    def drop_altname(self, netns: str, index: int, name: str) -> None:
        """Take one of its other names away."""
        with _socket(netns) as connection:
            netdevs.drop_altname(connection, index, name)

    def prepare(self, netns: str, name: str) -> None:
        """Have an interface say so when its address changes; does what it can."""
        namespaces.run_in(netns, addressing.announce_changes, name)

    def identity(self, netns: str) -> str | None:
        """Which namespace is at the path; None for none."""
        return namespaces.identity(netns)

    def configure(self, netns: str, netdev: Netdev, addresses: Sequence[str], routes: Sequence[NewRoute]) -> None:
        """Give an interface addresses and routes."""
        if any(":" in address for address in addresses):
            namespaces.run_in(netns, addressing.allow_ipv6, netdev.name)
        with _socket(netns) as connection:
            addressing.configure(connection, netdev.index, addresses, routes)

    def announce(self, netns: str, netdev: Netdev, addresses: Sequence[str]) -> None:
        """Tell neighbours; does what it can."""
        namespaces.run_in(netns, addressing.announce, netdev.name, netdev.mac, addresses)

    def pause(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)


@contextmanager
def _socket(path: str) -> Iterator[socket.socket]:
    with namespaces.open_socket(path) if path else rtnetlink.connect() as connection:
        yield connection

"""Interfaces made and removed, with what a network plugin gives them: one request each, as the reference plugins send.

Source: vishvananda/netlink as CNI's plugins 1.1 use it. Everything blocks, briefly: call it from a worker thread.
"""

import errno
import ipaddress
import os
import secrets
import socket
import struct
from collections.abc import Collection
from typing import Final

import msgspec

from devices.errors import KernelError
from devices.linux import rtnetlink
from devices.linux.routes import MAIN
from devices.linux.rtnetlink import NESTED, attribute

MACVLAN_MODES: Final = {"private": 1, "vepa": 2, "bridge": 4, "passthru": 8}
IPVLAN_MODES: Final = {"l2": 0, "l3": 1, "l3s": 2}

PROMISC: Final = 0x100
ALLMULTI: Final = 0x200
"""Flags of interfaces."""

_DELLINK: Final = 17
_IFALIAS, _PROMISCUITY = 20, 30
_IFF_UP, _OPER_UP = 0x1, 6
_ADDRESS, _MTU, _LINK, _MASTER, _PROTINFO, _TXQLEN = 1, 4, 5, 10, 12, 13
_OPERSTATE, _LINKINFO, _NS_FD, _EXT_MASK = 16, 18, 28, 29
_GROUP: Final = 27
_VETH_PEER, _PORT_HAIRPIN = 1, 4
_INFO_KIND, _INFO_DATA = 1, 2
_MACVLAN_MODE, _IPVLAN_MODE, _VLAN_ID = 1, 1, 1
_WITHOUT_STATISTICS: Final = 8
_ADDR = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, index
_ADDR_ADDRESS, _ADDR_LOCAL, _ADDR_FLAGS = 1, 2, 8
_UNPROVEN: Final = 0x40 | 0x08  # tentative, or found to be another's as well
_ROUTE = struct.Struct("=BBBBBBBBI")  # family, length, source's length, tos, table, protocol, scope, type, flags
_DST, _OIF, _GATEWAY = 1, 4, 5
_BOOT, _UNIVERSE, _UNICAST = 3, 0, 1


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """An interface: its index, MAC ("" for none), MTU and kind ("" for hardware).

    `up` is what somebody asked for, `operational` whether it works. `promiscuous` counts whoever asked for it.
    """

    index: int
    mac: str
    mtu: int
    kind: str
    up: bool
    operational: bool
    promiscuous: bool = False
    allmulti: bool = False
    alias: str = ""


def find(connection: socket.socket, name: str) -> Found | None:
    """The interface of that name in the socket's namespace, None for none.

    :raises KernelError: the kernel could not say.
    """
    body = rtnetlink.LINK.pack(0, 0, 0, 0, 0) + attribute(rtnetlink.IFNAME, _text(name))
    body += attribute(_EXT_MASK, struct.pack("=I", _WITHOUT_STATISTICS))
    try:
        answers = rtnetlink.ask(connection, rtnetlink.GETLINK, body, rtnetlink.LINK.size, f"looking for {name}")
    except KernelError as error:
        if error.code == errno.ENODEV:
            return None
        raise
    link = answers[0]
    _, _, index, flags, _ = rtnetlink.LINK.unpack(link.body)
    info = rtnetlink.attributes(link.attributes.get(_LINKINFO, b""))
    return Found(
        index=index,
        mac=link.attributes.get(_ADDRESS, b"").hex(":"),
        mtu=rtnetlink.number(link.attributes.get(_MTU, b"")),
        kind=rtnetlink.text(info.get(_INFO_KIND, b"")),
        up=bool(flags & _IFF_UP),
        operational=rtnetlink.number(link.attributes.get(_OPERSTATE, b"")) == _OPER_UP,
        promiscuous=rtnetlink.number(link.attributes.get(_PROMISCUITY, b"")) != 0,
        allmulti=bool(flags & ALLMULTI),
        alias=rtnetlink.text(link.attributes.get(_IFALIAS, b"")),
    )


def set_alias(connection: socket.socket, index: int, alias: str) -> None:
    """Give an interface a note, which goes with it from namespace to namespace; "" for none.

    :raises KernelError: the kernel refused.
    """
    body = rtnetlink.LINK.pack(0, 0, index, 0, 0) + attribute(_IFALIAS, os.fsencode(alias))
    rtnetlink.change(connection, rtnetlink.SETLINK, 0, body, f"failed to set alias {alias}")


def set_flag(connection: socket.socket, index: int, flag: int, on: bool) -> None:
    """Set or clear a flag of an interface: PROMISC or ALLMULTI.

    :raises KernelError: the kernel refused.
    """
    body = rtnetlink.LINK.pack(0, 0, index, flag if on else 0, flag)
    rtnetlink.change(connection, rtnetlink.SETLINK, 0, body, f"failed to change flag {flag:#x}")


def macvlan_data(mode: str) -> bytes:
    """What the kernel wants to know of a macvlan; `mode` is of MACVLAN_MODES."""
    return attribute(_MACVLAN_MODE, struct.pack("=I", MACVLAN_MODES[mode]))


def ipvlan_data(mode: str) -> bytes:
    """What the kernel wants to know of an ipvlan; `mode` is of IPVLAN_MODES."""
    return attribute(_IPVLAN_MODE, struct.pack("=H", IPVLAN_MODES[mode]))


def vlan_data(number: int) -> bytes:
    """What the kernel wants to know of a VLAN."""
    return attribute(_VLAN_ID, struct.pack("=H", number))


def create_child(
    connection: socket.socket,
    *,
    kind: str,
    data: bytes,
    master: int,
    namespace: int,
    name: str,
    mtu: int = 0,
    mac: str = "",
) -> None:
    """Make an interface on one of the socket's namespace, straight in the namespace of an open file; it is down.

    :raises KernelError: EEXIST for a name that is in use there, or in the socket's own namespace.
    """
    body = rtnetlink.LINK.pack(0, 0, 0, 0, 0) + attribute(_LINK, struct.pack("=I", master))
    body += attribute(rtnetlink.IFNAME, _text(name))
    if mtu:
        body += attribute(_MTU, struct.pack("=I", mtu))
    body += attribute(_TXQLEN, struct.pack("=I", 0))
    if mac:
        body += attribute(_ADDRESS, bytes.fromhex(mac.replace(":", "")))
    body += attribute(_NS_FD, struct.pack("=I", namespace))
    body += attribute(_LINKINFO | NESTED, attribute(_INFO_KIND, kind.encode()) + attribute(_INFO_DATA | NESTED, data))
    flags = rtnetlink.CREATE | rtnetlink.EXCLUSIVE
    rtnetlink.change(connection, rtnetlink.NEWLINK, flags, body, f"failed to create {kind}")


def create_bridge(connection: socket.socket, name: str, *, mtu: int = 0) -> None:
    """Make a bridge; it is down. One that is there already is no error.

    :raises KernelError: the kernel refused.
    """
    body = rtnetlink.LINK.pack(0, 0, 0, 0, 0) + attribute(rtnetlink.IFNAME, _text(name))
    if mtu:
        body += attribute(_MTU, struct.pack("=I", mtu))
    body += attribute(_LINKINFO | NESTED, attribute(_INFO_KIND, b"bridge"))
    try:
        flags = rtnetlink.CREATE | rtnetlink.EXCLUSIVE
        rtnetlink.change(connection, rtnetlink.NEWLINK, flags, body, f'could not add "{name}"')
    except KernelError as error:
        if error.code != errno.EEXIST:
            raise


def create_veth(
    connection: socket.socket, *, name: str, peer: str, peer_namespace: int, mtu: int = 0, mac: str = ""
) -> None:
    """Make a pair of interfaces: `name` in the socket's namespace, `peer` in that of an open file; both are down.

    :raises KernelError: EEXIST when one of the names is in use.
    """
    both = attribute(_TXQLEN, struct.pack("=I", 0))
    if mtu:
        both += attribute(_MTU, struct.pack("=I", mtu))
    other = rtnetlink.LINK.pack(0, 0, 0, 0, 0) + attribute(rtnetlink.IFNAME, _text(peer)) + both
    other += attribute(_NS_FD, struct.pack("=I", peer_namespace))
    body = rtnetlink.LINK.pack(0, 0, 0, 0, 0) + attribute(rtnetlink.IFNAME, _text(name)) + both
    if mac:
        body += attribute(_ADDRESS, bytes.fromhex(mac.replace(":", "")))
    data = attribute(_INFO_DATA | NESTED, attribute(_VETH_PEER | NESTED, other))
    body += attribute(_LINKINFO | NESTED, attribute(_INFO_KIND, b"veth") + data)
    flags = rtnetlink.CREATE | rtnetlink.EXCLUSIVE
    rtnetlink.change(connection, rtnetlink.NEWLINK, flags, body, "failed to make veth pair")


def join_bridge(connection: socket.socket, index: int, bridge: int, *, hairpin: bool) -> None:
    """Set the interface up as a port of the bridge; `hairpin` lets it have back what it sent.

    :raises KernelError: the kernel refused.
    """
    body = rtnetlink.LINK.pack(0, 0, index, _IFF_UP, _IFF_UP) + attribute(_MASTER, struct.pack("=I", bridge))
    rtnetlink.change(connection, rtnetlink.SETLINK, 0, body, f"failed to connect interface {index} to bridge {bridge}")
    if hairpin:
        body = rtnetlink.LINK.pack(socket.AF_BRIDGE, 0, index, 0, 0)
        body += attribute(_PROTINFO | NESTED, attribute(_PORT_HAIRPIN, b"\1"))
        rtnetlink.change(connection, rtnetlink.SETLINK, 0, body, f"failed to setup hairpin mode for interface {index}")


def addresses(connection: socket.socket, index: int, version: int = 0) -> list[str]:
    """The interface's addresses in CIDR form, of IP version 4 or 6, or of both.

    The kernel lists those of every interface. A node with many pods has a link-local one for each of them: to ask for
    version 4 alone is to be spared these.

    :raises KernelError: the kernel did not list them.
    """
    found = []
    family = {0: socket.AF_UNSPEC, 4: socket.AF_INET, 6: socket.AF_INET6}[version]
    for message in rtnetlink.dump(connection, rtnetlink.GETADDR, _ADDR.pack(family, 0, 0, 0, 0), _ADDR.size):
        _, length, _, _, owner = _ADDR.unpack(message.body)
        packed = message.attributes.get(_ADDR_LOCAL) or message.attributes.get(_ADDR_ADDRESS)
        if owner == index and packed is not None:
            found.append(f"{ipaddress.ip_address(packed)}/{length}")
    return found


def delete(connection: socket.socket, name: str) -> bool:
    """Remove an interface; False when there is none of that name.

    :raises KernelError: the kernel refused, as for what is hardware.
    """
    body = rtnetlink.LINK.pack(0, 0, 0, 0, 0) + attribute(rtnetlink.IFNAME, _text(name))
    try:
        rtnetlink.change(connection, _DELLINK, 0, body, f'failed to delete "{name}"')
    except KernelError as error:
        if error.code == errno.ENODEV:
            return False
        raise
    return True


def delete_all(connection: socket.socket, names: Collection[str]) -> bool:
    """Remove interfaces at once, as a group that they are put into; False when it cannot be done so.

    Nothing is removed then. Those that are not there do not matter.
    """
    group = struct.pack("=I", secrets.randbits(30) | 1 << 30)  # which nobody else uses
    try:
        for name in names:
            body = rtnetlink.LINK.pack(0, 0, 0, 0, 0) + attribute(rtnetlink.IFNAME, _text(name))
            try:
                rtnetlink.change(connection, rtnetlink.SETLINK, 0, body + attribute(_GROUP, group), f"grouping {name}")
            except KernelError as error:
                if error.code != errno.ENODEV:
                    raise
        body = rtnetlink.LINK.pack(0, 0, 0, 0, 0) + attribute(_GROUP, group)
        rtnetlink.change(connection, _DELLINK, 0, body, "failed to delete a group")
    except KernelError as error:
        return error.code == errno.ENODEV  # an empty group: none was there
    return True


def adding_route(index: int, destination: str, gateway: str) -> rtnetlink.Request:
    """The request for a route of the main table, "" for no gateway, beside others to the same destination.

    It is refused with EEXIST for the very same, ENETUNREACH or EHOSTUNREACH for a gateway that is not on the link.
    """
    network = ipaddress.ip_network(destination)
    family = socket.AF_INET if network.version == 4 else socket.AF_INET6
    body = _ROUTE.pack(family, network.prefixlen, 0, 0, MAIN, _BOOT, _UNIVERSE, _UNICAST, 0)
    body += attribute(_DST, network.network_address.packed)
    if gateway:
        body += attribute(_GATEWAY, ipaddress.ip_address(gateway).packed)
    body += attribute(_OIF, struct.pack("=i", index))
    what = f"failed to add route '{destination} via {gateway or '<nil>'}'"
    return rtnetlink.Request(rtnetlink.NEWROUTE, rtnetlink.CREATE, body, what)


def is_settling(connection: socket.socket, index: int) -> bool:
    """Whether an address of the interface is not yet known to be nobody else's, or known to be.

    :raises KernelError: the kernel did not list them.
    """
    for message in rtnetlink.dump(connection, rtnetlink.GETADDR, bytes(_ADDR.size), _ADDR.size):
        _, _, flags, _, owner = _ADDR.unpack(message.body)
        if owner == index and (rtnetlink.number(message.attributes.get(_ADDR_FLAGS, b"")) or flags) & _UNPROVEN:
            return True
    return False


def set_sysctl(name: str, value: str, root: str = "", *, new: bool = False) -> None:
    """Set a value below /proc/sys/net, of the calling thread's namespace, as it is mounted under a root directory.

    A container's own is read-only, as a rule; the host's is not. One that is so already is not written, unless it is
    of an interface that is `new`, which has the kernel's defaults.

    :raises KernelError: there is no such value, or it cannot be set.
    """
    path = f"{root}/proc/sys/net/{name}"
    try:
        if not new:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                if os.read(descriptor, 64).strip() == value.encode():
                    return
            finally:
                os.close(descriptor)
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, value.encode())
        finally:
            os.close(descriptor)
    except OSError as error:
        raise KernelError(f"sysctl {name}", error.errno or 0, error.strerror or str(error)) from None


def _text(name: str) -> bytes:
    return os.fsencode(name) + b"\0"

"""The interfaces of a network namespace, with their addresses, as they are at one moment."""

import ipaddress
import socket
import struct

import msgspec

from devices.linux import netns, rtnetlink

_IFF_UP, _IFF_RUNNING = 0x1, 0x40

_LINK_ADDRESS, _MTU, _PEER, _MASTER, _INFO = 1, 4, 5, 10, 18
_INFO_KIND = 1

_ADDRESS = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, index
_ADDRESS_ADDRESS, _ADDRESS_LOCAL = 1, 2
_SCOPES = {0: "global", 200: "site", 253: "link", 254: "host"}


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """An address in CIDR form; `scope` as `ip` names it: global, link, host, or a number."""

    address: str
    scope: str = "global"


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """An interface.

    `mac` is "" where the interface has none, `kind` "" for hardware and the loopback. `up` is what somebody asked for,
    `running` whether it carries packets as well. `peer_index` is a veth's other end or what a macvlan or VLAN stands
    on, by its index in that one's own namespace; `master_index` the bridge or bond it is in. 0 is none.
    """

    name: str
    index: int
    mac: str = ""
    mtu: int = 0
    up: bool = False
    running: bool = False
    kind: str = ""
    peer_index: int = 0
    master_index: int = 0
    addresses: tuple[Address, ...] = ()


def snapshot(path: str) -> tuple[Link, ...]:
    """Every interface in the namespace, by index.

    :raises NamespaceError: it cannot be entered.
    :raises KernelError: the kernel did not list them.
    """
    with netns.open_socket(path) as connection:
        return read_links(connection)


def read_links(connection: socket.socket) -> tuple[Link, ...]:
    """Every interface in the socket's namespace, by index.

    :raises KernelError: the kernel did not list them.
    """
    addresses: dict[int, list[Address]] = {}
    for message in rtnetlink.dump(connection, rtnetlink.GETADDR, bytes(_ADDRESS.size), _ADDRESS.size):
        _, length, _, scope, index = _ADDRESS.unpack(message.body)
        # Of a point-to-point address, ADDRESS is the other side's.
        packed = message.attributes.get(_ADDRESS_LOCAL) or message.attributes.get(_ADDRESS_ADDRESS)
        if packed is not None:
            cidr = f"{ipaddress.ip_address(packed)}/{length}"
            addresses.setdefault(index, []).append(Address(address=cidr, scope=_SCOPES.get(scope, str(scope))))
    links = (_link(message, addresses) for message in rtnetlink.links(connection))
    return tuple(sorted(links, key=lambda link: link.index))


def _link(message: rtnetlink.Message, addresses: dict[int, list[Address]]) -> Link:
    _, _, index, flags, _ = rtnetlink.LINK.unpack(message.body)
    found = message.attributes
    return Link(
        name=rtnetlink.text(found.get(rtnetlink.IFNAME, b"")),
        index=index,
        mac=found.get(_LINK_ADDRESS, b"").hex(":"),
        mtu=rtnetlink.number(found.get(_MTU, b"")),
        up=bool(flags & _IFF_UP),
        running=bool(flags & _IFF_RUNNING),
        kind=rtnetlink.text(rtnetlink.attributes(found.get(_INFO, b"")).get(_INFO_KIND, b"")),
        peer_index=rtnetlink.number(found.get(_PEER, b"")),
        master_index=rtnetlink.number(found.get(_MASTER, b"")),
        addresses=tuple(addresses.get(index, ())),
    )

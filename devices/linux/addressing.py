"""Addresses and routes given to an interface, as an address plugin chose them, and its neighbours told.

Source of the rules: CNI's pkg/ipam ConfigureIface. Everything blocks: call it from a worker thread.
"""

import contextlib
import errno
import ipaddress
import socket
import struct
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from devices.errors import KernelError
from devices.linux import rtnetlink
from devices.linux.routes import MAIN
from devices.linux.rtnetlink import attribute

_ADDRESS = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, index
_ROUTE = struct.Struct("=BBBBBBBBI")  # family, length, source's length, tos, table, protocol, scope, type, flags
_ADDR_ADDRESS, _ADDR_LOCAL, _ADDR_BROADCAST = 1, 2, 4
_DST, _OIF, _GATEWAY, _PRIORITY, _METRICS, _TABLE = 1, 4, 5, 6, 8, 15
_METRIC_MTU, _METRIC_ADVMSS = 2, 8
_BOOT, _UNICAST, _UNIVERSE, _LINK = 3, 1, 0, 253

_CARRIER_WAIT: Final = 0.2  # seconds; upstream's
_ETH_P_ARP: Final = 0x0806
_ALL_NODES: Final = "ff02::1"


class NewRoute(msgspec.Struct, frozen=True, kw_only=True):
    """A route to add; `gateway` "" is on-link. None is what the kernel chooses."""

    destination: str
    gateway: str = ""
    mtu: int | None = None
    advmss: int | None = None
    priority: int | None = None
    table: int | None = None
    scope: int | None = None


def configure(connection: socket.socket, index: int, addresses: Sequence[str], routes: Sequence[NewRoute]) -> None:
    """Give the interface the addresses (CIDR form), then the routes. It must be up.

    :raises KernelError: the kernel refused one; those before it stand.
    """
    for address in addresses:
        rtnetlink.change_all(connection, [adding_address(index, address)])
    for route in routes:
        _add_route(connection, index, route)


def allow_ipv6(name: str) -> None:
    """Let an interface of the calling thread's namespace have IPv6 addresses, where the kernel has IPv6."""
    with contextlib.suppress(OSError):
        Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("0")


def announce_changes(name: str) -> None:
    """Have the kernel tell neighbours of a new MAC, and use IPv6 addresses before they are proven unique.

    Of the calling thread's namespace; what this kernel cannot do is left out.
    """
    for path, value in (
        (f"ipv4/conf/{name}/arp_notify", "1"),
        (f"ipv6/conf/{name}/ndisc_notify", "1"),
        (f"ipv6/conf/{name}/optimistic_dad", "1"),
    ):
        with contextlib.suppress(OSError):
            Path("/proc/sys/net", path).write_text(value)


def announce(name: str, mac: str, addresses: Sequence[str]) -> None:
    """Tell the neighbours that these addresses (CIDR form) are at this MAC now, once the link carries packets.

    In the calling thread's namespace. Best effort: neighbours find out by themselves, later.
    """
    deadline = time.monotonic() + _CARRIER_WAIT
    while not _has_carrier(name) and time.monotonic() < deadline:
        time.sleep(0.005)
    for address in addresses:
        own = ipaddress.ip_interface(address).ip
        with contextlib.suppress(OSError):
            if isinstance(own, ipaddress.IPv4Address):
                _gratuitous_arp(name, bytes.fromhex(mac.replace(":", "")), own.packed)
            else:
                _unsolicited_advertisement(name, bytes.fromhex(mac.replace(":", "")), own.packed)


def arp_frame(mac: bytes, address: bytes) -> bytes:
    """A gratuitous ARP request: who has my own address?"""
    ethernet = b"\xff" * 6 + mac + struct.pack(">H", _ETH_P_ARP)
    return ethernet + struct.pack(">HHBBH", 1, 0x0800, 6, 4, 1) + mac + address + bytes(6) + address


def advertisement(mac: bytes, address: bytes) -> bytes:
    """An unsolicited neighbour advertisement that overrides; the kernel fills in the checksum."""
    return struct.pack(">BBHI", 136, 0, 0, 0x20000000) + address + struct.pack(">BB", 2, 1) + mac


def _gratuitous_arp(name: str, mac: bytes, address: bytes) -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0) as out:
        out.bind((name, 0))
        out.send(arp_frame(mac, address))


def _unsolicited_advertisement(name: str, mac: bytes, address: bytes) -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_ICMPV6) as out:
        out.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        out.sendto(advertisement(mac, address), (_ALL_NODES, 0, 0, socket.if_nametoindex(name)))


def _has_carrier(name: str) -> bool:
    """By the flags, for the thread's namespace has no sysfs of its own."""
    with rtnetlink.connect() as connection:
        for link in rtnetlink.links(connection):
            if rtnetlink.text(link.attributes.get(rtnetlink.IFNAME, b"")) == name:
                running = 0x40
                return bool(rtnetlink.LINK.unpack(link.body)[3] & running)
    return False


def adding_address(index: int, address: str) -> rtnetlink.Request:
    """The request that gives an interface an address, in CIDR form; of IPv4 with its broadcast address."""
    host, _, digits = address.partition("/")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    packed, length = socket.inet_pton(family, host), int(digits)  # a tenth of what the module ipaddress takes
    body = _ADDRESS.pack(family, length, 0, 0, index)
    body += attribute(_ADDR_LOCAL, packed) + attribute(_ADDR_ADDRESS, packed)
    if family == socket.AF_INET and length < 31:
        hosts = (1 << (32 - length)) - 1
        body += attribute(_ADDR_BROADCAST, (int.from_bytes(packed, "big") | hosts).to_bytes(4, "big"))
    flags = rtnetlink.CREATE | rtnetlink.EXCLUSIVE
    return rtnetlink.Request(rtnetlink.NEWADDR, flags, body, f"adding address {address}")


def _add_route(connection: socket.socket, index: int, route: NewRoute) -> None:
    network = ipaddress.ip_network(route.destination, strict=False)
    family = socket.AF_INET if network.version == 4 else socket.AF_INET6
    scope = route.scope if route.scope is not None else (_UNIVERSE if route.gateway or network.version == 6 else _LINK)
    table = MAIN if route.table is None else route.table
    fixed = _ROUTE.pack(family, network.prefixlen, 0, 0, table if table < 256 else 0, _BOOT, scope, _UNICAST, 0)
    body = fixed + attribute(_DST, network.network_address.packed) + attribute(_OIF, struct.pack("=i", index))
    body += attribute(_TABLE, struct.pack("=I", table))
    if route.gateway:
        body += attribute(_GATEWAY, ipaddress.ip_address(route.gateway).packed)
    if route.priority is not None:
        body += attribute(_PRIORITY, struct.pack("=I", route.priority))
    metrics = b""
    for kind, value in ((_METRIC_MTU, route.mtu), (_METRIC_ADVMSS, route.advmss)):
        if value:
            metrics += attribute(kind, struct.pack("=I", value))
    if metrics:
        body += attribute(_METRICS | rtnetlink.NESTED, metrics)
    try:
        flags = rtnetlink.CREATE | rtnetlink.EXCLUSIVE
        rtnetlink.change(connection, rtnetlink.NEWROUTE, flags, body, f"adding a route to {route.destination}")
    except KernelError as error:
        if error.code != errno.EEXIST:  # as in ConfigureIface: another network of the pod made it already
            raise

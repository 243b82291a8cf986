"""The routes of a network namespace: read, removed exactly as they were read, and default routes added.

A route is removed by sending the kernel's own description of it back, so that of several to one destination (another
metric, another gateway, appended) it is that one which goes.
"""

import errno
import ipaddress
import socket
import struct
from collections.abc import Collection

import msgspec

from devices.errors import KernelError
from devices.linux import netns, rtnetlink

MAIN = 254
"""The number of the main table, where routes are unless somebody asks for another."""

_ROUTE = struct.Struct("=BBBBBBBBI")  # family, length, source's length, tos, table, protocol, scope, type, flags
_HOP = struct.Struct("=HBBi")  # length, flags, weight - 1, index
_DST, _SRC, _OIF, _GATEWAY, _PRIORITY, _PREFSRC, _MULTIPATH = 1, 2, 4, 5, 6, 7, 9
_CACHEINFO, _TABLE, _VIA, _NH_ID = 12, 15, 18, 30
_NAMING = (_DST, _SRC, _PRIORITY, _PREFSRC, _TABLE)  # what tells a route from others, beside where it leads
_LEADING = (_OIF, _GATEWAY, _VIA)
_UNICAST, _BOOT, _UNIVERSE = 1, 3, 0
_CLONED, _ONLINK = 0x200, 0x4


class Hop(msgspec.Struct, frozen=True, kw_only=True):
    """One way on: through `gateway` ("" is on-link) on the interface of that index."""

    gateway: str
    index: int
    onlink: bool = False


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """A route. `source` is "" unless it is for packets from there only, `metric` 0 where none was given.

    `unicast` is False for local, broadcast, unreachable and the like. `message` is the kernel's description.
    """

    family: int
    destination: str
    source: str
    table: int
    metric: int
    protocol: int
    unicast: bool
    hops: tuple[Hop, ...]
    message: bytes

    @property
    def is_default(self) -> bool:
        """Whether it is a default route of the whole namespace."""
        everything = self.destination.endswith("/0") and not self.source
        return self.unicast and everything and self.table == MAIN


def snapshot(path: str) -> tuple[Route, ...]:
    """Every route in the namespace, of all tables, IPv4 first.

    :raises NamespaceError: it cannot be entered.
    :raises KernelError: the kernel did not list them.
    """
    with netns.open_socket(path) as connection:
        return read_routes(connection)


def read_routes(connection: socket.socket) -> tuple[Route, ...]:
    """Every route in the socket's namespace, of all tables, IPv4 first.

    :raises KernelError: the kernel did not list them.
    """
    messages = rtnetlink.dump(connection, rtnetlink.GETROUTE, bytes(_ROUTE.size), _ROUTE.size)
    routes = (_route(message) for message in messages)
    return tuple(sorted((route for route in routes if route is not None), key=lambda route: route.family))


def remove_hops(connection: socket.socket, route: Route, indexes: Collection[int]) -> None:
    """Take those interfaces out of the route; without any other, it goes. A route that is gone already is no error.

    :raises KernelError: the kernel refused.
    """
    fixed, found = route.message[: _ROUTE.size], rtnetlink.attributes(route.message[_ROUTE.size :])
    leading, kept = {key: found[key] for key in _LEADING if key in found}, b""
    if _NH_ID in found:  # a nexthop object: the route is what it leads to, and cannot be taken apart
        leading = {_NH_ID: found[_NH_ID]}
    elif _MULTIPATH in found:
        kept = _hops(found[_MULTIPATH], without=indexes)
        # IPv6 has a route for each hop, and takes out those that are named; IPv4 has one, named by all its hops.
        named = _hops(found[_MULTIPATH], only=indexes) if route.family == 6 else found[_MULTIPATH]
        leading = {_MULTIPATH: named}
    naming = {key: found[key] for key in _NAMING if key in found}
    what = f"removing the route to {route.destination}"
    try:
        rtnetlink.change(connection, rtnetlink.DELROUTE, 0, _body(fixed, naming | leading), what)
    except KernelError as error:
        if error.code != errno.ESRCH:
            raise
        return
    if kept and route.family == 4:
        rest = {key: found[key] for key in found if key != _CACHEINFO} | {_MULTIPATH: kept}
        flags = rtnetlink.CREATE | rtnetlink.APPEND
        rtnetlink.change(connection, rtnetlink.NEWROUTE, flags, _body(fixed, rest), f"restoring {route.destination}")


def add_default(connection: socket.socket, gateway: str, index: int) -> None:
    """Add a default route of the main table through a gateway on an interface.

    :raises KernelError: EEXIST when there is another of the same metric, ENETUNREACH (IPv4) or EHOSTUNREACH (IPv6) for
        a gateway that cannot be reached there, ENETDOWN when the interface is down.
    """
    packed = ipaddress.ip_address(gateway).packed
    family = socket.AF_INET if len(packed) == 4 else socket.AF_INET6
    fixed = _ROUTE.pack(family, 0, 0, 0, MAIN, _BOOT, _UNIVERSE, _UNICAST, 0)
    flags = rtnetlink.CREATE | rtnetlink.EXCLUSIVE
    body = _body(fixed, {_GATEWAY: packed, _OIF: struct.pack("=i", index)})
    rtnetlink.change(connection, rtnetlink.NEWROUTE, flags, body, f"adding a default route through {gateway}")


def _body(fixed: bytes, attributes: dict[int, bytes]) -> bytes:
    """A request: without the flags that tell of a route's state, which the kernel does not take back."""
    *fields, flags = _ROUTE.unpack(fixed)
    start = _ROUTE.pack(*fields, flags & _ONLINK)
    return start + b"".join(rtnetlink.attribute(kind, data) for kind, data in attributes.items())


def _route(message: rtnetlink.Message) -> Route | None:
    """None for what is neither IPv4 nor IPv6, and for what the kernel has learnt of a single destination."""
    family, length, source_length, _, table, protocol, _, kind, flags = _ROUTE.unpack(message.body)
    if family not in (socket.AF_INET, socket.AF_INET6) or flags & _CLONED:
        return None
    found = message.attributes
    size = 4 if family == socket.AF_INET else 16
    metric, own_table = rtnetlink.number(found.get(_PRIORITY, b"")), rtnetlink.number(found.get(_TABLE, b""))
    return Route(
        family=4 if size == 4 else 6,
        destination=_cidr(found.get(_DST, bytes(size)), length),
        source=_cidr(found.get(_SRC, bytes(size)), source_length) if source_length else "",
        table=own_table or table,
        metric=metric,
        protocol=protocol,
        unicast=kind == _UNICAST,
        hops=_read_hops(found, flags),
        message=message.body + b"".join(rtnetlink.attribute(kind, data) for kind, data in found.items()),
    )


def _read_hops(found: dict[int, bytes], flags: int) -> tuple[Hop, ...]:
    if _MULTIPATH not in found:
        index = rtnetlink.number(found.get(_OIF, b""))
        return (_hop(found, index, flags),) if index else ()
    hops, data = [], found[_MULTIPATH]
    for start, end, index in _split(data):
        hop_flags = _HOP.unpack_from(data, start)[1]
        hops.append(_hop(rtnetlink.attributes(data[start + _HOP.size : end]), index, hop_flags))
    return tuple(hops)


def _hop(found: dict[int, bytes], index: int, flags: int) -> Hop:
    packed = found.get(_GATEWAY) or found.get(_VIA, b"")[2:]  # an IPv4 route through an IPv6 gateway has a VIA
    gateway = str(ipaddress.ip_address(packed)) if len(packed) in (4, 16) else ""
    return Hop(gateway=gateway, index=index, onlink=bool(flags & _ONLINK))


def _hops(data: bytes, *, only: Collection[int] | None = None, without: Collection[int] = ()) -> bytes:
    """Some of the hops of a multipath, as a request has them: without the flags of their state."""
    chosen = b""
    for start, end, index in _split(data):
        if (only is None or index in only) and index not in without:
            length, flags, weight, _ = _HOP.unpack_from(data, start)
            chosen += _HOP.pack(length, flags & _ONLINK, weight, index) + data[start + _HOP.size : end]
    return chosen


def _split(data: bytes) -> list[tuple[int, int, int]]:
    """Start, end and interface of each hop."""
    parts, position = [], 0
    while position + _HOP.size <= len(data):
        length, _, _, index = _HOP.unpack_from(data, position)
        if length < _HOP.size:
            break
        parts.append((position, position + length, index))
        position += (length + 3) & ~3
    return parts


def _cidr(packed: bytes, length: int) -> str:
    return f"{ipaddress.ip_address(packed)}/{length}"

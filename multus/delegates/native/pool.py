"""What `host-local` gives addresses from: sets of ranges, each set giving one, and which of a set is tried next.

Source of the rules: containernetworking/plugins 1.1, host-local's allocator.
"""

import ipaddress
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Final, TypeVar

import msgspec

from multus.cni.result import Route
from multus.delegates.native import reading
from multus.delegates.native.reading import Address, Network, RouteShape, Shape, Unsupported
from multus.delegates.plugin import Call

T = TypeVar("T")

_KNOWN: Final = ("cniVersion", "name", "ipam", "runtimeConfig", "args", "prevResult")
_DATA_DIR: Final = "/var/lib/cni/networks"


class RangeShape(Shape, frozen=True, kw_only=True):
    """A range as it is written; "" is absent."""

    subnet: str
    range_start: str = ""
    range_end: str = ""
    gateway: str = ""


class _Ipam(Shape, frozen=True, kw_only=True):
    type: str
    subnet: str = ""
    range_start: str = ""
    range_end: str = ""
    gateway: str = ""
    routes: tuple[RouteShape, ...] = ()
    data_dir: str = ""
    resolv_conf: str = ""
    ranges: tuple[tuple[RangeShape, ...], ...] = ()


class Range(msgspec.Struct, frozen=True, kw_only=True):
    """Addresses from `start` to `end`, both included, of one network; the gateway is never given away."""

    network: Network
    start: Address
    end: Address
    gateway: Address

    def __contains__(self, address: Address) -> bool:
        return address.version == self.start.version and int(self.start) <= int(address) <= int(self.end)

    def __str__(self) -> str:
        return f"{self.start}-{self.end}"


RangeSet = tuple[Range, ...]


class Pool(msgspec.Struct, frozen=True, kw_only=True):
    """A `host-local` configuration. `requested` are addresses that were asked for, `given` those of its own result."""

    version: str
    name: str
    data_dir: str
    resolv_conf: str
    sets: tuple[RangeSet, ...]
    routes: tuple[Route, ...]
    requested: tuple[Address, ...]
    given: tuple[str, ...] = ()


def read_pool(call: Call) -> Pool:
    """The configuration of a call.

    :raises Unsupported: one for the program.
    """
    found = reading.members(call.conf, _KNOWN)
    version, name = reading.optional(found, "cniVersion", str, ""), reading.optional(found, "name", str, "")
    if version not in reading.VERSIONS or "ipam" not in found or not name or "/" in name or name in (".", ".."):
        raise Unsupported("version or name")
    part = _read_ipam(bytes(found["ipam"]))
    asked: tuple[tuple[RangeShape, ...], ...] = ()
    if "runtimeConfig" in found:
        runtime = reading.members(found["runtimeConfig"], ("ips", "ipRanges"))
        asked = reading.optional(runtime, "ipRanges", tuple[tuple[RangeShape, ...], ...], ())
    sets = (*(_range_set(each) for each in asked), *part.sets) if asked else part.sets
    if not sets or (asked and _any_overlap(sets)):
        raise Unsupported("ranges")
    return Pool(
        version=version,
        name=name,
        data_dir=part.data_dir,
        resolv_conf=part.resolv_conf,
        sets=sets,
        routes=part.routes,
        requested=_requested(found, reading.arguments(call.args)),
        given=_given(found),
    )


class _Part(msgspec.Struct, frozen=True, kw_only=True):
    """What the member "ipam" says."""

    data_dir: str
    resolv_conf: str
    sets: tuple[RangeSet, ...]
    routes: tuple[Route, ...]


@lru_cache(256)  # it is the same for all pods of a network, and takes longer to read than all the rest
def _read_ipam(data: bytes) -> _Part:
    ipam = reading.value(data, _Ipam)
    if any(path and not path.startswith("/") for path in (ipam.data_dir, ipam.resolv_conf)):
        raise Unsupported("a path that is relative")
    written = ((_alone(ipam),), *ipam.ranges) if ipam.subnet else ipam.ranges
    sets = tuple(_range_set(each) for each in written)
    if _any_overlap(sets):
        raise Unsupported("ranges")
    return _Part(
        data_dir=ipam.data_dir or _DATA_DIR,
        resolv_conf=ipam.resolv_conf,
        sets=sets,
        routes=reading.routes(ipam.routes),
    )


def spell(ranges: RangeSet) -> str:
    """A set as messages have it."""
    return ",".join(str(each) for each in ranges)


def range_of(ranges: RangeSet, address: Address) -> Range | None:
    """The range of a set that an address is in."""
    return next((each for each in ranges if address in each), None)


def candidates(ranges: RangeSet, last: Address | None) -> Iterator[tuple[Address, Range]]:
    """Every address of the set that may be given, from the one after `last` round to it; from the first for None."""
    begin = next((i for i, each in enumerate(ranges) if last is not None and last in each), None)
    if begin is None or last is None:
        for each in ranges:
            yield from _run(each, int(each.start), int(each.end))
        return
    yield from _run(ranges[begin], int(last) + 1, int(ranges[begin].end))
    for offset in range(1, len(ranges)):
        each = ranges[(begin + offset) % len(ranges)]
        yield from _run(each, int(each.start), int(each.end))
    yield from _run(ranges[begin], int(ranges[begin].start), int(last))


def _run(within: Range, first: int, last: int) -> Iterator[tuple[Address, Range]]:
    make = type(within.start)
    gateway = int(within.gateway)
    for number in range(first, last + 1):
        if number != gateway:
            yield make(number), within


def _alone(ipam: _Ipam) -> RangeShape:
    return RangeShape(subnet=ipam.subnet, range_start=ipam.range_start, range_end=ipam.range_end, gateway=ipam.gateway)


def _range_set(shapes: Sequence[RangeShape]) -> RangeSet:
    ranges = tuple(_range(each) for each in shapes)
    families = {each.start.version for each in ranges}
    if len(families) != 1 or any(_overlap((one,), (other,)) for one, other in _pairs(ranges)):
        raise Unsupported("range set")
    return ranges


def _range(shape: RangeShape) -> Range:
    network = reading.network(shape.subnet)
    if network.prefixlen > network.max_prefixlen - 2 or network.network_address.packed[0] == 0:
        raise Unsupported(f"subnet {shape.subnet!r:.60}")
    made = Range(
        network=network,
        start=reading.address(shape.range_start) if shape.range_start else network.network_address + 1,
        end=reading.address(shape.range_end) if shape.range_end else _last(network),
        gateway=reading.address(shape.gateway) if shape.gateway else network.network_address + 1,
    )
    if any(each.version != network.version for each in (made.start, made.end, made.gateway)):
        raise Unsupported("families")
    if made.start not in network or made.end not in network or int(made.start) > int(made.end):
        raise Unsupported("a range outside its network")
    return made


def _last(network: Network) -> Address:
    """The last but the broadcast address, which IPv6 has not."""
    return network.broadcast_address - (1 if isinstance(network, ipaddress.IPv4Network) else 0)


def _overlap(one: RangeSet, other: RangeSet) -> bool:
    return any(a.start in b or a.end in b or b.start in a or b.end in a for a in one for b in other)


def _any_overlap(sets: Sequence[RangeSet]) -> bool:
    return any(_overlap(one, other) for one, other in _pairs(sets))


def _pairs(items: Sequence[T]) -> Iterator[tuple[T, T]]:
    return ((one, other) for i, one in enumerate(items) for other in items[i + 1 :])


class _IP(msgspec.Struct, frozen=True):
    address: str = ""


class _Result(msgspec.Struct, frozen=True):
    ips: tuple[_IP, ...] = ()


def _given(found: Mapping[str, msgspec.Raw]) -> tuple[str, ...]:
    """What an ADD gave, as far as it is told: nothing that is needed."""
    try:
        told = msgspec.json.decode(found.get("prevResult", msgspec.Raw(b"{}")), type=_Result)
        return tuple(str(ipaddress.ip_interface(each.address).ip) for each in told.ips)
    except (ValueError, RecursionError):
        return ()


def _requested(found: Mapping[str, msgspec.Raw], given: Mapping[str, str]) -> tuple[Address, ...]:
    by_pair = (given["IP"],) if given.get("IP") else ()
    by_args, by_capability = reading.requested(found)
    return tuple(dict.fromkeys(_host(text) for text in (*by_pair, *by_args, *by_capability)))


def _host(text: str) -> Address:
    return reading.cidr(text)[0] if "/" in text else reading.address(text)

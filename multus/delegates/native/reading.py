"""Reading a configuration strictly: what is not understood to the last key is left to the plugin's own program."""

import ipaddress
import re
from collections.abc import Callable, Collection, Mapping
from functools import lru_cache
from typing import Final, TypeVar

import msgspec

from multus.cni import document
from multus.cni.args import Pairs
from multus.cni.network import is_plugin_type
from multus.cni.result import DNS, Route

T = TypeVar("T")
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

VERSIONS: Final = frozenset({"0.3.0", "0.3.1", "0.4.0", "1.0.0"})
"""Those that have lists of addresses and that the reference plugins of 1.1 know."""

_LENGTH = re.compile(r"0|[1-9][0-9]{0,2}")
_MAC = re.compile(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}")
_DNS: Final = frozenset({"nameservers", "domain", "search", "options"})
_TRUE: Final = ("1", "true")


class Unsupported(Exception):  # noqa: N818 (no error of anybody's: it chooses who does the work)
    """The configuration is one for the plugin's own program. Never leaves this package."""


def kept(read: Callable[[bytes], T]) -> Callable[[bytes], T]:
    """A reader of configurations that keeps what it has read: most come again with each pod.

    Those with a result of another plugin are of one pod alone.
    """
    remembered = lru_cache(256)(read)

    def look(conf: bytes) -> T:
        return read(conf) if b'"prevResult"' in conf else remembered(conf)

    return look


class Shape(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """An object that may have no keys but these."""


class RouteShape(Shape, frozen=True, kw_only=True):
    """A route of a configuration."""

    dst: str
    gw: str = ""


def members(data: bytes | msgspec.Raw, known: Collection[str], *, only: bool = False) -> dict[str, msgspec.Raw]:
    """The members of an object by key; `known` are those that count, `only` whether there may be no others.

    :raises Unsupported: no object, others where there may be none, or a known one in a spelling that only Go accepts.
    """
    found = value(data, dict[str, msgspec.Raw])
    folded = {document.fold(key) for key in known}
    for key in found:
        if key not in known and (only or document.fold(key) in folded):
            raise Unsupported(f"key {key!r:.60}")
    return found


def value(data: bytes | msgspec.Raw, kind: type[T]) -> T:
    """A value of exactly this type.

    :raises Unsupported: it is another.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
        raise Unsupported(str(error)) from None


def optional(found: Mapping[str, msgspec.Raw], key: str, kind: type[T], otherwise: T) -> T:
    """The member, or `otherwise` when it is absent.

    :raises Unsupported: it is of another type.
    """
    return value(found[key], kind) if key in found else otherwise


def arguments(pairs: Pairs) -> dict[str, str]:
    """CNI_ARGS for a plugin that knows few of them.

    :raises Unsupported: it would mind the others, or a pair is none for it.
    """
    given = dict(pairs)
    minded = bool(given) and given.get("IgnoreUnknown", "").lower() not in _TRUE
    if minded or any("=" in each for each in given.values()):
        raise Unsupported("CNI_ARGS")
    return given


def address(text: str) -> Address:
    """An IP address as Go's ParseIP takes it, that is written in one way only.

    :raises Unsupported: anything else, such as a zone or an IPv4 address in IPv6 form.
    """
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        raise Unsupported(f"address {text!r:.60}") from None
    if isinstance(found, ipaddress.IPv6Address) and (found.scope_id is not None or found.ipv4_mapped is not None):
        raise Unsupported(f"address {text!r:.60}")
    return found


def cidr(text: str) -> tuple[Address, int]:
    """An address with a prefix length.

    :raises Unsupported: anything else.
    """
    host, _, length = text.partition("/")
    found = address(host)
    if not _LENGTH.fullmatch(length) or int(length) > found.max_prefixlen:
        raise Unsupported(f"prefix {text!r:.60}")
    return found, int(length)


def network(text: str) -> Network:
    """An address range in CIDR form, without host bits.

    :raises Unsupported: anything else.
    """
    found, length = cidr(text)
    try:
        return ipaddress.ip_network((found, length))
    except ValueError:
        raise Unsupported(f"host bits in {text!r:.60}") from None


def ipam_type(found: Mapping[str, msgspec.Raw]) -> str:
    """The address plugin of a configuration, "" for none.

    :raises Unsupported: what it is called is no program's name.
    """
    if "ipam" not in found:
        return ""
    kind = optional(members(found["ipam"], ("type",)), "type", str, "")
    if kind and not is_plugin_type(kind):
        raise Unsupported("ipam")
    return kind


def mac(found: Mapping[str, msgspec.Raw]) -> str:
    """The member "mac", "" when it is absent.

    :raises Unsupported: it is no string.
    """
    return optional(found, "mac", str, "")


def is_mac(text: str) -> bool:
    """Whether it is a MAC in its usual form, or ""."""
    return not text or _MAC.fullmatch(text) is not None


def routes(shapes: Collection[RouteShape]) -> tuple[Route, ...]:
    """Routes as a result has them.

    :raises Unsupported: one is none, or leads through a gateway of the other family.
    """
    made = []
    for shape in shapes:
        destination = network(shape.dst)
        gateway = address(shape.gw) if shape.gw else None
        if gateway is not None and gateway.version != destination.version:
            raise Unsupported(f"gateway {shape.gw!r:.60}")
        made.append(Route(dst=str(destination), gw=str(gateway) if gateway is not None else ""))
    return tuple(made)


def dns(found: Mapping[str, msgspec.Raw]) -> DNS:
    """The member "dns".

    :raises Unsupported: it is none.
    """
    if "dns" not in found:
        return DNS()
    members(found["dns"], _DNS, only=True)
    return value(found["dns"], DNS)


def requested(found: Mapping[str, msgspec.Raw]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Addresses asked for by `args.cni.ips` and by the capability `ips`, as they are written.

    :raises Unsupported: they are not lists of strings.
    """
    by_args = members(found["args"], ("cni",)) if "args" in found else {}
    cni = members(by_args["cni"], ("ips",)) if "cni" in by_args else {}
    runtime = members(found["runtimeConfig"], ("ips", "ipRanges")) if "runtimeConfig" in found else {}
    return optional(cni, "ips", tuple[str, ...], ()), optional(runtime, "ips", tuple[str, ...], ())

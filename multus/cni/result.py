"""Results of ADD: read in any version of the CNI specification, written in any.

Sources: CNI specification 0.1.0 to 1.1.0, "Result"; libcni pkg/types for what converts to what. A plugin's output is as
hostile as any other input: nothing but CNIError comes out of it.
"""

import ipaddress
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Annotated

import msgspec

from multus.cni import document
from multus.cni.errors import CNIError, Code
from multus.cni.versions import SUPPORTED, at_least, known

__all__ = ["DNS", "IP", "SUPPORTED", "Interface", "Result", "Route", "at_least", "encode_result", "parse_result"]

MAX_RESULT = 4 * 1024 * 1024
MAX_ITEMS = 4096  # in a list; 4 MiB of empty objects would keep the program busy for seconds

_TOP = ("cniVersion", "interfaces", "ips", "routes", "dns", "ip4", "ip6")
_KEYS: Mapping[str, tuple[str, ...]] = {
    "interfaces": ("name", "mac", "mtu", "sandbox", "socketPath", "pciID"),
    "ips": ("address", "gateway", "interface"),
    "routes": ("dst", "gw", "mtu", "advmss", "priority", "table", "scope"),
    "dns": ("nameservers", "domain", "search", "options"),
    "ip4": ("ip", "gateway", "routes"),
    "ip6": ("ip", "gateway", "routes"),
}


Int = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]  # as in Go; JSON may hold more, and could not be written


class Interface(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An interface a plugin made. `sandbox` is the namespace's path, "" on the host; `mtu` 0 when unknown."""

    name: str
    mac: str = ""
    mtu: Int = 0
    sandbox: str = ""
    socket_path: str = msgspec.field(default="", name="socketPath")
    pci_id: str = msgspec.field(default="", name="pciID")


class IP(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An address in CIDR form. `interface` is an index into the result's interfaces, None when it belongs to none."""

    address: str
    gateway: str = ""
    interface: Int | None = None


class Route(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A route; `dst` in CIDR form, no `gw` means on-link. Numbers are None when the plugin named none."""

    dst: str
    gw: str = ""
    mtu: Int | None = None
    advmss: Int | None = None
    priority: Int | None = None
    table: Int | None = None
    scope: Int | None = None


class DNS(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a resolver should use."""

    nameservers: tuple[str, ...] = ()
    domain: str = ""
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What one attachment came to, in the terms of the newest version."""

    interfaces: tuple[Interface, ...] = ()
    ips: tuple[IP, ...] = ()
    routes: tuple[Route, ...] = ()
    dns: DNS = DNS()


class _OldAddress(msgspec.Struct, frozen=True, kw_only=True):
    """One address with its routes: "ip4" or "ip6" of versions 0.1.0 and 0.2.0."""

    ip: str
    gateway: str = ""
    routes: tuple[Route, ...] = ()


class _Old(msgspec.Struct, frozen=True, kw_only=True):
    """The document of versions 0.1.0 and 0.2.0."""

    ip4: _OldAddress | None = None
    ip6: _OldAddress | None = None
    dns: DNS = DNS()


def parse_result(data: bytes, *, where: str, version: str = "") -> Result:
    """A plugin's output. `where` names the plugin in messages.

    A document without cniVersion is in `version` (what its configuration asked for; libcni does so), else in 0.1.0.
    Raises CNIError: DECODING_FAILURE for what is no result, INCOMPATIBLE_VERSION for a version we do not know.
    """
    try:
        top = _members(data)
        spoken = top.pop("cniVersion", "") or version
        if not isinstance(spoken, str):
            raise ValueError('"cniVersion" is no string')
        spoken = known(spoken, f"{where}: result")
        lists = at_least(spoken, "0.3.0")
        result = msgspec.convert(top, Result) if lists else _from_old(msgspec.convert(top, _Old))
        _check(result)
    except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
        reason = str(error) or type(error).__name__
        raise CNIError(
            Code.DECODING_FAILURE, f"{where}: no CNI result: {reason}", f"it printed {document.quote(data)}"
        ) from None
    return result


def encode_result(result: Result, version: str) -> bytes:
    """The result in that version's shape ("" is 0.1.0); what libcni's types for it cannot carry is dropped.

    They are the same for 1.0.0 and 1.1.0: what a plugin says of MTU or PCI device reaches the next one in either.
    0.2.0 and older keep the first address of each family, and routes whose family has one. Unlike in libcni they may
    be without any address: a plugin that returns none has not failed. Raises CNIError INCOMPATIBLE_VERSION.
    """
    spoken = known(version, "cannot write a result")
    body: dict[str, object] = {"cniVersion": spoken}
    if not at_least(spoken, "0.3.0"):
        body.update(_to_old(result))
    else:
        body.update(_to_lists(result, spoken))
    if result.dns != DNS() or not at_least(spoken, "1.0.0"):  # libcni's older types always print it
        body["dns"] = result.dns
    return msgspec.json.encode(body)


def _members(data: bytes) -> dict[str, object]:
    """The result's members under their canonical names: Go plugins may write them in any case, and null for nothing."""
    if len(data) > MAX_RESULT:
        raise ValueError(f"{len(data)} bytes, {MAX_RESULT} at most")
    if not data.strip():
        raise ValueError("it printed nothing")
    top = msgspec.json.decode(data)
    if top is None:
        return {}  # libcni takes null for an empty result
    if not isinstance(top, dict):
        raise ValueError(f"a JSON object is expected, not {type(top).__name__}")
    return {key: _canonical(key, item) for key, item in _pick(top, _TOP).items()}


def _canonical(key: str, item: object) -> object:
    if isinstance(item, list):
        if len(item) > MAX_ITEMS:
            raise ValueError(f"a list of {len(item)} items")
        return [_canonical(key, each) if isinstance(each, dict) else each for each in item]
    if key not in _KEYS or not isinstance(item, dict):
        return item
    return {inner: _canonical(inner, each) for inner, each in _pick(item, _KEYS[key]).items()}


def _pick(given: Mapping[str, object], keys: Sequence[str]) -> dict[str, object]:
    if len(given) > document.MAX_MEMBERS:
        raise ValueError(f"an object with {len(given)} members")
    picked = {key: given[key] for key in keys if key in given}
    if len(picked) < len(given):  # of the others, some may be keys in another case
        folded = {document.fold(name): name for name in given if name not in picked}
        for key in keys:
            if key not in picked and (name := folded.get(document.fold(key))) is not None:
                picked[key] = given[name]
    return {key: item for key, item in picked.items() if item is not None}


def _from_old(old: _Old) -> Result:
    families = [family for family in (old.ip4, old.ip6) if family is not None]
    return Result(
        ips=tuple(IP(address=family.ip, gateway=family.gateway) for family in families),
        routes=tuple(route for family in families for route in family.routes),
        dns=old.dns,
    )


def _to_old(result: Result) -> dict[str, object]:
    body: dict[str, object] = {}
    for key, family in (("ip4", 4), ("ip6", 6)):
        first = next((ip for ip in result.ips if _ip_version(ip.address) == family), None)
        if first is None:
            continue
        entry: dict[str, object] = {"ip": first.address}
        if first.gateway:
            entry["gateway"] = first.gateway
        routes = [Route(dst=route.dst, gw=route.gw) for route in result.routes if _ip_version(route.dst) == family]
        if routes:
            entry["routes"] = routes
        body[key] = entry
    return body


def _to_lists(result: Result, version: str) -> dict[str, object]:
    interfaces: Sequence[object] = result.interfaces
    ips: Sequence[object] = result.ips
    if not at_least(version, "1.0.0"):
        interfaces = [Interface(name=each.name, mac=each.mac, sandbox=each.sandbox) for each in result.interfaces]
        ips = [{"version": str(_ip_version(ip.address)), **msgspec.to_builtins(ip)} for ip in result.ips]
    lists = {"interfaces": interfaces, "ips": ips, "routes": result.routes}
    return {key: items for key, items in lists.items() if items}


def _check(result: Result) -> None:
    for ip in result.ips:
        _network(ip.address, "address")
        _address(ip.gateway, "gateway")
        if ip.interface is not None and not 0 <= ip.interface < len(result.interfaces):
            raise ValueError(f"address {ip.address} is on interface {ip.interface} of {len(result.interfaces)}")
    for route in result.routes:
        _network(route.dst, "route")
        _address(route.gw, "gateway of a route")


def _network(text: str, what: str) -> None:
    """CIDR as Go's ParseCIDR takes it: a prefix length, no netmask, no zone."""
    host, slash, length = text.partition("/")
    try:
        address = _address(host, what)
    except ValueError:
        address = None
    digits = slash and length.isascii() and length.isdigit() and len(length) <= 3
    if address is None or not digits or int(length) > address.max_prefixlen:
        raise ValueError(f"{what} {text!r:.60} is not in CIDR form")


def _address(text: str, what: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    if not text:
        return None
    try:
        if "%" in text or len(text) > _LONGEST:
            raise ValueError
        return _parsed(text)
    except ValueError:
        raise ValueError(f"{what} {text!r:.60} is no IP address") from None


_LONGEST = len("0000:0000:0000:0000:0000:ffff:255.255.255.255")
_parsed = lru_cache(1024)(ipaddress.ip_address)  # a node's gateways and destinations come again with each pod


def _ip_version(cidr: str) -> int:
    return 6 if ":" in cidr else 4

"""The network-status annotation: what a pod is told of its networks.

Source: Network Custom Resource Definition De-facto Standard, 4.2; network-attachment-definition-client v1.7.7,
CreateNetworkStatuses and SetNetworkStatus, whose layout is kept byte for byte: people and tools compare it.
"""

import logging
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from multus.cni import document
from multus.cni.document import DocumentError
from multus.cni.result import DNS, IP, Interface, Result, Route
from multus.networks.addresses import ip_address

logger = logging.getLogger(__name__)

_GO_ESCAPES = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"})


class StatusEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One attachment: the network's name ("namespace/name" for a NAD) and what its plugins answered."""

    name: str
    ifname: str
    result: Result
    is_default: bool
    device_info: dict[str, Any] | None = None


class _Status(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One object of the annotation; the order of the keys is upstream's."""

    name: str
    interface: str = ""
    ips: tuple[str, ...] = ()
    mac: str = ""
    mtu: int = 0
    default: bool = False
    dns: DNS
    device_info: msgspec.Raw | msgspec.UnsetType = msgspec.field(default=msgspec.UNSET, name="device-info")
    gateway: tuple[str, ...] = ()


def network_status(entries: Iterable[StatusEntry]) -> str:
    """The annotation's value. Never raises: device information that is no JSON is left out with a warning."""
    objects = [_written(status) for entry in entries for status in _statuses(entry)]
    return f"[{','.join(objects)}]"


def _written(status: _Status) -> str:
    """As Go's json.MarshalIndent does it, which escapes what HTML would mind."""
    text = msgspec.json.format(msgspec.json.encode(status), indent=4).decode()
    return text.translate(_GO_ESCAPES)


def _statuses(entry: StatusEntry) -> list[_Status]:
    """One object for each interface in the container.

    A single interface has all addresses, whether or not its plugin said that it is in a container. A result of CNI
    0.2.0 and before has addresses and no interfaces: they are those of the interface that was asked for.
    """
    interfaces = entry.result.interfaces
    if not interfaces and entry.result.ips:
        interfaces = (Interface(name=entry.ifname, sandbox="?"),)
    if len(interfaces) == 1:
        shown = interfaces[0] if interfaces[0].sandbox else Interface(name="")
        return [_status(entry, shown, entry.result.ips, default=entry.is_default)]
    inside = [index for index, interface in enumerate(interfaces) if interface.sandbox]
    default = _default(inside, entry.result.ips) if entry.is_default else None
    return [
        _status(entry, interfaces[index], _on(index, inside, entry.result.ips), default=index == default)
        for index in inside
    ]


def _on(index: int, inside: Sequence[int], ips: Sequence[IP]) -> list[IP]:
    """The addresses of an interface; those of none are the last one's."""
    return [ip for ip in ips if ip.interface == index or (ip.interface is None and index == inside[-1])]


def _default(inside: Sequence[int], ips: Sequence[IP]) -> int | None:
    """The interface that a gateway is on, else the first. Upstream says none when the gateway's is on the host."""
    routed = (ip.interface for ip in ips if ip.gateway and ip.interface in inside)
    return next(routed, inside[0] if inside else None)


def _status(entry: StatusEntry, interface: Interface, ips: Iterable[IP], *, default: bool) -> _Status:
    return _Status(
        name=entry.name,
        interface=interface.name,
        ips=tuple(_canonical(ip.address.partition("/")[0]) for ip in ips),
        mac=interface.mac,
        mtu=interface.mtu,
        default=default,
        dns=entry.result.dns,
        device_info=_device_info(entry),
        gateway=tuple(_canonical(route.gw) or "<nil>" for route in entry.result.routes if _is_default(route)),
    )


def _is_default(route: Route) -> bool:
    return route.dst.partition("/")[2].strip("0") == "" and "/" in route.dst


def _canonical(address: str) -> str:
    """The usual spelling, in which upstream writes it whatever the plugin's was."""
    parsed = ip_address(address)
    return address if parsed is None else str(parsed)


def _device_info(entry: StatusEntry) -> msgspec.Raw | msgspec.UnsetType:
    if not entry.device_info:
        return msgspec.UNSET
    try:
        return document.raw(entry.device_info)
    except DocumentError as error:
        logger.warning("network %s: device-info is left out of network-status: %s", entry.name, error)
        return msgspec.UNSET

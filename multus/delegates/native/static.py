"""The address plugin `static`: the addresses of the configuration, or those that were asked for in their place.

Source of what it does: containernetworking/plugins 1.1.
"""

from collections.abc import Sequence
from typing import Final

import msgspec

from multus.cni.request import Command
from multus.cni.result import DNS, IP, Result, Route
from multus.delegates.native import reading
from multus.delegates.native.reading import RouteShape, Shape, Unsupported
from multus.delegates.plugin import Call

_KNOWN: Final = ("cniVersion", "name", "ipam", "runtimeConfig", "args")


class _Address(Shape, frozen=True, kw_only=True):
    address: str
    gateway: str = ""
    version: str = ""  # older configurations have it; nobody reads it


class _Ipam(Shape, frozen=True, kw_only=True):
    type: str
    addresses: tuple[_Address, ...] = ()
    routes: tuple[RouteShape, ...] = ()
    dns: msgspec.Raw = msgspec.Raw(b"{}")


class Static:
    """An address plugin (see `multus.delegates.native.ipam`)."""

    def lease(self, plugin: str, call: Call) -> "_Lease":
        """As `AddressPlugin`."""
        if call.command is Command.DEL:
            return _Lease("", Result())
        return _Lease(*addresses(call))


class _Lease:
    """Nothing is taken, for nobody keeps account."""

    def __init__(self, version: str, result: Result) -> None:
        self.version = version
        self.settles = any(":" in ip.address for ip in result.ips)
        self._result = result

    def take(self) -> Result:
        return self._result

    def give_back(self) -> None:
        return


def addresses(call: Call) -> tuple[str, Result]:
    """The configuration's version and what an ADD gives.

    :raises Unsupported: a configuration for the program.
    """
    found = reading.members(call.conf, _KNOWN)
    version = reading.optional(found, "cniVersion", str, "")
    if version not in reading.VERSIONS or "ipam" not in found:
        raise Unsupported("version")
    ipam = reading.value(found["ipam"], _Ipam)
    dns = reading.dns({"dns": ipam.dns})
    chosen = _chosen(ipam, reading.arguments(call.args))
    by_args, by_capability = reading.requested(found)
    for instead in (by_args, by_capability):
        if instead:
            chosen = [_ip(each) for each in instead]
    return version, _result(chosen, reading.routes(ipam.routes), dns)


def _chosen(ipam: _Ipam, given: dict[str, str]) -> Sequence[IP]:
    """Those of the configuration and of CNI_ARGS."""
    chosen = [_ip(each.address, each.gateway) for each in ipam.addresses]
    if given.get("GATEWAY"):
        raise Unsupported("GATEWAY")
    if given.get("IP"):
        chosen += [_ip(each.strip()) for each in given["IP"].split(",")]
    return chosen


def _ip(text: str, gateway: str = "") -> IP:
    host, length = reading.cidr(text)
    return IP(address=f"{host}/{length}", gateway=str(reading.address(gateway)) if gateway else "")


def _result(ips: Sequence[IP], routes: tuple[Route, ...], dns: DNS) -> Result:
    return Result(ips=tuple(ips), routes=routes, dns=dns)

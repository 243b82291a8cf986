"""Whether a pod's networks are still as they were attached: recorded results against the namespace as it is."""

import ipaddress
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import ClassVar

import anyio.to_thread
import msgspec

from devices.errors import DeviceError, NamespaceError
from devices.linux import links, pci, routes
from devices.linux.netns import identity
from multus.cni.conf import parse_conf
from multus.cni.network import TUNING
from multus.cni.result import Interface, Result, Route, parse_result
from multus.errors import Fault, MultusError
from multus.sandbox import Attachment, Sandbox

_LOCAL = 255  # the kernel's own table: an address of the pod itself is in it, which is no route that anybody asked for


class CheckError(MultusError):
    """The namespace could not be looked into."""

    fault: ClassVar[Fault] = Fault.KERNEL
    retry: ClassVar[bool] = True


class _Now(msgspec.Struct, frozen=True, kw_only=True):
    """The namespace as it is, and where the kernel shows PCI devices."""

    links: Mapping[str, links.Link]
    routes: tuple[routes.Route, ...]
    sysfs: Path


async def drift(sandbox: Sandbox, netns: str, *, sysfs: Path = pci.SYSFS) -> list[str]:
    """One sentence for each difference; none when all is as it was attached.

    Interfaces on the host are their plugins' to check. A device that a program has instead of the kernel (DPDK) has no
    interface to look at.

    :raises CheckError: the namespace is there but cannot be read.
    """
    try:
        return await anyio.to_thread.run_sync(_drift, sandbox, netns, sysfs)
    except DeviceError as error:
        raise CheckError(f"container {sandbox.container_id}: {error.message}", hint=error.hint) from error


def _drift(sandbox: Sandbox, netns: str, sysfs: Path) -> list[str]:
    now_id = identity(netns)
    if now_id is None:
        return [f"there is no network namespace at {netns}"]
    if sandbox.netns_id and now_id != sandbox.netns_id:
        return [f"{netns} is another network namespace than the one that the pod was attached to"]
    try:
        found = {link.name: link for link in links.snapshot(netns)}
        now = _Now(links=found, routes=routes.snapshot(netns), sysfs=sysfs)
    except NamespaceError as error:
        if error.gone:
            return [error.message]
        raise
    recorded = [
        (item, parse_result(item.result, where="journal")) for item in sandbox.attachments if item.result is not None
    ]
    problems: list[str] = []
    for item, result in recorded:
        conf = parse_conf(item.conf, where=f"journal of {item.network}")
        if conf.disable_check:
            continue  # whoever wrote that knows that it changes by itself
        others = [other for _, other in recorded if other is not result]
        tuned = any(plugin.type == TUNING for plugin in conf.plugins)
        told = _without_mtu(result) if tuned else result
        problems += [f"{item.network}: {problem}" for problem in _differences(item, told, others, now)]
    return problems


def _without_mtu(result: Result) -> Result:
    interfaces = tuple(msgspec.structs.replace(each, mtu=0) for each in result.interfaces)
    return msgspec.structs.replace(result, interfaces=interfaces)


def _differences(item: Attachment, result: Result, others: Iterable[Result], now: _Now) -> Iterator[str]:
    inside = [each for each in result.interfaces if each.sandbox]
    absent = {each.name for each in inside if each.name not in now.links and _userspace(item, each, now)}
    present = [each for each in inside if each.name not in absent]
    if not present and (absent or item.device_id):
        return
    for interface in present:
        yield from _interface(interface, now)
    yield from _addresses(result, absent, now)
    for route in result.routes:
        if not _has_route(route, {each.name for each in present}, others, now):
            through = f" through {route.gw}" if route.gw else ""
            yield f"the route to {route.dst}{through} is missing"


def _userspace(item: Attachment, interface: Interface, now: _Now) -> bool:
    """Whether the interface is not in the pod because a program has the device: some plugins list it all the same."""
    address = interface.pci_id or item.device_id
    return pci.driver_of(address, sysfs=now.sysfs) in pci.USERSPACE


def _interface(recorded: Interface, now: _Now) -> Iterator[str]:
    link = now.links.get(recorded.name)
    if link is None:
        yield f"interface {recorded.name} is missing"
        return
    if recorded.mac and link.mac and link.mac != recorded.mac.lower().replace("-", ":"):
        yield f"interface {recorded.name} has MAC {link.mac} instead of {recorded.mac.lower()}"
    if recorded.mtu and link.mtu != recorded.mtu:
        yield f"interface {recorded.name} has MTU {link.mtu} instead of {recorded.mtu}"


def _addresses(result: Result, absent: set[str], now: _Now) -> Iterator[str]:
    down: set[str] = set()
    for ip in result.ips:
        named = result.interfaces[ip.interface] if ip.interface is not None else None
        if named is not None and (not named.sandbox or named.name in absent):
            continue
        names = [named.name] if named else [each.name for each in result.interfaces if each.sandbox]
        candidates = [now.links[name] for name in names or now.links if name in now.links]
        if not candidates:
            continue  # said already: the interface is missing
        wanted = ipaddress.ip_interface(ip.address)
        holders = [
            link for link in candidates if any(ipaddress.ip_interface(own.address) == wanted for own in link.addresses)
        ]
        if not holders:
            on = f" on {' or '.join(names)}" if names else ""
            yield f"address {ip.address} is missing{on}"
        # Only a link with an address must have been up at some time: plugins bring it up to set the address.
        down |= {link.name for link in holders if not link.up}
    for name in sorted(down):
        yield f"interface {name} is down"


def _has_route(wanted: Route, names: set[str], others: Iterable[Result], now: _Now) -> bool:
    """Whether the route is there, in any table unless it names one: plugins such as sbr and vrf move routes to others.

    One to the same destination that another attachment recorded is enough: plugins leave the first that came in place.
    """
    destination = ipaddress.ip_network(wanted.dst, strict=False)
    there = [
        route
        for route in now.routes
        if route.unicast
        and (route.table == wanted.table if wanted.table else route.table != _LOCAL)
        and ipaddress.ip_network(route.destination) == destination
    ]
    indexes = {now.links[name].index for name in names if name in now.links}
    gateway = ipaddress.ip_address(wanted.gw) if wanted.gw else None
    for route in there:
        for hop in route.hops:
            same_gateway = gateway is None or (hop.gateway and ipaddress.ip_address(hop.gateway) == gateway)
            if same_gateway and (not indexes or hop.index in indexes):
                return True
    recorded = (route.dst for result in others for route in result.routes)
    return bool(there) and any(ipaddress.ip_network(dst, strict=False) == destination for dst in recorded)

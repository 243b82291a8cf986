"""Default routes of a pod are moved to where its "default-route" wants them, and read back: only then is it true.

Sources: Network Custom Resource Definition De-facto Standard, 4.1.2.1.9; multus-cni's DeleteDefaultGW and SetDefaultGW.
"""

import errno
import ipaddress
import logging
import socket
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import anyio.to_thread
import msgspec

from devices.errors import DeviceError, KernelError
from devices.linux import netns as namespaces
from devices.linux.links import Link, read_links
from devices.linux.routes import MAIN, add_default, read_routes, remove_hops
from devices.linux.routes import Route as KernelRoute
from multus.cni.result import Result, Route
from multus.errors import Fault, MultusError
from multus.networks.gateways import GatewayDecision

logger = logging.getLogger(__name__)

_ROUNDS = 3  # a router's advertisement may bring back what was just removed
_DEFAULTS = {4: "0.0.0.0/0", 6: "::/0"}


class RouteError(MultusError):
    """The default routes of a pod could not be set."""

    fault: ClassVar[Fault] = Fault.KERNEL


class GatewayError(RouteError):
    """A gateway that was asked for is none on that interface."""

    fault: ClassVar[Fault] = Fault.OPERATOR


class _Wish(NamedTuple):
    """What an interface of the pod is to have of one family: exactly these gateways, or also what it has (`keep`)."""

    ifname: str
    family: int
    keep: bool
    gateways: tuple[str, ...]


async def apply_gateways(
    netns: str, results: Mapping[str, Result], decisions: Mapping[str, GatewayDecision]
) -> dict[str, Result]:
    """Carry out the decisions, each for the interface of its name; the results as they now are, by interface.

    :raises RouteError: not all of it is true now; the pod's routes are then somewhere in between.
    """
    wishes = [wish for ifname, decision in decisions.items() for wish in _wishes(ifname, decision)]
    if wishes:
        try:
            await anyio.to_thread.run_sync(_apply, netns, wishes)
        except DeviceError as error:
            raise RouteError(f"default-route: {error.message}", hint=error.hint) from error
    return {
        ifname: _corrected(result, [wish for wish in wishes if wish.ifname == ifname])
        for ifname, result in results.items()
    }


def _wishes(ifname: str, decision: GatewayDecision) -> list[_Wish]:
    families = (
        _Wish(ifname, 4, decision.keep_v4, _written(decision.gateways_v4)),
        _Wish(ifname, 6, decision.keep_v6, _written(decision.gateways_v6)),
    )
    return [wish for wish in families if not wish.keep or wish.gateways]


def _written(gateways: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(str(ipaddress.ip_address(gateway)) for gateway in gateways)


def _apply(netns: str, wishes: list[_Wish]) -> None:
    with namespaces.open_socket(netns) as connection:
        links = {link.name: link for link in read_links(connection)}
        for wish in wishes:
            if wish.gateways and wish.ifname not in links:
                raise GatewayError(
                    f"default-route: the pod has no interface {wish.ifname} to put a default route on",
                    hint="ask for it on a network whose interface is in the pod: a device for DPDK has none",
                )
        for attempt in range(1, _ROUNDS + 1):
            if not _remove(connection, wishes, links):
                break
            logger.debug("default routes removed, round %d", attempt)
        _add(connection, wishes, links)
        problems = _verify(connection, wishes, links)
    if problems:
        raise RouteError("default-route: " + "; ".join(problems), hint="what else changes routes in this pod?")


def _remove(connection: socket.socket, wishes: list[_Wish], links: Mapping[str, Link]) -> bool:
    """Remove what is not wished for; whether there was any."""
    removed = False
    for route in read_routes(connection):
        unwanted = _unwanted(route, wishes, links)
        if unwanted:
            remove_hops(connection, route, unwanted)
            removed = True
    return removed


def _unwanted(route: KernelRoute, wishes: list[_Wish], links: Mapping[str, Link]) -> set[int]:
    """The interfaces that must not have this default route.

    One that leads to a gateway that was asked for stays as it is, for it may be on-link or have a metric or MTU.
    """
    if not route.is_default:
        return set()
    unwanted: set[int] = set()
    for wish in wishes:
        link = links.get(wish.ifname)
        if link is None or wish.keep or wish.family != route.family:
            continue
        alone = len(route.hops) == 1 and route.hops[0].gateway in wish.gateways
        if not alone and any(hop.index == link.index for hop in route.hops):
            unwanted.add(link.index)
    return unwanted


def _add(connection: socket.socket, wishes: list[_Wish], links: Mapping[str, Link]) -> None:
    for wish in wishes:
        for gateway in wish.gateways:
            link = links[wish.ifname]
            routes = read_routes(connection)
            if any(_leads(route, gateway, link.index) for route in routes):
                continue
            try:
                add_default(connection, gateway, link.index)
            except KernelError as error:
                raise _explained(error, gateway, wish.family, link, links, routes) from error


def _verify(connection: socket.socket, wishes: list[_Wish], links: Mapping[str, Link]) -> list[str]:
    routes = read_routes(connection)
    names = {link.index: link.name for link in links.values()}
    problems = [
        f"{names[index]} still has a default route ({_DEFAULTS[route.family]})"
        for route in routes
        for index in sorted(_unwanted(route, wishes, links))
    ]
    problems += [
        f"{wish.ifname} has no default route through {gateway}"
        for wish in wishes
        for gateway in wish.gateways
        if not any(_leads(route, gateway, links[wish.ifname].index) for route in routes)
    ]
    return problems


def _leads(route: KernelRoute, gateway: str, index: int) -> bool:
    return route.is_default and any(hop.gateway == gateway and hop.index == index for hop in route.hops)


def _explained(
    error: KernelError,
    gateway: str,
    family: int,
    link: Link,
    links: Mapping[str, Link],
    routes: tuple[KernelRoute, ...],
) -> RouteError:
    what = f"default-route: {gateway} cannot be the gateway on {link.name}"
    if error.code == errno.ENETDOWN or not link.up:
        return RouteError(f"{what}: the interface is down", hint="its plugin must bring it up")
    if error.code in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EINVAL):
        own = [item.address for item in link.addresses if (":" in item.address) == (family == 6)]
        return GatewayError(
            f"{what}: it cannot be reached there ({error.reason})",
            hint=f"{link.name} has {', '.join(own) or f'no IPv{family} address'}; a gateway is in one of its networks",
        )
    if error.code == errno.EEXIST:
        names = {item.index: item.name for item in links.values()}
        others = [
            f"{hop.gateway or 'on-link'} on {names.get(hop.index, hop.index)}"
            for route in routes
            if route.is_default and route.family == family
            for hop in route.hops
        ]
        return RouteError(
            f"{what}: the pod has another default route, through {', '.join(others) or 'nobody knows what'}",
            hint="none of the pod's networks made it, so it is not removed",
        )
    return RouteError(f"{what}: {error.reason}", hint=error.hint)


def _corrected(result: Result, wishes: list[_Wish]) -> Result:
    """The result with the default routes that its interface has now; addresses keep the gateways of their networks."""
    routes = list(result.routes)
    for wish in wishes:
        if not wish.keep:
            routes = [route for route in routes if not _is_default(route, wish.family) or _goes(route, wish.gateways)]
        for gateway in wish.gateways:
            if not any(_is_default(route, wish.family) and _goes(route, (gateway,)) for route in routes):
                routes.append(Route(dst=_DEFAULTS[wish.family], gw=gateway))
    return msgspec.structs.replace(result, routes=tuple(routes)) if wishes else result


def _is_default(route: Route, family: int) -> bool:
    network = ipaddress.ip_network(route.dst, strict=False)  # also ::0/0, as Go plugins may write it
    return network.prefixlen == 0 and network.version == family and (route.table or MAIN) == MAIN


def _goes(route: Route, gateways: tuple[str, ...]) -> bool:
    return bool(route.gw) and str(ipaddress.ip_address(route.gw)) in gateways

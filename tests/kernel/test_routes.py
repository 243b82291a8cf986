"""default-route really moves the route: every expectation is read back with `ip`, in real namespaces."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from devices.linux import netns
from devices.linux.routes import read_routes, remove_hops
from multus.cni.result import IP, Interface, Result, Route
from multus.errors import Fault
from multus.networks.gateways import GatewayDecision
from multus.routes import GatewayError, RouteError, apply_gateways

pytestmark = pytest.mark.anyio

DEFAULT_4, DEFAULT_6 = Route(dst="0.0.0.0/0", gw="10.0.0.1"), Route(dst="::/0", gw="fd00:a::1")
OTHER = Route(dst="192.0.2.0/24", gw="10.0.0.1")
ETH0 = Result(
    interfaces=(Interface(name="eth0", sandbox="/pod"),),
    ips=(IP(address="10.0.0.2/24", gateway="10.0.0.1", interface=0),),
    routes=(OTHER, DEFAULT_4, DEFAULT_6),
)
NET1 = Result(
    interfaces=(Interface(name="net1", sandbox="/pod"),),
    ips=(IP(address="10.1.0.2/24", gateway="10.1.0.1", interface=0),),
)
RESULTS = {"eth0": ETH0, "net1": NET1}


def _defaults(pod: Any) -> list[tuple[str, str]]:
    """Interface and gateway of every default route of the main table, both families."""
    told = json.loads(pod.ip("-j -4 route show default")) + json.loads(pod.ip("-j -6 route show default"))
    hops = [hop for route in told for hop in route.get("nexthops", [route])]
    return sorted((hop["dev"], hop.get("gateway", "")) for hop in hops)


async def _ask(pod: Any, **asked: tuple[str, ...]) -> dict[str, Result]:
    """eth0 and net1 lose what default routes they have, and get those that are asked for."""
    decisions = {
        ifname: GatewayDecision(
            keep_v4=False,
            keep_v6=False,
            gateways_v4=tuple(gateway for gateway in asked.get(ifname, ()) if ":" not in gateway),
            gateways_v6=tuple(gateway for gateway in asked.get(ifname, ()) if ":" in gateway),
        )
        for ifname in RESULTS
    }
    return await apply_gateways(pod.path, RESULTS, decisions)


def _both(pod: Any) -> None:
    pod.ip("route add default via 10.0.0.1 dev eth0")
    pod.ip("-6 route add default via fd00:a::1 dev eth0")


async def test_nobody_asks_and_no_namespace_is_entered() -> None:
    decisions = {"eth0": GatewayDecision(), "net1": GatewayDecision()}
    assert await apply_gateways("/nowhere", RESULTS, decisions) == RESULTS


async def test_the_default_route_moves(pod: Any) -> None:
    _both(pod)
    pod.ip("route add 192.0.2.0/24 via 10.0.0.1")
    results = await _ask(pod, net1=("10.1.0.1", "fd00:b::1"))
    assert _defaults(pod) == [("net1", "10.1.0.1"), ("net1", "fd00:b::1")]
    assert results["eth0"].routes == (OTHER,)
    assert results["net1"].routes == (Route(dst="0.0.0.0/0", gw="10.1.0.1"), Route(dst="::/0", gw="fd00:b::1"))
    assert results["eth0"].ips == ETH0.ips  # an address keeps the gateway of its network
    assert json.loads(pod.ip("-j route show 192.0.2.0/24"))[0]["gateway"] == "10.0.0.1"


@pytest.mark.parametrize(
    ("asked", "left"),
    [
        (("10.1.0.1",), [("net1", "10.1.0.1")]),
        (("fd00:b::1",), [("net1", "fd00:b::1")]),
        (("FD00:B:0::0001",), [("net1", "fd00:b::1")]),
        ((), []),
    ],
)
async def test_defaults_of_both_families_go_and_only_those_asked_for_come(
    pod: Any, asked: tuple[str, ...], left: list[tuple[str, str]]
) -> None:
    _both(pod)
    pod.ip("route add default via 10.1.0.77 dev net1 metric 9")
    results = await _ask(pod, net1=asked)
    assert _defaults(pod) == left
    assert [route.gw for route in results["net1"].routes] == [gateway for _, gateway in left]
    assert results["eth0"].routes == (OTHER,)


async def test_only_the_family_that_is_not_kept_goes(pod: Any) -> None:
    _both(pod)
    results = await apply_gateways(pod.path, RESULTS, {"eth0": GatewayDecision(keep_v6=False)})
    assert _defaults(pod) == [("eth0", "10.0.0.1")]
    assert results["eth0"].routes == (OTHER, DEFAULT_4)
    assert results["net1"] == NET1


@pytest.mark.parametrize(
    "routes",
    [
        ["route add default via 10.0.0.1 dev eth0 metric 100", "route add default via 10.0.0.9 dev eth0 metric 200"],
        ["route add default via 10.0.0.1 dev eth0", "route append default via 10.0.0.9 dev eth0"],
        ["route add default via 169.254.1.1 dev eth0 onlink"],
        ["route add default dev eth0 scope link"],
        ["route add default via 10.0.0.1 dev eth0 proto static src 10.0.0.2 mtu 1400 advmss 1200"],
        ["route add default via inet6 fd00:a::1 dev eth0"],
        ["route add default tos 0x10 via 10.0.0.1 dev eth0"],
        ["route add default nexthop via 10.0.0.1 dev eth0 weight 3 nexthop via 10.0.0.9 dev eth0"],
        ["route add default nexthop via 10.0.0.1 dev eth0 nexthop via 10.1.0.9 dev net1"],
        ["nexthop add id 5 via 10.0.0.1 dev eth0", "route add default nhid 5"],
        ["-6 route add default via fe80::1 dev eth0"],
        [
            "-6 route add default via fd00:a::1 dev eth0 metric 1",
            "-6 route add default via fd00:a::9 dev eth0 metric 5",
        ],
        ["-6 route add default nexthop via fd00:a::1 dev eth0 nexthop via fd00:a::9 dev eth0"],
        ["-6 route add default nexthop via fd00:a::1 dev eth0 nexthop via fd00:b::9 dev net1"],
        ["-6 route add default dev eth0", "-6 route append default via fd00:a::9 dev eth0"],
        ["-6 route add default via fd00:a::1 dev eth0 proto ra expires 1800 pref high"],
    ],
)
async def test_a_default_route_of_any_make_goes(pod: Any, routes: list[str]) -> None:
    for route in routes:
        pod.ip(route)
    assert _defaults(pod)
    await _ask(pod, net1=("10.1.0.1", "fd00:b::1"))
    assert _defaults(pod) == [("net1", "10.1.0.1"), ("net1", "fd00:b::1")]


@pytest.mark.parametrize(
    ("add", "kept"),
    [
        ("route add default table 100 via 10.0.0.1 dev eth0", "-4 route show table 100"),
        ("-6 route add default table 100 via fd00:a::1 dev eth0", "-6 route show table 100"),
        ("route add unreachable default metric 4000", "-4 route show type unreachable"),
        ("-6 route add default from fd00:a::/64 via fd00:a::1 dev eth0", "-6 route show default"),
        ("route add 0.0.0.0/1 via 10.0.0.1 dev eth0", "-4 route show 0.0.0.0/1"),
    ],
)
async def test_what_is_no_default_route_of_the_pod_stays(pod: Any, add: str, kept: str) -> None:
    pod.ip(add)
    before = pod.ip(kept)
    await _ask(pod, net1=())
    assert pod.ip(kept) == before != ""


@pytest.mark.parametrize("family", [4, 6])
async def test_a_multipath_keeps_the_hops_of_interfaces_that_nobody_spoke_of(pod: Any, family: int) -> None:
    pod.veth("net2", "10.2.0.2/24", "fd00:c::2/64")
    hops = {4: ("10.0.0.1", "10.1.0.1", "10.2.0.1"), 6: ("fd00:a::1", "fd00:b::1", "fd00:c::1")}[family]
    words = " ".join(
        f"nexthop via {gw} dev {dev} weight 7" for gw, dev in zip(hops, ("eth0", "net1", "net2"), strict=True)
    )
    pod.ip(f"-{family} route add default metric 33 {words}")
    await apply_gateways(pod.path, RESULTS, {"eth0": GatewayDecision(keep_v4=False, keep_v6=False)})
    assert _defaults(pod) == sorted([("net1", hops[1]), ("net2", hops[2])])
    (rest,) = json.loads(pod.ip(f"-j -{family} route show default"))
    assert rest["metric"] == 33
    assert [hop["weight"] for hop in rest["nexthops"]] == [7, 7]
    await apply_gateways(pod.path, RESULTS, {"net1": GatewayDecision(keep_v4=False, keep_v6=False)})
    assert _defaults(pod) == [("net2", hops[2])]


async def test_a_hop_without_carrier_stays_in_a_multipath(pod: Any) -> None:
    """The kernel tells of a route's state in flags that it does not take back."""
    pod.ip("route add default nexthop via 10.0.0.1 dev eth0 nexthop via 10.1.0.1 dev net1")
    pod.ip("link set net1p down")
    await apply_gateways(pod.path, RESULTS, {"eth0": GatewayDecision(keep_v4=False)})
    assert _defaults(pod) == [("net1", "10.1.0.1")]


async def test_what_is_asked_for_and_there_already_stays_as_its_plugin_made_it(pod: Any) -> None:
    pod.ip("route add default via 169.254.1.1 dev eth0 onlink metric 50 mtu 1400")
    pod.ip("route add default via 10.1.0.1 dev net1")
    before = json.loads(pod.ip("-j route show default dev eth0"))
    results = await _ask(pod, eth0=("169.254.1.1",))
    assert _defaults(pod) == [("eth0", "169.254.1.1")]
    assert json.loads(pod.ip("-j route show default dev eth0")) == before
    assert [route.gw for route in results["eth0"].routes] == ["10.0.0.1", "169.254.1.1"]
    assert results["eth0"].routes[0] == OTHER


async def test_twice_is_as_once(pod: Any) -> None:
    _both(pod)
    first = await _ask(pod, net1=("10.1.0.1",))
    assert await _ask(pod, net1=("10.1.0.1",)) == first
    assert _defaults(pod) == [("net1", "10.1.0.1")]


async def test_a_default_route_that_only_the_result_knows_is_taken_out_of_it(pod: Any) -> None:
    results = await _ask(pod, net1=("10.1.0.1",))
    assert results["eth0"].routes == (OTHER,)
    assert _defaults(pod) == [("net1", "10.1.0.1")]


async def test_results_in_any_spelling_are_corrected(pod: Any) -> None:
    routes = (
        Route(dst="::0/0", gw="fd00:a::1"),
        Route(dst="0.0.0.0/0"),
        Route(dst="0.0.0.0/0", gw="10.0.0.1", table=254, priority=5),
        Route(dst="0.0.0.0/0", gw="10.0.0.1", table=100),
        Route(dst="0.0.0.0/1", gw="10.0.0.1"),
    )
    decisions = {"eth0": GatewayDecision(keep_v4=False, keep_v6=False)}
    results = await apply_gateways(pod.path, {"eth0": Result(routes=routes)}, decisions)
    assert results["eth0"].routes == routes[3:]


async def test_a_result_that_tells_of_the_gateway_already_is_not_told_twice(pod: Any) -> None:
    told = Result(routes=(Route(dst="::/0", gw="FD00:B::1", priority=9),))
    decision = GatewayDecision(keep_v4=False, keep_v6=False, gateways_v6=("fd00:b::1",))
    results = await apply_gateways(pod.path, {"net1": told}, {"net1": decision})
    assert results["net1"] == told
    assert _defaults(pod) == [("net1", "fd00:b::1")]


@pytest.mark.parametrize(
    ("gateway", "reason", "has"),
    [
        ("192.0.2.1", "Network is unreachable: Nexthop has invalid gateway", "net1 has 10.1.0.2/24;"),
        ("10.0.0.1", "Network is unreachable: Nexthop has invalid gateway", "net1 has 10.1.0.2/24;"),
        ("2001:db8::1", "No route to host", "net1 has fd00:b::2/64, fe80::"),
    ],
)
async def test_a_gateway_that_cannot_be_reached_is_the_operators_to_mend(
    pod: Any, gateway: str, reason: str, has: str
) -> None:
    with pytest.raises(GatewayError) as raised:
        await _ask(pod, net1=(gateway,))
    assert raised.value.fault is Fault.OPERATOR
    assert raised.value.message.startswith(f"default-route: {gateway} cannot be the gateway on net1: it cannot be ")
    assert reason in raised.value.message
    assert raised.value.hint.startswith(has)


async def test_no_address_of_that_family_is_said(pod: Any) -> None:
    pod.ip("addr flush dev net1")
    with pytest.raises(GatewayError, match="net1 has no IPv4 address"):
        await _ask(pod, net1=("10.1.0.1",))


async def test_an_interface_that_is_not_in_the_pod_can_lose_but_not_get_a_route(pod: Any) -> None:
    _both(pod)
    gone = {"net9": GatewayDecision(keep_v4=False, keep_v6=False)}
    assert await apply_gateways(pod.path, {"net9": ETH0}, gone) == {"net9": Result(**_parts(ETH0, (OTHER,)))}
    assert len(_defaults(pod)) == 2
    with pytest.raises(GatewayError, match="the pod has no interface net9"):
        await apply_gateways(pod.path, RESULTS, {"net9": GatewayDecision(gateways_v4=("10.1.0.1",))})
    assert len(_defaults(pod)) == 2


def _parts(result: Result, routes: tuple[Route, ...]) -> dict[str, Any]:
    return {"interfaces": result.interfaces, "ips": result.ips, "routes": routes, "dns": result.dns}


@pytest.mark.parametrize(
    ("theirs", "asked", "through"),
    [
        ("route add default via 10.2.0.1 dev net2", "10.1.0.1", "10.2.0.1 on net2"),
        ("-6 route add default via fd00:c::1 dev net2", "fd00:b::1", "fd00:c::1 on net2"),
    ],
)
async def test_a_default_route_that_no_network_made_is_not_taken_away(
    pod: Any, theirs: str, asked: str, through: str
) -> None:
    """Upstream takes this for success: the request is ignored and nobody is told."""
    pod.veth("net2", "10.2.0.2/24", "fd00:c::2/64")
    pod.ip(theirs)
    with pytest.raises(RouteError, match=f"another default route, through {through}") as raised:
        await _ask(pod, net1=(asked,))
    assert raised.value.fault is Fault.KERNEL
    assert [dev for dev, _ in _defaults(pod)] == ["net2"]


@pytest.mark.parametrize("gateway", ["10.1.0.1", "fd00:b::1"])
async def test_an_interface_that_is_down_is_said_to_be(pod: Any, gateway: str) -> None:
    pod.ip("link set net1 down")
    with pytest.raises(RouteError, match="the interface is down"):
        await _ask(pod, net1=(gateway,))


async def test_a_namespace_that_is_gone_is_an_error_of_ours() -> None:
    with pytest.raises(RouteError, match="no network namespace at /run/netns/none"):
        await apply_gateways("/run/netns/none", RESULTS, {"eth0": GatewayDecision(keep_v4=False)})


async def test_what_comes_back_while_it_is_removed_is_found_out(pod: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is reported as done that was not read back."""
    _both(pod)
    monkeypatch.setattr("multus.routes.remove_hops", lambda *_: None)
    with pytest.raises(RouteError, match=r"eth0 still has a default route \(0\.0\.0\.0/0\); eth0 still has .*::/0"):
        await _ask(pod, net1=())
    monkeypatch.undo()
    monkeypatch.setattr("multus.routes.add_default", lambda *_: None)
    with pytest.raises(RouteError, match=r"net1 has no default route through 10\.1\.0\.1"):
        await _ask(pod, net1=("10.1.0.1",))


def test_removing_a_route_that_is_gone_is_no_error(make_namespace: Callable[[], Any]) -> None:
    space = make_namespace()
    space.veth("eth0", "10.0.0.2/24")
    space.ip("route add default nexthop via 10.0.0.1 dev eth0 nexthop via 10.0.0.9 dev eth0")
    with netns.open_socket(space.path) as connection:
        (route,) = [route for route in read_routes(connection) if route.is_default]
        for _ in range(2):
            remove_hops(connection, route, {hop.index for hop in route.hops})
    assert _defaults(space) == []

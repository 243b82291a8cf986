"""Which attachment keeps, loses or gets default routes."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multus.networks.errors import NetworkError
from multus.networks.gateways import GatewayDecision, decide_gateways

UNTOUCHED = GatewayDecision()
STRIPPED = GatewayDecision(keep_v4=False, keep_v6=False)


def moved(v4: str = "", v6: str = "") -> GatewayDecision:
    return GatewayDecision(
        keep_v4=False, keep_v6=False, gateways_v4=(v4,) if v4 else (), gateways_v6=(v6,) if v6 else ()
    )


@pytest.mark.parametrize(
    ("requests", "expected"),
    [
        ([], []),
        ([None], [UNTOUCHED]),
        ([None, None, None], [UNTOUCHED] * 3),
        ([None, ("10.0.0.1",)], [STRIPPED, moved("10.0.0.1")]),
        ([None, ("2001:db8::1",)], [STRIPPED, moved(v6="2001:db8::1")]),
        ([None, ("10.0.0.1", "2001:db8::1")], [STRIPPED, moved("10.0.0.1", "2001:db8::1")]),
        ([None, ("2001:db8::1", "10.0.0.1")], [STRIPPED, moved("10.0.0.1", "2001:db8::1")]),
        ([None, ("10.0.0.1",), ("2001:db8::1",)], [STRIPPED, moved("10.0.0.1"), moved(v6="2001:db8::1")]),
        ([("10.0.0.1",), None], [moved("10.0.0.1"), STRIPPED]),  # the default network by its own annotation
        ([None, ()], [STRIPPED, UNTOUCHED]),  # upstream's tests: the chosen one loses its own as well
        ([(), None], [UNTOUCHED, STRIPPED]),
        ([None, (), ("10.0.0.1",)], [STRIPPED, GatewayDecision(keep_v4=False), moved("10.0.0.1")]),
        ([None, ("::FFFF:10.0.0.1",)], [STRIPPED, moved("10.0.0.1")]),
        ([None, ("2001:DB8:0::1",)], [STRIPPED, moved(v6="2001:db8::1")]),
        ([None, ("fe80::1",)], [STRIPPED, moved(v6="fe80::1")]),
    ],
)
def test_decisions(requests: list[tuple[str, ...] | None], expected: list[GatewayDecision]) -> None:
    assert list(decide_gateways(requests)) == expected


@pytest.mark.parametrize(
    ("request_", "filters"),
    [
        (None, (True, True)),
        ((), (False, False)),  # upstream: (True, True), and the pod has no default route at all
        (("10.0.0.1",), (False, True)),
        (("10.0.0.1", "2001:db8::1"), (False, False)),
    ],
)
def test_upstreams_filters(request_: tuple[str, ...] | None, filters: tuple[bool, bool]) -> None:
    """Upstream filters a family when its routes go and none comes in their place."""
    decision = decide_gateways([(), request_])[1]
    v4 = not decision.keep_v4 and not decision.gateways_v4
    v6 = not decision.keep_v6 and not decision.gateways_v6
    assert (v4, v6) == filters


@pytest.mark.parametrize(
    "requests",
    [
        [None, ("10.0.0.1", "10.0.0.2")],
        [("10.0.0.1",), None, ("10.0.0.2",)],
        [("10.0.0.1",), ("10.0.0.1",)],
        [("2001:db8::1", "10.0.0.1"), ("2001:db8::2",)],
        [("10.0.0.1", "::ffff:10.0.0.2")],
    ],
)
def test_there_is_no_ecmp(requests: list[tuple[str, ...] | None]) -> None:
    with pytest.raises(NetworkError) as caught:
        decide_gateways(requests)
    assert caught.value.message == "multus does not support ECMP for default-route"
    named, told, _ = caught.value.hint.partition(" are asked for")
    assert told
    assert len(named.split(", ")) == 2


@pytest.mark.parametrize(
    "text", ["", "router", "10.0.0.1/24", "10.0.0.256", "fe80::1%eth0", "0.0.0.0", "::", "224.0.0.1"]
)
def test_what_is_no_gateway_is_refused(text: str) -> None:
    with pytest.raises(NetworkError, match="default-route"):
        decide_gateways([(text,)])


@settings(deadline=None)
@given(st.lists(st.none() | st.lists(st.text(max_size=15) | st.ip_addresses().map(str), max_size=2).map(tuple)))
def test_each_request_has_its_decision(requests: list[tuple[str, ...] | None]) -> None:
    try:
        decisions = decide_gateways(requests)
    except NetworkError:
        return
    assert len(decisions) == len(requests)
    assert all(sum(len(getattr(each, key)) for each in decisions) <= 1 for key in ("gateways_v4", "gateways_v6"))
    moves = any(requests) or (None in requests and () in requests)
    assert all(each == UNTOUCHED for each in decisions) is not moves

"""vlan and ipvlan done in the daemon, held against their programs: this kernel has both, a developer's may not."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from multus.cni.request import Command
from tests.kernel.conftest import make_namespace  # noqa: F401 (a fixture)
from tests.kernel.test_native import ASKED, DUAL, HOST_LOCAL, OURS, PROGRAM, STATIC, WAYS, Twins, _plain


@pytest.fixture
def twins(tmp_path: Path, make_namespace: Callable[[], Any]) -> Iterator[Twins]:  # noqa: F811
    yield Twins(tmp_path, make_namespace)


IPVLAN: dict[str, Any] = {"type": "ipvlan", "master": "uplink", "ipam": HOST_LOCAL}
VLAN: dict[str, Any] = {"type": "vlan", "master": "uplink", "vlanId": 83, "ipam": HOST_LOCAL}
ROUTES = {"ipam": {**HOST_LOCAL, "routes": [{"dst": "0.0.0.0/0"}, {"dst": "10.9.0.0/16", "gw": "10.83.0.5"}]}}

CONFS: dict[str, dict[str, Any]] = {
    "ipvlan": IPVLAN,
    "ipvlan l2": {**IPVLAN, "mode": "l2", "mtu": 1400},
    "ipvlan l3": {**IPVLAN, "mode": "l3"},
    "ipvlan l3s": {**IPVLAN, "mode": "l3s", "ipam": STATIC},
    "ipvlan dual": {**IPVLAN, "ipam": DUAL, "cniVersion": "0.4.0", "dns": {"domain": "d"}},
    "ipvlan routes": {**IPVLAN, **ROUTES},
    "vlan": VLAN,
    "vlan 0": {**VLAN, "vlanId": 0, "mtu": 1400},
    "vlan 4094": {**VLAN, "vlanId": 4094, "ipam": STATIC, "dns": {"nameservers": ["10.0.0.1"]}},
    "vlan dual": {**VLAN, "ipam": DUAL, "cniVersion": "0.3.1"},
    "vlan routes": {**VLAN, **ROUTES},
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "ipvlan, no master": ({**IPVLAN, "master": "nothing"}, "Link not found"),
    "ipvlan, mode": ({**IPVLAN, "mode": "l4"}, "unknown ipvlan mode"),
    "ipvlan, no addresses": ({**IPVLAN, "ipam": {}}, "no plugin name provided"),
    "vlan, no master": ({**VLAN, "master": "nothing"}, "Link not found"),
    "vlan, number": ({**VLAN, "vlanId": 4095}, "VLAN ID"),
    "vlan, mtu": ({**VLAN, "mtu": 9000}, "MTU"),
    "vlan, unreachable gateway": (
        {**VLAN, "ipam": {**HOST_LOCAL, "routes": [{"dst": "10.9.0.0/16", "gw": "10.99.0.1"}]}},
        "failed to add route",
    ),
}


@pytest.mark.parametrize("case", CONFS)
def test_the_same_result_state_and_files(twins: Twins, case: str) -> None:
    body = CONFS[case]
    seen = {}
    for way in WAYS:  # one after the other: a node has one interface of a VLAN, and one mode of its ipvlans
        result = twins.run(way, body, args=ASKED)
        added = (_plain(result, twins, way), twins.state(way), twins.files(way))
        for _ in range(2):
            twins.run(way, body, Command.DEL, args=ASKED)
        seen[way] = (*added, twins.state(way), twins.files(way))
    assert seen[OURS] == seen[PROGRAM]
    assert seen[OURS][1]["links"] and not seen[OURS][3]["links"]
    assert not twins.executed, "it was not done natively"


@pytest.mark.parametrize("adder", WAYS)
@pytest.mark.parametrize("case", ["ipvlan", "vlan dual"])
def test_what_one_added_the_other_checks_and_removes(twins: Twins, case: str, adder: str) -> None:
    body = CONFS[case]
    other = OURS if adder == PROGRAM else PROGRAM
    result = twins.run(adder, body, args=ASKED)
    options: dict[str, Any] = {"args": ASKED, "pod": adder, "data": adder}
    if body.get("cniVersion", "1.0.0") != "0.3.1":
        for way in WAYS:
            twins.run(way, {**body, "prevResult": result}, Command.CHECK, **options)
    twins.run(other, {**body, "prevResult": result}, Command.DEL, **options)
    assert not twins.state(adder)["links"]


@pytest.mark.parametrize("case", REFUSED)
def test_the_same_refusal_and_nothing_is_left(twins: Twins, case: str) -> None:
    body, words = REFUSED[case]
    codes = {}
    for way in WAYS:
        codes[way], message = twins.fails(way, body, args=ASKED)
        assert words in message
        if way == PROGRAM and twins.state(way)["links"]:
            twins.run(way, body, Command.DEL, args=ASKED)  # it may leave its interface, ours leaves none
        assert not twins.state(way)["links"]
    assert codes[OURS] == codes[PROGRAM]

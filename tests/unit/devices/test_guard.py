"""Which NICs the node needs for itself, by addresses, default routes and what stands on what."""

from pathlib import Path

import pytest

from devices import guard
from devices.linux.links import Address, Link
from devices.linux.routes import MAIN, Hop, Route
from devices.linux.sysfs import Sysfs
from tests.fake_sysfs import FakeSysfs


def _link(name: str, index: int, *addresses: str, kind: str = "", master: int = 0, peer: int = 0) -> Link:
    given = tuple(Address(address=each, scope="link" if each.startswith("fe80") else "global") for each in addresses)
    return Link(name=name, index=index, kind=kind, master_index=master, peer_index=peer, addresses=given)


def _route(index: int, *, family: int = 4, destination: str = "", table: int = MAIN, unicast: bool = True) -> Route:
    return Route(
        family=family,
        destination=destination or ("0.0.0.0/0" if family == 4 else "::/0"),
        source="",
        table=table,
        metric=0,
        protocol=3,
        unicast=unicast,
        hops=(Hop(gateway="", index=index),),
        message=b"",
    )


LO = Link(name="lo", index=1, addresses=(Address(address="127.0.0.1/8", scope="host"), Address(address="10.9.9.9/32")))
FREE = _link("ens1f1", 3)


@pytest.mark.parametrize(
    ("links", "routes", "needed"),
    [
        pytest.param((_link("a", 2),), (_route(2),), {"a": "the node's IPv4 default route"}, id="v4"),
        pytest.param((_link("a", 2),), (_route(2, family=6),), {"a": "the node's IPv6 default route"}, id="v6"),
        pytest.param((_link("a", 2, "192.0.2.7/24"),), (), {"a": "the node's address 192.0.2.7/24"}, id="address"),
        pytest.param(
            (_link("a", 2, "2001:db8::7/64"),), (), {"a": "the node's address 2001:db8::7/64"}, id="v6 address"
        ),
        pytest.param((_link("a", 2, "fe80::7/64"),), (), {}, id="every interface has a link-local address"),
        pytest.param((_link("a", 2),), (_route(2, destination="10.0.0.0/8"),), {}, id="another route"),
        pytest.param((_link("a", 2),), (_route(2, table=100),), {}, id="another table"),
        pytest.param((_link("a", 2),), (_route(2, unicast=False),), {}, id="unreachable"),
        pytest.param((), (_route(9),), {}, id="an interface that just went"),
        pytest.param(
            (_link("br0", 5, "192.0.2.7/24", kind="bridge"), _link("a", 2, master=5)),
            (_route(5),),
            {"br0": "the node's IPv4 default route", "a": "the node's IPv4 default route, through br0"},
            id="member of a bridge",
        ),
        pytest.param(
            (_link("a", 2, master=5), _link("b", 4, master=5), _link("bond0", 5, "192.0.2.7/24", kind="bond")),
            (),
            {
                "a": "the node's address 192.0.2.7/24, through bond0",
                "b": "the node's address 192.0.2.7/24, through bond0",
                "bond0": "the node's address 192.0.2.7/24",
            },
            id="members of a bond",
        ),
        pytest.param(
            (
                _link("a", 2, master=5),
                _link("bond0", 5, kind="bond"),
                _link("bond0.7", 6, "192.0.2.7/24", kind="vlan", peer=5),
            ),
            (),
            {
                "a": "the node's address 192.0.2.7/24, through bond0.7, through bond0",
                "bond0": "the node's address 192.0.2.7/24, through bond0.7",
                "bond0.7": "the node's address 192.0.2.7/24",
            },
            id="a VLAN on a bond",
        ),
        pytest.param(
            (
                _link("ovs-system", 4, kind="openvswitch"),
                _link("a", 2, master=4),
                _link("br-ex", 5, "192.0.2.7/24", kind="openvswitch"),
            ),
            (),
            {"br-ex": "the node's address 192.0.2.7/24", "a": "the node's address 192.0.2.7/24, through br-ex"},
            id="Open vSwitch: the port is in the datapath, the address on the bridge",
        ),
        pytest.param(
            (_link("v", 5, "192.0.2.7/24", kind="veth", peer=2), _link("a", 2)),
            (),
            {"v": "the node's address 192.0.2.7/24"},
            id="a veth's other end is not below it: its index is of another namespace",
        ),
        pytest.param(
            (_link("m", 5, "192.0.2.7/24", kind="vlan", peer=5),),
            (),
            {"m": "the node's address 192.0.2.7/24"},
            id="what stands on itself ends",
        ),
    ],
)
def test_guarded(links: tuple[Link, ...], routes: tuple[Route, ...], needed: dict[str, str]) -> None:
    assert guard.guarded((LO, *links, FREE), routes) == needed


def test_every_hop_of_a_multipath_route() -> None:
    route = Route(
        family=4,
        destination="0.0.0.0/0",
        source="",
        table=MAIN,
        metric=0,
        protocol=3,
        unicast=True,
        hops=(Hop(gateway="", index=2), Hop(gateway="", index=3)),
        message=b"",
    )
    assert set(guard.guarded((_link("a", 2), FREE), (route,))) == {"a", "ens1f1"}


def _records(tmp_path: Path) -> tuple[FakeSysfs, Sysfs]:
    fake = FakeSysfs(tmp_path)
    fake.pf("0000:03:00.0", netdev="ens1f0", total=4, num=2)
    fake.pf("0000:03:00.1", netdev="ens1f1", total=4, num=2)
    return fake, Sysfs(fake.sys)


def test_a_nic_by_its_interface_and_its_vfs_are_free(tmp_path: Path) -> None:
    _, sysfs = _records(tmp_path)
    found = guard.devices(sysfs.read(), {"ens1f0": "the node's address 192.0.2.7/24", "br0": "the same"})
    assert found == {"0000:03:00.0": "ens1f0 carries the node's address 192.0.2.7/24"}


def test_a_vf_that_the_node_uses_guards_its_pf_too(tmp_path: Path) -> None:
    _, sysfs = _records(tmp_path)
    found = guard.devices(sysfs.read(), {"ens1f1v1": "the node's IPv6 default route"})
    assert set(found) == {"0000:03:00.1", "0000:03:09.1"}
    assert "its VF 0000:03:09.1 (ens1f1v1) carries" in found["0000:03:00.1"]


def test_a_pf_s_own_reason_comes_before_its_vf_s(tmp_path: Path) -> None:
    _, sysfs = _records(tmp_path)
    reasons = {"ens1f0": "one thing", "ens1f0v0": "another"}
    for records in (sysfs.read(), tuple(reversed(sysfs.read()))):
        assert guard.devices(records, reasons)["0000:03:00.0"] == "ens1f0 carries one thing"


def test_the_only_nic_with_a_link_is_the_way_out(tmp_path: Path) -> None:
    fake, sysfs = _records(tmp_path)
    assert guard.devices(sysfs.read(), {}) == {}
    fake.carrier("ens1f1", None)
    assert guard.devices(sysfs.read(), {}) == {"0000:03:00.0": "it is the only NIC with a link"}
    assert guard.devices(sysfs.read(), {"ens1f1": "x"}) == {"0000:03:00.1": "ens1f1 carries x"}


def test_this_namespace_can_be_read() -> None:
    assert all(guard.read().values())

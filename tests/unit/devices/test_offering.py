"""What is offered follows the pools device by device, and a pool that nothing happened to is not offered anew."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices import inventory, pools
from devices.giving import Giver
from devices.kubelet.allocate import Device
from devices.ledger import Ledger, Memory
from devices.linux.sysfs import Sysfs
from devices.offering import Offering
from devices.offers import Offer
from devices.pool_config import parse_config
from tests.fake_sysfs import FakeSysfs

pytestmark = pytest.mark.anyio

FIRST, SECOND = "0000:03:00.0", "0000:83:00.0"
NET, DPDK, OTHER = "intel.com/net", "intel.com/dpdk", "intel.com/other"
POOLS: dict[str, dict[str, Any]] = {
    "dpdk": {"selectors": {"drivers": ["vfio-pci"]}},
    "net": {"selectors": {"pfNames": ["ens1"]}},
    "other": {"selectors": {"pfNames": ["ens2"]}},
}


class Node:
    """Two PFs with four VFs each, and what is offered of them."""

    def __init__(self, root: Path) -> None:
        self.fake = FakeSysfs(root)
        for bdf, netdev in ((FIRST, "ens1"), (SECOND, "ens2")):
            self.fake.pf(bdf, netdev=netdev, total=4, num=4)
        self.sysfs = Sysfs(self.fake.sys, self.fake.dev)
        self.giver = Giver(sysfs=self.sysfs, info=root / "info", ledger=Ledger(Memory()))
        self.giver.inventory = inventory.build(self.sysfs.read(), guarded={})
        self.offering = Offering(self.giver, None)

    def configure(self, **resources: dict[str, Any]) -> None:
        data = [{"resourceName": name, **each} for name, each in resources.items()]
        self.giver.config = parse_config(json.dumps({"resourceList": data}).encode())

    async def follow(self, *addresses: str) -> None:
        """These changed; have it offered."""
        for bdf in addresses:
            self.giver.inventory = inventory.update(self.giver.inventory, bdf, self.sysfs.read_one(bdf))
        self.giver.pools, moved = pools.reassign(self.giver.pools, self.giver.inventory, self.giver.config)
        await self.offering.follow(moved)

    @property
    def offers(self) -> dict[str, Offer]:
        return self.offering._offers

    def rung(self) -> dict[str, int]:
        """How often each pool was offered anew."""
        return {resource: offer.changed.rung for resource, offer in self.offers.items()}

    def told(self) -> dict[str, dict[str, str]]:
        """What is offered, and what is wrong with it."""
        return {
            resource: {bdf: device.reason for bdf, device in offer.devices.items()}
            for resource, offer in self.offers.items()
        }

    def vf(self, index: int, pf: str = FIRST) -> str:
        return self.fake.vf_bdf(pf, index)


@pytest.fixture
async def node(tmp_path: Path) -> Node:
    made = Node(tmp_path)
    made.configure(**POOLS)
    await made.follow()
    return made


async def fresh(node: Node) -> dict[str, dict[str, Device]]:
    """What somebody would offer who begins now."""
    begun = Offering(node.giver, None)
    await begun.follow(())
    return {resource: dict(offer.devices) for resource, offer in begun._offers.items()}


async def same_as_fresh(node: Node) -> None:
    now = {resource: dict(offer.devices) for resource, offer in node.offers.items()}
    expected = await fresh(node)
    assert now == expected
    assert {resource: list(each) for resource, each in now.items()} == {
        resource: sorted(each) for resource, each in expected.items()
    }


@pytest.mark.parametrize(
    ("change", "anew"),
    [
        ("driver", {DPDK, NET}),
        ("no driver", {NET}),
        ("gone", {NET}),
        ("link of the PF", {NET}),
        ("link of a VF", set()),
        ("nothing", set()),
    ],
)
async def test_only_pools_whose_offer_changed_are_offered_anew(node: Node, change: str, anew: set[str]) -> None:
    before, vf = node.rung(), node.vf(1)
    if change in ("driver", "no driver"):
        node.fake.bind(vf, "vfio-pci" if change == "driver" else "")
    elif change == "gone":
        node.fake.remove(vf)
    elif change.startswith("link"):
        node.fake.carrier("ens1" if change == "link of the PF" else "ens1v1", False)
    await node.follow(FIRST if change == "link of the PF" else vf)
    after = node.rung()
    assert {resource for resource in after if after[resource] != before[resource]} == anew
    await same_as_fresh(node)


async def test_a_device_goes_from_pool_to_pool_and_back(node: Node) -> None:
    node.fake.bind(node.vf(1), "vfio-pci")
    await node.follow(node.vf(1))
    assert list(node.told()[DPDK]) == [node.vf(1)]
    assert list(node.told()[NET]) == [node.vf(0), node.vf(2), node.vf(3)]
    node.fake.bind(node.vf(1), "iavf")
    await node.follow(node.vf(1))
    assert list(node.told()[NET]) == [node.vf(index) for index in range(4)]
    assert node.told()[DPDK] == {}


async def test_holders_come_and_go(node: Node) -> None:
    before = node.rung()
    await node.giver.ledger.give("a", NET, [node.vf(1)], now=0.0)
    node.offering.publish_holders()
    assert {bdf: reason for bdf, reason in node.told()[NET].items() if reason} == {node.vf(1): "a has it"}
    assert (node.rung()[DPDK], node.rung()[OTHER]) == (before[DPDK], before[OTHER])
    await same_as_fresh(node)
    node.fake.bind(node.vf(2), "vfio-pci")
    await node.follow(node.vf(2))
    assert node.told()[NET][node.vf(1)] == "a has it"  # as well when something else happens
    await node.giver.ledger.take_back("a")
    node.offering.publish_holders()
    assert set(node.told()[NET].values()) == {""}


async def test_what_is_withheld_stays_so_until_it_ends(node: Node) -> None:
    before = node.rung()
    node.offering.withhold([FIRST], "its PF is changed")
    assert set(node.told()[NET].values()) == {"its PF is changed"}
    assert (node.rung()[OTHER], set(node.told()[OTHER].values())) == (before[OTHER], {""})
    node.fake.grow(FIRST, 2)
    await node.follow(node.vf(2), node.vf(3), FIRST)
    assert node.told()[NET] == dict.fromkeys([node.vf(0), node.vf(1)], "its PF is changed")
    node.configure(**POOLS, more={"selectors": {"vendors": ["8086"]}})  # offered in full
    await node.follow()
    assert set(node.told()[NET].values()) == {"its PF is changed"}
    node.offering.withhold([FIRST], "")
    assert set(node.told()[NET].values()) == {""}


async def test_another_configuration_is_offered_in_full(node: Node) -> None:
    node.configure(net={**POOLS["net"], "excludeTopology": True, "preferred": "pack"}, fresh=POOLS["other"])
    await node.follow()
    assert node.offers.keys() == {NET, "intel.com/fresh"}
    assert {device.numa for device in node.offers[NET].devices.values()} == {-1}
    assert node.offers[NET].preference == "pack"
    assert len(node.told()["intel.com/fresh"]) == 4
    await same_as_fresh(node)
    node.fake.bind(node.vf(0), "")
    await node.follow(node.vf(0))
    assert node.offers[NET].devices[node.vf(0)] == Device(
        id=node.vf(0), healthy=False, reason="no driver has it, it was iavf", numa=-1, parent=FIRST
    )


ids = st.sampled_from(["a", "b", "c", "d", "e", "x" * 64])
devices = st.builds(Device, id=ids, reason=st.sampled_from(["", "sick"]))


@given(
    st.lists(devices, unique_by=lambda device: device.id),
    st.lists(st.dictionaries(ids, st.none() | st.sampled_from(["", "sick"]), max_size=4), max_size=5),
)
def test_changes_of_an_offer_give_what_all_of_it_gives(
    begun: list[Device], changes: list[dict[str, str | None]]
) -> None:
    async def give(ids: object) -> list[Any]:
        return []

    changed, whole = Offer("r", give), Offer("r", give)
    now = {device.id: device for device in begun}
    changed.update(begun)
    whole.update(begun)
    for each in changes:
        told = {id_: None if reason is None else Device(id=id_, reason=reason) for id_, reason in each.items()}
        for id_, device in told.items():
            if device is None:
                now.pop(id_, None)
            else:
                now[id_] = device
        assert changed.change(told) is whole.update(now.values())
        assert list(changed.devices.items()) == list(whole.devices.items())
        assert changed.changed.rung == whole.changed.rung

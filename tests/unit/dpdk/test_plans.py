"""What is refused before anything is touched, and why."""

from typing import Any

import msgspec
import pytest

from devices.linux.links import Address, Link
from devices.linux.sysfs import NetRecord, PciRecord
from dpdk.holders import Holder
from dpdk.iommu import Group, Member
from dpdk.plans import NO_MAC, UIO, VFIO, Facts, Step, plan_bind

BDF, PF = "0000:03:02.0", "0000:03:00.0"
NETDEV = NetRecord(name="ens1v0", ifindex=7, mac="02:00:00:00:00:07")
DEVICE = PciRecord(bdf=BDF, driver="iavf", netdevs=(NETDEV,), physfn=PF, vf_index=0, iommu_group="11")
GROUP = Group(number="11", members=(Member(bdf=BDF, driver="iavf"),), type="DMA-FQ")
FACTS = Facts(bdf=BDF, device=DEVICE, boot_id="boot", group=GROUP, admin_mac=NO_MAC, loaded={"iavf", VFIO, UIO})


def facts(*, device: dict[str, Any] | None = None, **changes: Any) -> Facts:
    made = msgspec.structs.replace(DEVICE, **(device or {}))
    return msgspec.structs.replace(FACTS, **{"device": made, **changes})


def test_a_plan_has_its_steps_in_order_and_the_way_back() -> None:
    plan = plan_bind(FACTS, owner="policy x")
    assert plan.steps == (Step.SAVE, Step.MAC, Step.OVERRIDE, Step.UNBIND, Step.PROBE, Step.VERIFY, Step.NODE)
    assert plan.record is not None
    assert msgspec.to_builtins(plan.record) == {
        "bdf": BDF,
        "target": VFIO,
        "pf": PF,
        "index": 0,
        "boot_id": "boot",
        "owner": "policy x",
        "driver": "iavf",
        "override": "",
        "netdev": "ens1v0",
        "address": "02:00:00:00:00:07",
        "admin_mac": NO_MAC,
        "mac": "02:00:00:00:00:07",
    }


def test_only_what_is_needed_is_done() -> None:
    bare = facts(device={"driver": "", "netdevs": ()}, admin_mac="02:aa:00:00:00:01", loaded=set())
    assert plan_bind(bare).steps == (
        Step.MODULE,
        Step.SAVE,
        Step.OVERRIDE,
        Step.PROBE,
        Step.VERIFY,
        Step.NODE,
    )


@pytest.mark.parametrize(
    ("admin", "asked", "recorded"),
    [
        (NO_MAC, "", ("02:00:00:00:00:07", NO_MAC)),
        (NO_MAC, "02:BB:00:00:00:01", ("02:bb:00:00:00:01", NO_MAC)),
        ("02:aa:00:00:00:01", "", ("", "")),
        ("02:aa:00:00:00:01", "02:aa:00:00:00:01", ("", "")),
        ("02:aa:00:00:00:01", "02:bb:00:00:00:01", ("02:bb:00:00:00:01", "02:aa:00:00:00:01")),
        ("", "", ("", "")),  # the PF does not tell: it would not do it either
        ("", "02:bb:00:00:00:01", ("02:bb:00:00:00:01", NO_MAC)),
    ],
)
def test_which_mac_its_port_gets(admin: str, asked: str, recorded: tuple[str, str]) -> None:
    plan = plan_bind(facts(admin_mac=admin), mac=asked)
    assert plan.record is not None
    assert (plan.record.mac, plan.record.admin_mac) == recorded
    assert (Step.MAC in plan.steps) == bool(recorded[0])


def link(**changes: Any) -> Link:
    return Link(**{"name": "ens1v0", "index": 7, "up": True, **changes})


ADDRESS = Address(address="10.0.0.1/24")

REFUSED: list[tuple[str, Facts, str, str]] = [
    ("gone", msgspec.structs.replace(FACTS, device=None), VFIO, "no such"),
    ("a PF", facts(device={"physfn": None}), VFIO, "no VF"),
    ("guarded", facts(guarded="its address"), VFIO, "the node needs it: its address"),
    ("address", facts(links=[link(addresses=(ADDRESS,))]), VFIO, "10.0.0.1/24"),
    ("route", facts(links=[link()], routed={7}), VFIO, "routes lead over"),
    ("master", facts(links=[link(up=False, master_index=9), link(name="br0", index=9)]), VFIO, "belongs to br0"),
    ("macvlan", facts(links=[link(), link(name="mv0", index=9, kind="macvlan", peer_index=7)]), VFIO, "mv0 stands on"),
    ("in a pod", facts(device={"netdevs": ()}), VFIO, "another network namespace"),
    ("held", facts(holders=[Holder(pid=5, command="x")]), VFIO, "process 5 (x)"),
    ("mlx5", facts(device={"driver": "mlx5_core"}), VFIO, "DPDK works beside its driver mlx5_core"),
    ("no IOMMU", facts(group=None), VFIO, "no IOMMU"),
    ("uio with IOMMU", FACTS, UIO, "the IOMMU stops the DMA"),
    ("unknown driver", FACTS, "iavf2", "no driver that DPDK can use"),
    ("mlx5 on another", FACTS, "mlx5_core", "it is on iavf"),
    ("mlx5 without verbs", facts(device={"driver": "mlx5_core"}), "mlx5_core", "no RDMA device"),
    ("mlx5 of the node", facts(device={"driver": "mlx5_core", "rdma": ("mlx5_0",)}, guarded="x"), "mlx5_core", "x"),
]


@pytest.mark.parametrize(
    ("given", "target", "reason"), [each[1:] for each in REFUSED], ids=[each[0] for each in REFUSED]
)
def test_refusals(given: Facts, target: str, reason: str) -> None:
    plan = plan_bind(given, target)
    assert plan.steps == ()
    assert plan.record is None
    assert any(reason in each for each in plan.refusals), plan.refusals


def test_every_reason_is_told_at_once() -> None:
    given = facts(guarded="x", links=[link(addresses=(ADDRESS,))], group=None)
    assert len(plan_bind(given).refusals) == 3


@pytest.mark.parametrize(
    "links",
    [
        [link(up=False, addresses=(ADDRESS,))],
        [link(addresses=(Address(address="fe80::1/64", scope="link"),))],
        [link(), link(name="veth0", index=9, kind="veth", peer_index=7)],  # a peer in another namespace, same number
    ],
    ids=["down", "of the link", "a veth"],
)
def test_what_is_no_use_of_an_interface(links: list[Link]) -> None:
    assert plan_bind(facts(links=links)).refusals == ()


def test_a_group_with_others_in_it() -> None:
    group = Group(
        number="5",
        members=(
            Member(bdf=BDF, driver="iavf"),
            Member(bdf="0000:03:02.1", driver="iavf"),
            Member(bdf="0000:03:02.2", driver="vfio-pci"),
            Member(bdf="0000:03:02.3"),
            Member(bdf="0000:00:01.0", driver="shpchp", bridge=True),
        ),
    )
    refusals = plan_bind(facts(group=group)).refusals
    assert refusals == ("its IOMMU group 5 is not viable: it also has 0000:03:02.1 (iavf)",)
    assert plan_bind(facts(group=group), together={"0000:03:02.1"}).refusals == ()


def test_without_an_iommu_where_that_is_allowed() -> None:
    plan = plan_bind(facts(group=None, noiommu=True))
    assert plan.refusals == ()
    assert "all of the node's memory" in plan.notes[0]


@pytest.mark.parametrize("group", [None, Group(number="1", type="identity")])
def test_uio_where_nothing_translates(group: Group | None) -> None:
    assert plan_bind(facts(group=group), UIO).refusals == ()


@pytest.mark.parametrize("target", [VFIO, "mlx5_core"])
def test_nothing_to_do(target: str) -> None:
    plan = plan_bind(facts(device={"driver": target, "rdma": ("mlx5_0",)}), target)
    assert (plan.steps, plan.refusals, plan.record) == ((), (), None)
    assert plan.notes

"""What sriov-cni left on the node: its pods are taken down, and its claims are heeded."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices.linux.netdevs import Change, Netdev
from devices.linux.vfs import VFState, encode_step
from devices.vf import plan_restore
from multus.delegates.sriov import AllocatedError
from multus.delegates.sriov_record import UpstreamFiles
from tests.fake_vf_kernel import vf_bdf
from tests.sriov_node import POD, Node

pytestmark = pytest.mark.anyio

STATE = {
    "HostIFName": "ens1f0v0",
    "SpoofChk": True,
    "Trust": False,
    "AdminMAC": "00:00:00:00:00:00",
    "EffectiveMAC": "02:00:00:00:00:10",
    "Vlan": 0,
    "VlanQoS": 0,
    "VlanProto": 33024,
    "MinTxRate": 0,
    "MaxTxRate": 0,
    "LinkState": 0,
    "MTU": 1500,
}
CONF = {
    "cniVersion": "1.0.0",
    "name": "net",
    "type": "sriov",
    "deviceID": vf_bdf(0),
    "OrigVfState": STATE,
    "Master": "ens1f0",
    "MAC": "02:aa:00:00:00:01",
    "VFID": 0,
    "vlan": 1234,
    "trust": "on",
    "max_tx_rate": 100,
}


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path / "sriov")


def leave(node: Node, **more: Any) -> Path:
    """A pod with a VF as sriov-cni would have made it."""
    cache = node.upstream / "c1-net1"
    (node.upstream / "pci" / "vf_lock").mkdir(parents=True)
    cache.write_text(json.dumps(CONF | more))
    (node.upstream / "pci" / vf_bdf(0)).write_text(POD)
    node.kernel.vfs[0] = msgspec.structs.replace(
        node.kernel.vfs[0], mac="02:aa:00:00:00:01", vlan=1234, trust=True, max_tx=100
    )
    if STATE["HostIFName"] in [netdev.name for netdev in node.kernel.spaces[""].values()]:
        node.kernel.move("", 10, POD, "net1")
        node.kernel.change(POD, 10, Change(mac="02:aa:00:00:00:01", mtu=4444))
    return cache


def files(node: Node) -> list[str]:
    return sorted(path.name for path in node.upstream.rglob("*") if path.is_file())


async def test_a_pod_of_upstreams_is_taken_down(node: Node) -> None:
    before = node.kernel.snapshot()
    leave(node)
    await node.delete()
    assert node.kernel.snapshot() == before
    assert files(node) == []
    await node.delete()


async def test_a_programs_vf_of_upstreams_is_taken_down(node: Node) -> None:
    node.kernel.userspace(0)
    before = node.kernel.snapshot()
    leave(node, OrigVfState=STATE | {"HostIFName": "", "EffectiveMAC": "", "MTU": 0})
    await node.delete()
    assert node.kernel.snapshot() == before
    assert files(node) == []


async def test_its_namespace_is_gone(node: Node) -> None:
    before = node.kernel.snapshot()
    leave(node)
    node.kernel.end_space(POD)
    await node.delete(netns="")
    assert node.kernel.snapshot() == before
    assert files(node) == []


async def test_a_late_del_leaves_the_next_pods_vf_alone(node: Node) -> None:
    leave(node)
    (node.upstream / "pci" / vf_bdf(0)).write_text("/run/netns/another")
    node.kernel.space("/run/netns/another", "4:9")
    for netns in (POD, ""):
        await node.delete(netns=netns)
        assert node.kernel.vfs[0].vlan == 1234
        assert files(node) == [vf_bdf(0)]
        (node.upstream / "c1-net1").write_text(json.dumps(CONF))


async def test_what_upstream_holds_is_not_given_to_another(node: Node) -> None:
    leave(node)
    node.kernel.space("/run/netns/new", "4:9")
    with pytest.raises(AllocatedError, match="already allocated"):
        await node.add(container_id="c2", netns="/run/netns/new")
    assert files(node) == sorted(["c1-net1", vf_bdf(0)])


async def test_what_upstream_held_for_a_pod_that_is_gone_is_put_back_first(node: Node) -> None:
    before = node.kernel.snapshot()
    leave(node)
    node.kernel.end_space(POD)
    node.kernel.space("/run/netns/new", "4:9")
    await node.add(container_id="c2", netns="/run/netns/new", spoofchk="off")
    assert files(node) == []
    assert node.kernel.vfs[0] == msgspec.structs.replace(before[0][0], spoofchk=False)
    await node.delete(container_id="c2", netns="/run/netns/new")
    assert node.kernel.snapshot() == before


async def test_what_has_not_come_back_from_upstreams_pod_is_not_given_away(node: Node) -> None:
    leave(node)
    node.kernel.spaces[POD].pop(10)
    node.kernel.end_space(POD)
    node.kernel.space("/run/netns/new", "4:9")
    with pytest.raises(AllocatedError, match="has not come back"):
        await node.add(container_id="c2", netns="/run/netns/new")
    assert files(node) == sorted(["c1-net1", vf_bdf(0)])


async def test_a_claim_without_a_record_is_removed(node: Node) -> None:
    (node.upstream / "pci").mkdir(parents=True)
    (node.upstream / "pci" / vf_bdf(0)).write_text("/run/netns/gone")
    await node.add()
    assert files(node) == []


@pytest.mark.parametrize(
    "text", ["", "null", "[]", "{", '{"deviceID": 3}', json.dumps(CONF)[:200], json.dumps(CONF | {"OrigVfState": 3})]
)
async def test_a_record_that_is_no_use_is_not_in_the_way(node: Node, text: str) -> None:
    leave(node).write_text(text)
    await node.delete()


def test_what_is_read(tmp_path: Path) -> None:
    (tmp_path / "c1-net1").write_text(json.dumps(CONF | {"vlan": 0}))
    record = UpstreamFiles(tmp_path).load("c1", "net1")
    assert record is not None
    assert record.original == VFState(
        mac="00:00:00:00:00:00",
        vlan=0,
        qos=0,
        proto=0x8100,
        spoofchk=True,
        trust=False,
        link_state="auto",
        min_tx=0,
        max_tx=0,
    )
    assert record.netdev == Netdev(index=0, name="ens1f0v0", mac="02:00:00:00:00:10", mtu=1500)
    assert record.touched == ("vlan", "mac", "rate", "trust")
    assert UpstreamFiles(tmp_path).find(vf_bdf(0)) == record
    assert UpstreamFiles(tmp_path).find(vf_bdf(1)) is None


@pytest.mark.parametrize(("container", "ifname"), [("../x", "net1"), ("c1", "../../x"), ("", "net1"), ("c1", "")])
def test_no_name_leads_elsewhere(tmp_path: Path, container: str, ifname: str) -> None:
    assert UpstreamFiles(tmp_path).load(container, ifname) is None


@settings(deadline=None)
@given(
    state=st.dictionaries(
        st.sampled_from(list(STATE)), st.none() | st.integers() | st.text() | st.booleans() | st.lists(st.integers())
    )
)
def test_hostile_files(tmp_path_factory: pytest.TempPathFactory, state: dict[str, Any]) -> None:
    directory = tmp_path_factory.mktemp("hostile")
    (directory / "c1-net1").write_text(json.dumps(CONF | {"OrigVfState": state}))
    record = UpstreamFiles(directory).load("c1", "net1")
    if record is not None:
        assert record.bdf == vf_bdf(0)
        now = VFState(mac="02:00:00:00:00:01", vlan=1, qos=1, proto=1, min_tx=1, max_tx=1)
        for step in plan_restore(record.original, now, ("vlan", "rate", "spoofchk", "trust", "link_state")):
            assert encode_step(0, step)

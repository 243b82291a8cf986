"""`"driver"` in a network: its VF is bound for the pod and is as before afterwards, wherever the daemon was killed."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import anyio
import pytest

from devices.linux.vfs import NO_MAC
from dpdk.drivers import Binder
from dpdk.holders import Holder
from dpdk.plans import VFIO
from multus import daemon
from multus.cni.request import Command
from multus.cni.result import Interface
from multus.delegates.sriov import AllocatedError, DriftError
from multus.delegates.sriov_conf import SriovConfError
from multus.errors import Fault, NodeError
from multus.wiring import Parts
from tests.dpdk_node import PF, DpdkNode
from tests.fake_pci_kernel import Killed
from tests.sriov_node import POD

pytestmark = pytest.mark.anyio

MAC = "02:fe:00:00:00:01"
WANTED: dict[str, Any] = {"driver": "vfio-pci", "vlan": 100, "mac": MAC}
IPAM: dict[str, Any] = {"ipam": {"type": "host-local"}}
ADD = [
    *("save", "save", f"mac {MAC}", "driver_override vfio-pci", "unbind iavf", "probe", "vlan 100"),
]
DEL = [
    *("driver_override", "unbind vfio-pci", f"mac {NO_MAC}", "probe", "address", "forget", "vlan 0", "forget"),
]


@pytest.fixture
def node(tmp_path: Path) -> DpdkNode:
    return DpdkNode(tmp_path)


async def test_a_vf_is_bound_for_the_pod_and_comes_back(node: DpdkNode) -> None:
    before = node.look()
    result = await node.add(**WANTED)
    assert result.interfaces == (Interface(name="net1", mac=MAC, mtu=1500, sandbox=POD, pci_id=node.vfs[0]),)
    assert node.pci.done == ADD
    driver, override, interface, has_node, state = node.look()
    assert (driver, override, interface, has_node) == (VFIO, VFIO, "", True)
    assert isinstance(state, dict)
    assert (state["mac"], state["vlan"]) == (MAC, 100)
    await node.run(Command.CHECK, **WANTED)
    node.restart()  # what a DEL needs is not only in memory
    node.pci.done.clear()
    await node.delete(**WANTED)
    assert [step.partition(" 02:")[0].strip() for step in node.pci.done] == DEL
    assert node.look() == before
    assert node.store.data == {}
    await node.delete(**WANTED)
    assert node.look() == before


async def test_a_program_finds_the_mac_that_the_interface_had(node: DpdkNode) -> None:
    """Without one at the PF, a DPDK port would have another MAC each time."""
    before = node.look()
    result = await node.add(driver="vfio-pci")
    assert result.interfaces[0].mac == before[2]
    assert node.pci.admin_mac(PF, 0) == before[2]
    await node.delete()
    assert node.look() == before


async def test_addresses_are_in_the_result_and_nowhere_else(node: DpdkNode) -> None:
    before = node.look()
    result = await node.add(**WANTED, **IPAM)
    assert [ip.address for ip in result.ips] == ["10.1.0.5/24"]
    await node.delete(**WANTED, **IPAM)
    assert node.ipam.commands == [Command.ADD, Command.DEL]
    assert node.look() == before


@pytest.mark.parametrize("changes", range(len(ADD) + 1))
@pytest.mark.parametrize("recovers", [True, False])
async def test_killed_while_attaching(node: DpdkNode, changes: int, recovers: bool) -> None:
    """The daemon's start puts the driver back, and the DEL of what was not attached the rest; a DEL alone does both."""
    before = node.look()
    node.pci.dies_before = changes
    if changes < len(ADD):
        with pytest.raises(Killed):
            await node.add(**WANTED)
    else:
        await node.add(**WANTED)
    assert node.pci.done == ADD[:changes]
    node.restart()
    if recovers:
        await node.binder.recover()
    await node.delete(**WANTED)
    assert node.look() == before
    assert node.store.data == {}


@pytest.mark.parametrize("changes", range(len(DEL)))
@pytest.mark.parametrize("recovers", [True, False])
async def test_killed_while_giving_back(node: DpdkNode, changes: int, recovers: bool) -> None:
    before = node.look()
    await node.add(**WANTED)
    node.pci.done.clear()
    node.pci.dies_before = changes
    with pytest.raises(Killed):
        await node.delete(**WANTED)
    assert len(node.pci.done) == changes
    node.restart()
    if recovers:
        await node.binder.recover()
    await node.delete(**WANTED)
    assert node.look() == before
    assert node.store.data == {}


async def test_the_daemon_puts_drivers_right_before_it_takes_anything_down(node: DpdkNode) -> None:
    before = node.look()
    node.pci.dies_before = 5
    with pytest.raises(Killed):
        await node.add(**WANTED)
    node.restart()
    found = []

    class Upkeep:
        async def recover(self) -> None:
            found.append(node.look()[:4])

    parts = SimpleNamespace(binder=node.binder, upkeep=Upkeep())
    async with anyio.create_task_group() as group:
        await daemon._recover(group, cast("Parts", parts))
    assert found == [before[:4]]


@pytest.mark.parametrize("changes", range(len(ADD)))
async def test_killed_and_then_given_to_another_pod(node: DpdkNode, changes: int) -> None:
    """Its DEL never comes: the next pod that gets the VF puts it back first."""
    before = node.look()
    node.pci.dies_before = changes
    with pytest.raises(Killed):
        await node.add(**WANTED)
    node.restart()
    node.settings.identities[POD] = "4:200"  # the pod is gone, another is at its path
    other = WANTED | {"mac": "02:fe:00:00:00:02"}
    await node.add(container="c2", **other)
    assert node.look()[:2] == (VFIO, VFIO)
    assert node.pci.admin_mac(PF, 0) == "02:fe:00:00:00:02"
    await node.delete(container="c2", **other)
    assert node.look() == before
    assert node.store.data == {}


async def test_a_bind_that_fails_leaves_nothing(node: DpdkNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dpdk.handle._PROBE", 0.05)
    before = node.look()
    node.pci.refuses = {VFIO}
    with pytest.raises(NodeError, match=r"vfio-pci did not take .* in"):
        await node.add(**WANTED)
    assert node.look() == before
    assert node.store.data == {}


async def test_a_setting_that_fails_after_the_bind_undoes_the_bind(node: DpdkNode) -> None:
    before = node.look()
    node.ipam.failing = {Command.ADD}
    with pytest.raises(Exception, match="the address plugin fails"):
        await node.add(**WANTED, **IPAM)
    assert "probe" in node.pci.done
    assert node.look() == before
    assert node.store.data == {}


async def test_another_pods_vf_is_not_touched(node: DpdkNode) -> None:
    await node.add(**WANTED)
    done = list(node.pci.done)
    with pytest.raises(AllocatedError):
        await node.add(container="c2", **WANTED)
    await node.delete(container="c2", **WANTED)
    assert node.pci.done == done


async def test_what_was_bound_before_stays_bound(node: DpdkNode) -> None:
    """By a policy, or by hand: the pod's end is not the end of that."""
    await node.binder.apply_bind(await node.binder.plan(node.vfs[0], VFIO, owner="policy"))
    before = node.look()
    await node.add(**WANTED)
    await node.delete(**WANTED)
    assert node.look() == before
    assert (await node.binder.records())[node.vfs[0]].owner == "policy"


async def test_a_holder_keeps_it_and_is_named(node: DpdkNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Binder.restore, "__kwdefaults__", {"hold": 0.05, "owner": ""})
    before = node.look()
    await node.add(**WANTED)
    during = node.look()
    node.pci.held[node.vfs[0]] = (Holder(pid=7, command="testpmd", pod="vfw/vfw"),)
    with pytest.raises(NodeError, match=r"in use by process 7 \(testpmd\) of pod vfw/vfw") as caught:
        await node.delete(**WANTED)
    assert caught.value.retry
    assert node.look() == during  # in the VLAN that it was in, and nowhere else
    node.pci.held.clear()
    await node.delete(**WANTED)
    assert node.look() == before


async def test_after_a_reboot_nothing_is_put_back(node: DpdkNode) -> None:
    await node.add(**WANTED)
    node.pci.boot = "boot-2"
    node.tree.bind(node.vfs[0], "")
    node.tree.set(node.vfs[0], "driver_override", "(null)")
    node.pci.node_path(node.vfs[0]).unlink()
    node.pci.macs.clear()
    node.settings.vlans.clear()
    node.pci.probe(node.vfs[0])
    fresh = node.look()
    node.restart(boot_id="boot-2")
    await node.binder.recover()
    await node.delete(**WANTED)
    assert node.look() == fresh
    assert node.store.data == {}


def _no_iommu(node: DpdkNode) -> None:
    (node.tree.path(node.vfs[0]) / "iommu_group").unlink()


def _shared_group(node: DpdkNode) -> None:
    node.tree.group(node.vfs[1], 11)


def _mlx5(node: DpdkNode) -> None:
    node.tree.bind(node.vfs[0], "mlx5_core")


def _in_another_namespace(node: DpdkNode) -> None:
    node.tree.remove_netdev("ens1f0v0")


@pytest.mark.parametrize(
    ("arrange", "driver", "reason"),
    [
        (_no_iommu, "vfio-pci", "no IOMMU"),
        (_shared_group, "vfio-pci", "group 11 is not viable"),
        (_mlx5, "vfio-pci", "leave it there and give the pod its RDMA device"),
        (_mlx5, "mlx5_core", "no RDMA device"),
        (_in_another_namespace, "vfio-pci", "another network namespace"),
        (lambda node: None, "mlx5_core", "it is on iavf"),
    ],
)
async def test_refusals_say_why_and_change_nothing(node: DpdkNode, arrange: Any, driver: str, reason: str) -> None:
    arrange(node)
    before = node.look()
    with pytest.raises(NodeError, match=reason) as caught:
        await node.add(**WANTED | {"driver": driver})
    assert caught.value.fault is Fault.OPERATOR
    assert node.pci.done == []
    assert node.look() == before
    assert node.store.data == {}


async def test_uio_is_refused_where_an_iommu_translates(node: DpdkNode) -> None:
    (node.tree.sys / "kernel/iommu_groups/11/type").write_text("DMA-FQ\n")
    with pytest.raises(NodeError, match="the IOMMU stops the DMA"):
        await node.add(driver="uio_pci_generic")
    assert node.pci.done == []


@pytest.mark.parametrize(("driver", "hint"), [("vfio_pci", "is vfio-pci meant"), ("iavf", "one of"), (7, "")])
async def test_a_driver_that_is_none(node: DpdkNode, driver: Any, hint: str) -> None:
    with pytest.raises(SriovConfError, match="driver") as caught:
        await node.add(driver=driver)
    assert hint in caught.value.hint


async def test_check_finds_a_driver_that_was_taken_away(node: DpdkNode) -> None:
    await node.add(**WANTED)
    await node.binder.restore(node.vfs[0])
    with pytest.raises(DriftError, match="its driver is iavf instead of vfio-pci"):
        await node.run(Command.CHECK, **WANTED)

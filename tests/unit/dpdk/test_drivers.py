"""Binding and restoring on a fake kernel: the order of the steps, crashes between them, and whoever is in the way."""

import re
from contextlib import suppress
from typing import TYPE_CHECKING

import anyio
import pytest

from devices.errors import KernelError
from dpdk import drivers, handle
from dpdk.drivers import KIND
from dpdk.errors import DpdkError, HeldError, RefusedError
from dpdk.holders import Holder
from dpdk.plans import NO_MAC, VFIO
from tests.fake_pci_kernel import Killed

if TYPE_CHECKING:
    from tests.unit.dpdk.conftest import Node

pytestmark = pytest.mark.anyio

PF = "0000:03:00.0"


async def bind(node: "Node", bdf: str, target: str = VFIO, *, mac: str = "") -> None:
    await node.binder.apply_bind(await node.binder.plan(bdf, target, mac=mac))


async def test_there_and_back(node: "Node") -> None:
    bdf = node.vfs[0]
    before = node.look(bdf)
    await bind(node, bdf)
    assert node.kernel.done == ["save", f"mac {before[3]}", "driver_override vfio-pci", "unbind iavf", "probe"]
    assert node.look(bdf) == (VFIO, VFIO, before[3], "", True)
    node.kernel.done.clear()
    record = await node.binder.restore(bdf)
    assert record is not None
    assert record.driver == "iavf"
    assert node.kernel.done == [
        "driver_override ",
        "unbind vfio-pci",
        f"mac {NO_MAC}",
        "probe",
        f"address {before[3]}",
        "forget",
    ]
    assert node.look(bdf) == before
    assert node.store.data == {}


async def test_the_mac_asked_for_is_set_and_the_admin_mac_of_before_comes_back(node: "Node") -> None:
    bdf = node.vfs[1]
    node.kernel.macs[PF, 1] = "02:aa:00:00:00:01"
    await bind(node, bdf, mac="02:BB:00:00:00:02")
    assert node.kernel.macs[PF, 1] == "02:bb:00:00:00:02"
    await node.binder.restore(bdf)
    assert node.kernel.macs[PF, 1] == "02:aa:00:00:00:01"


async def test_a_known_admin_mac_is_left_alone(node: "Node") -> None:
    node.kernel.macs[PF, 0] = "02:aa:00:00:00:01"
    await bind(node, node.vfs[0])
    assert not [each for each in node.kernel.done if each.startswith("mac")]


async def test_the_module_is_loaded_before_anything_is_saved(node: "Node") -> None:
    (node.tree.sys / "bus/pci/drivers/vfio-pci/new_id").unlink()
    for name in ("bind", "unbind"):
        (node.tree.sys / "bus/pci/drivers/vfio-pci" / name).unlink()
    (node.tree.sys / "bus/pci/drivers/vfio-pci").rmdir()
    await bind(node, node.vfs[0])
    assert node.kernel.done[:2] == ["load vfio-pci", "save"]


async def test_a_module_that_is_missing_changes_nothing(node: "Node") -> None:
    node.kernel.loadable = ()
    before = node.look(node.vfs[0])
    (node.tree.sys / "kernel/iommu_groups/11/type").write_text("identity\n")
    with pytest.raises(DpdkError, match="cannot load uio_pci_generic"):
        await bind(node, node.vfs[0], "uio_pci_generic")
    assert node.look(node.vfs[0]) == before
    assert node.store.data == {}


async def test_binding_twice_and_restoring_twice(node: "Node") -> None:
    bdf = node.vfs[0]
    await bind(node, bdf)
    node.kernel.done.clear()
    await bind(node, bdf)
    assert node.kernel.done == []
    assert await node.binder.restore(bdf) is not None
    assert await node.binder.restore(bdf) is None


@pytest.mark.parametrize("changes", range(5))
async def test_killed_while_binding(node: "Node", changes: int) -> None:
    bdf = node.vfs[0]
    before = node.look(bdf)
    plan = await node.binder.plan(bdf, VFIO)
    node.kernel.dies_before = changes
    with pytest.raises(Killed):
        await node.binder.apply_bind(plan)
    assert len(node.kernel.done) == changes
    node.restart()
    outcome = await node.binder.recover()
    assert outcome == ({bdf: None} if changes else {})
    assert node.look(bdf) == before
    assert node.store.data == {}


@pytest.mark.parametrize("changes", range(6))
async def test_killed_while_restoring(node: "Node", changes: int) -> None:
    bdf = node.vfs[0]
    before = node.look(bdf)
    await bind(node, bdf)
    node.kernel.done.clear()
    node.kernel.dies_before = changes
    with pytest.raises(Killed):
        await node.binder.restore(bdf)
    node.restart()
    outcome = await node.binder.recover()
    if changes == 0:  # nothing had begun: it is where it was wanted
        assert outcome == {}
        assert node.look(bdf)[0] == VFIO
        await node.binder.restore(bdf)
    else:
        assert outcome == {bdf: None}
    assert node.look(bdf) == before
    assert node.store.data == {}


@pytest.mark.parametrize("first", range(1, 5))
@pytest.mark.parametrize("second", range(6))
async def test_killed_again_while_recovering(node: "Node", first: int, second: int) -> None:
    bdf = node.vfs[0]
    before = node.look(bdf)
    node.kernel.dies_before = first
    with pytest.raises(Killed):
        await bind(node, bdf)
    node.kernel.done.clear()
    node.restart()
    node.kernel.dies_before = second
    with suppress(Killed):
        await node.binder.recover()
    node.restart()
    await node.binder.recover()
    assert node.look(bdf) == before
    assert node.store.data == {}


@pytest.mark.parametrize("changes", range(1, 5))
async def test_a_bind_that_was_cut_short_is_done_anew_and_still_knows_the_way_back(node: "Node", changes: int) -> None:
    bdf = node.vfs[0]
    before = node.look(bdf)
    node.kernel.dies_before = changes
    with pytest.raises(Killed):
        await bind(node, bdf)
    node.restart()
    await bind(node, bdf, mac="02:bb:00:00:00:02")
    assert node.look(bdf)[:3] == (VFIO, VFIO, "02:bb:00:00:00:02")
    await node.binder.restore(bdf)
    assert node.look(bdf) == before


@pytest.mark.parametrize("fault", ["driver", "node"])
async def test_a_failure_puts_everything_back(node: "Node", fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handle, "_PROBE", 0.05)
    bdf = node.vfs[0]
    before = node.look(bdf)
    if fault == "driver":
        node.kernel.refuses.add(VFIO)
    else:
        node.kernel.no_nodes = True
    with pytest.raises(DpdkError, match="did not"):
        await bind(node, bdf)
    assert node.look(bdf) == before
    assert node.store.data == {}


async def test_cancelling_puts_everything_back(node: "Node") -> None:
    bdf = node.vfs[0]
    before = node.look(bdf)
    node.kernel.no_nodes = True
    plan = await node.binder.plan(bdf, VFIO)
    async with anyio.create_task_group() as group:
        group.start_soon(node.binder.apply_bind, plan)
        with anyio.fail_after(5):
            while node.kernel.driver(bdf) != VFIO:
                await anyio.sleep(0.005)
        group.cancel_scope.cancel()
    assert node.look(bdf) == before
    assert node.store.data == {}


async def test_a_held_device_stays_and_the_holder_is_named(node: "Node") -> None:
    bdf = node.vfs[0]
    await bind(node, bdf)
    node.kernel.done.clear()
    node.kernel.held[bdf] = (Holder(pid=4711, command="dpdk-testpmd", pod="vfw/fw-0"),)
    with pytest.raises(HeldError, match=re.escape("process 4711 (dpdk-testpmd) of pod vfw/fw-0")) as refused:
        await node.binder.restore(bdf, hold=0)
    assert refused.value.retry
    assert node.kernel.done == []
    assert node.look(bdf)[0] == VFIO


async def test_it_waits_for_the_holder_to_let_go(node: "Node") -> None:
    bdf = node.vfs[0]
    await bind(node, bdf)
    node.kernel.held[bdf] = (Holder(pid=4711),)
    waits: list[float] = []

    async def pause(seconds: float) -> None:
        waits.append(seconds)
        node.kernel.held.clear()

    assert await drivers.Binder(node.kernel, node.store, pause=pause).restore(bdf, hold=5) is not None
    assert len(waits) == 1
    assert node.look(bdf)[0] == "iavf"


async def test_an_unbind_that_hangs_is_given_up_on(node: "Node", monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    bdf, held = node.vfs[0], threading.Event()
    await bind(node, bdf)
    monkeypatch.setattr(handle, "_RELEASE", 0.05)
    monkeypatch.setattr(node.kernel.sysfs, "write_driver", lambda *_: held.wait(10))
    try:
        with pytest.raises(HeldError, match="a process that /proc does not show"):
            await node.binder.restore(bdf)
    finally:
        held.set()
    assert (KIND, bdf) in node.store.data


async def test_with_autoprobe_off_it_goes_back_by_name(node: "Node") -> None:
    bdf = node.vfs[0]
    before = node.look(bdf)
    node.tree.set(PF, "sriov_drivers_autoprobe", "0")
    await bind(node, bdf)
    await node.binder.restore(bdf)
    assert node.look(bdf) == before


async def test_a_pf_that_takes_no_mac_away_has_the_vfs_own_one(node: "Node", monkeypatch: pytest.MonkeyPatch) -> None:
    bdf = node.vfs[0]
    before = node.look(bdf)
    await node.binder.apply_bind(await node.binder.plan(bdf, VFIO, mac="02:bb:00:00:00:02"))
    really = node.kernel.set_admin_mac

    def set_admin_mac(pf: str, index: int, mac: str) -> None:
        if mac == NO_MAC:
            raise KernelError("setting the MAC", 22, "Invalid argument")
        really(pf, index, mac)

    monkeypatch.setattr(node.kernel, "set_admin_mac", set_admin_mac)
    await node.binder.restore(bdf)
    assert node.kernel.admin_mac(PF, 0) == before[3]
    assert node.look(bdf)[3] == before[3]


async def test_only_its_owner_gives_it_back(node: "Node") -> None:
    bdf = node.vfs[0]
    await node.binder.apply_bind(await node.binder.plan(bdf, VFIO, owner="a policy"))
    assert await node.binder.restore(bdf, owner="a pod") is None
    assert node.look(bdf)[0] == VFIO
    assert await node.binder.restore(bdf, owner="a policy") is not None


async def test_recovery_leaves_alone_what_is_being_bound(node: "Node") -> None:
    bdf = node.vfs[0]
    plan = await node.binder.plan(bdf, VFIO)
    async with anyio.create_task_group() as group:
        group.start_soon(node.binder.apply_bind, plan)
        while not node.kernel.done:
            await anyio.sleep(0)
        assert await node.binder.recover() == {}
    assert node.look(bdf)[0] == VFIO


async def test_a_vf_without_a_driver_gets_none_back(node: "Node") -> None:
    bdf = node.vfs[0]
    node.kernel.unbind("iavf", bdf)
    before = node.look(bdf)
    await bind(node, bdf)
    assert node.look(bdf)[0] == VFIO
    await node.binder.restore(bdf)
    assert node.look(bdf) == before


async def test_what_somebody_else_changed_since_stays(node: "Node") -> None:
    bdf = node.vfs[0]
    await bind(node, bdf)
    node.kernel.unbind(VFIO, bdf)
    node.tree.set(bdf, "driver_override", "pci-stub")
    node.tree.driver("pci-stub")
    node.tree.bind(bdf, "pci-stub")
    node.kernel.macs[PF, 0] = "02:cc:00:00:00:03"
    await node.binder.restore(bdf)
    assert node.look(bdf)[:3] == ("pci-stub", "pci-stub", "02:cc:00:00:00:03")
    assert node.store.data == {}


@pytest.mark.parametrize("event", ["boot", "gone", "junk"])
async def test_a_record_that_means_nothing_any_more_is_forgotten(node: "Node", event: str) -> None:
    bdf = node.vfs[0]
    await bind(node, bdf)
    if event == "boot":
        node.kernel.boot = "boot-2"
    elif event == "gone":
        node.tree.remove(bdf)
    else:
        node.store.data[KIND, bdf] = b'{"bdf": 1'
    node.kernel.done.clear()
    assert await node.binder.recover() == {bdf: None}
    assert node.kernel.done == ["forget"]


async def test_recovery_of_one_does_not_stop_at_another(node: "Node") -> None:
    for bdf in node.vfs:
        await bind(node, bdf)
        node.tree.set(bdf, "driver_override", "(null)")  # on their way back
    node.kernel.held[node.vfs[0]] = (Holder(pid=1),)
    outcome = await node.binder.recover()
    assert isinstance(outcome[node.vfs[0]], HeldError)
    assert outcome[node.vfs[1]] is None
    assert list(await node.binder.records()) == [node.vfs[0]]


async def test_a_refusal_changes_nothing(node: "Node") -> None:
    with pytest.raises(RefusedError, match="no VF"):
        await bind(node, PF)
    assert node.kernel.done == []


async def test_a_vf_that_goes_away_in_the_middle(node: "Node", monkeypatch: pytest.MonkeyPatch) -> None:
    bdf = node.vfs[0]
    plan = await node.binder.plan(bdf, VFIO)
    monkeypatch.setattr(node.kernel, "set_admin_mac", lambda *_: node.tree.remove(bdf))
    with pytest.raises(KernelError, match="not there"):
        await node.binder.apply_bind(plan)
    assert node.store.data == {}


async def test_a_group_is_given_away_whole_or_not_at_all(node: "Node") -> None:
    for bdf in node.vfs:
        node.tree.group(bdf, 30)
    plans = await node.binder.plan_all(node.vfs, VFIO)
    assert [plan.refusals for plan in plans] == [(), ()]
    node.kernel.held[node.vfs[1]] = (Holder(pid=1),)
    first, second = await node.binder.plan_all(node.vfs, VFIO)
    assert "not viable" in first.refusals[0]
    assert "process 1" in second.refusals[0]


async def test_many_at_a_time(node: "Node") -> None:
    before = [node.look(bdf) for bdf in node.vfs]
    for work in (bind, None):
        async with anyio.create_task_group() as group:
            for bdf in node.vfs:
                if work is not None:
                    group.start_soon(work, node, bdf)
                else:
                    group.start_soon(node.binder.restore, bdf)
    assert [node.look(bdf) for bdf in node.vfs] == before

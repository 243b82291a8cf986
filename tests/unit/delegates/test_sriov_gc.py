"""GC of `sriov`: VFs of attachments that are no more are put back as by a DEL, and no others are touched."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from devices.errors import KernelError
from multus.attach import TakeDownError
from multus.cni.conf import parse_conf
from multus.cni.errors import CNIError
from multus.cni.request import Command, ValidAttachment
from multus.delegates.chain import Chain, Target
from multus.errors import NodeError
from multus.journal import Journal
from multus.sandbox import Attachment, Sandbox, State
from multus.slots import Lanes
from multus.upkeep import CollectError, Upkeep
from tests.fake_vf_kernel import refuse_all, vf_bdf
from tests.sriov_node import POD, Node

pytestmark = pytest.mark.anyio

OTHER = "/run/netns/other"
IPAM: dict[str, Any] = {"ipam": {"type": "host-local"}}
FIRST, SECOND = ("c1", "net1"), ("c2", "net1")


@pytest.fixture
def node(tmp_path: Path) -> Node:
    node = Node(tmp_path / "sriov")
    node.kernel.space(OTHER, "4:300")
    return node


async def collect(node: Node, *valid: tuple[str, str], **more: Any) -> None:
    """A GC that keeps these."""
    listed = [{"containerID": container_id, "ifname": ifname} for container_id, ifname in valid]
    around = {"container_id": "", "netns": "", "ifname": ""}
    listing = {"cni.dev/valid-attachments": listed, "cni.dev/attachments": listed}
    assert await node.run(Command.GC, **around, **listing, **more) == b""


async def attach_two(node: Node, **more: Any) -> None:
    await node.add(vlan=5, trust="on", **more)
    await node.add(vf=1, container_id="c2", netns=OTHER, vlan=6, **more)


async def test_what_is_not_valid_is_put_back_and_what_is_stays(node: Node) -> None:
    before = node.kernel.snapshot()
    await attach_two(node)
    held = node.kernel.vfs[1]
    await collect(node, SECOND)
    assert node.kernel.vfs == {0: before[0][0], 1: held}
    assert node.kernel.spaces[""][10] == before[1][10]
    assert [each.name for each in node.kernel.spaces[OTHER].values()] == ["lo", "net1"]
    assert node.on_record == [vf_bdf(1)]
    await node.check(vf=1, container_id="c2", netns=OTHER, vlan=6)
    await node.add(container_id="c3", netns=POD)  # it is free
    await node.delete(container_id="c3")
    await collect(node)
    assert node.kernel.snapshot() == before
    assert node.on_record == []


async def test_it_can_be_repeated_and_a_late_del_finds_nothing(node: Node) -> None:
    before = node.kernel.snapshot()
    await attach_two(node)
    await collect(node)
    done = len(node.kernel.calls)
    await collect(node)
    await node.delete(vlan=5)
    assert node.kernel.calls[done:] == []
    assert node.kernel.snapshot() == before


@pytest.mark.parametrize("valid", [(FIRST, SECOND), (SECOND, ("c1", "net1"), ("c9", "net9"))])
async def test_nothing_of_what_is_valid_is_touched(node: Node, valid: tuple[tuple[str, str], ...]) -> None:
    await attach_two(node)
    done = len(node.kernel.calls)
    await collect(node, *valid)
    assert node.kernel.calls[done:] == []
    assert node.on_record == [vf_bdf(0), vf_bdf(1)]


async def test_valid_is_one_interface_of_one_container(node: Node) -> None:
    await attach_two(node)
    await collect(node, ("c1", "net2"), SECOND)
    assert node.on_record == [vf_bdf(1)]


async def test_another_networks_are_none_of_its_business(node: Node) -> None:
    await attach_two(node)
    done = len(node.kernel.calls)
    await collect(node, name="another")
    assert node.kernel.calls[done:] == []
    assert node.on_record == [vf_bdf(0), vf_bdf(1)]


@pytest.mark.parametrize("listing", [{}, {"cni.dev/valid-attachments": 3}, {"name": ""}])
async def test_without_a_list_nothing_is_stale(node: Node, listing: dict[str, Any]) -> None:
    await attach_two(node)
    done = len(node.kernel.calls)
    if listing.get("cni.dev/valid-attachments"):
        with pytest.raises(CNIError, match="valid-attachments"):
            await node.run(Command.GC, **listing)
    else:
        await node.run(Command.GC, **listing)
    assert node.kernel.calls[done:] == []
    assert node.on_record == [vf_bdf(0), vf_bdf(1)]


async def test_a_list_that_is_null_keeps_nothing(node: Node) -> None:
    """libcni writes that for a runtime without containers."""
    await attach_two(node)
    await node.run(Command.GC, **{"cni.dev/valid-attachments": None})
    assert node.on_record == []


async def test_by_what_was_kept_and_not_by_what_is_in_memory(node: Node) -> None:
    before = node.kernel.snapshot()
    await attach_two(node)
    node.sriov = node.made()
    await collect(node, name="net", deviceID="")  # a network's own file names no device
    assert node.kernel.snapshot() == before


async def test_addresses_are_given_back_by_the_pod_that_had_them(node: Node) -> None:
    await attach_two(node, **IPAM)
    node.kernel.end_space(POD)
    node.ipam.calls.clear()
    await collect(node, SECOND, **IPAM)
    ((_, deleted), (_, collected)) = node.ipam.calls
    assert (deleted.command, deleted.container_id, deleted.ifname, deleted.netns) == (Command.DEL, "c1", "net1", "")
    assert collected.command is Command.GC
    node.ipam.calls.clear()
    await collect(node, **IPAM)
    ((_, deleted), _) = node.ipam.calls
    assert (deleted.container_id, deleted.netns) == ("c2", OTHER)


async def test_one_that_fails_keeps_none_of_the_others_and_is_tried_again(node: Node) -> None:
    before = node.kernel.snapshot()
    await attach_two(node)
    broken = KernelError("driver", 5, "Input/output error")

    def first_only(number: int, call: tuple[Any, ...]) -> None:
        if call[0] == "set_vf" and call[1] == 0:
            raise broken

    node.kernel.before = first_only
    with pytest.raises(NodeError, match="Input/output error"):
        await collect(node, **IPAM)
    assert node.on_record == [vf_bdf(0)]
    assert node.kernel.vfs[1] == before[0][1]
    assert node.ipam.commands[-1] is Command.GC
    node.kernel.before = None
    await collect(node)
    assert node.kernel.snapshot() == before
    assert node.on_record == []


async def test_what_the_address_plugin_does_not_do_keeps_no_vf(node: Node) -> None:
    before = node.kernel.snapshot()
    await attach_two(node, **IPAM)
    node.ipam.failing = {Command.DEL, Command.GC}
    with pytest.raises(CNIError, match="the address plugin fails"):
        await collect(node, **IPAM)
    assert node.kernel.snapshot() == before


async def test_an_interface_that_was_nowhere_to_be_found_is_looked_for_again(node: Node) -> None:
    before = node.kernel.snapshot()
    await node.add(vlan=5)
    held = node.kernel.spaces[POD].pop(10)
    node.kernel.end_space(POD)
    await node.delete(vlan=5)
    assert node.on_record == [vf_bdf(0)]
    await collect(node)
    assert node.on_record == [vf_bdf(0)]
    node.kernel.spaces[""][10] = held
    await collect(node)
    assert node.on_record == []
    assert node.kernel.snapshot() == before


async def test_after_a_reboot_records_go_and_the_vf_stays_as_it_is(node: Node) -> None:
    await attach_two(node)
    fresh = Node(node.upstream)
    fresh.store.kept = node.store.kept
    fresh.sriov = fresh.made("boot-2")
    before = fresh.kernel.snapshot()
    await collect(fresh)
    assert fresh.on_record == []
    assert fresh.kernel.snapshot() == before


async def test_one_that_is_being_made_is_newer_than_the_list(node: Node) -> None:
    asked, go_on = anyio.Event(), anyio.Event()

    async def slow(command: Command) -> None:
        if command is Command.ADD:
            asked.set()
            await go_on.wait()

    node.ipam.hook = slow
    async with anyio.create_task_group() as group:
        group.start_soon(lambda: node.add(vlan=5, **IPAM))
        await asked.wait()
        with anyio.fail_after(5):
            await collect(node)
        assert node.on_record == [vf_bdf(0)]
        go_on.set()
    await node.check(vlan=5, **IPAM)
    await collect(node)
    assert node.on_record == []


async def test_a_del_at_the_same_time_is_enough(node: Node) -> None:
    before = node.kernel.snapshot()
    await attach_two(node)
    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(collect, node, SECOND)
            group.start_soon(lambda: node.delete(vlan=5))
    assert [call for call in node.kernel.calls if call[0] == "forget"] == [("forget", vf_bdf(0))]
    assert node.kernel.vfs[0] == before[0][0]
    assert node.on_record == [vf_bdf(1)]


async def test_a_damaged_record_is_passed_over(node: Node) -> None:
    await attach_two(node)
    node.store.kept["sriov", vf_bdf(0)] = b"{"
    await collect(node)
    assert node.on_record == [vf_bdf(0)]


async def test_a_driver_that_refuses_leaves_it_on_record(node: Node) -> None:
    await node.add(vlan=5)
    node.kernel.before = refuse_all(KernelError("driver", 5, "Input/output error"), "set_vf")
    with pytest.raises(NodeError):
        await collect(node)
    assert node.on_record == [vf_bdf(0)]


# under the core, whose journal has the last word


CONF: dict[str, Any] = {"cniVersion": "1.1.0", "name": "net"}


class Core:
    """The core's journal and upkeep on top of the delegate; what is `stuck` it cannot take down."""

    def __init__(self, node: Node, journal: Journal) -> None:
        self.journal = journal
        self.lanes = Lanes()
        self.stuck: set[str] = set()
        self.chain = Chain(node.ipam, in_process={"sriov": node.sriov}, bin_dirs=lambda: ())

    async def attach(self, container_id: str, netns: str, vf: int) -> None:
        plugin = {"type": "sriov", "deviceID": vf_bdf(vf), "vlan": 5}
        conf = json.dumps({**CONF, "plugins": [plugin]}).encode()
        item = Attachment(position=1, network="ns/net", ifname="net1", conf=conf)
        sandbox = Sandbox(
            container_id=container_id,
            ifname="eth0",
            state=State.ATTACHED,
            netns=netns,
            netns_id="",
            boot_id="b",
            pod_namespace="ns",
            pod_name=container_id,
            pod_uid="u",
            attachments=(item,),
        )
        await self.journal.begin(sandbox)
        target = Target(container_id=container_id, netns=netns, ifname="net1")
        await self.chain.add(parse_conf(conf, where="test"), target)

    async def take_down(self, sandbox: Sandbox) -> None:
        (item,) = sandbox.attachments
        if sandbox.container_id in self.stuck:
            raise TakeDownError([(item, OSError("its other network is stuck"))])
        target = Target(container_id=sandbox.container_id, netns=sandbox.netns, ifname=item.ifname)
        await self.chain.delete(parse_conf(item.conf, where="test"), target, None)

    async def collect(self, *known: str) -> None:
        double: Any = self
        upkeep = Upkeep(
            journal=self.journal, attacher=double, chain=self.chain, lanes=self.lanes, cluster=double, boot_id="b"
        )
        valid = [ValidAttachment(container_id=each, ifname="eth0") for each in known]
        default = parse_conf(b'{"cniVersion": "1.0.0", "name": "default", "type": "bridge"}', where="test")
        await upkeep.collect(valid, default, (), ())

    async def known(self) -> list[str]:
        return sorted(each.container_id for each in await self.journal.all())


@pytest.fixture
async def core(node: Node, tmp_path: Path) -> AsyncIterator[Core]:
    """Two pods with a VF each."""
    async with Journal.open(tmp_path / "journal.db") as journal:
        made = Core(node, journal)
        await made.attach("c1", POD, 0)
        await made.attach("c2", OTHER, 1)
        yield made


async def test_what_the_core_knows_is_the_cores(node: Node, core: Core) -> None:
    done = len(node.kernel.calls)
    await core.collect("c1", "c2")
    async with core.lanes.holding("c1"):  # the runtime's list is older than what it asks for now
        await core.collect("c2")
    assert node.kernel.calls[done:] == []
    assert node.on_record == [vf_bdf(0), vf_bdf(1)]


async def test_what_the_core_takes_down_is_done_when_the_delegate_is_asked(node: Node, core: Core) -> None:
    await core.collect("c2")
    assert (await core.known(), node.on_record) == (["c2"], [vf_bdf(1)])
    assert [call for call in node.kernel.calls if call[0] == "forget"] == [("forget", vf_bdf(0))]


async def test_what_the_core_has_lost_is_put_back(node: Node, core: Core) -> None:
    """Its journal was brought back from yesterday, say."""
    await core.journal.forget(("c1", "eth0"))
    await core.collect("c2")
    assert node.on_record == [vf_bdf(1)]
    assert node.kernel.vfs[0].vlan == 0


async def test_a_sandbox_that_stays_for_another_network_gives_its_vf_back_all_the_same(node: Node, core: Core) -> None:
    core.stuck = {"c1"}
    with pytest.raises(CollectError, match="c1 of pod ns/c1 could not be removed"):
        await core.collect("c2")
    assert (await core.known(), node.on_record) == (["c1", "c2"], [vf_bdf(1)])
    node.kernel.space("/run/netns/third", "4:400")
    await core.attach("c3", "/run/netns/third", 0)
    core.stuck = set()
    await core.collect("c2", "c3")  # the DEL that is tried again does not touch who has the VF now
    assert (await core.known(), sorted(node.on_record)) == (["c2", "c3"], [vf_bdf(0), vf_bdf(1)])
    assert node.kernel.vfs[0].vlan == 5

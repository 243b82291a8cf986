"""The device manager on a fake sysfs, with a fake kubelet that speaks the real protocol."""

import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.streams.memory import MemoryObjectReceiveStream
from grpclib.exceptions import GRPCError

from devices.config import ConfigError
from devices.errors import DeviceError, KernelError
from devices.giving import PoolError
from devices.kubelet.api import deviceplugin_pb2 as api
from devices.kubelet.registration import Kubelet
from devices.kubelet.service import Pace
from devices.ledger import KIND, Memory
from devices.linux.sysfs import Sysfs
from devices.linux.uevents import NODE, RESCAN, Change, Uevents
from devices.manager import Manager
from tests.fake_kubelet import FakeKubelet
from tests.fake_sysfs import FakeSysfs

pytestmark = pytest.mark.anyio

PF, OTHER = "0000:03:00.0", "0000:83:00.0"
NET, DPDK = "intel.com/net", "intel.com/dpdk"
NET_POOL = {"resourceName": "net", "selectors": {"drivers": ["iavf"]}}
QUICK = Pace(period=2.0, patience=0.5, settle=0.05, first=0.02, longest=0.1, call=2.0)


class Node:
    """A node: its sysfs, its configuration, and a hand on the events of its hardware."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.sysfs = FakeSysfs(root)
        self.config = root / "pcidp" / "config.json"
        self.config.parent.mkdir()
        self.info = root / "devinfo"
        self.store = Memory()
        self.reasons: Mapping[str, str] = {}
        self.blind = False
        self.attached: dict[str, str] = {}
        self.dumb = False
        self.now = 1000.0
        self._send, self._receive = anyio.create_memory_object_stream[Change](100)

    def pools(self, *resources: dict[str, Any]) -> None:
        """Write the configuration as a ConfigMap's volume does: whole, by a rename."""
        temporary = self.config.with_name(".new")
        temporary.write_text(json.dumps({"resourceList": resources}))
        temporary.replace(self.config)

    def vf(self, index: int, pf: str = PF) -> str:
        return self.sysfs.vf_bdf(pf, index)

    def tell(self, *addresses: str, subsystem: str = "pci") -> None:
        for address in addresses:
            self._send.send_nowait(Change(subsystem=subsystem, bdf=address))

    def tell_change(self, change: Change) -> None:
        self._send.send_nowait(change)

    def read_reasons(self) -> Mapping[str, str]:
        if self.blind:
            raise KernelError("listing routes", 1, "not permitted")
        return self.reasons

    async def held(self) -> Mapping[str, str]:
        if self.dumb:
            raise DeviceError("the journal is away")
        return self.attached

    @asynccontextmanager
    async def events(self) -> AsyncIterator[MemoryObjectReceiveStream[Change]]:
        yield self._receive

    @asynccontextmanager
    async def manager(self, **options: Any) -> AsyncIterator[Manager]:
        made = Manager(
            **{
                "config": self.config,
                "info": self.info,
                "sysfs": Sysfs(self.sysfs.sys, self.sysfs.dev),
                "store": self.store,
                "held": self.held,
                "reasons": self.read_reasons,
                "events": self.events,
                "clock": lambda: self.now,
                **options,
            }
        )
        async with anyio.create_task_group() as group:
            await group.start(made.run)
            yield made
            group.cancel_scope.cancel()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path)
    made.sysfs.pf(PF, netdev="ens1", total=8, num=4, numa=0)
    made.sysfs.pf(OTHER, netdev="ens2", total=8, num=2, numa=1)
    made.pools({"resourceName": "net", "selectors": {"drivers": ["iavf"]}})
    yield made
    made._send.close()
    made._receive.close()


async def until(manager: Manager, holds: Callable[[], bool], *, limit: float = 10.0) -> None:
    with anyio.fail_after(limit):
        while not holds():
            await manager.changed.wait(manager.changed.rung)


def members(manager: Manager, resource: str = NET) -> list[str]:
    return [member.device.bdf for member in manager.pools.members[resource]]


def sick(manager: Manager, resource: str = NET) -> dict[str, str]:
    return {member.device.bdf: member.reason for member in manager.pools.members[resource] if member.reason}


# hardware


async def test_from_hardware_to_pools(node: Node) -> None:
    async with node.manager() as manager:
        assert members(manager) == [*(node.vf(index) for index in range(4)), node.vf(0, OTHER), node.vf(1, OTHER)]
        told = manager.statistics()
        assert (told.physical_functions, told.virtual_functions, told.refreshes) == (2, 6, 1)
        (pool,) = told.pools
        assert (pool.resource, pool.devices, pool.healthy, pool.allocated, pool.followed) == (NET, 6, 6, 0, False)


async def test_numbers_of_who_uses_what(node: Node) -> None:
    """Attached by others, given out here, and not well; each of them leaves fewer that are free."""
    node.attached = {node.vf(0): NET}
    node.sysfs.bind(node.vf(3), "")
    async with node.manager() as manager:
        node.sysfs.bind(node.vf(2), "")
        node.tell(node.vf(2))
        await until(manager, lambda: bool(sick(manager)))
        await manager.allocate(NET, 1, owner="a")
        (pool,) = manager.statistics().pools
        assert (pool.devices, pool.healthy, pool.allocated, pool.used, pool.free) == (5, 3, 1, 2, 2)
        assert not pool.rivalled


async def test_vfs_come_and_go(node: Node) -> None:
    async with node.manager() as manager:
        node.sysfs.grow(PF, 8)
        node.tell(PF, *(node.vf(index) for index in range(4, 8)))
        await until(manager, lambda: len(members(manager)) == 10)
        node.sysfs.grow(PF, 0)
        node.tell(*(node.vf(index) for index in range(8)))  # nobody tells of the PF
        await until(manager, lambda: len(members(manager)) == 2)  # told to have none, so none is missed
        assert manager.inventory.by_bdf[PF].vfs == ()  # type: ignore[union-attr]


async def test_a_burst_of_events_is_one_look(node: Node) -> None:
    node.sysfs.grow(PF, 0)
    async with node.manager() as manager:
        before = manager.statistics().refreshes
        node.sysfs.grow(PF, 8)
        node.tell(*(node.vf(index) for index in range(8)), PF)
        await until(manager, lambda: len(members(manager)) == 10)
        told = manager.statistics()
        assert told.events == 9
        assert told.refreshes - before <= 3


async def test_health_follows_the_hardware(node: Node) -> None:
    async with node.manager() as manager:
        assert sick(manager) == {}
        node.sysfs.carrier("ens1", False)
        node.tell(PF, subsystem="net")
        await until(manager, lambda: sick(manager).keys() == {node.vf(index) for index in range(4)})
        node.sysfs.carrier("ens1", True)
        node.tell(PF, subsystem="net")
        await until(manager, lambda: sick(manager) == {})
        node.sysfs.bind(node.vf(1), "")
        node.tell(node.vf(1))
        await until(manager, lambda: sick(manager).keys() == {node.vf(1)})
        node.sysfs.bind(node.vf(1), "iavf")
        node.tell(node.vf(1))
        await until(manager, lambda: sick(manager) == {})


async def test_hardware_that_nobody_tells_of(node: Node) -> None:
    """udev is silent, and so is the kernel: a device that vanishes is found missing within a second all the same."""

    def events() -> Uevents:
        return Uevents(node.sysfs.sys, sources=(), check_every=0.2, check_when_silent=0.2)

    async with node.manager(events=events) as manager:
        node.sysfs.remove(node.vf(2))
        await until(manager, lambda: node.vf(2) in sick(manager), limit=5.0)
        assert node.vf(2) in members(manager)


async def test_the_node_s_own_nics_are_not_offered(node: Node) -> None:
    node.sysfs.pf("0000:01:00.0", netdev="eno1", driver="igb")
    node.pools({"resourceName": "net", "selectors": {"drivers": ["igb"]}})
    node.reasons = {"eno1": "the node's IPv4 default route"}
    async with node.manager() as manager:
        assert members(manager) == []
        node.reasons = {"ens1": "the node's IPv4 default route"}
        node.tell_change(NODE)  # the route has moved
        await until(manager, lambda: members(manager) == ["0000:01:00.0"])


async def test_nothing_is_offered_before_it_is_known_what_the_node_needs(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    node.blind = True
    async with node.manager() as manager:
        assert members(manager) == []
        assert "which NICs the node needs cannot be told" in caplog.text
        node.blind = False
        node.tell_change(RESCAN)
        await until(manager, lambda: len(members(manager)) == 6)
        node.blind = True  # later, what was known stands
        node.tell_change(NODE)
        node.sysfs.grow(OTHER, 3)
        node.tell(OTHER, node.vf(2, OTHER))
        await until(manager, lambda: len(members(manager)) == 7)


# configuration


async def test_the_configuration_is_reloaded(node: Node) -> None:
    async with node.manager() as manager:
        node.pools({"resourceName": "other", "selectors": {"pfNames": ["ens2"]}})
        await until(manager, lambda: list(manager.pools.members) == ["intel.com/other"])
        assert len(members(manager, "intel.com/other")) == 2
        assert not await manager.reload()  # nothing new
        assert manager.statistics().reloads == 2


async def test_what_is_in_use_keeps_its_pool(node: Node) -> None:
    async with node.manager() as manager:
        node.attached = {node.vf(0): ""}
        (taken,) = await manager.allocate(NET, 1, owner="ns/pod", wanted=[node.vf(1)])
        selectors = {"pfNames": ["ens1"]}
        node.pools(
            {"resourceName": "first", "selectors": selectors},
            {"resourceName": "net", "selectors": {"vendors": ["8086"]}},
        )
        await until(manager, lambda: "intel.com/first" in manager.pools.members)
        assert members(manager, "intel.com/first") == [node.vf(2), node.vf(3)]
        assert members(manager) == [node.vf(0), taken, node.vf(0, OTHER), node.vf(1, OTHER)]
        node.dumb = True  # it cannot be told what is attached: what was told last stands
        node.pools({"resourceName": "net", "selectors": {"pfNames": ["ens2"]}})
        await until(manager, lambda: list(manager.pools.members) == [NET])
        assert members(manager) == [node.vf(0), taken, node.vf(0, OTHER), node.vf(1, OTHER)]


@pytest.mark.parametrize(
    "text", ["", "{", '{"resourceList": [{"resourceName": "a/b"}]}', '{"resourceList": 1}', "[" * 5000]
)
async def test_a_configuration_that_cannot_be_used(node: Node, text: str, caplog: pytest.LogCaptureFixture) -> None:
    async with node.manager() as manager:
        node.config.write_text(text)
        assert not await manager.reload()
        assert "pools stay as they are" in caplog.text
        assert len(members(manager)) == 6
        assert manager.statistics().refused_configs >= 1


async def test_a_configuration_that_comes_later(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    node.config.unlink()
    async with node.manager() as manager:
        assert "cannot read" in caplog.text
        assert manager.pools.members == {}
        assert manager.inventory.vfs  # hardware is looked at all the same
        node.pools({"resourceName": "net", "selectors": {"vendors": ["8086"]}})
        await until(manager, lambda: NET in manager.pools.members)


async def test_oddities_are_told_once(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    node.pools(
        {"resourceName": "net", "selectors": {"vendors": ["8086"]}},
        {"resourceName": "dpdk", "selectors": {"vendors": ["8086"]}},
    )
    async with node.manager() as manager:
        node.sysfs.carrier("ens1", False)
        node.tell(PF, subsystem="net")
        await until(manager, lambda: len(sick(manager)) == 4)
    assert caplog.text.count("intel.com/dpdk does not get 6 devices") == 1


# without a kubelet


async def test_devices_are_given_out(node: Node) -> None:
    async with node.manager() as manager:
        first = await manager.allocate(NET, 2, owner="ns/a")
        assert first == (node.vf(0, OTHER), node.vf(1, OTHER))  # one NUMA node, and the other one stays whole
        assert await manager.allocate(NET, 2, owner="ns/a") == first  # asked again, the same
        more = await manager.allocate(NET, 3, owner="ns/a")
        assert more[:2] == first
        assert (await manager.allocate(NET, 1, owner="ns/b", wanted=[node.vf(3)])) == (node.vf(3),)
        told = {each.owner: each.devices for each in manager.allocations}
        assert told == {"ns/a": more, "ns/b": (node.vf(3),)}
        assert manager.statistics().pools[0].allocated == 4
        assert manager.statistics().pools[0].healthy == 2  # those that a kubelet could give
        with pytest.raises(PoolError, match=r"ns/c needs 3 devices of intel.com/net: 2 of 6 are free") as caught:
            await manager.allocate(NET, 3, owner="ns/c")
        assert caught.value.retry
        assert await manager.release("ns/a") == more
        assert await manager.release("ns/a") == ()
        assert len(await manager.allocate(NET, 3, owner="ns/c")) == 3


async def test_spread_and_pack(node: Node) -> None:
    node.sysfs.pf("0000:04:00.0", netdev="ens3", total=4, num=4, numa=0)
    pool = {"resourceName": "net", "selectors": {"pfNames": ["ens1", "ens3"]}}
    node.pools(pool)
    async with node.manager() as manager:
        spread = await manager.allocate(NET, 2, owner="a")
        assert {manager.pools.by_bdf[bdf].device.pf for bdf in spread} == {PF, "0000:04:00.0"}  # type: ignore[union-attr]
        await manager.release("a")
        node.pools({**pool, "preferred": "pack"})
        await until(manager, lambda: manager.config.pools[0].preferred == "pack")
        packed = await manager.allocate(NET, 2, owner="a")
        assert packed == (node.vf(0), node.vf(1))


@pytest.mark.parametrize(
    ("wanted", "why"),
    [
        ("taken", "ns/a has it"),
        ("guarded", "ens9 carries the default route"),
        ("unselected", "no pool selects it"),
        ("elsewhere", "it is in the pool intel.com/dpdk"),
        ("absent", "there is no such device"),
        ("sick", "no driver has it"),
        ("attached", "a pod uses it"),
    ],
)
async def test_why_a_device_is_not_to_be_had(node: Node, wanted: str, why: str) -> None:
    node.sysfs.pf("0000:09:00.0", netdev="ens9", driver="ixgbe")
    node.sysfs.pf("0000:0a:00.0", netdev="ens10", driver="e1000e")
    node.reasons = {"ens9": "the default route"}
    node.pools(
        {"resourceName": "dpdk", "selectors": {"pfNames": ["ens2#1"]}},
        {"resourceName": "net", "selectors": {"drivers": ["iavf"]}},
    )
    node.attached = {node.vf(2): NET}
    async with node.manager() as manager:
        await manager.allocate(NET, 1, owner="ns/a", wanted=[node.vf(0)])
        node.sysfs.bind(node.vf(1), "")
        node.tell(node.vf(1))
        await until(manager, lambda: node.vf(1) in sick(manager))
        address = {
            "taken": node.vf(0),
            "guarded": "0000:09:00.0",
            "unselected": "0000:0a:00.0",
            "elsewhere": node.vf(1, OTHER),
            "absent": "0000:ff:00.0",
            "sick": node.vf(1),
            "attached": node.vf(2),
        }[wanted]
        with pytest.raises(PoolError, match=f"{address} of intel.com/net is not free: {why}"):
            await manager.allocate(NET, 1, owner="ns/b", wanted=[address])
        assert [each.owner for each in manager.allocations] == ["ns/a"]


async def test_a_pool_that_is_not_there(node: Node) -> None:
    async with node.manager() as manager:
        with pytest.raises(ConfigError, match="did you mean"):
            await manager.allocate("intel.com/nett", 1, owner="a")


async def test_nobody_gets_what_another_has(node: Node) -> None:
    given: dict[str, tuple[str, ...]] = {}
    async with node.manager() as manager:

        async def take(owner: str) -> None:
            given[owner] = await manager.allocate(NET, 1, owner=owner)

        async with anyio.create_task_group() as group:
            for number in range(6):
                group.start_soon(take, f"pod-{number}")
    assert len({device for devices in given.values() for device in devices}) == 6


async def test_what_was_given_survives_a_restart(node: Node) -> None:
    async with node.manager() as manager:
        first = await manager.allocate(NET, 2, owner="ns/a")
    async with node.manager() as manager:
        assert await manager.allocate(NET, 2, owner="ns/a") == first
        assert not set(await manager.allocate(NET, 4, owner="ns/b")) & set(first)


async def test_what_is_in_use_has_its_pool_after_a_restart(node: Node) -> None:
    """Its pod has it on another driver, by which another pool would select it."""
    node.pools(
        {"resourceName": "dpdk", "selectors": {"drivers": ["vfio-pci"]}},
        {"resourceName": "net", "selectors": {"drivers": ["iavf"]}},
    )
    async with node.manager() as manager:
        (taken,) = await manager.allocate(NET, 1, owner="ns/a", wanted=[node.vf(0)])
    node.attached = {node.vf(1): NET, node.vf(2): "intel.com/gone", "0000:ff:00.0": NET}
    for index in range(4):
        node.sysfs.bind(node.vf(index), "vfio-pci")
    async with node.manager() as manager:
        assert members(manager) == [taken, node.vf(1), node.vf(0, OTHER), node.vf(1, OTHER)]
        assert members(manager, DPDK) == [node.vf(2), node.vf(3)]


async def test_a_device_that_went_is_not_given(node: Node) -> None:
    """Not even when nothing has told of it yet."""
    async with node.manager() as manager:
        node.sysfs.remove(node.vf(3))
        with pytest.raises(PoolError, match=f"{node.vf(3)} of intel.com/net is not there"):
            await manager.allocate(NET, 1, owner="a", wanted=[node.vf(3)])
        assert manager.allocations == ()


class Broken(Memory):
    async def save(self, key: str, kind: str, data: bytes) -> None:
        raise DeviceError("the disk is full")


async def test_what_is_not_recorded_is_not_given(node: Node) -> None:
    async with node.manager(store=Broken()) as manager:
        with pytest.raises(DeviceError, match="the disk is full"):
            await manager.allocate(NET, 1, owner="a")
        assert manager.allocations == ()


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff", b'{"owner": 1}'])
async def test_a_damaged_record_breaks_nothing(node: Node, data: bytes, caplog: pytest.LogCaptureFixture) -> None:
    await node.store.save("k", KIND, data)
    async with node.manager() as manager:
        assert len(await manager.allocate(NET, 6, owner="a")) == 6
        assert "the record of what 'k' was given is damaged" in caplog.text
        assert await manager.release("k") == ()
        assert [key for key, _ in await node.store.all(KIND)] == [f"a {NET}"]


async def test_a_damaged_record_keeps_its_devices(node: Node) -> None:
    """They are somebody's, and are not given to another; its key says whose, so that they can be given back."""
    await node.store.save(f"pod ns/x u1 {NET}", KIND, f'{{"owner": 1, "devices": ["{node.vf(0)}"'.encode())
    async with node.manager() as manager:
        assert node.vf(0) not in await manager.allocate(NET, 5, owner="a")
        with pytest.raises(PoolError, match=f"{node.vf(0)}: pod ns/x u1 has it"):
            await manager.allocate(NET, 1, owner="b")
        assert await manager.release("pod ns/x u1") == (node.vf(0),)
        assert await manager.allocate(NET, 1, owner="b") == (node.vf(0),)


async def test_more_and_one_less(node: Node) -> None:
    async with node.manager() as manager:
        first = await manager.allocate(NET, 1, owner="a", more=True)
        both = await manager.allocate(NET, 1, owner="a", more=True)
        assert (len(both), both[:1]) == (2, first)
        assert await manager.drop(first[0]) == "a"
        assert [each.devices for each in manager.allocations] == [both[1:]]
        assert await manager.drop(first[0]) == ""
        assert await manager.drop(both[1]) == "a"
        assert (manager.allocations, await node.store.all(KIND)) == ((), [])


async def test_devices_to_avoid(node: Node) -> None:
    async with node.manager() as manager:
        busy = {node.vf(index): "testpmd 12 has it open" for index in range(4)}
        assert set(await manager.allocate(NET, 2, owner="a", avoid=busy)) == {node.vf(0, OTHER), node.vf(1, OTHER)}
        with pytest.raises(PoolError, match=f"{node.vf(3)} of {NET} is not free: testpmd 12 has it open"):
            await manager.allocate(NET, 1, owner="b", wanted=[node.vf(3)], avoid=busy)
        with pytest.raises(PoolError, match=r"0 of 6 are free.*testpmd 12 has it open"):
            await manager.allocate(NET, 1, owner="b", avoid=busy)


async def test_device_information_that_is_stale_goes(node: Node) -> None:
    """Of a device that is in another pool, or in none; not of one that a pod uses, and not what others wrote."""
    folder = node.info / "dp"
    folder.mkdir(parents=True)
    other = [f"nvidia.com-gpu-{node.vf(0)}-device.json", f"intel.com-net-{node.vf(0)}.txt", "intel.com-net-x"]
    for name in other:
        (folder / name).write_text("{}")

    def ours() -> list[str]:
        return sorted(path.name for path in folder.iterdir() if path.name not in other)

    async with node.manager() as manager:
        for owner in ("a", "b"):
            await manager.allocate(NET, 1, owner=owner, wanted=[node.vf({"a": 0, "b": 1}[owner])])
        kept, stale = (f"intel.com-net-{node.vf(index)}-device.json" for index in range(2))
        await manager.release("b")
        assert ours() == [kept, stale]  # as long as it stays in the pool
        node.pools(
            {"resourceName": "dpdk", "selectors": {"drivers": ["iavf"]}},
            {**NET_POOL, "selectors": [{"drivers": ["x"]}]},
        )
        await until(manager, lambda: len(manager.pools.members.get(DPDK, ())) == 5)
        assert ours() == [kept]
        await manager.release("a")
    async with node.manager() as manager:
        assert ours() == []
        await manager.allocate(DPDK, 6, owner="c")
        assert len(ours()) == 6
        await manager.release("c")
        node.sysfs.grow(OTHER, 0)
        node.tell(OTHER, node.vf(0, OTHER), node.vf(1, OTHER))
        await until(manager, lambda: len(members(manager, DPDK)) == 4)
        assert ours() == [f"intel.com-dpdk-{node.vf(index)}-device.json" for index in range(4)]
    assert all((folder / name).exists() for name in other)


async def test_device_information_stays(node: Node) -> None:
    """It is written when a device is given out, and is there after a restart: pods that run have it."""
    node.sysfs.rdma(node.vf(0), "mlx5_4", "uverbs4")
    async with node.manager() as manager:
        await manager.allocate(NET, 1, owner="a", wanted=[node.vf(0)])
    path = node.info / "dp" / f"intel.com-net-{node.vf(0)}-device.json"
    async with node.manager():
        document = json.loads(path.read_text())
    assert document == {
        "type": "pci",
        "version": "1.1.0",
        "pci": {"pci-address": node.vf(0), "pf-pci-address": PF, "rdma-device": "mlx5_4"},
    }
    assert path.stat().st_mode & 0o777 == 0o444
    assert [each.name for each in path.parent.iterdir()] == [path.name]


async def test_information_that_cannot_be_written_keeps_nobody_waiting(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    node.info.write_text("a file")
    async with node.manager() as manager:
        assert len(await manager.allocate(NET, 1, owner="a")) == 1
    assert "device information cannot be written" in caplog.text


# with a kubelet


async def test_with_a_kubelet(node: Node, tmp_path: Path) -> None:
    node.sysfs.bind(node.vf(0), "vfio-pci")
    node.sysfs.group(node.vf(0), 12)
    for name in ("vhost-net", "tun"):
        (node.sysfs.sys / "class/misc" / name).mkdir()
    node.pools(
        {
            "resourceName": "dpdk",
            "selectors": {"drivers": ["vfio-pci"], "needVhostNet": True},
            "additionalInfo": {"*": {"zone": "a"}},
        },
        {"resourceName": "net", "selectors": {"drivers": ["iavf"]}, "excludeTopology": True},
        {"resourceName": "none", "selectors": {"vendors": ["ffff"]}},
    )
    directory = tmp_path / "kubelet"
    async with (
        FakeKubelet(directory) as kubelet,
        node.manager(kubelet=Kubelet(directory, pace=QUICK)) as manager,
    ):
        with anyio.fail_after(10):
            dpdk = await kubelet.wait_registered(DPDK)
            net = await kubelet.wait_registered(NET)
            none = await kubelet.wait_registered("intel.com/none")
        async with (
            kubelet.follow(dpdk) as dpdks,
            kubelet.follow(net) as nets,
            kubelet.follow(none) as nones,
            kubelet.dial(dpdk) as plugin,
        ):
            await dpdks.until(lambda heard: heard.health == {node.vf(0): "Healthy"})
            await nets.until(lambda heard: len(heard.health) == 5)
            await nones.until(lambda heard: heard.lists == 1 and heard.health == {})  # served, as 0
            assert dpdks.numa == {node.vf(0): 0}
            assert set(nets.numa.values()) == {None}
            assert [pool.followed for pool in manager.statistics().pools] == [True] * 3

            asked = api.ContainerAllocateRequest(devices_ids=[node.vf(0)])
            answer = await plugin.Allocate(api.AllocateRequest(container_requests=[asked]))
            (container,) = answer.container_responses
            assert container.envs["PCIDEVICE_INTEL_COM_DPDK"] == node.vf(0)
            assert json.loads(container.envs["PCIDEVICE_INTEL_COM_DPDK_INFO"])[node.vf(0)]["extra"] == {"zone": "a"}
            assert [spec.host_path for spec in container.devices] == [
                *("/dev/vfio/vfio", "/dev/vfio/12", "/dev/vhost-net", "/dev/net/tun")
            ]
            assert (node.info / "dp" / f"intel.com-dpdk-{node.vf(0)}-device.json").exists()
            for wrong in (node.vf(1), "0000:ff:00.0"):
                asked = api.ContainerAllocateRequest(devices_ids=[wrong])
                with pytest.raises(GRPCError, match=f"{wrong} of intel.com/dpdk cannot be given"):
                    await plugin.Allocate(api.AllocateRequest(container_requests=[asked]))

            with anyio.fail_after(1.0):  # from the event to the kubelet's knowledge
                node.sysfs.remove(node.vf(1))
                node.tell(node.vf(1))
                await nets.until(lambda heard: heard.health[node.vf(1)] == "Unhealthy")
            await manager.allocate(NET, 1, owner="by hand", wanted=[node.vf(2)])
            await nets.until(lambda heard: heard.health[node.vf(2)] == "Unhealthy")
            await manager.release("by hand")
            await nets.until(lambda heard: heard.health[node.vf(2)] == "Healthy")

            # What the kubelet gave to a pod that is being made keeps its pool; the pool that is gone is withdrawn.
            node.pools(
                {"resourceName": "first", "selectors": {"drivers": ["vfio-pci"]}},
                {"resourceName": "dpdk", "selectors": {"vendors": ["8086"]}},
            )
            await nets.until(lambda heard: heard.ended and heard.health == {})
            await dpdks.until(lambda heard: len(heard.health) == 5)
            assert node.vf(0) in dpdks.health
            with anyio.fail_after(10):
                await kubelet.wait_registered("intel.com/first")
            node.now += 3600
            node.sysfs.grow(OTHER, 3)
            node.tell(OTHER, node.vf(2, OTHER))
            await dpdks.until(lambda heard: node.vf(0) not in heard.health)
            assert members(manager, "intel.com/first") == [node.vf(0)]


async def test_a_kubelet_that_restarts(node: Node, tmp_path: Path) -> None:
    directory = tmp_path / "kubelet"
    async with FakeKubelet(directory) as kubelet, node.manager(kubelet=Kubelet(directory, pace=QUICK)):
        for _ in range(2):
            with anyio.fail_after(10):
                request = await kubelet.wait_registered(NET)
            async with kubelet.follow(request) as follower:
                await follower.until(lambda heard: len(heard.health) == 6)
                await kubelet.stop()
                await kubelet.start()

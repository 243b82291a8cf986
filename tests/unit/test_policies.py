"""Policies at work: from files to VFs and pools, live, and never under anybody's hands."""

import errno
import json
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
import yaml
from anyio.streams.memory import MemoryObjectReceiveStream

from devices import guard
from devices.errors import DeviceError, KernelError
from devices.giving import PoolError
from devices.inventory import build
from devices.linux.links import Link
from devices.linux.uevents import Change
from devices.manager import Manager
from devices.policy_apply import Applier
from dpdk.drivers import Binder
from dpdk.kernel import Kernel, Survey
from multus import policies as module
from multus import policy_files
from multus.cli import main
from multus.errors import MultusError
from multus.hardware import InUse, make_manager, make_policies
from multus.journal import Journal
from multus.policies import Policies
from multus.policy_drivers import BinderDrivers
from multus.policy_files import PolicyError, for_node, labels, read_policies
from multus.sandbox import Attachment, Sandbox, State
from multus.settings import DaemonSettings
from tests.fake_pci_kernel import FakePciKernel
from tests.fake_policy_kernel import ONE, TWO, PolicyKernel

pytestmark = pytest.mark.anyio

NET, DPDK = "intel.com/net", "intel.com/dpdk"


def document(name: str, *pf_names: str, num: int = 4, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "sriovnetwork.openshift.io/v1",
        "kind": "SriovNetworkNodePolicy",
        "metadata": {"name": name, "namespace": "sriov-network-operator"},
        "spec": {"resourceName": name, "numVfs": num, "nicSelector": {"pfNames": list(pf_names)}, **spec},
    }


def sandbox(device: str) -> Sandbox:
    return Sandbox(
        container_id="c",
        ifname="eth0",
        state=State.ATTACHED,
        netns="",
        netns_id="",
        boot_id="b",
        pod_namespace="ns",
        pod_name="pod",
        pod_uid="u",
        attachments=(Attachment(position=0, network="n", ifname="net1", conf=b"{}", device_id=device),),
    )


class Node:
    """A node with two cards, a folder of policies, a journal, and what the daemon runs for them."""

    def __init__(self, root: Path) -> None:
        self.kernel = PolicyKernel(root)
        self.folder = root / "policies"
        self.folder.mkdir()
        self.config = root / "config.json"
        self.info = root / "devinfo"
        self.reasons: Mapping[str, str] = {}
        self.links: tuple[Link, ...] = ()
        self.blind = False
        self.settings = DaemonSettings(policies=str(self.folder))
        self.send, self.receive = anyio.create_memory_object_stream[Change](100)
        self.manager: Manager
        self.policies: Policies
        self.journal: Journal

    def write(self, *documents: dict[str, Any], name: str = "p.yaml") -> None:
        """Whole, by a rename."""
        temporary = self.folder / ".new"
        temporary.write_text(yaml.safe_dump_all(documents) if name.endswith("yaml") else json.dumps(documents[0]))
        temporary.replace(self.folder / name)

    @asynccontextmanager
    async def events(self) -> AsyncIterator[MemoryObjectReceiveStream[Change]]:
        yield self.receive

    @asynccontextmanager
    async def running(self, *, pools: bool = False) -> AsyncIterator[None]:
        async with Journal.open(self.info.with_name("journal.db")) as journal:
            self.journal = journal
            self.manager = Manager(
                config=self.config if pools else None,
                info=self.info,
                sysfs=self.kernel,
                store=journal.records,
                held=InUse(journal, None),
                reasons=lambda: self.reasons,
                events=self.events,
            )
            self.policies = Policies(
                self.manager,
                journal,
                self.settings,
                kernel=Surveyed(self),
                applier=Applier(self.kernel, self.kernel, self.kernel, settle=0.0),
            )
            await self.policies.load()
            async with anyio.create_task_group() as group:
                await group.start(self.manager.run)
                await group.start(self.policies.run)
                yield
                group.cancel_scope.cancel()

    def vfs(self, pf: str = ONE) -> int:
        return len(self.kernel.shape["ens1" if pf == ONE else "ens2"])

    def tell(self, *addresses: str) -> None:
        for address in addresses:
            self.send.send_nowait(Change(subsystem="pci", bdf=address))


class Surveyed(Kernel):
    """What the node uses is what it was told."""

    def __init__(self, node: Node) -> None:
        super().__init__(node.kernel)
        self._node = node

    def survey(self) -> Survey:
        if self._node.blind:
            raise KernelError("routes", errno.EPERM, "not permitted")
        guarded = guard.devices(self.sysfs.read(), self._node.reasons)
        return Survey(links=self._node.links, guarded=guarded)


async def until(holds: Callable[[], object], *, limit: float = 20.0) -> None:
    with anyio.fail_after(limit):
        while not holds():
            await anyio.sleep(0.01)


async def given(node: Node, resource: str, count: int, *, owner: str) -> list[str]:
    """Devices of a pool, as soon as policies have let go of its PFs: they are its members a moment before."""
    with anyio.fail_after(20):
        while True:
            try:
                return list(await node.manager.allocate(resource, count, owner=owner))
            except PoolError:
                await anyio.sleep(0.01)


def members(node: Node, resource: str) -> list[str]:
    return [member.device.bdf for member in node.manager.pools.members.get(resource, ())]


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    monkeypatch.setattr(module, "_FIRST", 0.02)
    monkeypatch.setattr(module, "_LONGEST", 0.1)
    monkeypatch.setattr(policy_files, "_SETTLE", 0.01)
    monkeypatch.setattr(policy_files, "_RETRY", 0.02)
    made = Node(tmp_path)
    yield made
    made.send.close()
    made.receive.close()


# from files to devices


async def test_from_a_folder_to_vfs_and_pools(node: Node) -> None:
    node.write(
        document("net", "ens1#0-1", mtu=9000),
        document("dpdk", "ens1#2-3", deviceType="vfio-pci"),
        {"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "p"}},
    )
    node.write(document("two", "ens2", num=2, resourceName="net"), name="two.json")
    (node.folder / "notes.txt").write_text("{")
    async with node.running():
        await until(lambda: len(members(node, DPDK)) == 2 and len(members(node, NET)) == 4)
        assert node.kernel.shape == {
            "ens1": [(9000, "iavf")] * 2 + [(0, "vfio-pci")] * 2,
            "ens2": [(1500, "iavf")] * 2,
        }
        await until(lambda: [pool.healthy for pool in node.manager.statistics().pools] == [2, 4])
        assert len(await given(node, DPDK, 2, owner="a")) == 2


async def test_pools_of_the_file_come_first(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    node.config.write_text(
        json.dumps(
            {
                "resourceList": [
                    {"resourceName": "mine", "selectors": {"pfNames": ["ens1#0-0"]}},
                    {"resourceName": "dpdk", "selectors": {"drivers": ["none"]}},
                ]
            }
        )
    )
    node.write(document("net", "ens1"), document("dpdk", "ens2", num=1))
    async with node.running(pools=True):
        await until(lambda: len(members(node, NET)) == 3)
        assert len(members(node, "intel.com/mine")) == 1
        await until(lambda: node.vfs(TWO) == 1)
        assert members(node, DPDK) == []
        assert [pool.resource for pool in node.manager.config.pools] == ["intel.com/mine", DPDK, NET]
    assert caplog.text.count(f"{DPDK} is a pool of config.json already: that of a policy is left out") == 1


async def test_the_folder_is_followed(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with node.running():
        assert node.kernel.calls == []
        node.write(document("net", "ens1", num=2))
        await until(lambda: len(members(node, NET)) == 2)
        (node.folder / "bad.yaml").write_text("kind: SriovNetworkNodePolicy\nmetadata: {name: bad}\nspec: {}\n")
        await until(lambda: "policies stay as they are" in caplog.text)
        node.write(document("net", "ens1", num=3))
        await until(lambda: caplog.text.count("policies stay as they are") == 1)
        assert node.vfs() == 2
        (node.folder / "bad.yaml").unlink()
        await until(lambda: len(members(node, NET)) == 3)
        (node.folder / "p.yaml").unlink()
        await until(lambda: node.manager.config.pools == ())
        assert node.vfs() == 3  # what policies made stays when they go


async def test_a_folder_that_comes_later(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    node.folder.rmdir()
    async with node.running():
        assert "cannot read the folder of policies" in caplog.text
        node.folder.mkdir()
        node.write(document("net", "ens1", num=2))
        await until(lambda: node.vfs() == 2)


async def test_policies_inline(node: Node) -> None:
    inline = (json.dumps(document("net", "ens1", num=2)).encode(),)
    node.settings = DaemonSettings(sriov_policies=inline)
    async with node.running():
        await until(lambda: len(members(node, NET)) == 2)


async def test_hardware_that_somebody_else_changes_is_changed_back(node: Node) -> None:
    node.write(document("net", "ens1", num=2))
    async with node.running():
        await until(lambda: len(members(node, NET)) == 2)
        gone = [node.kernel.fake.vf_bdf(ONE, index) for index in range(2)]
        node.kernel.fake.grow(ONE, 0)
        node.tell(ONE, *gone)
        await until(lambda: node.kernel.calls == ["ens1 has 2", "ens1 has 2"])
        await until(lambda: len(members(node, NET)) == 2)


# what is in use


async def test_a_vf_that_was_given_out_keeps_its_pf_as_it_is_until_it_is_back(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    node.write(document("net", "ens1"))
    async with node.running():
        await until(lambda: len(members(node, NET)) == 4)
        (device,) = await given(node, NET, 1, owner="pod ns/one")
        node.write(document("net", "ens1", num=2))
        await until(lambda: "in use" in caplog.text)
        await anyio.sleep(0.2)  # it is planned for again several times
        assert caplog.text.count(f"1 of its 4 VFs is in use: {device} by pod ns/one") == 1
        assert node.vfs() == 4
        await node.manager.release("pod ns/one")
        await until(lambda: node.vfs() == 2)


async def test_an_attachment_keeps_its_pf_as_it_is_until_it_is_gone(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    node.write(document("net", "ens1"))
    async with node.running():
        await until(lambda: len(members(node, NET)) == 4)
        attached = sandbox(members(node, NET)[1])
        await node.journal.begin(attached)
        node.write(document("net", "ens1", num=2))
        await until(lambda: "by pod ns/pod (net1)" in caplog.text)
        assert node.vfs() == 4
        await node.journal.forget(attached.key)  # and nobody says so
        await until(lambda: node.vfs() == 2)


async def test_an_interface_that_is_elsewhere_keeps_its_pf_as_it_is(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    node.kernel.fake.grow(ONE, 1)
    node.kernel.fake.remove_netdev("ens1v0")
    node.write(document("net", "ens1", num=2), document("two", "ens2", num=1))
    async with node.running():
        await until(lambda: node.vfs(TWO) == 1 and "not in this network namespace" in caplog.text)
        assert node.kernel.calls == ["ens2 has 1"]


async def test_a_vf_in_a_bridge_of_the_node_keeps_its_pf_as_it_is(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    node.kernel.fake.grow(ONE, 1)
    index = int((node.kernel.root / "class/net/ens1v0/ifindex").read_text())
    node.links = (Link(index=index, name="ens1v0", master_index=77), Link(index=77, name="br0", kind="bridge"))
    node.write(document("net", "ens1", num=2))
    async with node.running():
        await until(lambda: "by the node: its interface ens1v0 belongs to br0" in caplog.text)
        assert node.kernel.calls == []


async def test_what_the_node_needs_is_left_alone(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    node.reasons = {"ens1": "the node's IPv4 default route"}
    node.write(document("net", "ens1", num=2), document("two", "ens2", num=1))
    async with node.running():
        await until(lambda: node.vfs(TWO) == 1 and "default route" in caplog.text)
        assert node.vfs() == 0


async def test_nothing_of_a_pf_is_given_out_while_it_is_changed(node: Node) -> None:
    node.kernel.fake.grow(ONE, 4)
    node.config.write_text(json.dumps({"resourceList": [{"resourceName": "x", "selectors": {"pfNames": ["ens1"]}}]}))
    node.write(document("dpdk", "ens1", deviceType="vfio-pci"))
    tried: list[str] = []
    bind = node.kernel.bind

    async def tempted(addresses: Sequence[str], driver: str, *, owner: str) -> dict[str, DeviceError]:
        with pytest.raises(PoolError, match="0 of 4 are free"):
            await node.manager.allocate("intel.com/x", 1, owner="a")
        with pytest.raises(PoolError, match="policies change its PF"):
            await node.manager._giver.grant("intel.com/x", addresses)
        assert node.manager.statistics().pools[1].healthy == 0
        tried.extend(addresses)
        return await bind(addresses, driver, owner=owner)

    node.kernel.bind = tempted  # type: ignore[method-assign]
    async with node.running(pools=True):
        await until(lambda: len(tried) == 4)
        await until(lambda: node.manager.statistics().pools[1].healthy == 4)
        assert len(await node.manager.allocate("intel.com/x", 4, owner="a")) == 4


# failures


async def test_what_may_work_later_is_tried_again(node: Node) -> None:
    node.kernel.refused["ens1 has 2"] = KernelError("making 2 VFs", errno.ENOMEM, "no room")
    node.write(document("net", "ens1", num=2), document("two", "ens2", num=1))
    async with node.running():
        await until(lambda: node.vfs(TWO) == 1)
        assert node.vfs() == 0
        node.kernel.refused.clear()
        await until(lambda: node.vfs() == 2)


async def test_what_cannot_work_waits_for_something_to_change(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    node.kernel.refused["ens1 has 2"] = KernelError("making 2 VFs", errno.ERANGE, "too many")
    node.write(document("net", "ens1", num=2))
    async with node.running():
        await until(lambda: "too many" in caplog.text)
        node.kernel.refused.clear()
        await anyio.sleep(0.3)
        assert node.vfs() == 0
        assert caplog.text.count("too many") == 1
        node.write(document("net", "ens1", num=3))
        await until(lambda: node.vfs() == 3)


async def test_a_vf_that_fails_is_tried_again_and_told_of_once(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    node.kernel.refused["ens10 mtu 9000"] = KernelError("setting mtu", errno.EINVAL, "too large")
    node.write(document("net", "ens1", num=1, mtu=9000))
    async with node.running():
        await until(lambda: "policy net: 0000:03:01.0: setting mtu: too large" in caplog.text)
        await anyio.sleep(0.3)
        assert caplog.text.count("too large") == 1
        node.kernel.refused.clear()
        await until(lambda: node.kernel.shape["ens1"] == [(9000, "iavf")])


async def test_a_node_that_cannot_be_looked_at(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    async with node.running():
        node.blind = True
        node.write(document("net", "ens1", num=2))
        await until(lambda: "policies are not applied now: routes: not permitted" in caplog.text)
        await anyio.sleep(0.2)
        assert caplog.text.count("policies are not applied now") == 1
        assert node.kernel.calls == []
        node.blind = False
        await until(lambda: node.vfs() == 2)


# files and nodes


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("p.yaml", "a: [", "p.yaml: line"),
        ("p.yaml", "- a", "not an object"),
        ("p.yaml", "!!python/object:os.system {}", "tags are not read"),
        ("p.json", '{"kind": "SriovNetworkNodePolicy",', "p.json"),
        ("p.yaml", "{kind: SriovNetworkNodePolicy, metadata: {name: x}, spec: {numVfs: 0}}", "resourceName"),
        ("p.yaml", "a: " + "x" * (5 << 20), "is larger than"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, name: str, text: str, says: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(MultusError) as caught:
        read_policies(tmp_path)
    assert says in str(caught.value)


def test_two_of_one_name_in_file_and_folder(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(document("net", "ens1")))
    inline = [json.dumps(document("net", "ens2")).encode()]
    with pytest.raises(PolicyError, match="policy net is there twice"):
        read_policies(tmp_path, inline)
    assert [policy.name for policy in read_policies(None, inline)] == ["net"]
    assert read_policies(None) == ()


def test_which_policies_are_for_this_node(tmp_path: Path) -> None:
    kernel = PolicyKernel(tmp_path)
    found = build(kernel.read(), guarded={})
    settings = DaemonSettings(node_name="n1", node_labels={"rack": "7"})
    known = labels(settings, found)
    selectors = {
        "all": {},
        "capable": {"feature.node.kubernetes.io/network-sriov.capable": "true", "kubernetes.io/os": "linux"},
        "named": {"kubernetes.io/hostname": "n1", "rack": "7"},
        "other": {"kubernetes.io/hostname": "n2"},
        "rack": {"rack": "8"},
    }
    inline = [
        json.dumps(document(name, f"ens{at}", nodeSelector=selector)).encode()
        for at, (name, selector) in enumerate(selectors.items())
    ]
    mine = for_node(read_policies(None, inline), known)
    assert [policy.name for policy in mine] == ["all", "capable", "named"]
    assert "feature.node.kubernetes.io/network-sriov.capable" not in labels(settings, build([], guarded={}))


async def test_whether_there_are_policies_at_all(tmp_path: Path) -> None:
    async with Journal.open(tmp_path / "journal.db") as journal:
        without = DaemonSettings(manifests="m")
        assert make_manager(without, journal) is None
        assert await make_policies(without, journal, None) is None
        (tmp_path / "p.yaml").write_text(yaml.safe_dump(document("net", "ens1")))
        settings = DaemonSettings(manifests="m", policies=str(tmp_path))
        manager = make_manager(settings, journal)
        made = await make_policies(settings, journal, manager)
        assert made is not None
        assert [policy.name for policy in made.policies] == ["net"]


# drivers


@pytest.fixture
def kernel(tmp_path: Path) -> FakePciKernel:
    made = FakePciKernel(tmp_path)
    made.tree.driver("iavf")
    made.tree.pf(ONE, netdev="ens1", total=4, num=2, group=10)
    return made


async def test_drivers_there_and_back(kernel: FakePciKernel, tmp_path: Path) -> None:
    vf = kernel.tree.vf_bdf(ONE, 0)
    async with Journal.open(tmp_path / "journal.db") as journal:
        binder = Binder(kernel, journal.records)
        drivers = BinderDrivers(binder, kernel.sysfs)
        for _ in range(2):
            assert await drivers.bind([vf], "vfio-pci", owner="policy p") == {}
        assert (await binder.records())[vf].owner == "policy p"
        assert await drivers.bind([vf], "", owner="policy p") == {}
        record = kernel.sysfs.read_one(vf)
        assert record is not None
        assert (record.driver, record.driver_override) == ("iavf", "")
        assert await binder.records() == {}


async def test_a_vf_that_was_bound_by_hand_goes_back(kernel: FakePciKernel, tmp_path: Path) -> None:
    vf = kernel.tree.vf_bdf(ONE, 0)
    async with Journal.open(tmp_path / "one.db") as journal:
        await Binder(kernel, journal.records).apply_bind(await Binder(kernel, journal.records).plan(vf, "vfio-pci"))
    async with Journal.open(tmp_path / "other.db") as journal:  # of which this one knows nothing
        drivers = BinderDrivers(Binder(kernel, journal.records), kernel.sysfs)
        assert await drivers.bind([vf], "", owner="policy p") == {}
        record = kernel.sysfs.read_one(vf)
        assert record is not None
        assert record.driver == "iavf"


async def test_vfs_of_one_group_leave_together(kernel: FakePciKernel, tmp_path: Path) -> None:
    vfs = [kernel.tree.vf_bdf(ONE, index) for index in range(2)]
    for vf in vfs:
        kernel.tree.group(vf, 99)
    async with Journal.open(tmp_path / "journal.db") as journal:
        drivers = BinderDrivers(Binder(kernel, journal.records), kernel.sysfs)
        failed = await drivers.bind(vfs[:1], "vfio-pci", owner="policy p")
        assert "not viable" in str(failed[vfs[0]])
        assert await drivers.bind(vfs, "vfio-pci", owner="policy p") == {}


async def test_a_vf_that_no_driver_takes(kernel: FakePciKernel, tmp_path: Path) -> None:
    vf = kernel.tree.vf_bdf(ONE, 0)
    kernel.tree.bind(vf, "")
    kernel.refuses.add("iavf")
    async with Journal.open(tmp_path / "journal.db") as journal:
        drivers = BinderDrivers(Binder(kernel, journal.records), kernel.sysfs)
        failed = await drivers.bind([vf], "", owner="policy p")
        assert "it is on no driver, none of the kernel's takes it" in str(failed[vf])
        kernel.refuses.clear()
        assert await drivers.bind([vf], "", owner="policy p") == {}


async def test_records_of_vfs_that_are_no_more(kernel: FakePciKernel, tmp_path: Path) -> None:
    vf, other = (kernel.tree.vf_bdf(ONE, index) for index in range(2))
    async with Journal.open(tmp_path / "journal.db") as journal:
        binder = Binder(kernel, journal.records)
        drivers = BinderDrivers(binder, kernel.sysfs)
        assert await drivers.bind([vf], "vfio-pci", owner="policy p") == {}
        assert await drivers.bind([other], "vfio-pci", owner="policy p") == {}
        kernel.tree.remove(vf)
        await drivers.removed([vf, "0000:99:00.0"])
        assert list(await binder.records()) == [other]


# multusctl vf plan


def test_the_plan_beforehand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kernel = PolicyKernel(tmp_path)
    kernel.fake.grow(TWO, 1)
    kernel.fake.remove_netdev("ens2v0")
    monkeypatch.setattr(guard, "read", dict)
    folder = tmp_path / "policies"
    folder.mkdir()
    (folder / "p.yaml").write_text(
        yaml.safe_dump_all(
            [
                document("net", "ens1", mtu=9000),
                document("two", "ens2", num=2),
                document("far", "ens3", nodeSelector={"rack": "8"}),
            ]
        )
    )
    daemon = tmp_path / "daemon-config.json"
    daemon.write_text(json.dumps({"policies": str(folder)}))
    common = ["--cni-dir", str(tmp_path), "--sysfs", str(kernel.root)]
    outputs = []
    for given in (["--settings", str(daemon)], ["--policies", str(folder)]):
        assert main(["vf", "plan", *given, *common]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1]
    lines = [line.strip() for line in outputs[0].splitlines()]
    assert lines[:4] == [
        "policy far is for other nodes: rack=8",
        f"ens1 ({ONE}): make 4 VFs (policy net)",
        f"ens1 ({ONE}): MTU 1500 -> 9000 (policy net)",
        f"VFs 0-3 of ens1 ({ONE}): MTU ? -> 9000 (policy net)",
    ]
    assert lines[4].startswith(f"refused: ens2 ({TWO}): 1 of its 1 VFs is in use")
    assert kernel.calls == []
    (folder / "p.yaml").write_text("a: [")
    assert main(["vf", "plan", "--policies", str(folder), *common]) == 1
    assert "p.yaml: line" in capsys.readouterr().err

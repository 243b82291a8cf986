"""A pod's DPDK ports are told to it: in the files of each of its devices, and in its network-status."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from devices import portfiles
from devices.linux.sysfs import Sysfs
from devices.linux.vfs import VFState
from devices.vf import VFConfig
from multus import adding
from multus.cni.result import IP, Interface, Result
from multus.delegates.sriov_record import KIND, Record, encode_record
from multus.journal import JournalError
from multus.kube.limits import Limits
from multus.kube.objects import Pod
from multus.ports import NOTHING, Ports
from multus.sandbox import Attachment, Sandbox, State
from multus.settings import parse_daemon
from tests.fake_sysfs import FakeSysfs

pytestmark = pytest.mark.anyio

PF = "0000:03:00.0"


class Kept:
    """The delegate's records."""

    def __init__(self) -> None:
        self.data: dict[str, bytes] = {}
        self.broken = False

    async def load(self, key: str, kind: str) -> bytes | None:
        assert kind == KIND
        if self.broken:
            raise JournalError("the journal cannot be read")
        return self.data.get(key)


class Node:
    """A PF with three VFs, the first two of which are a pod's, on vfio-pci."""

    def __init__(self, root: Path) -> None:
        self.tree = FakeSysfs(root)
        self.tree.pf(PF, netdev="ens1", total=8, num=3, numa=1, group=10, vf_netdevs=False, vf_driver="vfio-pci")
        self.vfs = [self.tree.vf_bdf(PF, index) for index in range(3)]
        self.records = Kept()
        self.info = root / "devinfo"
        self.ports = Ports(self.records, self.info, sysfs=Sysfs(self.tree.sys, self.tree.dev))
        pool = self.tree.sys / "devices/system/node/node1/hugepages/hugepages-2048kB"
        pool.mkdir(parents=True)
        for name in ("nr", "free", "surplus"):
            (pool / f"{name}_hugepages").write_text("256\n")
        for index, vlan in enumerate((100, None, None)):
            self.record(index, wanted=VFConfig(vlan=vlan), original=VFState(vlan=7))

    def record(self, index: int, **more: Any) -> None:
        given = {"container_id": "c1", "ifname": f"net{index + 1}", "netns": "/n", "driver": "vfio-pci", **more}
        self.records.data[self.vfs[index]] = encode_record(Record(bdf=self.vfs[index], **given))

    def read(self, index: int, name: str = portfiles.MAP) -> bytes:
        return portfiles.read(self.info, self.vfs[index], name, limit=1 << 20)

    def attachment(self, index: int, **more: Any) -> Attachment:
        known = {"network": f"vfw/n{index + 1}", "ifname": f"net{index + 1}", "conf": b"{}", "resource": "intel.com/v"}
        return Attachment(**{"position": index + 1, "device_id": self.vfs[index], **known, **more})

    def sandbox(self, *attachments: Attachment) -> Sandbox:
        default = Attachment(position=0, network="cbr0", ifname="eth0", conf=b"{}", default=True)
        return Sandbox(
            container_id="c1",
            ifname="eth0",
            state=State.ADDING,
            netns="/n",
            netns_id="4:1",
            boot_id="b",
            pod_namespace="vfw",
            pod_name="fw",
            pod_uid="u-1",
            attachments=(default, *attachments),
        )


POD = Pod(
    namespace="vfw",
    name="fw",
    limits=(Limits(container="fw", amounts={"intel.com/v": "2", "hugepages-2Mi": "256Mi"}, locks=True),),
)
RESULTS = {
    "eth0": Result(),
    **{
        f"net{number}": Result(
            interfaces=(Interface(name=f"net{number}", mac=f"02:fe:00:00:00:0{number}", sandbox="/n"),),
            ips=(IP(address=f"10.{number}.0.5/24", interface=0),),
        )
        for number in (1, 2, 3)
    },
}


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


async def test_a_pod_is_told_of_its_ports(node: Node) -> None:
    sandbox = node.sandbox(node.attachment(1), node.attachment(0))
    found = await node.ports.publish(sandbox, POD, RESULTS)
    assert found.lacks == ()
    written = json.loads(node.read(0))
    assert node.read(0) == node.read(1)  # a container finds all by whichever it has
    assert [(each["network"], each["interface"], each["pci"], each["port"]) for each in written["ports"]] == [
        ("vfw/n2", "net2", node.vfs[1], 1),
        ("vfw/n1", "net1", node.vfs[0], 0),
    ]
    assert [(each["mac"], each["vlan"], each["numa"], each["ips"]) for each in written["ports"]] == [
        ("02:fe:00:00:00:02", 7, 1, ["10.2.0.5/24"]),
        ("02:fe:00:00:00:01", 100, 1, ["10.1.0.5/24"]),
    ]
    assert (written["pod"], written["uid"], written["sandbox"]) == ("vfw/fw", "u-1", "c1")
    arguments = f"-a {node.vfs[1]} -a {node.vfs[0]} --socket-mem 0,256 --in-memory --iova-mode va"
    assert node.read(0, portfiles.EAL).decode() == arguments + "\n"
    assert node.read(0, portfiles.PORTS).decode() == (
        f"1 vfw/n2 net2 {node.vfs[1]} 02:fe:00:00:00:02 7 1\n0 vfw/n1 net1 {node.vfs[0]} 02:fe:00:00:00:01 100 1\n"
    )
    assert node.read(2) == b""
    told = {"type": "pci", "version": "1.1.0", "pci": {"pci-address": node.vfs[0], "pf-pci-address": PF}}
    dpdk = {"port": 0, "driver": "vfio-pci", "numa": 1, "mac": "02:fe:00:00:00:01", "vlan": 100}
    assert found.device_info("net1", told) == {**told, "dpdk": dpdk | {"eal": arguments.split()}}
    without = found.device_info("net1", None)
    assert without is not None
    assert without["pci"] == {"pci-address": node.vfs[0]}
    assert found.device_info("eth0", None) is None


async def test_files_go_with_the_sandbox_and_not_with_another_one(node: Node) -> None:
    sandbox = node.sandbox(node.attachment(0))
    await node.ports.publish(sandbox, POD, RESULTS)
    other = node.sandbox(node.attachment(0))
    await node.ports.removed(
        Sandbox(**{name: getattr(other, name) for name in other.__struct_fields__} | {"container_id": "c0"})
    )
    assert node.read(0) != b""
    await node.ports.removed(sandbox)
    assert [node.read(0, name) for name in (portfiles.MAP, portfiles.EAL, portfiles.PORTS)] == [b""] * 3
    assert portfiles.folder(node.info, node.vfs[0]).is_dir()  # a container that is being made may have it mounted
    await node.ports.removed(sandbox)


@pytest.mark.parametrize(
    "more",
    [
        {"driver": "iavf"},
        {"container_id": "c2"},
        {"ifname": "net9"},
    ],
)
async def test_what_is_no_port_of_the_pod(node: Node, more: dict[str, str]) -> None:
    node.record(0, **more)
    assert await node.ports.publish(node.sandbox(node.attachment(0)), POD, RESULTS) is NOTHING
    assert node.read(0) == b""


async def test_a_driver_that_dpdk_works_beside_is_one(node: Node) -> None:
    node.record(0, driver="mlx5_core", beside=True)
    found = await node.ports.publish(node.sandbox(node.attachment(0)), POD, RESULTS)
    assert found.ports is not None
    assert found.ports.ports[0].driver == "mlx5_core"


@pytest.mark.parametrize("device", ["../../etc", "gpu-0", "", "0000:03:02.0/../x"])
async def test_devices_with_other_names(node: Node, device: str) -> None:
    sandbox = node.sandbox(node.attachment(0, device_id=device))
    assert await node.ports.publish(sandbox, POD, RESULTS) is NOTHING
    await node.ports.removed(sandbox)
    assert not node.info.exists()


async def test_what_the_pod_lacks(node: Node) -> None:
    bare = Pod(namespace="vfw", name="fw", limits=(Limits(container="fw", amounts={"intel.com/v": "2"}),))
    found = await node.ports.publish(node.sandbox(node.attachment(0)), bare, RESULTS)
    assert [each.partition(":")[0] for each in found.lacks] == [
        "container fw has no hugepages",
        "container fw may not lock memory for DMA",
    ]
    assert "--socket-mem" not in node.read(0).decode()


async def test_a_pool_that_does_not_know_of_the_networks_wish(node: Node) -> None:
    node.record(0, bound=True)
    found = await node.ports.publish(node.sandbox(node.attachment(0)), POD, RESULTS)
    assert 'set "driver": "vfio-pci" for intel.com/v' in found.lacks[0]
    portfiles.prepare(node.info, node.vfs[0])
    found = await node.ports.publish(node.sandbox(node.attachment(0)), POD, RESULTS)
    assert found.lacks == ()


async def test_no_pod_fails_for_it(node: Node) -> None:
    node.info.write_text("in the way")
    found = await node.ports.publish(node.sandbox(node.attachment(0)), POD, RESULTS)
    assert "the map of its ports is missing" in found.lacks[0]
    await node.ports.removed(node.sandbox(node.attachment(0)))
    node.records.broken = True
    assert await node.ports.publish(node.sandbox(node.attachment(0)), POD, RESULTS) is NOTHING


async def test_a_damaged_map_is_left_for_the_next_pod(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    portfiles.write(node.info, node.vfs[0], {portfiles.MAP: b"{"})
    await node.ports.removed(node.sandbox(node.attachment(0)))
    assert "is no map of DPDK ports" in caplog.text


class Cluster:
    """What the pod is told."""

    def __init__(self) -> None:
        self.status = ""
        self.events: list[tuple[str, str, str]] = []

    async def set_network_status(self, pod: Pod, status: str) -> None:
        self.status = status

    async def event(self, pod: Pod, *, kind: str, reason: str, message: str) -> None:
        self.events.append((kind, reason, message))


class Around:
    """Whatever else an ADD needs: its networks stand already."""

    def __init__(self, results: dict[int, Result]) -> None:
        self.results = results

    async def attach(self, sandbox: Sandbox, confs: object, results: dict[int, Result]) -> None:
        results.update(self.results)

    async def attached(self, *told: object) -> None:
        """It is in the journal."""

    def status_written(self, *told: object) -> None:
        """That, too."""


async def test_an_add_tells_the_pod_and_does_not_fail_for_what_it_lacks(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def as_they_are(netns: str, results: dict[str, Result], decisions: object) -> dict[str, Result]:
        return results

    monkeypatch.setattr(adding, "apply_gateways", as_they_are)
    sandbox = node.sandbox(node.attachment(0))
    planned = [SimpleNamespace(attachment=each, conf=None, gateways=None) for each in sandbox.attachments]
    around: Any = Around({each.position: RESULTS[each.ifname] for each in sandbox.attachments})
    cluster = Cluster()
    adder = adding.Adder(
        settings=lambda: parse_daemon(b'{"clusterNetwork": "x"}', where="test", cores=1),
        resolver=around,
        journal=around,
        attacher=around,
        lanes=around,
        upkeep=around,
        cluster=cast("Any", cluster),
        devinfo_dir=node.info,
        boot_id="b",
        step=lambda name: None,
        gone=around,
        ports=node.ports,
    )
    bare = Pod(namespace="vfw", name="fw", limits=(Limits(container="fw", amounts={"intel.com/v": "2"}, locks=True),))
    await adder._attach(sandbox, bare, cast("Any", SimpleNamespace(attachments=planned)), {})
    (port,) = json.loads(cluster.status)
    assert (port["name"], port["interface"], port["mac"]) == ("vfw/n1", "net1", "02:fe:00:00:00:01")
    assert port["device-info"]["pci"] == {"pci-address": node.vfs[0]}
    assert port["device-info"]["dpdk"]["eal"][:2] == ["-a", node.vfs[0]]
    assert [event[:2] for event in cluster.events] == [("Warning", "DPDKNotReady")]
    assert "container fw has no hugepages" in cluster.events[0][2]

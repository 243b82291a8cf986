"""Whether the daemon runs a device manager, and what that one must leave alone."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest

from devices.errors import DeviceError
from devices.kubelet.podresources import SOCKET, PodResources
from devices.linux.sysfs import Sysfs
from devices.manager import Manager
from multus.assignments import KubeletAssignments, NoAssignments, PoolAssignments
from multus.cni.request import Command, Request
from multus.confdir import Files
from multus.errors import NodeError
from multus.hardware import InUse, config_path, make_manager, run_manager
from multus.journal import Journal, JournalError
from multus.kube.cluster import NoCluster
from multus.kube.objects import NAD, Pod
from multus.networks.devices import Wish
from multus.resolve import Resolver
from multus.sandbox import Attachment, Sandbox, State
from multus.settings import DaemonSettings, net_conf
from multus.slots import Lanes
from multus.upkeep import Upkeep
from multus.wiring import _assignments
from tests.fake_kubelet import FakeKubelet
from tests.fake_sysfs import FakeSysfs

pytestmark = pytest.mark.anyio

NET = "intel.com/net"


@pytest.mark.parametrize(
    ("key", "manifests", "upstream", "kubelet", "expected"),
    [
        ("", "", False, True, ""),
        ("", "", True, False, ""),
        ("", "", True, True, "upstream"),
        ("", "m", True, True, ""),  # a folder of YAML: no kubelet is served
        ("own", "", True, True, "own"),
        ("own", "m", False, False, "own"),
        ("own", "", False, False, "own"),
    ],
)
async def test_which_configuration(
    tmp_path: Path, key: str, manifests: str, upstream: bool, kubelet: bool, expected: str
) -> None:
    default = tmp_path / "upstream"
    if upstream:
        default.write_text("{}")
    if kubelet:
        (tmp_path / "kubelet").mkdir()
    settings = DaemonSettings(
        device_config=key and str(tmp_path / key), manifests=manifests, kubelet_dir=str(tmp_path / "kubelet")
    )
    found = config_path(settings, default=default)
    assert (found.name if found else "") == expected
    async with Journal.open(tmp_path / "journal.db") as journal:
        manager = make_manager(settings, journal, default=default)
        assert (manager is not None) == bool(expected)
        kinds: dict[tuple[bool, bool], type] = {(True, True): PoolAssignments, (True, False): NoAssignments}
        kind = kinds.get((bool(manifests), manager is not None), KubeletAssignments)
        assert type(_assignments(settings, None, manager, journal)) is kind


def sandbox(*devices: str) -> Sandbox:
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
        attachments=tuple(
            Attachment(position=index, network="n", ifname=f"net{index}", conf=b"{}", device_id=device)
            for index, device in enumerate(devices)
        ),
    )


async def test_what_is_in_use(tmp_path: Path) -> None:
    now = 0.0
    async with Journal.open(tmp_path / "journal.db") as journal, FakeKubelet(tmp_path) as kubelet:
        held = InUse(journal, PodResources(tmp_path / SOCKET, timeout=5.0), clock=lambda: now)
        assert await held() == {}
        await journal.begin(sandbox("", "0000:03:02.0"))
        kubelet.pods["ns", "pod"] = [("c", [("intel.com/net", ["0000:03:02.1"])])]
        assert await held() == {"0000:03:02.0": ""}  # the journal is read each time, the kubelet asked once in a while
        now += 60
        assert await held() == {"0000:03:02.0": "", "0000:03:02.1": NET}
        calls = len(kubelet.calls)
        kubelet.pods.clear()
        kubelet.limited = 1000
        held_without_answer = InUse(journal, PodResources(tmp_path / SOCKET, timeout=0.1), clock=lambda: now)
        assert await held_without_answer() == {"0000:03:02.0": ""}
        assert len(kubelet.calls) > calls
        kubelet.limited = 0
        now += 60
        assert await held() == {"0000:03:02.0": ""}


async def test_a_journal_that_cannot_be_read(tmp_path: Path) -> None:
    async with Journal.open(tmp_path / "journal.db") as journal:
        held = InUse(journal, None)
    with pytest.raises(DeviceError):
        await held()


async def test_a_manager_runs_on_this_machine(tmp_path: Path) -> None:
    """On whatever hardware there is: it starts, has its pools, and stops."""
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"resourceList": [{"resourceName": "x", "selectors": {"vendors": ["0000"]}}]}))
    settings = DaemonSettings(device_config=str(config), manifests="m", device_info_dir=str(tmp_path / "info"))
    async with Journal.open(tmp_path / "journal.db") as journal:
        manager = make_manager(settings, journal)
        assert manager is not None
        async with anyio.create_task_group() as group:
            await group.start(run_manager, manager)
            assert list(manager.pools.members) == ["intel.com/x"]
            group.cancel_scope.cancel()


async def test_a_manager_that_cannot_start(tmp_path: Path) -> None:
    settings = DaemonSettings(device_config=str(tmp_path / "none"), manifests="m")
    async with Journal.open(tmp_path / "journal.db") as journal:
        manager: Any = make_manager(settings, journal)
    with pytest.raises(JournalError):  # who has what cannot be read any more
        await run_manager(manager)


class FakeCluster(NoCluster):
    """A pod with networks of one resource, one NAD for all of them."""

    async def pod(self, namespace: str, name: str, *, uid: str = "") -> Pod:
        return Pod(namespace=namespace, name=name, uid="u", networks="vf,vf,plain", containers=("c",))

    async def nad(self, namespace: str, name: str) -> NAD:
        config = json.dumps({"cniVersion": "1.0.0", "name": name, "type": "sriov"})
        return NAD(namespace=namespace, name=name, config=config, resource="" if name == "plain" else NET)


async def test_from_pools_to_attachments_and_back(tmp_path: Path) -> None:
    """Two networks of one resource get two devices, and the pool has them again when the sandbox is gone."""
    sysfs = FakeSysfs(tmp_path)
    sysfs.pf("0000:03:00.0", netdev="ens1", total=4, num=3)
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"resourceList": [{"resourceName": "net", "selectors": {"drivers": ["iavf"]}}]}))
    async with Journal.open(tmp_path / "journal.db") as journal, anyio.create_task_group() as group:
        manager = Manager(
            config=config,
            info=tmp_path / "devinfo",
            sysfs=Sysfs(sysfs.sys, sysfs.dev),
            store=journal.records,
            held=InUse(journal, None),
            reasons=dict,
        )
        await group.start(run_manager, manager)
        own = PoolAssignments(manager, journal.all)
        cluster = FakeCluster()
        resolver = Resolver(
            cluster=cluster,
            assignments=own,
            files=Files(),
            sequential=lambda: False,
            device_info_dir=str(tmp_path / "devinfo"),
        )
        settings = DaemonSettings()
        args = (("K8S_POD_NAMESPACE", "ns"), ("K8S_POD_NAME", "pod"))
        request = Request(command=Command.ADD, container_id="c", ifname="eth0", args=args, conf=b"{}")
        found = []
        for _ in range(2):  # the runtime tries twice
            _, plan = await resolver.plan(
                request, net_conf(settings, b'{"cniVersion": "1.0.0", "delegates": [{"name": "eth", "type": "ptp"}]}')
            )
            plan.refuse()
            found.append([item.attachment.device_id for item in plan.attachments])
        assert found[0] == found[1] == ["", sysfs.vf_bdf("0000:03:00.0", 0), sysfs.vf_bdf("0000:03:00.0", 1), ""]
        with pytest.raises(NodeError, match=r"needs 2 devices of intel\.com/net: 1 of 3 are free"):
            await own.devices(Pod(namespace="ns", name="other", uid="u"), {NET: [Wish(), Wish()]})

        async def take_down(sandbox: Sandbox) -> None:
            pass

        upkeep = Upkeep(
            journal=journal,
            attacher=SimpleNamespace(take_down=take_down),  # type: ignore[arg-type]
            chain=SimpleNamespace(),  # type: ignore[arg-type]
            lanes=Lanes(),
            cluster=cluster,
            boot_id="b",
            removed=own.removed,
        )
        attached = sandbox(*found[0])
        await journal.begin(attached)
        await upkeep.remove(attached)
        assert manager.allocations == ()
        group.cancel_scope.cancel()


def test_a_node_without_pools_goes_without_their_libraries() -> None:
    code = "import sys, multus.daemon; sys.exit(any(name in sys.modules for name in ('pyudev', 'devices.manager')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

"""VFs as resources of a real kubelet. The hardware is a tree of files: the VM lane has the real one."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.cluster import Cluster
from tests.cluster.control import NODE_NAME
from tests.cluster.image import ROOT
from tests.cluster.pods import bridge, nad, pod
from tests.fake_sysfs import FakeSysfs

RESOURCE = "intel.com/sriov"
PF = "0000:3b:00.0"
VFS = 4
_ASK = """
import json, sys
from pathlib import Path
import anyio
from devices.kubelet.podresources import PodResources
socket, name, resource = sys.argv[1:]
pod = anyio.run(PodResources(Path(socket)).pod, "default", name)
devices = [item for each in pod.containers for item in each.devices if item.resource == resource]
print(json.dumps([id for item in devices for id in item.ids]))
"""


@pytest.fixture(scope="module")
def overlay(tmp_path_factory: pytest.TempPathFactory, bare_cluster: Cluster) -> Path:
    """deploy/sriov with another /sys in the daemon's container."""
    hardware = bare_cluster.directory / "hardware"
    hardware.mkdir()
    FakeSysfs(hardware).pf(PF, netdev="ens1f0", total=8, num=VFS)
    folder = tmp_path_factory.mktemp("overlay")
    container = {"name": "multus", "volumeMounts": [{"name": "sys", "mountPath": "/sys"}]}
    volume = {"name": "sys", "hostPath": {"path": str(hardware / "sys")}}
    patch = {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": "kube-multus-ds", "namespace": "kube-system"},
        "spec": {"template": {"spec": {"containers": [container], "volumes": [volume]}}},
    }
    (folder / "patch.yaml").write_text(yaml.safe_dump(patch))
    sriov = os.path.relpath(ROOT / "deploy/sriov", folder.resolve())
    kustomization = {"resources": [sriov], "patches": [{"path": "patch.yaml"}]}
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return folder


@pytest.fixture
def devices(cluster: Cluster, overlay: Path) -> Iterator[Cluster]:
    """The cluster with VFs; without any pod or device afterwards."""
    cluster.kubectl("apply", "-k", str(overlay))
    cluster.rolled_out()
    cluster.apply(nad("with-vf", bridge("with-vf", "10.7.0.0/24"), resource=RESOURCE))
    yield cluster
    cluster.delete_all()
    cluster.deploy("plain")


def allocatable(cluster: Cluster) -> int:
    return int(cluster.get("node", NODE_NAME)["status"]["allocatable"].get(RESOURCE, "0"))


def taker(name: str, count: int) -> dict[str, Any]:
    return pod(name, ",".join(["with-vf"] * count), resources={RESOURCE: str(count)})


def given(cluster: Cluster, name: str) -> list[str]:
    """What the kubelet handed to the container, by its environment."""
    return sorted(cluster.exec(name, "sh", "-c", "echo $PCIDEVICE_INTEL_COM_SRIOV").strip().split(","))


def seen(cluster: Cluster, name: str) -> list[str]:
    """What the networks were attached with, by the pod's status."""
    return sorted(
        each["device-info"]["pci"]["pci-address"] for each in cluster.network_status(name) if "device-info" in each
    )


def held(cluster: Cluster, name: str) -> list[str]:
    """What the kubelet's PodResources says that the pod has."""
    socket = "/var/lib/kubelet/pod-resources/kubelet.sock"
    return sorted(json.loads(cluster.node.run(sys.executable, "-c", _ASK, socket, name, RESOURCE)))


def refused(cluster: Cluster, name: str) -> bool:
    conditions = cluster.get("pod", name)["status"].get("conditions", [])
    return any(each.get("reason") == "Unschedulable" for each in conditions)


def test_pods_get_vfs_through_the_kubelet_and_networks_get_the_same(devices: Cluster) -> None:
    devices.node.wait(lambda: allocatable(devices) == VFS, "the kubelet to offer the VFs")
    devices.apply(taker("one", 1), taker("two", 2))
    devices.wait_ready("one", "two")
    for name, count in (("one", 1), ("two", 2)):
        assert len(given(devices, name)) == count
        assert seen(devices, name) == given(devices, name) == held(devices, name)
    assert not set(given(devices, "one")) & set(given(devices, "two"))

    devices.node.restart("kubelet")
    devices.apply(taker("last", 1))
    devices.wait_ready("last", seconds=90)
    assert seen(devices, "last") == given(devices, "last") == held(devices, "last")
    assert not set(given(devices, "last")) & {*given(devices, "one"), *given(devices, "two")}
    for name in ("one", "two"):
        assert held(devices, name) == given(devices, name), "the kubelet must not forget over a restart"

    devices.apply(taker("too-many", 1))
    devices.node.wait(lambda: refused(devices, "too-many"), "the scheduler to find no VF")
    devices.delete("one")
    devices.wait_ready("too-many")
    assert seen(devices, "too-many") == given(devices, "too-many") == held(devices, "too-many")

"""VFs as resources of a real kubelet. The hardware is a tree of files: the VM lane has the real one."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.cluster import BUSYBOX, NODE_NAME, Cluster
from tests.cluster.image import ROOT
from tests.fake_sysfs import FakeSysfs

RESOURCE = "intel.com/sriov"
PF = "0000:3b:00.0"
VFS = 4


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
    config = {
        "cniVersion": "1.0.0",
        "name": "with-vf",
        "type": "bridge",
        "bridge": "second0",
        "ipam": {"type": "host-local", "subnet": "10.7.0.0/24"},
    }
    cluster.apply(
        {
            "apiVersion": "k8s.cni.cncf.io/v1",
            "kind": "NetworkAttachmentDefinition",
            "metadata": {"name": "with-vf", "annotations": {"k8s.v1.cni.cncf.io/resourceName": RESOURCE}},
            "spec": {"config": json.dumps(config)},
        }
    )
    yield cluster
    cluster.kubectl("delete", "pods", "--all", "--wait=true", "--timeout=60s", seconds=70)
    cluster.settled()
    cluster.deploy("plain")


def allocatable(cluster: Cluster) -> int:
    return int(cluster.get("node", NODE_NAME)["status"]["allocatable"].get(RESOURCE, "0"))


def pod(name: str, count: int) -> dict[str, Any]:
    container = {
        "name": "main",
        "image": BUSYBOX,
        "command": ["sleep", "1000000"],
        "resources": {"requests": {RESOURCE: str(count)}, "limits": {RESOURCE: str(count)}},
    }
    networks = ",".join(["with-vf"] * count)
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "annotations": {"k8s.v1.cni.cncf.io/networks": networks}},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [container]},
    }


def given(cluster: Cluster, name: str) -> list[str]:
    """What the kubelet handed to the container, by its environment."""
    return sorted(cluster.exec(name, "sh", "-c", "echo $PCIDEVICE_INTEL_COM_SRIOV").strip().split(","))


def seen(cluster: Cluster, name: str) -> list[str]:
    """What the networks were attached with, by the pod's status."""
    return sorted(
        each["device-info"]["pci"]["pci-address"] for each in cluster.network_status(name) if "device-info" in each
    )


def test_pods_get_vfs_through_the_kubelet_and_networks_get_the_same(devices: Cluster) -> None:
    devices.node.wait(lambda: allocatable(devices) == VFS, "the kubelet to offer the VFs")
    devices.apply(pod("one", 1), pod("two", 2))
    devices.wait_ready("one", "two")
    for name, count in (("one", 1), ("two", 2)):
        assert len(given(devices, name)) == count
        assert seen(devices, name) == given(devices, name)
    assert not set(given(devices, "one")) & set(given(devices, "two"))
    devices.node.restart("kubelet")
    devices.apply(pod("last", 1))
    devices.wait_ready("last", seconds=90)
    assert seen(devices, "last") == given(devices, "last")
    assert not set(given(devices, "last")) & {*given(devices, "one"), *given(devices, "two")}

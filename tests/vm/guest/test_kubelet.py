"""Pods with two VFs each on a node with an API server and a kubelet, from the registration of the pools to the wire."""

import asyncio
import json
import threading
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from devices.kubelet.api import deviceplugin_pb2 as api
from multus.cli.box import Sandbox
from multus.kube.objects import Pod
from tests.fake_apiserver import NETWORK_STATUS, FakeApiServer
from tests.fake_kubelet import FakeKubelet
from tests.vm.guest.attached import look
from tests.vm.guest.hardware import Hardware, until
from tests.vm.guest.node import Node, pings

POOLS: Final = {
    "resourceList": [
        {"resourceName": name, "resourcePrefix": "vm.example", "selectors": {"rootDevices": [bdf]}}
        for name, bdf in (("left", "0000:01:00.0"), ("right", "0000:02:00.0"))
    ]
}
NETWORKS: Final = "k8s.v1.cni.cncf.io/networks"
RESOURCE: Final = "k8s.v1.cni.cncf.io/resourceName"


class Cluster:
    """A node under an API server and with a kubelet, both of which a thread runs."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.server = FakeApiServer()
        self.kubelet = FakeKubelet(node.directory / "kubelet")
        self._loop = asyncio.new_event_loop()
        self._up, self._end = threading.Event(), asyncio.Event()
        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(self._serve()))
        self._thread.start()
        assert self._up.wait(60)

    async def _serve(self) -> None:
        async with self.server.serving(), self.kubelet:
            kubeconfig = self.server.kubeconfig(self.node.directory / "kubeconfig")
            self.node.configure(manifests="", kubeconfig=str(kubeconfig))
            self._up.set()
            await self._end.wait()

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Have the thread do something."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def close(self) -> None:
        """The servers go."""
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(20)
        self._loop.close()

    async def start_pod(self, name: str, resources: tuple[str, ...]) -> dict[str, str]:
        """What the kubelet does for a pod whose only container wants one device of each: what that has in its
        environment.
        """
        environment: dict[str, str] = {}
        devices = []
        for resource in resources:
            request = await self.kubelet.wait_registered(resource)
            async with self.kubelet.follow(request) as follower:
                await follower.until(lambda known: list(known.health.values()).count("Healthy") == 2, limit=30)
            taken = {each for pod in self.kubelet.pods.values() for _, held in pod for _, ids in held for each in ids}
            asked = api.ContainerPreferredAllocationRequest(
                available_deviceIDs=sorted(follower.health.keys() - taken), allocation_size=1
            )
            async with self.kubelet.dial(request) as plugin:
                preferred = await plugin.GetPreferredAllocation(
                    api.PreferredAllocationRequest(container_requests=[asked])
                )
                ids = list(preferred.container_responses[0].deviceIDs)
                allocate = api.AllocateRequest(container_requests=[api.ContainerAllocateRequest(devices_ids=ids)])
                environment.update((await plugin.Allocate(allocate)).container_responses[0].envs)
            devices.append((resource, ids))
        self.kubelet.pods["default", name] = [("c", devices)]
        return environment

    async def make_pod(self, name: str, networks: str) -> Pod:
        made = self.server.pod(name, node="box", annotations={NETWORKS: networks})
        return Pod(namespace="default", name=name, uid=made["metadata"]["uid"])

    async def make_network(self, name: str, resource: str, **keys: Any) -> None:
        ipam = {"type": "host-local", "subnet": "10.9.0.0/24"}
        conf = {"cniVersion": "1.0.0", "type": "sriov", "ipam": ipam, **keys}
        self.server.nad(name, config=json.dumps(conf), annotations={RESOURCE: resource})

    async def status(self, name: str) -> Any:
        text = self.server.get("pods", name)["metadata"]["annotations"].get(NETWORK_STATUS)
        return json.loads(text) if text else None


@pytest.fixture
def cluster(tmp_path: Path, hardware: Hardware) -> Iterator[Cluster]:
    pools = tmp_path / "pools.json"
    pools.write_text(json.dumps(POOLS))
    with Node(tmp_path / "node", settings={"deviceConfig": str(pools)}) as node:
        made = Cluster(node)
        try:
            yield made
        finally:
            made.close()


def test_pods_with_two_vfs_each(cluster: Cluster, hardware: Hardware) -> None:
    cards = hardware.cards[:2]
    hardware.create(2, 2)
    before = [look(card) for card in cards]
    cluster.do(cluster.make_network("near", "vm.example/left", vlan=100, spoofchk="on"))
    cluster.do(cluster.make_network("far", "vm.example/right", vlan=100))
    node = cluster.node
    node.start()
    sandboxes, devices = [], []
    for name in ("one", "two"):
        environment = cluster.do(cluster.start_pod(name, ("vm.example/left", "vm.example/right")))
        given = [environment[f"PCIDEVICE_VM_EXAMPLE_{side}"] for side in ("LEFT", "RIGHT")]
        sandbox = Sandbox(cluster.do(cluster.make_pod(name, "near,far")))
        node.pods[name] = sandbox
        sandboxes.append(sandbox)
        node.cni("ADD", sandbox)
        entries = until(lambda name=name: cluster.do(cluster.status(name)), "the network-status")  # type: ignore[misc]
        assert [(entry["name"], entry["interface"]) for entry in entries[1:]] == [
            ("default/near", "net1"),
            ("default/far", "net2"),
        ]
        assert [entry["device-info"]["pci"]["pci-address"] for entry in entries[1:]] == given
        devices += given
    assert sorted(devices) == sorted(bdf for each in before for bdf in each)
    # net1 of the first to net2 of the second: a VF of one card, the wire, a VF of the other.
    target = cluster.do(cluster.status("two"))[2]["ips"][0]
    until(lambda: pings(sandboxes[0], target, "net1"), "the other pod, by the wire")
    for sandbox in sandboxes:
        node.cni("DEL", sandbox)
    until(lambda: [look(card) for card in cards] == before, lambda: f"{before}: {[look(card) for card in cards]}")
    assert node.recorded() == []

"""multusd on a machine with real hardware."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from devices.linux.vf_kernel import LinuxKernel
from multus.cli.box import Sandbox
from multus.cni.errors import CNIError, Code
from tests.vm.guest.hardware import Hardware, until
from tests.vm.guest.node import Node, pings

KERNEL = LinuxKernel()
NETWORKS = "k8s.v1.cni.cncf.io/networks"
POOLS = {
    "resourceList": [
        {"resourceName": name, "resourcePrefix": "vm.example", "selectors": {"rootDevices": [bdf]}}
        for name, bdf in (("left", "0000:01:00.0"), ("right", "0000:02:00.0"))
    ]
}


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, links_up: None) -> Iterator[Node]:
    """multusd runs on the machine, for one test after the other."""
    directory = tmp_path_factory.mktemp("node")
    pools = directory / "pools.json"
    pools.write_text(json.dumps(POOLS))
    with Node(directory / "node", settings={"deviceConfig": str(pools)}) as made:
        made.start()
        yield made


def test_a_vf_goes_into_a_pod_and_comes_back(node: Node, hardware: Hardware) -> None:
    """Without the SR-IOV delegate: the reference host-device plugin moves the VF by its PCI address."""
    card = hardware.cards[0]
    bdf = card.create(1)[0]
    before = card.vf_netdev(0)
    ipam = {"type": "host-local", "subnet": "10.9.0.0/24"}
    node.nad("vf", {"cniVersion": "1.0.0", "type": "host-device", "pciBusID": bdf, "ipam": ipam})
    pod = node.pod("pod", annotations={NETWORKS: "vf"})
    node.cni("ADD", pod)
    links = {link["ifname"]: link for link in json.loads(pod.run("ip", "-j", "link"))}
    assert sorted(links) == ["eth0", "lo", "net1"]
    assert card.vf_netdev(0) == ""
    assert [entry["interface"] for entry in node.status("pod")] == ["eth0", "net1"]
    node.cni("DEL", pod)
    assert card.vf_netdev(0) == before


def network(node: Node, name: str, resource: str, subnet: str, **keys: Any) -> None:
    """An SR-IOV network on the VFs of a pool."""
    conf = {"cniVersion": "1.0.0", "type": "sriov", "ipam": {"type": "host-local", "subnet": subnet}, **keys}
    node.nad(name, conf, annotations={"k8s.v1.cni.cncf.io/resourceName": f"vm.example/{resource}"})


def test_pods_with_two_vfs_each_talk_over_the_wire(node: Node, hardware: Hardware) -> None:
    """Pools, devices given out, the delegate, addresses, status; then everything back."""
    left, right = hardware.cards[:2]
    hardware.create(2, 2)
    before = {card.bdf: KERNEL.states(card.ifindex) for card in (left, right)}
    names = {card.vf_netdev(index) for card in (left, right) for index in range(2)}
    network(node, "near", "left", "10.9.0.0/24", vlan=100, spoofchk="on")
    network(node, "far", "right", "10.9.0.0/24", vlan=100)
    pods = [node.pod(name, annotations={NETWORKS: "near,far"}) for name in ("one", "two")]
    until(lambda: added(node, pods[0]), "the pools to have their VFs")
    node.cni("ADD", pods[1])

    devices: list[str] = []
    for name in ("one", "two"):
        entries = node.status(name)
        assert [(entry["name"], entry["interface"]) for entry in entries[1:]] == [
            ("default/near", "net1"),
            ("default/far", "net2"),
        ]
        devices += [entry["device-info"]["pci"]["pci-address"] for entry in entries[1:]]
    assert sorted(devices) == sorted(card.vf(index) for card in (left, right) for index in range(2))
    assert [KERNEL.states(left.ifindex)[index].vlan for index in range(2)] == [100, 100]
    # net1 of the first to net2 of the second: a VF of one card, the wire, a VF of the other.
    target = node.status("two")[2]["ips"][0]
    until(lambda: pings(pods[0], target, "net1"), "the other pod, by the wire")

    node.kill()
    node.start()
    for pod in pods:
        node.cni("DEL", pod)
    assert {card.bdf: KERNEL.states(card.ifindex) for card in (left, right)} == before
    assert {card.vf_netdev(index) for card in (left, right) for index in range(2)} == names
    assert node.recorded() == []


def added(node: Node, pod: Sandbox) -> bool:
    """Whether an ADD was done; one that comes before the pools know of new VFs is refused, as to be tried again."""
    try:
        node.cni("ADD", pod)
    except CNIError as error:
        assert error.code == Code.TRY_AGAIN_LATER, error
        return False
    return True

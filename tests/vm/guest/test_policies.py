"""Policies on a machine with real hardware: multusd makes it match, and waits where somebody uses it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from multus.cli.box import Sandbox
from multus.cni.errors import CNIError
from tests.vm.guest.hardware import PCI, Card, Hardware, driver, until
from tests.vm.guest.node import Node

pytestmark = pytest.mark.timeout(200)  # each number of VFs resets a card, and the processor is emulated
SECONDS = 60.0


class Managed:
    """The machine, with multusd on a folder of policies."""

    def __init__(self, node: Node, folder: Path, hardware: Hardware) -> None:
        self.node = node
        self.folder = folder
        self.one, self.two = hardware.cards[:2]

    def write(self, *policies: tuple[str, str, int, dict[str, Any]]) -> None:
        """Policies as (resource, pfName, numVfs, more), in place of those before."""
        documents = [
            {
                "apiVersion": "sriovnetwork.openshift.io/v1",
                "kind": "SriovNetworkNodePolicy",
                "metadata": {"name": name},
                "spec": {"resourceName": name, "numVfs": count, "nicSelector": {"pfNames": [pf]}, **more},
            }
            for name, pf, count, more in policies
        ]
        temporary = self.folder / ".new"
        temporary.write_text(yaml.safe_dump_all(documents))
        temporary.replace(self.folder / "policies.yaml")

    def wait(self, card: Card, *vfs: tuple[str, int]) -> None:
        """Until the card's VFs have these drivers and MTUs (0 for no interface)."""
        until(lambda: self.shape(card) == list(vfs), lambda: f"{vfs}: {self.shape(card)}: {self.log}", seconds=SECONDS)

    def shape(self, card: Card) -> list[tuple[str, int]]:
        try:
            return [(driver(card.vf(index)), mtu(card.vf(index))) for index in range(card.count)]
        except OSError:  # they are being removed
            return []

    def attach(self, pod: Sandbox) -> None:
        """As a kubelet does: again, until there are devices. igb drops its link for each change, and is not healthy."""

        def attached() -> bool:
            try:
                self.node.cni("ADD", pod)
            except CNIError as error:
                assert "are free" in str(error), error
                return False
            return True

        until(attached, lambda: self.log, seconds=SECONDS)

    @property
    def log(self) -> str:
        return self.node.log.read_text(errors="replace")[-4000:]


def mtu(bdf: str) -> int:
    return next((int(path.read_text()) for path in (PCI / "devices" / bdf).glob("net/*/mtu")), 0)


@pytest.fixture(scope="module")
def managed(tmp_path_factory: pytest.TempPathFactory, links_up: None) -> Iterator[Managed]:
    """multusd runs with a folder of policies, which is empty at first: there are no VFs then."""
    hardware = Hardware()
    hardware.restore()
    directory = tmp_path_factory.mktemp("managed")
    folder = directory / "policies"
    folder.mkdir()
    with Node(directory / "node") as node:
        node.configure(policies=str(folder))
        node.start()
        yield Managed(node, folder, hardware)
    for card in hardware.cards[:2]:
        (card.path / "net" / card.netdev / "mtu").write_text("1500")


def test_policies_make_vfs_and_leave_those_that_are_held(managed: Managed) -> None:
    one, two = managed.one, managed.two
    managed.write(
        ("net", f"{one.netdev}#0-1", 4, {"mtu": 2000}),
        ("dpdk", f"{one.netdev}#2-3", 4, {"deviceType": "vfio-pci"}),
        ("two", two.netdev, 2, {}),
    )
    managed.wait(one, ("igbvf", 2000), ("igbvf", 2000), ("vfio-pci", 0), ("vfio-pci", 0))
    managed.wait(two, ("igbvf", 1500), ("igbvf", 1500))
    assert (one.path / "net" / one.netdev / "mtu").read_text().strip() == "2000"

    annotations = {"k8s.v1.cni.cncf.io/resourceName": "intel.com/net"}
    ipam = {"type": "host-local", "subnet": "10.9.0.0/24"}
    conf = {"cniVersion": "1.0.0", "type": "host-device", "ipam": ipam}
    managed.node.nad("vf", conf, annotations=annotations)
    pod = managed.node.pod("pod", annotations={"k8s.v1.cni.cncf.io/networks": "vf"})
    try:
        managed.attach(pod)
        held = next(one.vf(index) for index in range(2) if not one.vf_netdev(index))

        managed.write(("net", one.netdev, 2, {"mtu": 2000}), ("two", two.netdev, 3, {}))
        managed.wait(two, *[("igbvf", 1500)] * 3)  # the other card does not wait
        until(lambda: f"1 of its 4 VFs is in use: {held} by pod default/pod (net1)" in managed.log, lambda: managed.log)
        assert one.count == 4
        assert driver(one.vf(2)) == "vfio-pci"
    finally:
        managed.node.cni("DEL", pod)
    managed.wait(one, ("igbvf", 2000), ("igbvf", 2000))


def test_a_restart_changes_nothing_and_goes_on(managed: Managed) -> None:
    one = managed.one
    managed.write(("dpdk", one.netdev, 2, {"deviceType": "vfio-pci"}))
    managed.wait(one, ("vfio-pci", 0), ("vfio-pci", 0))
    managed.node.kill()
    managed.write(("net", one.netdev, 2, {}))
    managed.node.start()
    managed.wait(one, ("igbvf", 1500), ("igbvf", 1500))
    managed.node.kill()
    one.write("sriov_numvfs", 0)
    managed.node.start()
    managed.wait(one, ("igbvf", 1500), ("igbvf", 1500))

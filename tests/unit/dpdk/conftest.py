"""A node with one PF, whose two VFs are on their own driver, each in a group of its own."""

from pathlib import Path

import pytest

from dpdk.drivers import Binder
from tests.dpdk_node import MemoryStore
from tests.fake_pci_kernel import FakePciKernel

PF = "0000:03:00.0"


class Node:
    """The kernel, its store, and what binds on it."""

    def __init__(self, root: Path) -> None:
        self.kernel = FakePciKernel(root)
        tree = self.kernel.tree
        tree.driver("iavf")
        tree.driver("vfio-pci")
        tree.pf(PF, netdev="ens1f0", total=8, num=2, group=10)
        self.tree = tree
        self.vfs = [tree.vf_bdf(PF, index) for index in range(2)]
        self.store = MemoryStore(self.kernel)
        self.binder = Binder(self.kernel, self.store)

    def look(self, bdf: str) -> tuple[str, str, str, str, bool]:
        """What has to be as it was: driver, override, admin MAC, the interface's MAC, and whether there is a node."""
        record = self.kernel.sysfs.read_one(bdf)
        assert record is not None
        admin = self.kernel.admin_mac(PF, record.vf_index)
        mac = record.netdev.mac if record.netdev else ""
        return record.driver, record.driver_override, admin, mac, self.kernel.node_path(bdf).exists()

    def restart(self) -> None:
        """A new process on the same kernel, which nothing kills."""
        self.kernel.dies_before = None
        self.binder = Binder(self.kernel, self.store)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)

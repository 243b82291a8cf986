"""A node with one PF, whose two VFs are on their own driver, each in a group of its own."""

from pathlib import Path

import pytest

from dpdk.drivers import Binder
from tests.fake_pci_kernel import FakePciKernel

PF = "0000:03:00.0"


class MemoryStore:
    """Keeps what it was given when the process is killed; keeping and forgetting are changes, too."""

    def __init__(self, kernel: FakePciKernel) -> None:
        self._kernel = kernel
        self.data: dict[tuple[str, str], bytes] = {}

    async def save(self, key: str, kind: str, data: bytes) -> None:
        self._kernel.change("save")
        self.data[kind, key] = data

    async def load(self, key: str, kind: str) -> bytes | None:
        return self.data.get((kind, key))

    async def forget(self, key: str, kind: str) -> None:
        self._kernel.change("forget")
        self.data.pop((kind, key), None)

    async def all(self, kind: str) -> list[tuple[str, bytes]]:
        return sorted((key, data) for (each, key), data in self.data.items() if each == kind)


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

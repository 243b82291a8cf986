"""A kernel's part in binding, played on a fake sysfs tree: it reacts to what is written, as Linux 6.12 does.

`steps` counts the changes; with `dies_before` set to N, the process is gone (a Killed is raised) before change N+1.
"""

import threading
from pathlib import Path

from devices.errors import KernelError
from devices.linux.sysfs import Sysfs
from dpdk.errors import DpdkError
from dpdk.holders import Holder
from dpdk.iommu import read_group
from dpdk.kernel import Kernel, Survey
from dpdk.plans import NO_MAC
from tests.fake_sysfs import FakeSysfs

USERSPACE = ("vfio-pci", "uio_pci_generic")
NODE = "vfio node"


class Killed(BaseException):
    """What kill -9 is to a process: nothing of it runs any more."""


class FakePciKernel(Kernel):
    """Its VFs have `vf_driver` of their own; `loadable` are modules that modprobe finds."""

    def __init__(self, root: Path, *, vf_driver: str = "iavf", loadable: tuple[str, ...] = USERSPACE) -> None:
        self.tree = FakeSysfs(root)
        super().__init__(FakeWrites(self), proc=root / "proc")
        self.vf_driver = vf_driver
        self.loadable = loadable
        self.macs: dict[tuple[str, int], str] = {}
        self.effective: dict[str, str] = {}
        self.held: dict[str, tuple[Holder, ...]] = {}
        self.refuses: set[str] = set()  # drivers whose probe fails
        self.no_nodes = False
        self.boot = "boot-1"
        self.done: list[str] = []
        self.dies_before: int | None = None
        self._randoms = 0
        self._one_at_a_time = threading.RLock()  # as the kernel's rtnl and device locks; its users are worker threads

    def change(self, what: str) -> None:
        """One thing changes; or the process is killed before."""
        if self.dies_before is not None and len(self.done) >= self.dies_before:
            raise Killed
        self.done.append(what)

    def survey(self) -> Survey:
        return Survey()

    def holders(self, bdf: str) -> tuple[Holder, ...]:
        return self.held.get(bdf, ())

    def boot_id(self) -> str:
        return self.boot

    def load(self, module: str) -> None:
        self.change(f"load {module}")
        if module not in self.loadable:
            raise DpdkError(f"cannot load {module}: not found")
        self.tree.driver(module)

    def admin_mac(self, pf: str, index: int) -> str:
        return self.macs.get((pf, index), NO_MAC)

    def set_admin_mac(self, pf: str, index: int, mac: str) -> None:
        self.change(f"mac {mac}")
        self.macs[pf, index] = mac

    def set_address(self, ifindex: int, mac: str) -> None:
        self.change(f"address {mac}")
        with self._one_at_a_time:
            self._set_address(ifindex, mac)

    def _set_address(self, ifindex: int, mac: str) -> None:
        for path in (self.tree.sys / "class/net").iterdir():
            if int((path / "ifindex").read_text()) == ifindex:
                (path / "address").write_text(mac + "\n")

    def unbind(self, driver: str, bdf: str) -> None:
        """The driver lets go: its interface goes, or its node."""
        with self._one_at_a_time:
            self._unbind(driver, bdf)

    def _unbind(self, driver: str, bdf: str) -> None:
        if self.tree.path(bdf).joinpath("driver").readlink().name != driver:
            raise KernelError("unbind", 19, "not bound to it")
        for path in list((self.tree.path(bdf) / "net").glob("*")):
            self.tree.remove_netdev(path.name)
        self.node_path(bdf).unlink(missing_ok=True)
        self.tree.bind(bdf, "")

    def probe(self, bdf: str) -> None:
        """The driver of driver_override takes the device; else its own one, unless the PF has that switched off."""
        with self._one_at_a_time:
            self._probe(bdf)

    def _probe(self, bdf: str) -> None:
        record = self.sysfs.read_one(bdf)
        assert record is not None
        if record.driver:
            return
        allowed = self.tree.get(record.physfn, "sriov_drivers_autoprobe") == "1" if record.physfn else True
        driver = record.driver_override or (self.vf_driver if allowed else "")
        if not driver or driver in self.refuses or not (self.tree.sys / "bus/pci/drivers" / driver).exists():
            return
        self.tree.bind(bdf, driver)
        if driver in USERSPACE:
            if not self.no_nodes:
                self.node_path(bdf).parent.mkdir(exist_ok=True)
                self.node_path(bdf).touch()
            return
        self._randoms += 1
        mac = self.admin_mac(record.physfn or "", record.vf_index)
        if mac == NO_MAC:
            mac = f"02:ff:00:00:00:{self._randoms:02x}"
        self.tree.netdev(bdf, f"eth{self._randoms}", mac=mac)

    def node_path(self, bdf: str) -> Path:
        """Where its node is."""
        group = read_group(self.sysfs, bdf)
        return self.tree.dev / "vfio" / (group.number if group else "none")


class FakeWrites(Sysfs):
    """Writes that have effects."""

    def __init__(self, kernel: FakePciKernel) -> None:
        super().__init__(kernel.tree.sys, kernel.tree.dev)
        self._kernel = kernel

    def write(self, bdf: str, attribute: str, value: str) -> None:
        self._kernel.change(f"{attribute} {value.strip()}")
        super().write(bdf, attribute, value)  # checks that it is there
        self._kernel.tree.set(bdf, attribute, value.strip() or "(null)")

    def write_driver(self, driver: str, attribute: str, value: str) -> None:
        self._kernel.change(f"{attribute} {driver}")
        super().write_driver(driver, attribute, value)
        assert attribute == "unbind"
        self._kernel.unbind(driver, value)

    def probe(self, bdf: str) -> None:
        self._kernel.change("probe")
        super().probe(bdf)
        self._kernel.probe(bdf)

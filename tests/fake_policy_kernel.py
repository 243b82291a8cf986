"""A kernel as policies change it: two cards on a fake sysfs, where a write has the effect that a kernel gives it."""

import threading
from collections.abc import Collection, Sequence
from pathlib import Path

from devices.errors import DeviceError
from devices.inventory import build
from devices.linux.sysfs import Sysfs
from tests.fake_sysfs import FakeSysfs

ONE, TWO = "0000:03:00.0", "0000:83:00.0"


class Crash(BaseException):
    """The process is gone."""


class PolicyKernel(Sysfs):
    """The kernel of a node: changes of its devices, which can be refused, and what was changed."""

    def __init__(self, root: Path) -> None:
        self.fake = FakeSysfs(root)
        super().__init__(self.fake.sys, self.fake.dev)
        self.fake.pf(ONE, netdev="ens1", total=8)
        self.fake.pf(TWO, netdev="ens2", total=8)
        self.calls: list[str] = []
        self.refused: dict[str, BaseException] = {}
        self.vf_netdevs = True
        self.gone: set[str] = set()
        self._one_at_a_time = threading.Lock()  # a thread of a process that "crashed" goes on beside the next one's

    def call(self, text: str) -> None:
        if error := self.refused.get(text):
            raise error
        self.calls.append(text)

    def set_numvfs(self, bdf: str, count: int) -> None:
        self.call(f"{self.name(bdf)} has {count}")
        with self._one_at_a_time:
            self.fake.grow(bdf, count, netdevs=self.vf_netdevs)

    def set_mtu(self, ifindex: int, mtu: int) -> None:
        record = next(each for each in self.read() if each.netdev and each.netdev.ifindex == ifindex)
        assert record.netdev is not None
        self.call(f"{self.name(record.bdf)} mtu {mtu}")
        (self.root / "class/net" / record.netdev.name / "mtu").write_text(f"{mtu}\n")

    async def bind(self, addresses: Sequence[str], driver: str, *, owner: str) -> dict[str, DeviceError]:
        failed: dict[str, DeviceError] = {}
        for bdf in addresses:
            try:
                self._bind(bdf, driver, owner)
            except DeviceError as error:
                failed[bdf] = error
        return failed

    def _bind(self, bdf: str, driver: str, owner: str) -> None:
        self.call(f"{self.name(bdf)} to {driver or 'the kernel'} for {owner}")
        record = self.read_one(bdf)
        assert record is not None
        self.fake.bind(bdf, driver or "iavf")
        if driver and record.netdev:
            self.fake.remove_netdev(record.netdev.name)
        elif not driver and not record.netdev:
            self.fake.netdev(bdf, f"back{record.vf_index}")

    async def removed(self, addresses: Collection[str]) -> None:
        self.gone |= set(addresses)

    def name(self, bdf: str) -> str:
        record = self.read_one(bdf)
        assert record is not None
        return f"{'ens1' if (record.physfn or bdf) == ONE else 'ens2'}{record.vf_index if record.physfn else ''}"

    @property
    def shape(self) -> dict[str, list[tuple[int, str]]]:
        """By PF, the MTU and driver of each of its VFs."""
        found = build(self.read(), guarded={})
        return {pf.netdev: [(vf.mtu, vf.driver) for vf in pf.vfs] for pf in found.pfs}

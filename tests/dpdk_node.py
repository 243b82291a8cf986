"""A node whose VFs the `sriov` delegate binds: one kernel, on a fake sysfs, under the binder and the delegate both."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from devices.linux.addressing import NewRoute
from devices.linux.netdevs import Change, Netdev
from devices.linux.sysfs import PciRecord
from devices.linux.vfs import NO_MAC, SetMac, SetVlan, Step, VFState
from dpdk.drivers import Binder
from multus.cni.request import Command
from multus.cni.result import Result, parse_result
from multus.delegates.plugin import Call
from multus.delegates.sriov import Sriov
from multus.delegates.sriov_record import UpstreamFiles
from tests.fake_pci_kernel import FakePciKernel
from tests.sriov_node import POD, Ipam

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


class Settings:
    """The PF's part, for the delegate: what it has for its VFs; their MACs are those that the binder sees."""

    def __init__(self, kernel: FakePciKernel) -> None:
        self._kernel = kernel
        self.vlans: dict[int, int] = {}
        self.identities: dict[str, str] = {POD: "4:100"}
        self.spaces: dict[str, dict[int, Netdev]] = {}

    def device(self, bdf: str) -> PciRecord | None:
        return self._kernel.sysfs.read_one(bdf)

    def states(self, pf_ifindex: int) -> Mapping[int, VFState]:
        return {
            index: VFState(
                mac=self._kernel.macs.get((PF, index), NO_MAC),
                vlan=self.vlans.get(index, 0),
                qos=0,
                proto=0x8100,
                spoofchk=True,
                trust=False,
                link_state="auto",
                min_tx=0,
                max_tx=0,
            )
            for index in range(2)
        }

    def set_vf(self, pf_ifindex: int, vf: int, step: Step) -> None:
        match step:
            case SetVlan():
                self._kernel.change(f"vlan {step.vlan}")
                self.vlans[vf] = step.vlan
            case SetMac():
                self._kernel.set_admin_mac(PF, vf, step.mac)
            case _:
                raise AssertionError(step)

    def netdevs(self, netns: str) -> Sequence[Netdev]:
        record = [each for each in self._kernel.sysfs.read() if each.netdev]
        return tuple(
            Netdev(index=each.netdev.ifindex, name=each.netdev.name, mac=each.netdev.mac, mtu=1500, parent=each.bdf)
            for each in record
            if each.netdev
        )

    def identity(self, netns: str) -> str | None:
        return self.identities.get(netns)

    def pause(self, seconds: float) -> None:
        """No driver here takes its time."""

    # A VF for a program has no interface: nothing of this may be called for it.

    def change(self, netns: str, index: int, wanted: Change) -> None:
        raise AssertionError("an interface is changed")

    def move(self, source: str, index: int, target: str, name: str) -> None:
        raise AssertionError("an interface is moved")

    def add_altname(self, netns: str, index: int, name: str) -> None:
        raise AssertionError("an interface is named")

    def drop_altname(self, netns: str, index: int, name: str) -> None:
        raise AssertionError("an interface is named")

    def prepare(self, netns: str, name: str) -> None:
        raise AssertionError("an interface is prepared")

    def configure(self, netns: str, netdev: Netdev, addresses: Sequence[str], routes: Sequence[NewRoute]) -> None:
        raise AssertionError("an interface is configured")

    def announce(self, netns: str, netdev: Netdev, addresses: Sequence[str]) -> None:
        raise AssertionError("an interface is announced")


class DpdkNode:
    """The delegate with the binder, on a PF with two VFs that iavf has."""

    def __init__(self, root: Path) -> None:
        self.pci = FakePciKernel(root)
        self.tree = self.pci.tree
        self.tree.driver("iavf")
        self.tree.driver("vfio-pci")
        self.tree.pf(PF, netdev="ens1f0", total=8, num=2, group=10)
        self.vfs = [self.tree.vf_bdf(PF, index) for index in range(2)]
        self.store = MemoryStore(self.pci)
        self.settings = Settings(self.pci)
        self.ipam = Ipam()
        self.upstream = root / "upstream"
        self.restart()

    def restart(self, *, boot_id: str = "boot-1") -> None:
        """A new process on the same kernel, which nothing kills."""
        self.pci.dies_before = None
        self.binder = Binder(self.pci, self.store)
        self.sriov = Sriov(
            self.ipam,
            self.store,
            self.settings,
            boot_id=boot_id,
            upstream=UpstreamFiles(self.upstream),
            binder=self.binder,
        )

    def look(self, index: int = 0) -> tuple[object, ...]:
        """All that has to be as before: driver, override, its interface's MAC, its node, MAC and VLAN at the PF."""
        record = self.pci.sysfs.read_one(self.vfs[index])
        assert record is not None
        mac = record.netdev.mac if record.netdev else ""
        node = self.pci.node_path(self.vfs[index]).exists()
        state = msgspec.structs.asdict(self.settings.states(0)[index])
        return record.driver, record.driver_override, mac, node, state

    async def run(self, command: Command, *, vf: int = 0, container: str = "c1", **conf: Any) -> bytes:
        whole = {"cniVersion": "1.0.0", "name": "net", "type": "sriov", "deviceID": self.vfs[vf], **conf}
        data = json.dumps(whole).encode()
        call = Call(command=command, conf=data, container_id=container, netns=POD, ifname="net1", path=("/opt",))
        return await self.sriov("sriov", call)

    async def add(self, **conf: Any) -> Result:
        return parse_result(await self.run(Command.ADD, **conf), where="sriov")

    async def delete(self, **conf: Any) -> None:
        await self.run(Command.DEL, **conf)

"""A node's kernel with SR-IOV cards, as `devices.vf` sees it: remembers every change, and fails where it is told."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from devices.errors import DeviceError, KernelError, NamespaceError
from devices.linux.addressing import NewRoute
from devices.linux.netdevs import Change, Netdev
from devices.linux.sysfs import NetRecord, PciRecord
from devices.linux.vfs import SetLinkState, SetMac, SetRate, SetSpoofchk, SetTrust, SetVlan, Step, VFState

PF = "0000:03:00.0"
PF_INDEX = 2
EXISTS, UNSUPPORTED = 17, 95


def vf_bdf(index: int) -> str:
    return f"0000:03:10.{index}"


class FakeKernel:
    """One PF with VFs. `spaces` holds the interfaces of each namespace by path, "" being the host."""

    def __init__(self, vfs: int = 2) -> None:
        self.vfs = {
            index: VFState(
                mac="00:00:00:00:00:00",
                vlan=0,
                qos=0,
                proto=0x8100,
                spoofchk=True,
                trust=False,
                link_state="auto",
                min_tx=0,
                max_tx=0,
            )
            for index in range(vfs)
        }
        self.drivers = dict.fromkeys(range(vfs), "iavf")
        self.spaces: dict[str, dict[int, Netdev]] = {"": {PF_INDEX: Netdev(index=PF_INDEX, name="ens1f0", mtu=9000)}}
        for index in range(vfs):
            self.spaces[""][10 + index] = Netdev(
                index=10 + index,
                name=f"ens1f0v{index}",
                mac=f"02:00:00:00:00:1{index}",
                mtu=1500,
                altnames=(f"enp3s0f0v{index}",),
                parent=vf_bdf(index),
            )
        self.identities: dict[str, str] = {}
        self.tells_of_vfs = True
        self.like_igb = False
        self.addresses: dict[int, list[str]] = {}
        self.calls: list[tuple[Any, ...]] = []
        self.before: Callable[[int, tuple[Any, ...]], None] | None = None
        self.after: Callable[[int, tuple[Any, ...]], None] | None = None
        self.pauses = 0
        self.on_pause: Callable[[], None] | None = None

    def space(self, path: str, identity: str = "4:100") -> None:
        """A pod's namespace."""
        self.spaces[path] = {1: Netdev(index=1, name="lo")}
        self.identities[path] = identity

    def end_space(self, path: str) -> None:
        """It goes, and its hardware comes back to the host; a name that is in use there becomes dev<index>."""
        del self.identities[path]
        for index, netdev in self.spaces.pop(path).items():
            if netdev.parent:
                name = netdev.name if netdev.name not in self._names("") else f"dev{index}"
                self.spaces[""][index] = msgspec.structs.replace(netdev, name=name, up=False)

    def userspace(self, index: int, driver: str = "vfio-pci") -> None:
        """Bind a VF to a driver for programs."""
        self.drivers[index] = driver
        for space in self.spaces.values():
            for key in [key for key, netdev in space.items() if netdev.parent == vf_bdf(index)]:
                del space[key]

    def snapshot(self) -> Any:
        """All that ought to be as before after a pod: settings, and the host's interfaces."""
        return dict(self.vfs), {index: _sorted(netdev) for index, netdev in self.spaces[""].items()}

    # What devices.vf and the delegate call.

    def device(self, bdf: str) -> PciRecord | None:
        if bdf == PF:
            return PciRecord(bdf=PF, driver="i40e", netdevs=self._nets(PF_INDEX), total_vfs=8, num_vfs=len(self.vfs))
        index = next((index for index in self.vfs if vf_bdf(index) == bdf), None)
        if index is None:
            return None
        shown = [key for key, netdev in self.spaces[""].items() if netdev.parent == bdf]
        return PciRecord(
            bdf=bdf,
            driver=self.drivers[index],
            physfn=PF,
            vf_index=index,
            netdevs=self._nets(*shown),
        )

    def states(self, pf_ifindex: int) -> Mapping[int, VFState]:
        assert pf_ifindex == PF_INDEX
        # Not in the order of their numbers: nobody may take the first for VF 0.
        return dict(reversed(self.vfs.items())) if self.tells_of_vfs else {}

    def set_vf(self, pf_ifindex: int, vf: int, step: Step) -> None:
        assert pf_ifindex == PF_INDEX
        self._do(("set_vf", vf, step), lambda: self._set(vf, step))

    def netdevs(self, netns: str) -> Sequence[Netdev]:
        if netns not in self.spaces:
            raise NamespaceError(f"there is no network namespace at {netns}", gone=True)
        return tuple(self.spaces[netns].values())

    def change(self, netns: str, index: int, wanted: Change) -> None:
        def run() -> None:
            netdev = self._get(netns, index)
            others = self._names(netns, but=index)
            if wanted.name is not None and (wanted.name in others or wanted.name in netdev.altnames):
                raise KernelError("rename", EXISTS, "File exists")
            if (wanted.name or wanted.mac) and netdev.up:
                raise KernelError("change", 16, "Device or resource busy")
            vf = self.vfs.get(index - 10)
            if self.like_igb and vf is not None and vf.mac != "00:00:00:00:00:00":
                if wanted.mac and not vf.trust:
                    raise KernelError("change", 99, "Cannot assign requested address")
                if wanted.up is False and netdev.up:
                    netdev = msgspec.structs.replace(netdev, mac=vf.mac or "")
            given = {key: value for key, value in msgspec.structs.asdict(wanted).items() if value is not None}
            self.spaces[netns][index] = msgspec.structs.replace(netdev, **given)

        self._do(("change", netns, index, wanted), run)

    def move(self, source: str, index: int, target: str, name: str) -> None:
        def run() -> None:
            netdev = self._get(source, index)
            if target not in self.spaces:
                raise KernelError("move", 22, "Invalid argument")
            taken = self._names(target)
            if set(netdev.altnames) & taken or (netdev.name in taken and name in taken):
                raise KernelError("move", EXISTS, "File exists")
            del self.spaces[source][index]
            moved = msgspec.structs.replace(netdev, up=False)
            self.spaces[target][index] = moved  # a rename that fails comes after the move
            if name != netdev.name and (name in taken or name in netdev.altnames):
                raise KernelError("move", EXISTS, "File exists")
            self.spaces[target][index] = msgspec.structs.replace(moved, name=name)

        self._do(("move", source, index, target, name), run)

    def add_altname(self, netns: str, index: int, name: str) -> None:
        def run() -> None:
            netdev = self._get(netns, index)
            if name in self._names(netns):
                raise KernelError("altname", EXISTS, "File exists")
            self.spaces[netns][index] = msgspec.structs.replace(netdev, altnames=(*netdev.altnames, name))

        self._do(("add_altname", netns, index, name), run)

    def drop_altname(self, netns: str, index: int, name: str) -> None:
        def run() -> None:
            netdev = self._get(netns, index)
            left = tuple(each for each in netdev.altnames if each != name)
            self.spaces[netns][index] = msgspec.structs.replace(netdev, altnames=left)

        self._do(("drop_altname", netns, index, name), run)

    def prepare(self, netns: str, name: str) -> None:
        self._do(("prepare", netns, name), lambda: None)

    def identity(self, netns: str) -> str | None:
        return self.identities.get(netns)

    def configure(self, netns: str, netdev: Netdev, addresses: Sequence[str], routes: Sequence[NewRoute]) -> None:
        assert self.spaces[netns][netdev.index].up
        self._do(
            ("configure", netns, netdev.name, tuple(addresses), tuple(routes)),
            lambda: self.addresses.__setitem__(netdev.index, list(addresses)),
        )

    def announce(self, netns: str, netdev: Netdev, addresses: Sequence[str]) -> None:
        self._do(("announce", netns, netdev.name, netdev.mac, tuple(addresses)), lambda: None)

    def pause(self, seconds: float) -> None:
        self.pauses += 1
        if self.on_pause is not None:
            self.on_pause()

    def _do(self, call: tuple[Any, ...], run: Callable[[], Any]) -> None:
        number = len(self.calls)
        self.calls.append(call)
        if self.before is not None:
            self.before(number, call)
        run()
        if self.after is not None:
            self.after(number, call)

    def _set(self, vf: int, step: Step) -> None:
        given: dict[str, Any]
        match step:
            case SetVlan():
                given = {"vlan": step.vlan, "qos": step.qos, "proto": step.proto}
            case SetMac():
                given = {"mac": step.mac}
            case SetRate():
                given = {"min_tx": step.min_tx, "max_tx": step.max_tx}
            case SetSpoofchk():
                given = {"spoofchk": step.on}
            case SetTrust():
                given = {"trust": step.on}
            case SetLinkState():
                given = {"link_state": step.state}
        self.vfs[vf] = msgspec.structs.replace(self.vfs[vf], **given)

    def _get(self, netns: str, index: int) -> Netdev:
        if index not in self.spaces.get(netns, {}):
            raise KernelError("link", 19, "No such device")
        return self.spaces[netns][index]

    def _names(self, netns: str, *, but: int = 0) -> set[str]:
        found = (netdev for netdev in self.spaces[netns].values() if netdev.index != but)
        return {name for netdev in found for name in (netdev.name, *netdev.altnames)}

    def _nets(self, *indexes: int) -> tuple[NetRecord, ...]:
        here = self.spaces[""]
        return tuple(NetRecord(name=here[i].name, ifindex=i, mac=here[i].mac, mtu=here[i].mtu) for i in indexes)


def refuse(code: int = 5, *, at: int) -> Callable[[int, tuple[Any, ...]], None]:
    """A fault at one call of all."""

    def run(number: int, call: tuple[Any, ...]) -> None:
        if number == at:
            raise KernelError(str(call[0]), code, "told to fail")

    return run


def refuse_all(error: DeviceError, *kinds: str) -> Callable[[int, tuple[Any, ...]], None]:
    """Every call of these kinds fails."""

    def run(number: int, call: tuple[Any, ...]) -> None:
        if call[0] in kinds:
            raise error

    return run


class MemoryStore:
    """Records as the journal keeps them; `log` has the order of what was done."""

    def __init__(self, log: list[tuple[Any, ...]] | None = None) -> None:
        self.kept: dict[tuple[str, str], bytes] = {}
        self.log = log if log is not None else []

    async def save(self, key: str, kind: str, data: bytes) -> None:
        self.log.append(("save", key))
        self.kept[kind, key] = data

    async def load(self, key: str, kind: str) -> bytes | None:
        return self.kept.get((kind, key))

    async def forget(self, key: str, kind: str) -> None:
        self.log.append(("forget", key))
        self.kept.pop((kind, key), None)

    async def all(self, kind: str) -> list[tuple[str, bytes]]:
        return sorted((key, data) for (each, key), data in self.kept.items() if each == kind)


def _sorted(netdev: Netdev) -> Netdev:
    return msgspec.structs.replace(netdev, altnames=tuple(sorted(netdev.altnames)))

"""The virtual machine's cards, namespaces, what udev says, and QEMU itself."""

import subprocess
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import pyudev

from devices.linux import netns as namespaces
from devices.linux.netdevs import Change, Netdev
from devices.linux.vf_kernel import LinuxKernel
from devices.linux.vfs import VFState

T = TypeVar("T")
PCI = Path("/sys/bus/pci")
KERNEL: Final = LinuxKernel()
_LO: Final = 1  # its index
_NEW: Final[dict[str, object]] = {}
"""How the VFs of a card, by its address, were when they had just been made."""


def run(*words: str, seconds: float = 30) -> str:
    """A program's output; an assertion when it fails. One string is split at spaces."""
    command = words[0].split() if len(words) == 1 else list(words)
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr or done.stdout}"
    return done.stdout


def until(condition: Callable[[], T], what: str | Callable[[], str], *, seconds: float = 30) -> T:
    """What the condition gives as soon as that is true; it says `what` was waited for when it never is.

    A look that takes long is taken the more seldom: what is waited for needs the same processor.
    """
    end = time.monotonic() + seconds
    while True:
        begin = time.monotonic()
        if found := condition():
            return found
        now = time.monotonic()
        assert now < end, f"waited {seconds:g} s for {what if isinstance(what, str) else what()}"
        time.sleep(min(max(2 * (now - begin), 0.02), 0.5))


def netdevs(device: Path) -> list[str]:
    """Names of a device's interfaces in this namespace; none while its driver has not made one."""
    try:
        return [each.name for each in (device / "net").iterdir()]
    except FileNotFoundError:
        return []


class Card:
    """A PF. `plug` is its name in QEMU."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bdf = path.name
        self.mac = (path / "net" / self.netdev / "address").read_text().strip()
        self.plug = f"pf{int(self.mac.split(':')[4], 16)}"

    @property
    def netdev(self) -> str:
        return netdevs(self.path)[0]

    @property
    def ifindex(self) -> int:
        return int((self.path / "net" / self.netdev / "ifindex").read_text())

    @property
    def carrier(self) -> bool:
        return (self.path / "net" / self.netdev / "carrier").read_text().strip() == "1"

    @property
    def up(self) -> bool:
        """Whether somebody has set it up (IFF_UP), carrier or not."""
        return int((self.path / "net" / self.netdev / "flags").read_text(), 16) & 1 == 1

    @property
    def count(self) -> int:
        return int((self.path / "sriov_numvfs").read_text())

    def create(self, count: int) -> list[str]:
        """VFs with kernel drivers; their addresses."""
        if self.count:
            self.write("sriov_numvfs", 0)
        self.write("sriov_numvfs", count)
        run("udevadm settle --timeout=20")
        until(lambda: all(self.vf_netdev(index) for index in range(count)), "the VFs' interfaces")
        _NEW[self.bdf] = self._shape()
        return self.vfs

    def have(self, count: int) -> list[str]:
        """VFs as `create` makes them, and a carrier; those that are there if nothing was done to them."""
        if self.count != count or not self.untouched:
            self.create(count)
        until(lambda: self.carrier, "the carrier")  # igb drops it to make VFs, and refuses rates without one
        return self.vfs

    @property
    def untouched(self) -> bool:
        """Whether its VFs are as they were when `create` had made them."""
        return self._shape() == _NEW.get(self.bdf)

    def _shape(self) -> object:
        return self.look(), [override(bdf) for bdf in self.vfs]

    def states(self) -> dict[int, VFState]:
        """What the card has for each VF."""
        return dict(KERNEL.states(self.ifindex))

    def look(self) -> dict[str, tuple[VFState, str, dict[str, Any]]]:
        """All VFs: settings, driver and interface; one that is lost, or whose interface is not here, is not in it."""
        links = {each.name: plain(each) for each in KERNEL.netdevs("")}
        found = {}
        for index, settings in self.states().items():
            netdev = links.get(self.vf_netdev(index))
            if netdev is not None:
                found[self.vf(index)] = settings, driver(self.vf(index)), netdev
        return found

    def write(self, name: str, value: object) -> None:
        (self.path / name).write_text(str(value))

    @property
    def vfs(self) -> list[str]:
        return [self.vf(index) for index in range(self.count)]

    def vf(self, index: int) -> str:
        return (self.path / f"virtfn{index}").readlink().name

    def vf_netdev(self, index: int) -> str:
        """ "" while it has none here: bound to another driver, or in another namespace."""
        return next(iter(netdevs(PCI / "devices" / self.vf(index))), "")


def driver(bdf: str) -> str:
    """The driver that a device is bound to, "" for none."""
    link = PCI / "devices" / bdf / "driver"
    return link.readlink().name if link.exists() else ""


def override(bdf: str) -> str:
    """The only driver that may take a device, "" for any."""
    text = (PCI / "devices" / bdf / "driver_override").read_text().strip()
    return "" if text == "(null)" else text


def plain(link: Netdev) -> dict[str, Any]:
    """What somebody can have set of an interface."""
    return {
        "ifname": link.name,
        "mac": link.mac,
        "mtu": link.mtu,
        "up": link.up,
        "altnames": sorted(link.altnames),
    }


def bind(bdf: str, name: str) -> None:
    """By hand, as an admin would: "" for the device's own driver."""
    device = PCI / "devices" / bdf
    (device / "driver_override").write_text(f"{name}\n")
    if driver(bdf):
        (device / "driver/unbind").write_text(bdf)
    (PCI / "drivers_probe").write_text(bdf)
    until(lambda: driver(bdf) == name if name else driver(bdf), f"the driver of {bdf}")


def plugged() -> list[Card]:
    """Every PF in the machine whose driver is ready, by address."""
    found = []
    for path in sorted((PCI / "devices").glob("*/sriov_totalvfs")):
        with suppress(FileNotFoundError, IndexError):  # udev gives its interface another name this moment
            found.append(Card(path.parent))
    return found


class Hardware:
    """The four cards of two wires (0-1 and 2-3), and one whose VFs share an IOMMU group."""

    def __init__(self) -> None:
        *self.cards, self.shared = sorted(plugged(), key=lambda card: card.plug)

    def create(self, *counts: int) -> list[list[str]]:
        """VFs of the first cards, with carriers; their addresses."""
        made = [card.create(count) for card, count in zip(self.cards, counts, strict=False)]
        self.wait_for_carriers()
        return made

    def wait_for_carriers(self) -> None:
        """igb drops them as the number of VFs changes."""
        until(lambda: all(card.carrier for card in self.cards), "carriers")

    def restore(self, *, keep: bool = False) -> None:
        """As it was at boot: no VFs (`keep`: none that something was done to), links up."""
        for card in plugged():
            if card.count and not (keep and card.untouched):
                card.write("sriov_numvfs", 0)
            if not card.up:
                run(f"ip link set {card.netdev} up")


class Space:
    """A network namespace with at most one VF in it, named net1."""

    def __init__(self) -> None:
        self.name = f"vm-{uuid.uuid4().hex[:8]}"
        self.path = namespaces.create(self.name)
        KERNEL.change(self.path, _LO, Change(up=True))

    def take(self, netdev: str, address: str) -> None:
        """The interface, as net1, up, with an address."""
        run(f"ip link set {netdev} netns {self.name} name net1")
        run(f"ip -n {self.name} addr add {address} dev net1")
        run(f"ip -n {self.name} link set net1 up")

    def reaches(self, address: str) -> bool:
        """Whether one of two echo requests is answered."""
        command = f"ip netns exec {self.name} ping -q -c 2 -i 0.2 -W 1 {address}"
        return subprocess.run(command.split(), capture_output=True, timeout=20).returncode == 0

    def close(self) -> None:
        """The namespace goes, if it has not gone yet."""
        namespaces.delete(self.name)


class Records:
    """A store of records, as the journal is one, that forgets with the test."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, str], bytes] = {}

    async def save(self, key: str, kind: str, data: bytes) -> None:
        """Keep it."""
        self.kept[key, kind] = data

    async def load(self, key: str, kind: str) -> bytes | None:
        """What is kept under the key."""
        return self.kept.get((key, kind))

    async def forget(self, key: str, kind: str) -> None:
        """Keep it no more."""
        self.kept.pop((key, kind), None)

    async def all(self, kind: str) -> list[tuple[str, bytes]]:
        """All of one kind."""
        return [(key, data) for (key, other), data in self.kept.items() if other == kind]


class Heard:
    """What udev says, as (action, subsystem, name, driver)."""

    def __init__(self) -> None:
        self._monitor = pyudev.Monitor.from_netlink(pyudev.Context())
        for subsystem in ("pci", "net", "vfio"):
            self._monitor.filter_by(subsystem)
        self._monitor.set_receive_buffer_size(4 << 20)
        self._monitor.start()
        self.events: list[tuple[str, str, str, str]] = []

    def wait(self, *beginning: str) -> None:
        """Until an event that begins so was heard."""
        until(
            lambda: any(event[: len(beginning)] == beginning for event in self.drained()),
            lambda: f"{beginning}; heard: {self.events}",
        )

    def drained(self) -> list[tuple[str, str, str, str]]:
        """All that was heard until now."""
        while (device := self._monitor.poll(timeout=0)) is not None:
            driver = device.properties.get("DRIVER", "")
            self.events.append((device.action, device.subsystem, device.sys_name, driver))
        return self.events


class Emulator(Protocol):
    """Has QEMU do something."""

    def __call__(self, execute: str, **arguments: Any) -> Any: ...

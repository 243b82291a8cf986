"""The `sriov` delegate on the machine's cards, with the node's own journal; and all that a VF has to be like again."""

import json
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.to_thread

from devices.linux.addressing import NewRoute
from devices.linux.netdevs import Change, Netdev
from devices.linux.vf_kernel import LinuxKernel
from devices.linux.vfs import Step, VFState
from multus.cni.request import Command
from multus.cni.result import Result, parse_result
from multus.delegates.plugin import Call, Runner
from multus.delegates.sriov import Sriov
from multus.delegates.sriov_record import KIND, Store, UpstreamFiles
from multus.journal import Journal
from tests.vm.guest.hardware import KERNEL, Card, Hardware, plain, until

SETTINGS: Final[dict[str, Any]] = {
    "vlan": 100,
    "vlanQoS": 3,
    "mac": "02:AA:00:00:00:01",
    "max_tx_rate": 200,
    "spoofchk": "off",
    "trust": "on",
}
"""Everything that this hardware can set."""
BOOT: Final = "boot"

Ipam = Callable[[str, Call], Awaitable[bytes]]


class Delegate:
    """The delegate, called as a network of its own would be. `ipam` runs address plugins, by default real ones."""

    def __init__(
        self, journal: Journal, directory: Path, *, ipam: Ipam | None = None, doom: "Doom | None" = None
    ) -> None:
        self.journal = journal
        records: Store = journal.records
        kernel = LinuxKernel()
        if doom is not None:
            records, kernel = DoomedRecords(records, doom), DoomedKernel(doom)
        runner = ipam or Runner(timeout=lambda: 60.0)
        self._sriov = Sriov(runner, records, kernel, boot_id=BOOT, upstream=UpstreamFiles(directory / "upstream"))

    async def __call__(self, command: Command, space: str, bdf: str, *, container: str = "c1", **more: Any) -> bytes:
        conf = {"cniVersion": "1.0.0", "name": "net", "type": "sriov", "deviceID": bdf, **more}
        call = Call(
            command=command,
            conf=json.dumps(conf).encode(),
            container_id=container,
            netns=space,
            ifname="net1",
            path=("/usr/lib/cni",),
        )
        return await self._sriov("sriov", call)

    async def add(self, space: str, bdf: str, **more: Any) -> Result:
        return parse_result(await self(Command.ADD, space, bdf, **more), where="sriov")

    async def on_record(self) -> list[str]:
        """VFs that somebody has."""
        return [bdf for bdf, _ in await self.journal.records.all(KIND)]

    def ipam(self, address: str) -> dict[str, Any]:
        return {"type": "static", "addresses": [{"address": address}]}


@asynccontextmanager
async def delegate(directory: Path, **options: Any) -> AsyncIterator[Delegate]:
    """As a daemon that has just started has it."""
    async with Journal.open(directory / "journal.db") as journal:
        yield Delegate(journal, directory, **options)


def with_carrier(card: Card, count: int) -> list[str]:
    """VFs, and a carrier again: igb drops it to make them, and refuses rates without one."""
    made = card.create(count)
    until(lambda: card.carrier, "the carrier")
    return made


async def with_carrier_meanwhile(card: Card, count: int) -> list[str]:
    """The same, in a thread."""
    return await anyio.to_thread.run_sync(with_carrier, card, count)


def states(card: Card) -> dict[int, VFState]:
    """What the card has for each VF."""
    return card.states()


def state(card: Card, index: int = 0) -> VFState:
    return card.states()[index]


def link(name: str, *, space: str = "") -> dict[str, Any]:
    """What has to be the same of an interface."""
    (found,) = [each for each in KERNEL.netdevs(f"/run/netns/{space}" if space else "") if each.name == name]
    return plain(found)


def look(card: Card) -> dict[str, tuple[VFState, str, dict[str, Any]]]:
    """All of a card's VFs: settings, driver and interface."""
    return card.look()


class Pair:
    """A card with two VFs for all tests of a file, since it takes seconds to make them."""

    def __init__(self) -> None:
        self._card = Hardware().cards[0]
        self._first: object = None

    def clean(self) -> Card:
        """The card, with VFs as they were at first, or with new ones."""
        if look(self._card) != self._first:
            self._card.have(2)
            self._first = look(self._card)
        return self._card


class Doom:
    """Ends the process, as by kill -9, before a step, counted from 0."""

    def __init__(self, step: int) -> None:
        self._left = step

    def __call__(self) -> None:
        """A step is about to be done."""
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self._left -= 1


class DoomedRecords:
    """Records, each change of which is a step."""

    def __init__(self, records: Store, doom: Doom) -> None:
        self._records = records
        self._doom = doom
        self.load = records.load
        self.all = records.all

    async def save(self, key: str, kind: str, data: bytes) -> None:
        self._doom()
        await self._records.save(key, kind, data)

    async def forget(self, key: str, kind: str) -> None:
        self._doom()
        await self._records.forget(key, kind)


class DoomedKernel(LinuxKernel):
    """The kernel, each change of which is a step."""

    def __init__(self, doom: Doom) -> None:
        super().__init__()
        self._doom = doom

    def set_vf(self, pf_ifindex: int, vf: int, step: Step) -> None:
        self._doom()
        super().set_vf(pf_ifindex, vf, step)

    def change(self, netns: str, index: int, wanted: Change) -> None:
        self._doom()
        super().change(netns, index, wanted)

    def move(self, source: str, index: int, target: str, name: str) -> None:
        self._doom()
        super().move(source, index, target, name)

    def add_altname(self, netns: str, index: int, name: str) -> None:
        self._doom()
        super().add_altname(netns, index, name)

    def drop_altname(self, netns: str, index: int, name: str) -> None:
        self._doom()
        super().drop_altname(netns, index, name)

    def prepare(self, netns: str, name: str) -> None:
        self._doom()
        super().prepare(netns, name)

    def configure(self, netns: str, netdev: Netdev, addresses: Sequence[str], routes: Sequence[NewRoute]) -> None:
        self._doom()
        super().configure(netns, netdev, addresses, routes)

    def announce(self, netns: str, netdev: Netdev, addresses: Sequence[str]) -> None:
        self._doom()
        super().announce(netns, netdev, addresses)

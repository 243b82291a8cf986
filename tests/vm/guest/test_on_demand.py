"""`"driver"` in a network: the VF is bound for the pod and is as before afterwards, wherever the daemon was killed."""

import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.to_thread
import pytest

from devices.linux import netns as namespaces
from devices.linux.vf_kernel import LinuxKernel
from dpdk.drivers import Binder
from dpdk.kernel import Kernel
from dpdk.plans import VFIO
from multus.cni.request import Command
from multus.delegates.plugin import Runner
from multus.delegates.sriov import Sriov
from multus.delegates.sriov_record import UpstreamFiles
from multus.errors import NodeError
from multus.journal import Journal
from tests.vm.guest.attached import (
    BOOT,
    Delegate,
    Doom,
    DoomedKernel,
    DoomedRecords,
    delegate,
    look,
    state,
)
from tests.vm.guest.hardware import PCI, Card, Hardware, Space, driver, run, until

MAC: Final = "02:d0:00:00:00:0e"
WANTED: Final[dict[str, Any]] = {"driver": VFIO, "vlan": 100, "mac": MAC}


def node_of(bdf: str) -> Path:
    return Path("/dev/vfio") / (PCI / "devices" / bdf / "iommu_group").readlink().name


async def as_before(card: Card, before: object) -> None:
    """udev names an interface in its own time."""
    await anyio.to_thread.run_sync(until, lambda: look(card) == before, lambda: f"{before}: {look(card)}")


@pytest.mark.anyio
async def test_bound_for_the_pod_and_back(kept: Hardware, space: Callable[[], Space], tmp_path: Path) -> None:
    card = kept.cards[0]
    bdf = card.have(2)[0]
    before, pod = look(card), space()
    async with delegate(tmp_path) as sriov:
        (interface,) = (await sriov.add(pod.path, bdf, **WANTED)).interfaces
        assert (interface.name, interface.mac, interface.pci_id) == ("net1", MAC, bdf)
        assert (driver(bdf), state(card).vlan, state(card).mac) == (VFIO, 100, MAC)
        assert node_of(bdf).exists()
        assert namespaces.interface_names(pod.path) == ("lo",)
        await sriov(Command.CHECK, pod.path, bdf, **WANTED)
    async with delegate(tmp_path) as sriov:
        for _ in range(2):
            await sriov(Command.DEL, pod.path, bdf, **WANTED)
        await as_before(card, before)
        assert await sriov.on_record() == []


@pytest.mark.anyio
async def test_a_held_vf_stays_and_its_holder_is_named(
    kept: Hardware, space: Callable[[], Space], tmp_path: Path
) -> None:
    card = kept.cards[0]
    bdf = card.have(2)[0]
    before, pod = look(card), space()
    async with delegate(tmp_path) as sriov:
        await sriov.add(pod.path, bdf, **WANTED)
        held = os.open(node_of(bdf), os.O_RDWR)
        try:
            with pytest.raises(NodeError, match=f"in use by process {os.getpid()}"):
                await sriov(Command.DEL, pod.path, bdf, **WANTED)
            assert (driver(bdf), state(card).vlan) == (VFIO, 100)
        finally:
            os.close(held)
        await sriov(Command.DEL, pod.path, bdf, **WANTED)
        await as_before(card, before)


@pytest.mark.anyio
async def test_what_cannot_be_bound_is_left_alone(kept: Hardware, space: Callable[[], Space], tmp_path: Path) -> None:
    """Not from a group with others in it, not an interface with an address; and nothing is left of the attempt."""
    pod = space()
    async with delegate(tmp_path) as sriov:
        shared = kept.shared.have(2)[0]
        before = look(kept.shared)
        with pytest.raises(NodeError, match="is not viable"):
            await sriov.add(pod.path, shared, **WANTED)
        assert look(kept.shared) == before
        card = kept.cards[0]
        card.have(2)
        name = card.vf_netdev(0)
        run(f"ip link set {name} up")
        run(f"ip addr add 10.78.0.1/24 dev {name}")
        before = look(card)
        with pytest.raises(NodeError, match=r"10\.78\.0\.1/24"):
            await sriov.add(pod.path, card.vf(0), **WANTED)
        assert look(card) == before
        assert await sriov.on_record() == []
    run(f"ip addr flush dev {name}")
    run(f"ip link set {name} down")


class DoomedBinding(Kernel):
    """The binder's kernel, each change of which is a step."""

    def __init__(self, doom: Doom) -> None:
        super().__init__()
        for part, names in ((self.sysfs, ("write", "write_driver", "probe")), (self, ("set_admin_mac", "set_address"))):
            for name in names:
                setattr(part, name, self._doomed(getattr(part, name), doom))

    @staticmethod
    def _doomed(function: Callable[..., None], doom: Doom) -> Callable[..., None]:
        def called(*arguments: object) -> None:
            doom()
            function(*arguments)

        return called


class DoomedDelegate(Delegate):
    """Ends before one of the steps of binder and delegate."""

    def __init__(self, journal: Journal, directory: Path, doom: Doom) -> None:
        super().__init__(journal, directory)
        records = DoomedRecords(journal.records, doom)
        self._sriov = Sriov(
            Runner(timeout=lambda: 60.0),
            records,
            DoomedKernel(doom),
            boot_id=BOOT,
            upstream=UpstreamFiles(directory / "upstream"),
            binder=Binder(DoomedBinding(doom), records),
        )


@asynccontextmanager
async def doomed(directory: Path, doom: Doom) -> AsyncIterator[Delegate]:
    async with Journal.open(directory / "journal.db") as journal:
        yield DoomedDelegate(journal, directory, doom)


async def carry_out(
    made: Callable[[], Any], command: Command, space: str, bdf: str, *, recovers: bool = False
) -> list[str]:
    """One call of a daemon that has just started; what is on record then."""
    async with made() as sriov:
        if recovers:
            await Binder(Kernel(), sriov.journal.records).recover()
        await sriov(command, space, bdf, **WANTED)
        return [*await sriov.on_record(), *await Binder(Kernel(), sriov.journal.records).records()]


def dies(directory: Path, command: Command, space: str, bdf: str, step: int) -> bool:
    """Whether a daemon of its own process was killed before that step of a call."""
    child = os.fork()
    if child == 0:
        try:
            anyio.run(carry_out, partial(doomed, directory, Doom(step)), command, space, bdf)
            os._exit(0)
        except BaseException:
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL)
    return code != 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # fork, from Python 3.12 on
@pytest.mark.parametrize("command", [Command.ADD, Command.DEL])
def test_killed_at_any_step(kept: Hardware, space: Callable[[], Space], tmp_path: Path, command: Command) -> None:
    card = kept.cards[0]
    bdf = card.have(2)[0]
    before, pod = look(card), space()
    started, steps = partial(delegate, tmp_path), 0
    assert LinuxKernel().device(bdf) is not None
    while True:
        if command is Command.DEL:
            anyio.run(carry_out, started, Command.ADD, pod.path, bdf)
        killed = dies(tmp_path, command, pod.path, bdf, steps)
        left = anyio.run(partial(carry_out, recovers=True), started, Command.DEL, pod.path, bdf)
        assert left == []
        until(lambda: look(card) == before, f"all to be as before, killed before step {steps}")
        if not killed:
            break
        steps += 1
    # Two records, the MAC, driver_override, unbind, probe and the VLAN; the interface's own MAC on the way back.
    assert steps in ((7,) if command is Command.ADD else (7, 8))


@pytest.mark.anyio
async def test_vfs_removed_under_the_pod(kept: Hardware, space: Callable[[], Space], tmp_path: Path) -> None:
    card = kept.cards[0]
    bdf, pod = card.have(2)[0], space()
    async with delegate(tmp_path) as sriov:
        await sriov.add(pod.path, bdf, **WANTED)
        await anyio.to_thread.run_sync(card.write, "sriov_numvfs", 0)
        await sriov(Command.DEL, pod.path, bdf, **WANTED)
        assert await sriov.on_record() == []
        assert await Binder(Kernel(), sriov.journal.records).records() == {}

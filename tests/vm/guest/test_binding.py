"""Binding survives what can happen in between."""

import fcntl
import os
import signal
import struct
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from dpdk.drivers import Binder
from dpdk.iommu import group_node, is_viable, read_group
from dpdk.kernel import Kernel
from dpdk.plans import VFIO
from dpdk.records import Store
from multus.journal import Journal
from tests.vm.guest.attached import Doom, DoomedRecords
from tests.vm.guest.hardware import PCI, Card, Hardware, driver, run
from tests.vm.guest.test_vfio import GET_DEVICE_FD, GROUP_SET_CONTAINER, SET_IOMMU, TYPE1, group

pytestmark = pytest.mark.anyio

MAC = "02:d0:00:00:00:0c"


@asynccontextmanager
async def binder(directory: Path, doom: Doom | None = None) -> AsyncIterator[Binder]:
    """With the node's own journal, as the daemon has it."""
    async with Journal.open(directory / "journal.db") as journal:
        records: Store = journal.records
        if doom is None:
            yield Binder(Kernel(), records)
        else:
            yield Binder(DoomedBinding(doom), DoomedRecords(records, doom))


@contextmanager
def opened(bdf: str) -> Iterator[None]:
    """This process has the device open, as a DPDK program has it."""
    files = [os.open("/dev/vfio/vfio", os.O_RDWR), os.open(group(bdf), os.O_RDWR)]
    try:
        fcntl.ioctl(files[1], GROUP_SET_CONTAINER, struct.pack("i", files[0]))
        fcntl.ioctl(files[0], SET_IOMMU, TYPE1)
        files.insert(0, fcntl.ioctl(files[1], GET_DEVICE_FD, bytearray(bdf.encode() + b"\0"), True))
        yield
    finally:
        for each in files:
            os.close(each)


def look(card: Card, index: int) -> tuple[str, str, str, str]:
    """What has to be the same after as before: driver, override, admin MAC, the interface's MAC."""
    bdf = card.vf(index)
    netdev = card.vf_netdev(index)
    address = (PCI / "devices" / bdf / "net" / netdev / "address").read_text().strip() if netdev else ""
    override = (PCI / "devices" / bdf / "driver_override").read_text().strip()
    return driver(bdf), override, Kernel().admin_mac(card.bdf, index), address


async def test_the_kernel_finds_the_group_viable_and_the_port_has_the_mac(kept: Hardware, tmp_path: Path) -> None:
    card = kept.cards[0]
    bdf = card.have(2)[0]
    before = look(card, 0)
    async with binder(tmp_path) as tool:
        await tool.apply_bind(await tool.plan(bdf, VFIO))
        assert look(card, 0)[2] == before[3]
        kernel = Kernel()
        found = read_group(kernel.sysfs, bdf)
        assert found is not None
        assert is_viable(group_node(kernel.sysfs, found)) is True
        await tool.restore(bdf)
    assert look(card, 0) == before


async def test_an_interface_with_an_address_is_not_taken(kept: Hardware, tmp_path: Path) -> None:
    card = kept.cards[0]
    bdf = card.have(2)[0]
    name = card.vf_netdev(0)
    run(f"ip link set {name} up")
    run(f"ip addr add 10.77.0.1/24 dev {name}")
    async with binder(tmp_path) as tool:
        plan = await tool.plan(bdf, VFIO)
        assert any("10.77.0.1/24" in reason for reason in plan.refusals), plan
    assert driver(bdf) == "igbvf"
    run(f"ip addr flush dev {name}")
    run(f"ip link set {name} down")


class DoomedBinding(Kernel):
    """The kernel, each change of which is a step."""

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


async def bind(directory: Path, bdf: str, doom: Doom | None = None) -> None:
    async with binder(directory, doom) as tool:
        await tool.apply_bind(await tool.plan(bdf, VFIO, mac=MAC))


async def restore(directory: Path, bdf: str, doom: Doom | None = None) -> None:
    async with binder(directory, doom) as tool:
        await tool.restore(bdf)


async def recover(directory: Path, bdf: str) -> None:
    """As a daemon that starts, and then the owner of a VF that arrived."""
    async with binder(directory) as tool:
        await tool.recover()
        assert driver(bdf) in ("igbvf", VFIO)
        await tool.restore(bdf)
        assert await tool.records() == {}


def dies(directory: Path, bdf: str, step: int, *, back: bool) -> bool:
    """Whether binding, or restoring, in a process of its own was killed before that step."""
    child = os.fork()
    if child == 0:
        try:
            anyio.run(restore if back else bind, directory, bdf, Doom(step))
            os._exit(0)
        except BaseException:
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL)
    return code != 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # fork, from Python 3.12 on
@pytest.mark.parametrize("back", [False, True], ids=["bind", "restore"])
def test_killed_between_any_two_steps(kept: Hardware, tmp_path: Path, back: bool) -> None:
    card = kept.cards[0]
    bdf = card.have(2)[0]
    before = look(card, 0)
    steps = 0
    while True:
        if back:
            anyio.run(bind, tmp_path, bdf)
        killed = dies(tmp_path, bdf, steps, back=back)
        anyio.run(recover, tmp_path, bdf)
        assert look(card, 0) == before, f"killed before step {steps}"
        if not killed:
            break
        steps += 1
    # The record, MAC, override, unbind and probe; on the way back the interface's own MAC, if it came with another.
    assert steps in ((5, 6) if back else (5,))


async def test_vfs_removed_under_a_program_leave_nothing_to_put_back(kept: Hardware, tmp_path: Path) -> None:
    """The kernel waits for the program; meanwhile nobody else does."""
    card = kept.cards[0]
    bdf = card.have(2)[0]
    async with binder(tmp_path) as tool:
        await tool.apply_bind(await tool.plan(bdf, VFIO))
        with opened(bdf):
            removal = subprocess.Popen(["sh", "-c", f"echo 0 > {card.path}/sriov_numvfs"])
            await anyio.sleep(0.5)
            waits = removal.poll() is None
            with anyio.move_on_after(5) as scope:
                outcome = await tool.recover()
        assert await anyio.to_thread.run_sync(removal.wait, 20) == 0
        assert waits
        assert not scope.cancelled_caught
        assert outcome == {bdf: None}
        assert await tool.records() == {}

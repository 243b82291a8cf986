"""Who uses virtual functions, and the record of those that were given out by hand."""

import socket
import time
from collections.abc import Callable, Collection, Coroutine
from pathlib import Path
from typing import Any, ClassVar, Final

import anyio
import msgspec

from devices.inventory import Inventory
from devices.ledger import KIND, Allocation, Ledger
from devices.linux.pci import SYSFS
from dpdk.kernel import Kernel
from multus import uses
from multus.database import read_only
from multus.errors import Fault, MultusError
from multus.files import FileError
from multus.journal import SCHEMA_VERSION, Journal, read_journal

BY_HAND: Final = "by hand: "
"""Before the owner of what was allocated here: what the daemon gave a pod is the daemon's to take back."""


class VfError(MultusError):
    """What was asked for VFs is refused."""

    fault: ClassVar[Fault] = Fault.OPERATOR


def held(found: Inventory, *, journal: Path, sysfs: Path) -> dict[str, str]:
    """Who uses VFs now, by address: pods, owners in the ledger, programs, and namespaces that are not this one."""
    used = uses.of_hardware(found.vfs, sysfs=sysfs)
    if sysfs == SYSFS:  # of another, interfaces by these numbers are not ours
        used |= uses.of_node(found.vfs, found.records, Kernel().survey())
    return used | allocated(journal) | attached(journal)


def attached(journal: Path) -> dict[str, str]:
    """VFs of pods, by address."""
    return uses.of_pods(read_journal(journal)) if journal.exists() else {}


def allocated(journal: Path) -> dict[str, str]:
    """VFs that were given out on this node, and to whom."""
    if not journal.exists():
        return {}
    rows = read_only(
        journal,
        lambda connection: connection.execute("SELECT data FROM record WHERE kind = ?", (KIND,)).fetchall(),
        schema=SCHEMA_VERSION,
    )
    try:
        found = [msgspec.json.decode(bytes(row[0]), type=Allocation) for row in rows]
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise VfError(f"an allocation in {journal} cannot be understood: {error}") from None
    return {bdf: each.owner for each in found for bdf in each.devices}


def change(what: Callable[..., Coroutine[Any, Any, None]], *arguments: object) -> None:
    """Run a change of the journal; its errors come out one by one, not in the group of the journal's tasks."""
    try:
        anyio.run(what, *arguments)
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None


async def record(cni_dir: Path, owner: str, resource: str, devices: Collection[str]) -> None:
    """Devices are the owner's from now on, beside those that it has."""
    async with Journal.open(_directory(cni_dir) / "journal.db") as journal:
        ledger = Ledger(journal.records)
        await ledger.load()
        if taken := ledger.holders.keys() & set(devices):
            raise VfError(f"{min(taken)} was allocated meanwhile", hint="try again")
        await ledger.give(owner, resource, [*ledger.of(owner, resource), *devices], now=time.time())


async def unrecord(cni_dir: Path, bdf: str) -> None:
    """The device is nobody's any more."""
    async with Journal.open(cni_dir / "journal.db") as journal:
        ledger = Ledger(journal.records)
        await ledger.load()
        for found in ledger.allocations:
            if bdf in found.devices:
                rest = [each for each in found.devices if each != bdf]
                others = [each for each in ledger.allocations if each.owner == found.owner and each != found]
                await ledger.take_back(found.owner)
                for each in others:
                    await ledger.give(each.owner, each.resource, each.devices, now=each.since)
                if rest:
                    await ledger.give(found.owner, found.resource, rest, now=found.since)


def _directory(path: Path) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise FileError(f"cannot make {path}: {error.strerror or error}") from None
    return path


def refuse_beside_daemon(socket_dir: Path) -> None:
    """The daemon gives out VFs itself, of a ledger that it has read: both at once could give one VF twice."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(2)
        try:
            client.connect(str(socket_dir / "multus.sock"))
        except OSError:
            return
    raise VfError("multusd runs, and gives out VFs itself", hint="let pods ask for them, or stop it first")

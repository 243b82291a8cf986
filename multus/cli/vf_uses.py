"""Who uses virtual functions, by the journal and by what the kernel shows; read without a daemon, and not changed."""

from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import anyio

from devices.inventory import Inventory
from devices.ledger import KIND, Allocation, read_allocation
from devices.linux.pci import SYSFS
from dpdk.kernel import Kernel
from multus import byhand, uses
from multus.byhand_asks import ByHandError
from multus.database import read_only
from multus.journal import SCHEMA_VERSION, read_journal

VfError = ByHandError


def held(found: Inventory, *, journal: Path, sysfs: Path) -> dict[str, str]:
    """Who uses VFs now, by address: pods, owners in the ledger, programs, and namespaces that are not this one."""
    used = uses.of_hardware(found.vfs, sysfs=sysfs)
    if sysfs == SYSFS:  # of another, interfaces by these numbers are not ours
        used |= uses.of_node(found.vfs, found.records, Kernel().survey())
    return used | allocated(journal) | attached(journal)


def attached(journal: Path) -> dict[str, str]:
    """VFs of pods, by address."""
    return byhand.attached(read_journal(journal)) if journal.exists() else {}


def allocations(journal: Path) -> tuple[Allocation, ...]:
    """What was given out on this node, and to whom."""
    if not journal.exists():
        return ()
    rows = read_only(
        journal,
        lambda connection: connection.execute("SELECT key, data FROM record WHERE kind = ?", (KIND,)).fetchall(),
        schema=SCHEMA_VERSION,
    )
    return tuple(read_allocation(key, bytes(data)) for key, data in rows)


def allocated(journal: Path) -> dict[str, str]:
    """VFs that were given out on this node, and to whom, by address."""
    return {bdf: each.owner for each in allocations(journal) for bdf in each.devices}


def change(what: Callable[..., Coroutine[Any, Any, None]], *arguments: object) -> None:
    """Run a change of the journal; its errors come out one by one, not in the group of the journal's tasks."""
    try:
        anyio.run(what, *arguments)
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None

"""Looks at the hardware again where something changed, and keeps the inventory true to it."""

import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Final

import anyio.to_thread

from devices import guard, inventory
from devices.errors import DeviceError
from devices.inventory import VF, Inventory
from devices.linux.sysfs import PciRecord, Sysfs
from devices.linux.uevents import RESCAN, Change

logger = logging.getLogger(__name__)

_UNKNOWN: Final = "it is not known yet which NICs the node itself needs"


class Scout:
    """Reads `sysfs`; `reasons` tells why the node needs an interface, and is asked when that may have changed."""

    def __init__(self, sysfs: Sysfs, reasons: Callable[[], Mapping[str, str]]) -> None:
        self._sysfs = sysfs
        self._read_reasons = reasons
        self._reasons: Mapping[str, str] | None = None

    async def look(self, known: Inventory, changes: Collection[Change]) -> Inventory:
        """The inventory after these changes; the same object when nothing of it is new.

        Until it is known once what the node needs, everything is guarded.
        """
        rescan = RESCAN in changes
        if rescan or self._reasons is None or any(change.subsystem in ("node", "net") for change in changes):
            await self._learn_reasons()
        now = known
        if rescan:
            records = await anyio.to_thread.run_sync(self._sysfs.read)
            if {record.bdf: record for record in records} != known.records:
                now = inventory.build(records, guarded=known.guarded)
        else:
            touched = _with_parents(known, {change.bdf for change in changes if change.bdf})
            for bdf, record in (await anyio.to_thread.run_sync(self._read, touched)).items():
                now = inventory.update(now, bdf, record)
        if self._reasons is None:
            return inventory.guard(now, dict.fromkeys(now.records, _UNKNOWN))
        return inventory.guard(now, guard.devices(now.records.values(), self._reasons))

    def _read(self, addresses: Iterable[str]) -> dict[str, PciRecord | None]:
        """These devices and the PFs of those that are VFs."""
        found = {bdf: self._sysfs.read_one(bdf) for bdf in sorted(addresses)}
        parents = {record.physfn for record in found.values() if record is not None and record.physfn} - found.keys()
        return found | {bdf: self._sysfs.read_one(bdf) for bdf in sorted(parents)}

    async def _learn_reasons(self) -> None:
        try:
            self._reasons = await anyio.to_thread.run_sync(self._read_reasons)
        except DeviceError as error:
            logger.error("which NICs the node needs cannot be told; what was known of that stands: %s", error)


def _with_parents(known: Inventory, touched: Collection[str]) -> set[str]:
    """A PF's list of VFs changes with each of them, and it may not be told of."""
    found = set(touched)
    for bdf in touched:
        device = known.by_bdf.get(bdf)
        if isinstance(device, VF):
            found.add(device.pf)
    return found

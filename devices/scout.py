"""Looks at the hardware again where something changed, and keeps the inventory true to it."""

import logging
from collections.abc import Callable, Collection, Mapping
from typing import Final

import anyio.to_thread

from devices import guard, inventory
from devices.errors import DeviceError
from devices.inventory import VF, Inventory
from devices.linux.sysfs import PciRecord, Sysfs
from devices.linux.sysfs_parts import read_count, relist, uppers
from devices.linux.uevents import RESCAN, Change

logger = logging.getLogger(__name__)

Records = Mapping[str, PciRecord]
Seen = dict[str, PciRecord | None]
"""What was looked at, by address; None is not there."""

_UNKNOWN: Final = "it is not known yet which NICs the node itself needs"
_FEW: Final = 8  # VFs of a PF that came or went at once: more are listed quicker with all the others


class Scout:
    """Reads `sysfs`; `reasons` tells why the node needs an interface, and is asked when that may have changed."""

    def __init__(self, sysfs: Sysfs, reasons: Callable[[], Mapping[str, str]]) -> None:
        self._sysfs = sysfs
        self._read_reasons = reasons
        self._reasons: Mapping[str, str] | None = None
        self._weighed: tuple[Records, Mapping[str, str] | None] = ({}, None)
        self._weighty: dict[str, PciRecord] = {}
        self._stacks: dict[str, frozenset[str]] = {}  # interfaces that were told of, and what stood on them

    async def look(self, known: Inventory, changes: Collection[Change]) -> Inventory:
        """The inventory after these changes; the same object when nothing of it is new.

        Until it is known once what the node needs, everything is guarded.
        """
        # One visit to a worker thread for all: it takes 0.1 to 0.3 ms of CPU, as long as reading two VFs.
        seen = await anyio.to_thread.run_sync(self._see, known, changes)
        now = known
        if isinstance(seen, tuple):
            if {record.bdf: record for record in seen} != known.records:
                now = inventory.build(seen, guarded=known.guarded)
            looked: Collection[str] = now.records
        else:
            for bdf, record in seen.items():
                now = inventory.update(now, bdf, record)
            looked = seen
        if self._reasons is None:
            return inventory.guard(now, dict.fromkeys(now.records, _UNKNOWN))
        return inventory.guard(now, self._guarded(known.records, now.records, looked, self._reasons))

    def _guarded(
        self, before: Records, records: Records, looked: Collection[str], reasons: Mapping[str, str]
    ) -> dict[str, str]:
        """As `guard.devices`, of the few records that can make a difference there; those are known of the last look."""
        was, known = self._weighed
        if was is not before or known is not reasons:
            looked, self._weighty = records, {}
        for bdf in looked:
            record = records.get(bdf)
            if record is not None and _weighs(record, reasons):
                self._weighty[bdf] = record
            else:
                self._weighty.pop(bdf, None)
        self._weighed = (records, reasons)
        return guard.devices((self._weighty[bdf] for bdf in sorted(self._weighty)), reasons)

    def _see(self, known: Inventory, changes: Collection[Change]) -> tuple[PciRecord, ...] | Seen:
        """Everything after a rescan, else what may have changed."""
        if RESCAN in changes:
            self._learn_reasons()
            return self._sysfs.read()
        seen = self._read(known, {change.bdf for change in changes if change.bdf})
        linked = {change.bdf: seen[change.bdf] for change in changes if change.subsystem == "net" and change.bdf}
        if any(change.subsystem == "node" for change in changes) or self._may_be_needed(known, linked):
            self._learn_reasons()
        return seen

    def _may_be_needed(self, known: Inventory, linked: Seen) -> bool:
        """Whether the node may need other interfaces than it did, as something is new of those of these devices.

        Addresses and routes are told of by themselves. What is left are names, and what stands on an interface: to list
        all of them takes 13 ms with 512 VFs, and is not done for a link that goes up or down.
        """
        reasons, may = self._reasons, self._reasons is None
        for bdf, record in linked.items():
            before = known.records.get(bdf)
            were = {net.name: net.ifindex for net in before.netdevs} if before is not None else {}
            are = {net.name: net.ifindex for net in record.netdevs} if record is not None else {}
            stacks = {name: uppers(self._sysfs, name) for name in are}
            may |= not are.items() <= were.items() or bool(reasons and reasons.keys() & (were.keys() | are.keys()))
            may |= any(above != self._stacks.get(name, frozenset()) for name, above in stacks.items())
            for name in were:
                self._stacks.pop(name, None)
            self._stacks |= stacks
        return may

    def _read(self, known: Inventory, addresses: Collection[str]) -> Seen:
        """These devices, and what changes with them of the PFs of those that are VFs; a PF may not be told of."""
        found: Seen = {bdf: self._sysfs.read_one(bdf) for bdf in sorted(addresses)}
        parents: dict[str, set[int]] = {}  # each with the numbers of those VFs that came or went, -1 for an unknown one
        for bdf, record in found.items():
            was, vf = known.records.get(bdf), known.by_bdf.get(bdf)
            if record is not None and record.physfn:
                same = was is not None and (was.physfn, was.vf_index) == (record.physfn, record.vf_index)
                parents.setdefault(record.physfn, set()).update(() if same else (record.vf_index,))
            if isinstance(vf, VF) and (record is None or record.physfn != vf.pf):
                parents.setdefault(vf.pf, set()).add(vf.index)
        for bdf in sorted(parents.keys() - found.keys()):
            found[bdf] = self._parent(bdf, known.records.get(bdf), parents[bdf])
        return found

    def _parent(self, bdf: str, known: PciRecord | None, numbers: Collection[int]) -> PciRecord | None:
        """The PF of VFs with these numbers that came or went."""
        if known is None or -1 in numbers or len(numbers) > _FEW:
            return self._sysfs.read_one(bdf)
        count = read_count(self._sysfs, bdf)
        if abs(count - known.num_vfs) > len(numbers):  # more than that happened
            return self._sysfs.read_one(bdf)
        return relist(self._sysfs, known, count, numbers) if numbers else known

    def _learn_reasons(self) -> None:
        try:
            reasons = self._read_reasons()
        except DeviceError as error:
            logger.error("which NICs the node needs cannot be told; what was known of that stands: %s", error)
            return
        if reasons != self._reasons:
            self._reasons = reasons


def _weighs(record: PciRecord, reasons: Mapping[str, str]) -> bool:
    """Whether `guard.devices` heeds it: the node needs one of its interfaces, or it may be the only way out."""
    nets = record.netdevs
    return any(net.name in reasons or (net.carrier and record.physfn is None) for net in nets)

"""VFs to drivers for programs and back: crash-safe, bounded, and never under somebody's hands.

What a VF was is saved before anything is changed and forgotten when it is that again, so from any point between two
steps the way back is known. The steps look at what is there and not at what was done: each may be repeated.
"""

import errno
import logging
from collections.abc import Mapping, Sequence
from typing import Final

import anyio
import anyio.to_thread

from devices.errors import DeviceError, KernelError
from devices.linux.sysfs import PciRecord
from dpdk.errors import DpdkError, RefusedError
from dpdk.handle import Handle, Pause
from dpdk.kernel import Kernel
from dpdk.plans import NO_MAC, USERSPACE, BindPlan, BindRecord, Step, plan_bind
from dpdk.records import KIND, Records, Store

__all__ = ["KIND", "BindPlan", "Binder", "Store", "plan_bind"]

log = logging.getLogger(__name__)

_HOLD: Final = 10.0  # for those who hold a device to let go
_UNDO: Final = 30.0
_NOT_A_MAC: Final = frozenset({errno.EINVAL, errno.EADDRNOTAVAIL, errno.EOPNOTSUPP})


class Binder:
    """Binds and restores. One VF is worked on once at a time; different ones may be at the same time."""

    def __init__(self, kernel: Kernel, store: Store, *, pause: Pause = anyio.sleep) -> None:
        self._kernel = kernel
        self._records = Records(store)
        self._pause = pause
        self._locks: dict[str, anyio.Lock] = {}

    async def plan(self, bdf: str, target: str, *, mac: str = "", owner: str = "") -> BindPlan:
        """What binding it would do now, and why it would not.

        :raises DeviceError: the kernel did not tell.
        """
        return (await self.plan_all([bdf], target, mac=mac, owner=owner))[0]

    async def plan_all(
        self, bdfs: Sequence[str], target: str, *, mac: str = "", owner: str = ""
    ) -> tuple[BindPlan, ...]:
        """The same for several, which leave their IOMMU groups together; the node is looked at once.

        :raises DeviceError: the kernel did not tell.
        """

        def every() -> tuple[BindPlan, ...]:
            survey = self._kernel.survey()
            facts = [self._kernel.facts(bdf, survey) for bdf in bdfs]
            together = set(bdfs)
            while True:
                plans = tuple(plan_bind(each, target, mac=mac, together=together, owner=owner) for each in facts)
                leaving = {plan.bdf for plan in plans if not plan.refusals}
                if leaving == together:
                    return plans
                together = leaving  # one that stays may keep others of its group

        return await anyio.to_thread.run_sync(every)

    async def apply_bind(self, plan: BindPlan) -> None:
        """Carry a plan out; all or nothing: after a failure or when cancelled, the VF is put back.

        :raises RefusedError: the plan is a refusal.
        :raises DeviceError: a step failed.
        """
        if plan.refusals:
            raise RefusedError(plan.bdf, plan.target, plan.refusals)
        record = plan.record
        if record is None:
            return
        async with self._lock(plan.bdf):
            try:
                for step in plan.steps:
                    record = await self._step(step, record)
            except BaseException as error:
                log.info("%s: binding to %s failed, putting it back", plan.bdf, plan.target)
                await self._undo(plan.bdf, error)
                raise

    async def restore(self, bdf: str, *, hold: float = _HOLD, owner: str = "") -> BindRecord | None:
        """Put a VF back as its record says, when nobody holds it; after `hold` seconds of waiting for that it gives up.

        The record that was followed, None when there is none, or another's than `owner`'s, "" being anybody. What
        somebody else changed meanwhile stays.
        :raises HeldError: a program still has the device; nothing was changed.
        :raises DeviceError: a step failed; the record stays, so that it can be tried again.
        """
        async with self._lock(bdf):
            record = await self._records.load(bdf) if owner else None
            if record is not None and record.owner != owner:
                return None
            return await self._restore(bdf, hold)

    async def adopt(self, bdf: str, driver: str, *, owner: str = "") -> None:
        """Make a record for a VF that something else bound, so that `restore` gives it to `driver`.

        :raises DpdkError: it is no VF, or it is on no driver for programs.
        """
        async with self._lock(bdf):
            device = await self._handle(bdf).read()
            if device is None or not device.physfn or device.driver not in USERSPACE:
                raise DpdkError(
                    f"{bdf} is no VF on a driver for programs", hint="`multusctl dpdk status` shows which are"
                )
            if await self._records.load(bdf) is None:
                await self._records.save(
                    BindRecord(
                        bdf=bdf,
                        target=device.driver,
                        pf=device.physfn,
                        index=device.vf_index,
                        boot_id=self._kernel.boot_id(),
                        owner=owner,
                        driver=driver,
                    )
                )

    async def recover(self) -> Mapping[str, DeviceError | None]:
        """After a crash: put back every VF that was on its way, there or back; what became of each.

        Those that are where they were wanted are left there: their owners know what shall become of them.
        """
        outcome: dict[str, DeviceError | None] = {}
        for bdf in await self._records.all():
            async with self._lock(bdf):  # whoever is at work on it knows what he is doing
                record, device = await self._records.load(bdf), await self._handle(bdf).read()
                if record is not None and device is not None and self._arrived(device, record):
                    continue
                try:
                    await self._restore(bdf, 0)
                    outcome[bdf] = None
                    log.info("%s was on its way to another driver: it is back", bdf)
                except DeviceError as error:
                    log.warning("%s: %s", bdf, error)
                    outcome[bdf] = error
        return outcome

    async def records(self) -> dict[str, BindRecord]:
        """What is bound or on its way, by address; records that cannot be read are left out."""
        return {bdf: record for bdf, record in (await self._records.all()).items() if record is not None}

    async def _step(self, step: Step, record: BindRecord) -> BindRecord:
        handle, kernel = self._handle(record.bdf), self._kernel
        match step:
            case Step.MODULE:
                await anyio.to_thread.run_sync(kernel.load, record.target)
            case Step.SAVE:
                return await self._records.save(record)
            case Step.MAC:
                await anyio.to_thread.run_sync(kernel.set_admin_mac, record.pf, record.index, record.mac)
            case Step.OVERRIDE:
                await handle.override(record.target)
            case Step.UNBIND:
                await handle.unbind()
            case Step.PROBE:
                await handle.probe()
            case Step.VERIFY:
                await handle.bound(record.target)
            case Step.NODE:
                await handle.has_node()
        return record

    async def _undo(self, bdf: str, error: BaseException) -> None:
        with anyio.CancelScope(shield=True), anyio.move_on_after(_UNDO):
            try:
                await self._restore(bdf, 0)
            except Exception as another:  # the first error is the one to tell; the record stays for later
                log.warning("%s: after %r, it could not be put back: %s", bdf, error, another)

    async def _restore(self, bdf: str, hold: float) -> BindRecord | None:
        handle = self._handle(bdf)
        record, device = await self._records.load(bdf), await handle.read()
        if record is None or device is None or not self._same(device, record):
            await self._records.forget(bdf)  # another boot, or another VF at the same address: nothing to put back
            return record
        if device.driver == record.target:
            await handle.released(hold)
        if device.driver_override == record.target != record.override:
            await handle.override(record.override)
        if device.driver == record.target != record.driver:
            await handle.unbind()
        await self._restore_mac(record)
        if record.driver and not await handle.driver():
            await _give_back(handle, record)
        await self._restore_address(handle, record)
        await self._records.forget(bdf)
        return record

    async def _restore_mac(self, record: BindRecord) -> None:
        """Before the kernel's driver looks at it; not if it was changed since."""
        if not record.mac:
            return
        now = await anyio.to_thread.run_sync(self._kernel.admin_mac, record.pf, record.index)
        if now != record.mac:
            return
        try:
            await anyio.to_thread.run_sync(self._kernel.set_admin_mac, record.pf, record.index, record.admin_mac)
        except KernelError as error:
            # Some drivers take no MAC away again: with its own one, no two VFs have the same.
            if record.admin_mac != NO_MAC or not record.address or error.code not in _NOT_A_MAC:
                raise
            await anyio.to_thread.run_sync(self._kernel.set_admin_mac, record.pf, record.index, record.address)

    async def _restore_address(self, handle: Handle, record: BindRecord) -> None:
        """A VF without an admin MAC chose its own, and chooses another when it is bound again."""
        if not record.address or await handle.driver() != record.driver:
            return
        await handle.has_interface()
        device = await handle.read()
        netdev = device.netdev if device is not None else None
        if netdev is not None and netdev.mac != record.address:
            await anyio.to_thread.run_sync(self._kernel.set_address, netdev.ifindex, record.address)

    def _same(self, device: PciRecord, record: BindRecord) -> bool:
        return (record.boot_id, record.pf) == (self._kernel.boot_id(), device.physfn)

    def _arrived(self, device: PciRecord, record: BindRecord) -> bool:
        return self._same(device, record) and device.driver == device.driver_override == record.target

    def _handle(self, bdf: str) -> Handle:
        return Handle(self._kernel, bdf, self._pause)

    def _lock(self, bdf: str) -> anyio.Lock:
        return self._locks.setdefault(bdf, anyio.Lock())


async def _give_back(handle: Handle, record: BindRecord) -> None:
    await handle.probe()
    if not await handle.driver():
        # Its PF has sriov_drivers_autoprobe off, or no driver claims it: it goes back by name.
        await handle.override(record.driver)
        try:
            await handle.probe()
        finally:
            await handle.override(record.override)
    await handle.bound("")

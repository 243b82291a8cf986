"""Drivers of VFs as policies want them, given and taken back by what DPDK programs use for that."""

from collections.abc import Collection, Sequence
from itertools import zip_longest

import anyio.to_thread

from devices.errors import DeviceError
from devices.linux.pci import USERSPACE
from devices.linux.sysfs import Sysfs
from devices.policy_apply import ApplyError
from dpdk.drivers import Binder


class BinderDrivers:
    """Drivers of VFs, changed so that the change can be taken back."""

    def __init__(self, binder: Binder, sysfs: Sysfs) -> None:
        self._binder = binder
        self._sysfs = sysfs

    async def bind(self, addresses: Sequence[str], driver: str, *, owner: str) -> dict[str, DeviceError]:
        """As `devices.policy_apply.Drivers`."""
        failed: dict[str, DeviceError] = {}
        plans = await self._binder.plan_all(addresses, driver, owner=owner) if driver else ()
        for bdf, plan in zip_longest(addresses, plans):
            try:
                await (self._give_back(bdf, owner) if plan is None else self._binder.apply_bind(plan))
            except DeviceError as error:
                failed[bdf] = error
        return failed

    async def _give_back(self, bdf: str, owner: str) -> None:
        if await self._driver(bdf) in USERSPACE and bdf not in await self._binder.records():
            await self._binder.adopt(bdf, "", owner=owner)  # somebody bound it by hand
        await self._binder.restore(bdf)
        if not await self._driver(bdf):
            await anyio.to_thread.run_sync(self._sysfs.probe, bdf)
        if (now := await self._driver(bdf)) in {"", *USERSPACE}:
            raise ApplyError(
                f"it is on {now or 'no driver'}, none of the kernel's takes it",
                hint="load the driver's module; the PF's sriov_drivers_autoprobe may be off",
            )

    async def removed(self, addresses: Collection[str]) -> None:
        """As `devices.policy_apply.Drivers`."""
        for bdf in (await self._binder.records()).keys() & set(addresses):
            await self._binder.restore(bdf, hold=0)

    async def _driver(self, bdf: str) -> str:
        record = await anyio.to_thread.run_sync(self._sysfs.read_one, bdf)
        return record.driver if record is not None else ""

"""One VF in the hands of the binder: changes of its driver, each in a worker thread, and bounded waits for them."""

from collections.abc import Awaitable, Callable
from typing import Final

import anyio
import anyio.to_thread

from devices.linux.sysfs import PciRecord
from dpdk.errors import DpdkError, HeldError
from dpdk.kernel import Kernel

_SOON, _SELDOM = 0.005, 0.1
_PROBE: Final = 15.0  # for a driver to take a device and make what belongs to it
_RELEASE: Final = 5.0  # for an unbind that was started when nobody held the device

Pause = Callable[[float], Awaitable[None]]
"""Returns after so many seconds, or sooner, when the kernel has said that something changed."""


class Handle:
    """A VF. Every method raises KernelError for what the kernel refuses, DpdkError for a VF that is gone."""

    def __init__(self, kernel: Kernel, bdf: str, pause: Pause) -> None:
        self.kernel = kernel
        self.bdf = bdf
        self._pause = pause

    async def read(self) -> PciRecord | None:
        """The VF as it is; None when it is gone."""
        return await anyio.to_thread.run_sync(self.kernel.sysfs.read_one, self.bdf)

    async def driver(self) -> str:
        """Its driver, "" for none."""
        return await anyio.to_thread.run_sync(self.kernel.driver, self.bdf)

    async def override(self, driver: str) -> None:
        """Which driver may have it; "" for the one that claims it."""
        await anyio.to_thread.run_sync(self.kernel.sysfs.write, self.bdf, "driver_override", driver or "\n")

    async def probe(self) -> None:
        """Have the kernel look for a driver."""
        await anyio.to_thread.run_sync(self.kernel.sysfs.probe, self.bdf)

    async def unbind(self) -> None:
        """Take its driver away. That blocks, and cannot be called off, while a program holds a VFIO device.

        :raises HeldError: a program does, and did not let go in time; the kernel goes on waiting for it.
        """
        driver = await self.driver()
        if not driver:
            return
        with anyio.move_on_after(_RELEASE):
            await anyio.to_thread.run_sync(
                self.kernel.sysfs.write_driver, driver, "unbind", self.bdf, abandon_on_cancel=True
            )
            return
        raise HeldError(self.bdf, await anyio.to_thread.run_sync(self.kernel.holders, self.bdf), pending=True)

    async def released(self, hold: float) -> None:
        """Wait until nobody has it open.

        :raises HeldError: somebody has, after `hold` seconds.
        """
        end = anyio.current_time() + hold
        while holders := await anyio.to_thread.run_sync(self.kernel.holders, self.bdf):
            if anyio.current_time() >= end:
                raise HeldError(self.bdf, holders)
            await self._pause(min(_SELDOM, max(_SOON, end - anyio.current_time())))

    async def bound(self, driver: str) -> None:
        """Wait until the driver has it; "" for any."""

        def condition() -> bool:
            now = self.kernel.driver(self.bdf)
            return now == driver if driver else bool(now)

        await self._until(condition, f"{driver or 'a driver'} did not take {self.bdf}")

    async def has_node(self) -> None:
        """Wait until programs can open it."""

        def condition() -> bool:
            node = self.kernel.node(self.bdf)
            return node is not None and node.exists()

        await self._until(condition, f"the device node of {self.bdf} did not appear")

    async def has_interface(self) -> None:
        """Wait until its driver has made an interface."""
        await self._until(lambda: self.kernel.has_interface(self.bdf), f"{self.bdf} did not get an interface")

    async def _until(self, condition: Callable[[], bool], otherwise: str) -> None:
        end, wait = anyio.current_time() + _PROBE, _SOON
        while not await anyio.to_thread.run_sync(condition):
            if anyio.current_time() >= end:
                raise DpdkError(f"{otherwise} in {_PROBE:g} s", hint="the kernel's log says why", retry=True)
            await self._pause(wait)
            wait = min(2 * wait, _SELDOM)  # many at a time must not keep the CPU from those that make progress

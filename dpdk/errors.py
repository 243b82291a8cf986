"""What can go wrong between a device and DPDK."""

from collections.abc import Sequence
from typing import ClassVar

from devices.errors import DeviceError, Fault
from dpdk.holders import Holder


class DpdkError(DeviceError):
    """What was asked for is refused, or the kernel did not do it; nothing has changed unless the message says so."""

    fault: ClassVar[Fault] = Fault.OPERATOR

    def __init__(self, message: str, *, hint: str = "", retry: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.retry = retry


class RefusedError(DpdkError):
    """A device may not go to another driver; `reasons` has every one, as sentences."""

    def __init__(self, bdf: str, target: str, reasons: Sequence[str], *, hint: str = "", retry: bool = False) -> None:
        super().__init__(f"{bdf} does not go to {target}: {'; '.join(reasons)}", hint=hint, retry=retry)
        self.reasons = tuple(reasons)


class HeldError(DpdkError):
    """A program has the device open; taking it away would wait until that lets go."""

    def __init__(self, bdf: str, holders: Sequence[Holder], *, pending: bool = False) -> None:
        names = ", ".join(str(holder) for holder in holders) or "a process that /proc does not show"
        hint = "the kernel takes it as soon as it is closed" if pending else "end the program, or delete its pod"
        super().__init__(f"{bdf} is in use by {names}", hint=hint, retry=True)
        self.holders = tuple(holders)

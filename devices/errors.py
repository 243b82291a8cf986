"""What every error of this package says: whose fault it is, whether a retry helps, and what to do next."""

import errno
from enum import StrEnum
from typing import ClassVar, Final

_PASSING: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EAGAIN, errno.EBUSY})
"""What the kernel says when it has run out of something: the same call may work in a moment."""


class Fault(StrEnum):
    """Who has to act for the error to go away."""

    PEER = "peer"  # whoever called us, or a service we called, broke its protocol
    OPERATOR = "operator"  # a configuration, a device that is not there, missing rights
    KERNEL = "kernel"  # the kernel refused
    US = "us"  # a defect of ours


class DeviceError(Exception):
    """Base of every error this package raises on purpose.

    `message` says what is wrong and where; `hint` says what to do about it (may be empty).
    """

    fault: ClassVar[Fault] = Fault.US
    retry: bool = False

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class KernelError(DeviceError):
    """The kernel refused a request. `code` is its errno (0 when it gave none), `reason` its words."""

    fault: ClassVar[Fault] = Fault.KERNEL

    def __init__(self, what: str, code: int, reason: str, *, hint: str = "") -> None:
        super().__init__(f"{what}: {reason}", hint=hint)
        self.code = code
        self.reason = reason
        self.retry = code in _PASSING


class NamespaceError(DeviceError):
    """A network namespace that cannot be entered, made or removed; `gone` when it is not there."""

    fault: ClassVar[Fault] = Fault.PEER

    def __init__(self, message: str, *, hint: str = "", code: int = 0, gone: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.code = code
        self.gone = gone
        self.retry = code in _PASSING

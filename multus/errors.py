"""What every error of this project says: whose fault it is, whether a retry helps, and what to do next.

Errors become CNI error codes (`multus.cni.errors`) or HTTP and gRPC status only at the edge.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import ClassVar

from devices.errors import DeviceError


class Fault(StrEnum):
    """Who has to act for the error to go away."""

    PEER = "peer"  # whoever called us, or a service we called, broke its protocol
    OPERATOR = "operator"  # a configuration, an annotation, a NetworkAttachmentDefinition
    KERNEL = "kernel"  # the kernel refused
    US = "us"  # a defect of ours


class MultusError(Exception):
    """Base of every error this package raises on purpose.

    `message` says what is wrong and where; `hint` says what to do about it (may be empty).
    """

    fault: ClassVar[Fault] = Fault.US
    retry: ClassVar[bool] = False

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class NodeError(MultusError):
    """What the node's kernel or devices refused, in this package's terms."""

    def __init__(self, cause: DeviceError) -> None:
        super().__init__(cause.message, hint=cause.hint)
        self.fault = Fault(cause.fault)  # type: ignore[misc]  # of the class elsewhere, of the cause here
        self.retry = cause.retry  # type: ignore[misc]


@contextmanager
def from_devices() -> Iterator[None]:
    """Errors of the devices package leave the block as this package's.

    :raises NodeError: in place of a DeviceError.
    """
    try:
        yield
    except DeviceError as error:
        raise NodeError(error) from error

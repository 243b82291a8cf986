"""What can go wrong when the kubelet is asked about devices."""

from typing import ClassVar

from devices.errors import DeviceError, Fault


class KubeletError(DeviceError):
    """The kubelet did not answer, refused, or left something that cannot be read; asking later may help.

    `unsupported`: this kubelet has no such call, or it is switched off.
    """

    fault: ClassVar[Fault] = Fault.PEER
    retry: bool = True

    def __init__(self, message: str, *, hint: str = "", unsupported: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.unsupported = unsupported

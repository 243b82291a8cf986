"""Errors of the installation."""

from typing import ClassVar

from multus.errors import Fault, MultusError


class InstallError(MultusError):
    """The host cannot be changed as asked; what stood there stands."""

    fault: ClassVar[Fault] = Fault.OPERATOR


class NotYetError(InstallError):
    """What the CNI configuration is made from is not there yet."""

    retry: ClassVar[bool] = True

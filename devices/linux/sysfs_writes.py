"""Writes to sysfs, and what the kernel means when it refuses one."""

import errno
import os
from collections.abc import Mapping
from typing import Final

from devices.errors import KernelError

Meanings = Mapping[int, tuple[str, str]]

_GONE = ("it is not there", "the device was removed; `multusctl devices` lists those that are")
_RIGHTS = ("not permitted", "root is needed, and a /sys that is mounted writable")
_COMMON: Final[Meanings] = {
    errno.ENODEV: _GONE,
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
    errno.EROFS: _RIGHTS,
}
NUMVFS: Final[Meanings] = {
    **_COMMON,
    errno.EBUSY: ("it has VFs, of another number", "remove them first (0), which takes them from who uses them"),
    errno.ERANGE: ("that is more than the device has", "sriov_totalvfs says how many; some devices set it in firmware"),
    errno.ENOENT: ("it has no SR-IOV, or its driver does not create VFs", "load the driver; enable SR-IOV in the BIOS"),
    errno.ENOMEM: ("no room for the VFs' memory or bus numbers", "boot with pci=realloc, or enable SR-IOV in the BIOS"),
    errno.ENOTTY: ("its driver does not create VFs", "bind the PF to its kernel driver"),
}
ATTRIBUTE: Final[Meanings] = {
    **_COMMON,
    errno.ENOENT: _GONE,
    errno.EBUSY: ("it is in use", "stop what uses it, then try again"),
    errno.EINVAL: ("the kernel does not take that value", ""),
}
DRIVER: Final[Meanings] = {
    **_COMMON,
    errno.ENOENT: ("the driver is not loaded", "load its module"),
    errno.ENODEV: ("the device is gone, is not bound to it, or is not one that it drives", "set driver_override first"),
    errno.EBUSY: ("another driver has the device", "unbind it first"),
}


def write(path: str, value: str, what: str, meanings: Meanings) -> None:
    """Write a value to a file of sysfs. `what` names it in the error, `meanings` what the kernel's codes mean there.

    :raises KernelError: the kernel refused.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, value.encode())
        finally:
            os.close(descriptor)
    except OSError as error:
        code = error.errno or 0
        reason, hint = meanings.get(code, (error.strerror or str(error), ""))
        raise KernelError(what, code, reason, hint=hint) from None

"""PCI devices as sysfs shows them: for now, which driver has one."""

import re
from pathlib import Path
from typing import Final

SYSFS: Final = Path("/sys")
USERSPACE: Final = frozenset({"vfio-pci", "uio_pci_generic", "igb_uio"})
"""Drivers that hand a device to a program: it has no network interface."""

_ADDRESS = re.compile(r"[0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.[0-7]")


def driver_of(address: str, *, sysfs: Path = SYSFS) -> str:
    """The driver that a device (0000:3b:02.1) is bound to; "" for none, and for what is no PCI device here."""
    if not _ADDRESS.fullmatch(address):
        return ""
    try:
        return (sysfs / "bus/pci/devices" / address.lower() / "driver").readlink().name
    except OSError:
        return ""

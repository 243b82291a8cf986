"""IOMMU groups: what can only be given away together, and whether a group can be given to a program. Blocks."""

import errno
import fcntl
import os
import struct
from collections.abc import Collection
from pathlib import Path
from typing import Final

import msgspec

from devices.errors import KernelError
from devices.linux.sysfs import AddressError, Sysfs, parse_class

_NO_IOMMU: Final = "vfio-noiommu"
_BRIDGE: Final = 0x0604
_HARMLESS: Final = frozenset({"vfio-pci", "pci-stub", "pcieport"})
"""Drivers that do no DMA of their own, or leave it to the group's owner."""
_GROUP_GET_STATUS: Final = ord(";") << 8 | 103
_STATUS: Final = struct.Struct("=II")  # size, flags
_VIABLE: Final = 1


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """A device of a group; `driver` is "" for none."""

    bdf: str
    driver: str = ""
    bridge: bool = False

    @property
    def harmless(self) -> bool:
        """Whether it leaves the group viable."""
        return not self.driver or self.bridge or self.driver in _HARMLESS or self.driver.endswith("-vfio-pci")


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """A group, as it is at one moment: its number changes with a reboot.

    `type` is how it does DMA: "identity" untranslated, "DMA" or "DMA-FQ" translated, "" when the kernel does not say.
    `noiommu` is one that vfio made up, with no IOMMU behind it.
    """

    number: str
    members: tuple[Member, ...] = ()
    type: str = ""
    noiommu: bool = False

    @property
    def translated(self) -> bool:
        """Whether addresses that a device is given by anyone but the kernel are stopped."""
        return self.type.startswith("DMA")

    def blockers(self, leaving: Collection[str]) -> tuple[Member, ...]:
        """Members that keep the group from being given to a program, once those `leaving` have gone to vfio."""
        return tuple(each for each in self.members if each.bdf not in leaving and not each.harmless)


def read_group(sysfs: Sysfs, bdf: str) -> Group | None:
    """The group of a device; None when the kernel has no IOMMU for it."""
    try:
        number = (sysfs.root / "bus/pci/devices" / bdf / "iommu_group").readlink().name
    except OSError:
        return None
    home = sysfs.root / "kernel/iommu_groups" / number
    return Group(
        number=number,
        members=tuple(_member(sysfs, each) for each in sysfs.group_members(number)),
        type=_text(home / "type"),
        noiommu=_text(home / "name") == _NO_IOMMU,
    )


def noiommu_allowed(sysfs: Sysfs) -> bool:
    """Whether vfio may take devices without an IOMMU."""
    return _text(sysfs.root / "module/vfio/parameters/enable_unsafe_noiommu_mode") in {"Y", "1"}


def group_node(sysfs: Sysfs, group: Group) -> Path:
    """The device node by which a program gets the group."""
    return sysfs.dev / "vfio" / (f"noiommu-{group.number}" if group.noiommu else group.number)


def is_viable(node: Path) -> bool | None:
    """What the kernel says of a group that has its node; None when it cannot be asked: no node, or somebody has it.

    :raises KernelError: it refused for another reason.
    """
    try:
        opened = os.open(node, os.O_RDWR | os.O_CLOEXEC)
        try:
            status = bytearray(_STATUS.pack(_STATUS.size, 0))
            fcntl.ioctl(opened, _GROUP_GET_STATUS, status)
        finally:
            os.close(opened)
    except OSError as error:
        if error.errno in {errno.EBUSY, errno.ENOENT, errno.ENXIO, errno.ENOTTY}:
            return None
        hint = "root is needed" if error.errno in {errno.EACCES, errno.EPERM} else ""
        raise KernelError(f"asking about {node}", error.errno or 0, error.strerror or "", hint=hint) from None
    return bool(_STATUS.unpack(status)[1] & _VIABLE)


def _member(sysfs: Sysfs, bdf: str) -> Member:
    try:
        driver = (sysfs.root / "bus/pci/devices" / bdf / "driver").readlink().name
    except OSError:
        driver = ""
    try:
        bridge = parse_class(sysfs.attribute(bdf, "class") or "") >> 8 == _BRIDGE
    except AddressError:
        bridge = False
    return Member(bdf=bdf, driver=driver, bridge=bridge)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""

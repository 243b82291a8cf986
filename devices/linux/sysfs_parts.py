"""Parts of what sysfs shows, read alone where all of it takes long: a PF with 128 VFs takes 0.5 ms. Blocks."""

import os
from collections.abc import Collection

import msgspec

from devices.linux.sysfs import PciRecord, Sysfs


def read_count(sysfs: Sysfs, bdf: str) -> int:
    """How many VFs the kernel says that it made of the PF; 0 when that cannot be read."""
    text = sysfs.attribute(bdf, "sriov_numvfs") or ""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else 0


def relist(sysfs: Sysfs, pf: PciRecord, count: int, indexes: Collection[int]) -> PciRecord:
    """The PF as it was, but with `count` VFs, and those of these numbers as they are listed now."""
    home = f"{sysfs.root}/bus/pci/devices/{pf.bdf}"
    listed = {index: bdf for index, bdf in pf.virtfns if index not in indexes}
    for index in indexes:
        try:
            listed[index] = os.readlink(f"{home}/virtfn{index}").rpartition("/")[2]  # noqa: PTH115
        except OSError:  # it is not there
            continue
    return msgspec.structs.replace(pf, num_vfs=count, virtfns=tuple(sorted(listed.items())))


def uppers(sysfs: Sysfs, netdev: str) -> frozenset[str]:
    """What stands on an interface: bridges, bonds, VLANs and the like; nothing of one that is not there."""
    try:
        names = os.listdir(f"{sysfs.root}/class/net/{netdev}")  # noqa: PTH208
    except OSError:
        return frozenset()
    return frozenset(name for name in names if name.startswith("upper_"))

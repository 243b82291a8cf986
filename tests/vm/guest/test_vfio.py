"""VFs handed to a program through vfio-pci: groups, holders, and a group that cannot be given away."""

import fcntl
import os
import struct
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.vm.guest.hardware import PCI, Hardware, bind, until

if TYPE_CHECKING:
    from tests.vm.guest.hardware import Heard

VFIO = ord(";") << 8 | 100
GROUP_GET_STATUS, GROUP_SET_CONTAINER, SET_IOMMU, GET_DEVICE_FD = VFIO + 3, VFIO + 4, VFIO + 2, VFIO + 6
TYPE1 = 1
VIABLE = 1


def group(bdf: str) -> Path:
    return Path("/dev/vfio") / (PCI / "devices" / bdf / "iommu_group").readlink().name


def viable(opened: int) -> bool:
    status = bytearray(struct.pack("=II", 8, 0))
    fcntl.ioctl(opened, GROUP_GET_STATUS, status)
    return bool(struct.unpack("=II", status)[1] & VIABLE)


def test_vfs_cannot_go_while_a_program_holds_one(kept: Hardware, heard: "Heard") -> None:
    card = kept.cards[0]
    bdf = card.have(2)[0]
    bind(bdf, "vfio-pci")
    heard.wait("bind", "pci", bdf, "vfio-pci")
    until(lambda: group(bdf).exists(), "the group's device")
    opened = [os.open("/dev/vfio/vfio", os.O_RDWR), os.open(group(bdf), os.O_RDWR)]
    try:
        assert viable(opened[1])
        fcntl.ioctl(opened[1], GROUP_SET_CONTAINER, struct.pack("i", opened[0]))
        fcntl.ioctl(opened[0], SET_IOMMU, TYPE1)
        opened.insert(0, fcntl.ioctl(opened[1], GET_DEVICE_FD, bytearray(bdf.encode() + b"\0"), True))
        removal = subprocess.Popen(["sh", "-c", f"echo 0 > {card.path}/sriov_numvfs"])
        time.sleep(1)
        assert removal.poll() is None, "it must wait for the holder"
    finally:
        for each in opened:
            os.close(each)
    assert removal.wait(20) == 0
    heard.wait("remove", "pci", bdf)
    assert card.count == 0

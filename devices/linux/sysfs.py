"""PCI network devices as sysfs shows them at one moment, and the writes that change them.

Everything here can vanish between two reads, and a VF is announced before its links exist. So each attribute that
cannot be read is simply not known, and a device without its first one is gone. Blocks: call it from a worker thread.
"""

import errno
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from devices.errors import KernelError
from devices.linux.pci_address import AddressError, parse_address, parse_class, parse_numa, vf_address, vf_index
from devices.linux.sysfs_writes import ATTRIBUTE, DRIVER, NUMVFS, write

__all__ = [
    "AddressError",
    "NetRecord",
    "PciRecord",
    "Sysfs",
    "parse_address",
    "parse_class",
    "parse_numa",
    "vf_address",
    "vf_index",
]

CLASSES: Final = frozenset({0x02, 0x12})
"""The base classes of network controllers and of processing accelerators."""

_UNSET = "(null)"  # how the kernel prints a driver_override that nobody has set
_UPLINK = re.compile(r"p\d+")
_LIMIT = 4096  # no attribute is longer


class NetRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A network interface of a device, in the namespace that sysfs was mounted for.

    `carrier` is None while the interface is down. `type` is the kernel's ARPHRD number: 1 Ethernet, 32 InfiniBand.
    """

    name: str
    ifindex: int
    mac: str = ""
    mtu: int = 0
    operstate: str = ""
    carrier: bool | None = None
    type: int = 1
    port_name: str = ""
    switch_id: str = ""


class PciRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A PCI device. Numbers of vendor and device are lower-case hex digits; "" and -1 are unknown or none.

    `driver` is "" when no driver has it. `physfn` is a VF's physical function and `vf_index` its number there;
    `virtfns` are a physical function's VFs. `vf_offset` and `vf_stride` tell their addresses before any link does; 0 on
    a kernel older than 4.15.
    """

    bdf: str
    class_: int = 0
    vendor: str = ""
    device: str = ""
    subsystem_vendor: str = ""
    subsystem_device: str = ""
    driver: str = ""
    netdevs: tuple[NetRecord, ...] = ()
    numa_node: int = -1
    iommu_group: str | None = None
    physfn: str | None = None
    vf_index: int = -1
    virtfns: tuple[tuple[int, str], ...] = ()
    total_vfs: int = 0
    num_vfs: int = 0
    vf_offset: int = 0
    vf_stride: int = 0
    driver_override: str = ""
    rdma: tuple[str, ...] = ()
    uio: tuple[str, ...] = ()
    acpi_index: str = ""

    @property
    def netdev(self) -> NetRecord | None:
        """The interface that stands for the device: of several, the uplink and not a representor of a VF."""
        plain = [each for each in self.netdevs if not each.port_name or _UPLINK.fullmatch(each.port_name)]
        return next(iter(plain or self.netdevs), None)


class Sysfs:
    """A sysfs, and the /dev beside it."""

    def __init__(self, root: Path = Path("/sys"), dev: Path = Path("/dev")) -> None:
        self.root = root
        self.dev = dev
        self._devices = str(root / "bus/pci/devices")

    def read(self) -> tuple[PciRecord, ...]:
        """Every network device and accelerator, and everything that has or is a VF, by address."""
        indexes: dict[str, Mapping[str, int]] = {}
        found = (self._read(bdf, indexes) for bdf in sorted(_names(self._devices)))
        return tuple(record for record in found if record is not None)

    def read_one(self, bdf: str) -> PciRecord | None:
        """One device; None when it is gone, or is none of those that `read` tells of."""
        return self._read(bdf, None)

    def set_numvfs(self, bdf: str, count: int) -> None:
        """Have the kernel make `count` VFs; 0 removes them all. Returns when they are there: that can take minutes.

        :raises KernelError: it refused; the message says why, the hint what to do.
        """
        path = f"{self._devices}/{bdf}/sriov_numvfs"
        if _number(_text(path)) == count:
            return
        what = f"making {count} VFs on {bdf}" if count else f"removing the VFs of {bdf}"
        try:
            write(path, str(count), what, NUMVFS)
        except KernelError as error:
            if error.code == errno.EBUSY:  # for good, until the VFs are removed
                error.retry = False
            raise

    def write(self, bdf: str, attribute: str, value: str) -> None:
        """Write an attribute of a device.

        :raises KernelError: the kernel refused, or the device is gone.
        """
        write(f"{self._devices}/{bdf}/{attribute}", value, f"setting {attribute} of {bdf}", ATTRIBUTE)

    def write_driver(self, driver: str, attribute: str, value: str) -> None:
        """Write `bind`, `unbind` or another attribute of a PCI driver.

        :raises KernelError: the kernel refused, or the driver is not loaded.
        """
        path = str(self.root / "bus/pci/drivers" / driver / attribute)
        write(path, value, f"{attribute} of {value} by driver {driver}", DRIVER)

    def probe(self, bdf: str) -> None:
        """Have the kernel look for a driver again, the one of driver_override when that is set.

        :raises KernelError: the kernel refused, or the device is gone.
        """
        write(str(self.root / "bus/pci/drivers_probe"), bdf, f"probing drivers for {bdf}", ATTRIBUTE)

    def group_members(self, group: str) -> tuple[str, ...]:
        """The addresses of all devices in an IOMMU group."""
        return tuple(sorted(_names(str(self.root / "kernel/iommu_groups" / group / "devices"))))

    def attribute(self, bdf: str, name: str) -> str | None:
        """The content of any attribute of a device, stripped; None when it cannot be read."""
        return _text(f"{self._devices}/{bdf}/{name}")

    def _read(self, bdf: str, indexes: dict[str, Mapping[str, int]] | None) -> PciRecord | None:
        path = f"{self._devices}/{bdf}/"
        told = dict(line.split("=", 1) for line in (_text(path + "uevent") or "").splitlines() if "=" in line)
        try:
            class_ = parse_class(told.get("PCI_CLASS", ""))
        except AddressError:
            return None
        physfn = _target(path + "physfn") or None
        total = 0 if physfn else _number(_text(path + "sriov_totalvfs"))
        if class_ >> 16 not in CLASSES and not physfn and not total:
            return None
        vendor, _, device = told.get("PCI_ID", "").lower().partition(":")
        sub_vendor, _, sub_device = told.get("PCI_SUBSYS_ID", "").lower().partition(":")
        driver = _target(path + "driver")
        override = _text(path + "driver_override") or ""
        virtfns = _virtfns(path) if total else ()
        return PciRecord(
            bdf=bdf,
            class_=class_,
            vendor=vendor,
            device=device,
            subsystem_vendor=sub_vendor,
            subsystem_device=sub_device,
            driver=driver,
            netdevs=_netdevs(path, driver, representors=physfn is None),
            numa_node=parse_numa(_text(path + "numa_node")),
            iommu_group=_target(path + "iommu_group") or None,
            physfn=physfn,
            vf_index=self._index(bdf, physfn, indexes) if physfn else -1,
            virtfns=virtfns,
            total_vfs=total,
            num_vfs=_number(_text(path + "sriov_numvfs")) if total else 0,
            vf_offset=_number(_text(path + "sriov_offset")) if total else 0,
            vf_stride=_number(_text(path + "sriov_stride")) if total else 0,
            driver_override="" if override == _UNSET else override,
            rdma=tuple(sorted(_names(path + "infiniband"))),
            uio=tuple(sorted(name for name in _names(path + "uio") if name.startswith("uio"))),
            acpi_index=_text(path + "acpi_index") or "",
        )

    def _index(self, bdf: str, physfn: str, indexes: dict[str, Mapping[str, int]] | None) -> int:
        """Which of its PF's VFs it is. With `indexes`, which a pass over all devices shares, a PF is listed once."""
        path = f"{self._devices}/{physfn}/"
        if indexes is not None:
            if physfn not in indexes:
                indexes[physfn] = {vf: index for index, vf in _virtfns(path)}
            return indexes[physfn].get(bdf, -1)
        offset, stride = _number(_text(path + "sriov_offset")), _number(_text(path + "sriov_stride"))
        likely = vf_index(physfn, bdf, offset, stride)
        if likely >= 0 and _target(f"{path}virtfn{likely}") == bdf:
            return likely
        return next((index for index, vf in _virtfns(path) if vf == bdf), -1)


def _virtfns(path: str) -> tuple[tuple[int, str], ...]:
    """A PF's VFs by number. From within its directory: there can be hundreds, and the way to it is long."""
    found = []
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return ()
    try:
        for name in os.listdir(descriptor):  # noqa: PTH208
            if not name.startswith("virtfn"):
                continue
            try:
                target = os.readlink(name, dir_fd=descriptor)
                found.append((int(name[6:]), target[target.rfind("/") + 1 :]))
            except (OSError, ValueError):  # it went since the listing
                continue
    except OSError:
        return ()
    finally:
        os.close(descriptor)
    found.sort()
    return tuple(found)


def _netdevs(path: str, driver: str, *, representors: bool) -> tuple[NetRecord, ...]:
    """The device's interfaces; those of a virtio device are one level below."""
    homes = [path]
    if driver == "virtio-pci":
        homes += [f"{path}{name}/" for name in _names(path) if name.startswith("virtio")]
    names = [(f"{home}net/{name}/", name) for home in homes for name in sorted(_names(home + "net"))]
    found = (_netdev(*each, representors=representors) for each in names)
    return tuple(record for record in found if record is not None)


def _netdev(path: str, name: str, *, representors: bool) -> NetRecord | None:
    ifindex = _number(_text(path + "ifindex"))
    if not ifindex:  # gone, or renamed meanwhile: an event will say so
        return None
    carrier = _text(path + "carrier")
    return NetRecord(
        name=name,
        ifindex=ifindex,
        mac=_text(path + "address") or "",
        mtu=_number(_text(path + "mtu")),
        operstate=_text(path + "operstate") or "",
        carrier=None if carrier is None else carrier == "1",
        type=_number(_text(path + "type")),
        port_name=(_text(path + "phys_port_name") or "") if representors else "",
        switch_id=(_text(path + "phys_switch_id") or "") if representors else "",
    )


def _names(directory: str) -> list[str]:
    try:
        return os.listdir(directory)  # noqa: PTH208 (called some thousand times a pass)
    except OSError:
        return []


def _target(link: str) -> str:
    """The last part of where a link leads; "" for what is no link."""
    try:
        return os.readlink(link).rpartition("/")[2]  # noqa: PTH115
    except OSError:
        return ""


def _text(path: str) -> str | None:
    """An attribute, stripped; None when it is not there, or the kernel would not read it now."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (OSError, ValueError):
        return None
    try:
        return os.read(descriptor, _LIMIT).decode("ascii", "replace").strip()
    except OSError:
        return None
    finally:
        os.close(descriptor)


def _number(text: str | None) -> int:
    """A count; 0 for everything that is none."""
    return int(text) if text and text.isascii() and text.isdecimal() and len(text) < 10 else 0

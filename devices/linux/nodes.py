"""The device nodes by which a program drives a PCI device: what a container must be given beside its address."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

SYSFS: Final = Path("/sys")
_NO_IOMMU: Final = "vfio-noiommu"


class Nodes(msgspec.Struct, frozen=True, kw_only=True):
    """Names of nodes, as the kernel has them at this moment: a group's number changes with a reboot.

    `group` is the IOMMU group of a device on vfio-pci, "" for any other; `noiommu` a group without an IOMMU behind it.
    `uio` are below /dev, `rdma_nodes` below /dev/infiniband; `rdma` names the RDMA device itself. `vdpa` is its
    vhost-vdpa node.
    """

    group: str = ""
    noiommu: bool = False
    uio: tuple[str, ...] = ()
    rdma: str = ""
    rdma_nodes: tuple[str, ...] = ()
    vdpa: str = ""


def read_nodes(address: str, *, sysfs: Path = SYSFS, vfio: bool = False) -> Nodes:
    """The nodes of the device at a PCI address; none of what is not there. Blocks.

    With `vfio`, the group is told of a device that vfio-pci does not have yet: its number is the same then.
    """
    device = sysfs / "bus/pci/devices" / address
    group = _target(device / "iommu_group") if vfio or _target(device / "driver") == "vfio-pci" else ""
    uio = tuple(name for name in _names(device / "uio") if name.startswith("uio"))
    rdma = next(iter(_names(device / "infiniband")), "")
    nodes: list[str] = []
    if rdma:
        nodes += [*_names(device / "infiniband_verbs"), *_names(device / "infiniband_mad")]
        if nodes and (sysfs / "class/misc/rdma_cm").exists():
            nodes.append("rdma_cm")
    return Nodes(
        group=group,
        noiommu=bool(group) and _text(sysfs / "kernel/iommu_groups" / group / "name") == _NO_IOMMU,
        uio=uio,
        rdma=rdma,
        rdma_nodes=tuple(nodes),
        vdpa=next(_vdpa(device), ""),
    )


def _vdpa(device: Path) -> Iterator[str]:
    for name in _names(device):
        if name.startswith("vdpa"):
            yield from (each for each in _names(device / name) if each.startswith("vhost-vdpa-"))


def _names(directory: Path) -> list[str]:
    try:
        return sorted(path.name for path in directory.iterdir())
    except OSError:
        return []


def _target(link: Path) -> str:
    try:
        return link.readlink().name
    except OSError:
        return ""


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""

"""Who has a device open: processes, by their file descriptors, and the pods that they belong to. Blocks."""

import os
import re
import stat
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Final

import msgspec

PROC: Final = Path("/proc")
_DEVICE: Final = "anon_inode:[vfio-device]"
_SYSPATH: Final = "vfio-device-syspath:"  # in fdinfo, since Linux 6.14
_CONTAINER = re.compile(r"[0-9a-f]{64}")
_POD = re.compile(r"pod([0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12})")


class Holder(msgspec.Struct, frozen=True, kw_only=True):
    """A process. `container` and `pod_uid` are what its cgroup says, `pod` is "namespace/name"; "" is not known."""

    pid: int
    command: str = ""
    container: str = ""
    pod_uid: str = ""
    pod: str = ""

    def __str__(self) -> str:
        owner = f" of pod {self.pod}" if self.pod else f" of the pod with UID {self.pod_uid}" if self.pod_uid else ""
        return f"process {self.pid} ({self.command or 'unknown'}){owner}"


PodName = Callable[[Holder], str]
"""The name of the holder's pod, "" when it is not known."""


def nodes_of(bdf: str, *, sysfs: Path = Path("/sys"), dev: Path = Path("/dev")) -> tuple[Path, ...]:
    """The device nodes by which a program can hold the device."""
    device = sysfs / "bus/pci/devices" / bdf
    try:
        group = (device / "iommu_group").readlink().name
    except OSError:
        group = ""
    found = [dev / "vfio" / group, dev / "vfio" / f"noiommu-{group}"] if group else []
    found += [dev / "vfio/devices" / path.name for path in device.glob("vfio-dev/vfio*")]
    found += [dev / path.name for path in device.glob("uio/uio*")]
    found += [dev / "infiniband" / path.name for path in device.glob("infiniband_verbs/uverbs*")]
    return tuple(node for node in found if node.exists())


def find_holders(
    bdf: str, nodes: Collection[Path], *, proc: Path = PROC, pod_name: PodName = lambda _: ""
) -> tuple[Holder, ...]:
    """Every process that has the device or one of its nodes open, by number; needs root to see all.

    A node is known by its number and not its name: in a container it may have another one.
    """
    numbers = set()
    for node in nodes:
        try:
            found = node.stat()
        except OSError:
            continue
        if stat.S_ISCHR(found.st_mode):
            numbers.add(found.st_rdev)
    return tuple(_named(proc, pid, pod_name) for pid in sorted(_pids(proc)) if _holds(proc / str(pid), bdf, numbers))


def _pids(proc: Path) -> Iterator[int]:
    try:
        names = os.listdir(proc)  # noqa: PTH208 (as is the one below, a hot loop)
    except OSError:
        return
    for name in names:
        if name.isascii() and name.isdecimal():
            yield int(name)


def _holds(process: Path, bdf: str, numbers: Collection[int]) -> bool:
    directory = f"{process}/fd"
    try:
        descriptors = os.listdir(directory)  # noqa: PTH208
    except OSError:
        return False
    for descriptor in descriptors:
        path = f"{directory}/{descriptor}"
        try:
            target = os.readlink(path)  # noqa: PTH115
            if target == _DEVICE:
                if _is_device(process / "fdinfo" / descriptor, bdf):
                    return True
            # Only what is in some /dev: a stat of a file on a server that is away would never return.
            elif "/dev/" in target and stat.S_ISCHR((found := os.stat(path)).st_mode) and found.st_rdev in numbers:  # noqa: PTH116
                return True
        except OSError:  # closed meanwhile
            continue
    return False


def _is_device(info: Path, bdf: str) -> bool:
    """By what the kernel tells of a VFIO device's descriptor. An older one tells nothing; the group's is open, too."""
    for line in _text(info).splitlines():
        if line.startswith(_SYSPATH):
            return line.rstrip().endswith(f"/{bdf}")
    return False


def _named(proc: Path, pid: int, pod_name: PodName) -> Holder:
    cgroup = _text(proc / str(pid) / "cgroup")
    container, pod = _CONTAINER.findall(cgroup), _POD.search(cgroup)
    holder = Holder(
        pid=pid,
        command=_text(proc / str(pid) / "comm").strip(),
        container=container[-1] if container else "",
        pod_uid=pod[1].replace("_", "-") if pod else "",
    )
    return msgspec.structs.replace(holder, pod=pod_name(holder))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""

"""A container as /proc and cgroup v2 show it, read from outside by one of its processes, or from inside. Blocks."""

import contextlib
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final

from dpdk.eal import parse_cpus
from dpdk.errors import DpdkError
from dpdk.hugepages import parse_size, read_mounts, read_pages
from dpdk.readiness import Container

_UNLIMITED: Final = frozenset({"unlimited", "max"})


def read_container(
    process: str = "self", *, devices: Collection[str] = (), proc: Path = Path("/proc"), sysfs: Path = Path("/sys")
) -> Container:
    """The container of a process; `devices` are the paths of nodes that it should have.

    :raises DpdkError: there is no such process, or it belongs to someone else.
    """
    home = proc / process
    try:
        status = (home / "status").read_text(errors="replace")
        limits = (home / "limits").read_text(errors="replace")
    except OSError as error:
        raise DpdkError(f"cannot read process {process}: {error.strerror}", hint="root sees every process") from None
    # EAL's main thread stays on one of the container's CPUs.
    cpuset = _cpuset(home, sysfs / "fs/cgroup") if process != "self" else ""
    return Container(
        cpus=parse_cpus(cpuset or _field(status, "Cpus_allowed_list")),
        cpu_nodes=_cpu_nodes(sysfs),
        capabilities=int(_field(status, "CapEff") or "0", 16),
        memlock=_memlock(limits),
        pages=read_pages(sysfs),
        mounts=read_mounts(proc, process),
        hugetlb=_hugetlb(home, sysfs / "fs/cgroup"),
        taken=_taken(home, sysfs / "fs/cgroup"),
        devices_missing=tuple(sorted(path for path in devices if not _visible(home, path))),
    )


def walk_pod(uid: str, *, marked: str, proc: Path = Path("/proc")) -> int:
    """A process of a pod, in the container that has the path `marked`, else in any.

    :raises DpdkError: none of its processes is to be seen.
    """
    names = {f"pod{uid}", f"pod{uid.replace('-', '_')}"}
    found = 0
    for home in sorted(proc.glob("[0-9]*"), key=lambda path: int(path.name)):
        cgroup = _text(home / "cgroup")
        if any(name in cgroup for name in names):
            if _visible(home, marked):
                return int(home.name)
            found = int(home.name)
    if not found:
        raise DpdkError(f"no process of the pod with UID {uid} is to be seen", hint="has it started? root sees all")
    return found


def _visible(home: Path, path: str) -> bool:
    try:
        return (home / "root" / path.lstrip("/")).exists()
    except OSError:
        return False


def _field(text: str, name: str) -> str:
    found = re.search(rf"^{name}:\s*(.*)$", text, re.MULTILINE)
    return found[1].strip() if found else ""


def _memlock(limits: str) -> int | None:
    found = re.search(r"^Max locked memory\s+(\S+)", limits, re.MULTILINE)
    if found is None or found[1] in _UNLIMITED or not found[1].isdecimal():
        return None
    return int(found[1])


def _cpu_nodes(sysfs: Path) -> dict[int, int]:
    found: dict[int, int] = {}
    for path in (sysfs / "devices/system/node").glob("node[0-9]*"):
        number = path.name.removeprefix("node")
        if number.isdecimal():
            found.update(dict.fromkeys(parse_cpus(_text(path / "cpulist")), int(number)))
    return found


def _hugetlb(home: Path, cgroups: Path) -> dict[int, int | None]:
    """What is left by the tightest limit from its cgroup up to the root, by page size."""
    found: dict[int, int | None] = {}
    at = _cgroup(home, cgroups)
    while at != cgroups and cgroups in at.parents:
        for name, size in _sizes(at):
            limit, used = _text(at / f"hugetlb.{name}.max").strip(), _text(at / f"hugetlb.{name}.current").strip()
            left = int(limit) - int(used or 0) if limit.isdecimal() else None
            known = found.get(size)
            found[size] = left if known is None else known if left is None else min(left, known)
        at = at.parent
    return found


def _cpuset(home: Path, cgroups: Path) -> str:
    """The CPUs of its cgroup, "" when that has none of its own."""
    at = _cgroup(home, cgroups)
    return _text(at / "cpuset.cpus.effective").strip() if at != cgroups else ""


def _taken(home: Path, cgroups: Path) -> dict[int, int]:
    """What its own cgroup has, by page size."""
    at = _cgroup(home, cgroups)
    if at == cgroups:
        return {}
    used = {size: _text(at / f"hugetlb.{name}.current").strip() for name, size in _sizes(at)}
    return {size: int(text) for size, text in used.items() if text.isdecimal() and int(text)}


def _cgroup(home: Path, cgroups: Path) -> Path:
    """Its directory; the root when that is not known."""
    path = next((line[3:] for line in _text(home / "cgroup").splitlines() if line.startswith("0::")), "")
    if ".." in path.split("/"):  # seen from another cgroup namespace
        return cgroups
    return cgroups / path.strip("/")


def _sizes(cgroup: Path) -> Iterator[tuple[str, int]]:
    """The page sizes that it tells of, as the kernel names them and in KiB."""
    for file in cgroup.glob("hugetlb.*.max"):
        name = file.name.split(".")[1]
        if file.name != f"hugetlb.{name}.max":  # .rsvd.max
            continue
        with contextlib.suppress(DpdkError):
            yield name, parse_size(name)


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""

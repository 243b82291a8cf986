"""A container as /proc and cgroup v2 show it, read from outside by one of its processes, or from inside. Blocks."""

import re
from collections.abc import Collection
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
    return Container(
        cpus=parse_cpus(_field(status, "Cpus_allowed_list")),
        cpu_nodes=_cpu_nodes(sysfs),
        capabilities=int(_field(status, "CapEff") or "0", 16),
        memlock=_memlock(limits),
        pages=read_pages(sysfs),
        mounts=read_mounts(proc, process),
        hugetlb=_hugetlb(home, sysfs / "fs/cgroup"),
        devices_missing=tuple(sorted(path for path in devices if not _visible(home, path))),
    )


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
    path = next((line[3:] for line in _text(home / "cgroup").splitlines() if line.startswith("0::")), "")
    if ".." in path.split("/"):  # seen from another cgroup namespace
        return {}
    found: dict[int, int | None] = {}
    at = cgroups / path.strip("/")
    while at != cgroups and cgroups in at.parents:
        for file in at.glob("hugetlb.*.max"):
            name = file.name.split(".")[1]
            if file.name != f"hugetlb.{name}.max":  # .rsvd.max
                continue
            try:
                size = parse_size(name)
            except DpdkError:
                continue
            limit, used = _text(file).strip(), _text(at / f"hugetlb.{name}.current").strip()
            left = int(limit) - int(used or 0) if limit.isdecimal() else None
            known = found.get(size)
            found[size] = left if known is None else known if left is None else min(left, known)
        at = at.parent
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""

"""Hugepages: how many there are on each NUMA node, setting that with a look at what came of it, and mounts. Blocks."""

import os
import re
from pathlib import Path
from typing import Final

import msgspec

from devices.errors import KernelError
from dpdk.errors import DpdkError

_POOL = re.compile(r"hugepages-(\d{1,9})kB")
_NODE = re.compile(r"node(\d{1,4})")
_SIZE = re.compile(r"(\d{1,9})\s*([kKmMgG])i?[bB]?")
_UNITS: Final = {"k": 1, "m": 1024, "g": 1024 * 1024}


class Pages(msgspec.Struct, frozen=True, kw_only=True):
    """The pages of one size on one NUMA node; `node` is -1 on a kernel without NUMA. `surplus` are borrowed ones."""

    node: int
    size_kb: int
    total: int
    free: int
    surplus: int = 0


class Mount(msgspec.Struct, frozen=True, kw_only=True):
    """A mounted hugetlbfs; `size_kb` is 0 when it does not say which size of page it has."""

    path: str
    size_kb: int = 0


def parse_size(text: str) -> int:
    """A page size in KiB: 2M, 2Mi, 2048kB, 1G.

    :raises DpdkError: it is none.
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise DpdkError(f"{text[:40]!a} is no page size", hint="write it as 2M or 1G")
    return int(found[1]) * _UNITS[found[2].lower()]


def size_text(size_kb: int) -> str:
    """A page size as people say it: 2M, 1G."""
    for unit, letter in ((1024 * 1024, "G"), (1024, "M")):
        if size_kb and size_kb % unit == 0:
            return f"{size_kb // unit}{letter}"
    return f"{size_kb}K"


def read_pages(sysfs: Path = Path("/sys")) -> tuple[Pages, ...]:
    """Every size on every node, by node and size."""
    found = []
    for path, node in _homes(sysfs):
        for pool in path.glob("hugepages-*"):
            size = _POOL.fullmatch(pool.name)
            if size:
                counts = {name: _count(pool / f"{name}_hugepages") for name in ("nr", "free", "surplus")}
                found.append(
                    Pages(
                        node=node,
                        size_kb=int(size[1]),
                        total=counts["nr"],
                        free=counts["free"],
                        surplus=counts["surplus"],
                    )
                )
    return tuple(sorted(found, key=lambda pages: (pages.node, pages.size_kb)))


def set_pages(node: int, size_kb: int, count: int, *, sysfs: Path = Path("/sys")) -> Pages:
    """Have the kernel keep `count` pages; what there is then.

    :raises DpdkError: no such node or size, or the kernel found memory for a part only: what it found stays.
    :raises KernelError: it refused.
    """
    home = next((path for path, number in _homes(sysfs) if number == node), None)
    pool = home / f"hugepages-{size_kb}kB" if home is not None else None
    if pool is None or not pool.exists():
        there = sorted({(pages.node, size_text(pages.size_kb)) for pages in read_pages(sysfs)})
        listed = ", ".join(f"{size} on node {number}" for number, size in there) or "none"
        raise DpdkError(
            f"there are no hugepages of {size_text(size_kb)} on NUMA node {node}", hint=f"there are: {listed}"
        )
    what = f"{count} hugepages of {size_text(size_kb)} on NUMA node {node}"
    try:
        (pool / "nr_hugepages").write_text(str(count))
    except OSError as error:
        hint = "root is needed, and a /sys that is mounted writable"
        raise KernelError(f"setting {what}", error.errno or 0, error.strerror or "", hint=hint) from None
    made = next(each for each in read_pages(sysfs) if (each.node, each.size_kb) == (node, size_kb))
    if made.total < count:
        hint = f"free memory is in pieces: reserve at boot with hugepagesz={size_text(size_kb)} hugepages={count}"
        raise DpdkError(f"asked for {what}, the kernel found {made.total}", hint=hint, retry=True)
    if made.total - made.surplus > count:
        raise DpdkError(
            f"asked for {what}, {made.total} are in use", hint="stop the programs that use them", retry=True
        )
    return made


def parse_mounts(mountinfo: str, *, default_kb: int = 0) -> tuple[Mount, ...]:
    """The mounts of hugetlbfs in a process's mountinfo; `default_kb` is the size of those without pagesize=."""
    found = []
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        fields, kind = before.split(" "), after.split(" ")
        if len(fields) < 5 or len(kind) < 3 or kind[0] != "hugetlbfs":
            continue
        size = re.search(r"(?:^|,)pagesize=([^,]+)", kind[2])
        try:
            size_kb = parse_size(size[1]) if size else default_kb
        except DpdkError:
            size_kb = default_kb
        path = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields[4])
        found.append(Mount(path=path, size_kb=size_kb))
    return tuple(found)


def read_mounts(proc: Path = Path("/proc"), process: str = "self") -> tuple[Mount, ...]:
    """The mounts that a process sees; none when it has gone."""
    try:
        text = (proc / process / "mountinfo").read_text(errors="replace")
    except OSError:
        return ()
    return parse_mounts(text, default_kb=default_size(proc))


def default_size(proc: Path = Path("/proc")) -> int:
    """The kernel's default page size in KiB; 0 when it has no hugepages."""
    try:
        found = re.search(r"^Hugepagesize:\s+(\d+) kB", (proc / "meminfo").read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) if found else 0


def _homes(sysfs: Path) -> list[tuple[Path, int]]:
    """Where the pools are, and the node of each place."""
    base = sysfs / "devices/system/node"
    try:
        names = os.listdir(base)  # noqa: PTH208
    except OSError:
        names = []
    found = [(base / name / "hugepages", int(node[1])) for name in names if (node := _NODE.fullmatch(name))]
    found = [each for each in found if each[0].is_dir()]
    return found or [(sysfs / "kernel/mm/hugepages", -1)]


def _count(path: Path) -> int:
    try:
        text = path.read_text().strip()
    except OSError:
        return 0
    return int(text) if text.isascii() and text.isdecimal() else 0

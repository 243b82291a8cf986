"""`python -m benchmarks.discovery`: 512 VFs on a fake tree, read in full, and one event at a time.

A tree of files stands for sysfs. Its files cost about what the kernel's do: an open, a read and a close each.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from benchmarks.__main__ import OUT
from devices import inventory
from devices.linux.sysfs import PciRecord, Sysfs
from devices.linux.uevents import fingerprint
from multus.cli import output
from tests.fake_sysfs import FakeSysfs

DISCOVERY_LIMIT: Final = 100.0
EVENT_LIMIT: Final = 1.0
"""Milliseconds."""


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One thing measured: milliseconds, median and worst; `limit` is for the median, None for none."""

    what: str
    median: float
    worst: float
    runs: int
    limit: float | None = None

    @property
    def kept(self) -> bool:
        """Whether it is within its limit."""
        return self.limit is None or self.median < self.limit


def measure(root: Path, *, vfs: int = 512, pfs: int = 4, runs: int = 20) -> list[Figure]:
    """Every figure, on a tree below `root` with this many VFs in all."""
    fake, each = FakeSysfs(root), vfs // pfs
    for number in range(pfs):
        bdf = f"0000:{16 * (number + 1):02x}:00.0"
        fake.pf(bdf, netdev=f"ens{number}", total=each, num=each, group=1000 * number, numa=number % 2)
    sysfs = Sysfs(fake.sys, fake.dev)
    found = inventory.build(sysfs.read(), guarded={})
    assert len(found.vfs) == each * pfs
    pf = found.pfs[0]

    def discover() -> None:
        assert len(inventory.build(sysfs.read(), guarded={}).vfs) == len(found.vfs)

    def event(bdf: str, driver: str) -> Callable[[], None]:
        def run() -> None:
            nonlocal found
            found = inventory.update(found, bdf, sysfs.read_one(bdf))
            assert found.by_bdf[bdf].driver == driver

        return run

    drivers: list[float] = []
    links: list[float] = []
    gone: list[float] = []
    for number in range(runs):
        vf = pf.vfs[number % each].bdf
        for driver in ("vfio-pci", "iavf"):
            fake.bind(vf, driver)
            drivers.append(_time(event(vf, driver)))
        fake.carrier(pf.netdev, number % 2 == 1)
        links.append(_time(event(pf.bdf, pf.driver)))
        record = found.records[vf]
        gone.append(_time(lambda vf=vf: _set(found, vf, None)))
        missing = inventory.update(found, vf, None)
        gone.append(_time(lambda vf=vf, record=record, missing=missing: _set(missing, vf, record)))
    return [
        _figure("full discovery", [_time(discover) for _ in range(runs)], DISCOVERY_LIMIT),
        _figure("event of a VF (driver), read and applied", drivers, EVENT_LIMIT),
        _figure("event of a PF (link), read and applied", links, EVENT_LIMIT),
        _figure("a VF that goes or comes, applied", gone, EVENT_LIMIT),
        _figure("look for changes without events", [_time(lambda: fingerprint(fake.sys)) for _ in range(runs)]),
    ]


def main() -> int:
    """Print the figures; 1 when a limit is not kept."""
    parser = argparse.ArgumentParser(prog="benchmarks.discovery", description=__doc__)
    parser.add_argument("--vfs", type=int, default=512)
    parser.add_argument("--pfs", type=int, default=4)
    parser.add_argument("--runs", type=int, default=20)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="multus-bench-") as scratch:
        figures = measure(Path(scratch), vfs=chosen.vfs, pfs=chosen.pfs, runs=chosen.runs)
    output.table(
        (f"{chosen.vfs} VFs ON {chosen.pfs} PFs", "MEDIAN ms", "WORST ms", "LIMIT ms"),
        [
            (each.what, f"{each.median:.2f}", f"{each.worst:.2f}", "-" if each.limit is None else f"{each.limit:g}")
            for each in figures
        ],
    )
    OUT.mkdir(exist_ok=True)
    (OUT / "discovery.json").write_bytes(msgspec.json.format(msgspec.json.encode(figures), indent=2))
    return 0 if all(each.kept for each in figures) else 1


def _set(found: inventory.Inventory, bdf: str, record: PciRecord | None) -> None:
    assert (bdf in inventory.update(found, bdf, record).by_bdf) is (record is not None)


def _time(run: Callable[[], None] | Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return (time.perf_counter() - started) * 1000


def _figure(what: str, times: list[float], limit: float | None = None) -> Figure:
    return Figure(what=what, median=statistics.median(times), worst=max(times), runs=len(times), limit=limit)


if __name__ == "__main__":
    sys.exit(main())

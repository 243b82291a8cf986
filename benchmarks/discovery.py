"""`python -m benchmarks.discovery`: VFs on a fake tree, read in full, and one event at a time until it is offered.

A tree of files stands for sysfs. Its files cost about what the kernel's do: an open, a read and a close each. An event
goes the whole way through the device manager: what it touches is read, and goes into inventory, pools and offers. What
is not counted is the time in which the manager waits for more events, and what a kubelet needs to hear of an offer.
"""

import argparse
import gc
import json
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import anyio
import msgspec
from anyio.streams.memory import MemoryObjectReceiveStream

from benchmarks.__main__ import OUT
from devices import inventory
from devices.linux.sysfs import Sysfs
from devices.linux.uevents import Change, fingerprint
from devices.manager import Manager
from multus.cli import output
from tests.fake_sysfs import FakeSysfs

DISCOVERY_LIMIT: Final = 100.0
EVENT_LIMIT: Final = 1.0
"""Milliseconds, for up to as many VFs as LIMITED. An event's limit is one of the CPU and of the clock."""
LIMITED: Final = 512
CURVE: Final = (8, 64, 512, 2048)
"""Numbers of VFs."""

_EACH: Final = 128  # VFs of a PF at most
_ASKED_IN_VAIN: Final = 6  # pools beside the two that have devices
_DRIVER, _LINK, _GOES, _COMES = "a VF's driver", "a VF's link", "a VF that goes", "a VF that comes"
_PF: Final = f"a PF's link: {_EACH} VFs"  # as long as each of these takes 8 us
_LIMITS: Final = dict.fromkeys((_DRIVER, _LINK, _GOES, _COMES), EVENT_LIMIT)
_KERNEL, _DPDK = "intel.com/kernel", "intel.com/dpdk"


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One thing measured: milliseconds of the CPU or of the wall clock, median and worst, with that many `vfs`.

    `limit` is for the median, None for none.
    """

    what: str
    clock: str
    vfs: int
    median: float
    worst: float
    runs: int
    limit: float | None = None

    @property
    def kept(self) -> bool:
        """Whether it is within its limit."""
        return self.limit is None or self.median < self.limit


class Spent(NamedTuple):
    """Milliseconds of this process' CPUs, and of the clock."""

    cpu: float
    wall: float


class Node:
    """A node of which every second VF is in use, and a hand on the events of its hardware."""

    def __init__(self, root: Path, vfs: int) -> None:
        pfs = -(-vfs // _EACH)
        self.each = vfs // pfs
        self.fake = FakeSysfs(root)
        self.sysfs = Sysfs(self.fake.sys, self.fake.dev)
        self.pfs = [f"0000:{8 * (number + 1):02x}:00.0" for number in range(pfs)]
        for number, bdf in enumerate(self.pfs):
            group = 1000 * number
            self.fake.pf(bdf, netdev=f"ens{number}", total=self.each, num=self.each, group=group, numa=number % 2)
        found = inventory.build(self.sysfs.read(), guarded={}).vfs
        assert len(found) == self.each * pfs
        self.vfs = len(found)
        self.attached = {vf.bdf: _KERNEL for vf in found[1::2]}
        self._send, self._receive = anyio.create_memory_object_stream[Change](1)
        config = {"dpdk": {"drivers": ["vfio-pci"]}, "kernel": {"drivers": ["iavf"]}}
        config |= {f"none{number}": {"vendors": ["15b3"], "pfNames": ["ens0#0-7"]} for number in range(_ASKED_IN_VAIN)}
        self._away = root / "away"
        self._away.mkdir()
        self._config = root / "config.json"
        pools = [{"resourceName": name, "selectors": selectors} for name, selectors in config.items()]
        self._config.write_text(json.dumps({"resourceList": pools}))

    @asynccontextmanager
    async def manager(self, info: Path) -> AsyncIterator[Manager]:
        """The device manager at work, without a kubelet."""
        made = Manager(
            config=self._config,
            info=info,
            sysfs=self.sysfs,
            held=self._held,
            reasons=dict,
            events=self._events,
            gathering=0.0,
        )
        async with self._send, self._receive, anyio.create_task_group() as group:
            await group.start(made.run)
            yield made
            group.cancel_scope.cancel()

    async def tell(self, manager: Manager, bdf: str, subsystem: str) -> Spent:
        """Tell of a change of that device; what it took until the offers are right."""
        rung = manager.changed.rung
        cpu, wall = time.process_time(), time.perf_counter()
        self._send.send_nowait(Change(subsystem=subsystem, bdf=bdf))
        await manager.changed.wait(rung)
        return Spent((time.process_time() - cpu) * 1000, (time.perf_counter() - wall) * 1000)

    def changes(self, number: int) -> Iterator[tuple[str, str, str]]:
        """Change the hardware, one thing at a time: what it was, of which device, and who tells of it."""
        index, pf, fake = 2 * number % self.each, self.pfs[0], self.fake
        vf, netdev = fake.vf_bdf(pf, index), f"ens0v{index}"
        for driver in ("vfio-pci", "iavf"):
            fake.bind(vf, driver)
            yield _DRIVER, vf, "pci"
        for carrier in (False, True):
            fake.carrier(netdev, carrier)
            yield _LINK, vf, "net"
        # By a rename, as `FakeSysfs.remove` looks at all there is: the kernel does not leave our caches cold like that.
        links = (fake.sys / "bus/pci/devices" / vf, fake.path(pf) / f"virtfn{index}")
        for link in links:
            link.rename(self._away / link.name)
        yield _GOES, vf, "pci"
        for link in links:
            (self._away / link.name).rename(link)
        yield _COMES, vf, "pci"
        for carrier in (False, True):
            fake.carrier("ens0", carrier)
            yield _PF, pf, "net"

    @asynccontextmanager
    async def _events(self) -> AsyncIterator[MemoryObjectReceiveStream[Change]]:
        yield self._receive

    async def _held(self) -> dict[str, str]:
        return dict(self.attached)


async def follow(root: Path, *, vfs: int, runs: int) -> list[Figure]:
    """What an event costs from its being told to its being offered, with this many VFs."""
    node = Node(root, vfs)
    spent: dict[str, list[Spent]] = {}
    async with node.manager(root / "info") as manager:
        gc.collect()
        gc.freeze()  # as the daemon does once it has started
        for number in range(runs):
            seen = []
            for what, bdf, subsystem in node.changes(number):
                spent.setdefault(what, []).append(await node.tell(manager, bdf, subsystem))
                pools = {pool.resource: pool for pool in manager.statistics().pools}
                seen.append((pools[_KERNEL].healthy, pools[_DPDK].healthy))
            all_, less = node.vfs, node.vfs - 1
            healthy = [(less, 1), (all_, 0), (all_, 0), (all_, 0), (less, 0), (all_, 0), (all_ - node.each, 0)]
            assert seen == [*healthy, (all_, 0)], seen
    return [
        _figure(
            what, clock, vfs, [getattr(each, clock) for each in found], _LIMITS.get(what) if vfs <= LIMITED else None
        )
        for what, found in spent.items()
        for clock in Spent._fields
    ]


def discover(root: Path, *, vfs: int, runs: int) -> list[Figure]:
    """What it costs to read everything, and to look whether anything is to be read."""
    node = Node(root, vfs)

    def everything() -> None:
        assert len(inventory.build(node.sysfs.read(), guarded={}).vfs) == node.vfs

    limit = DISCOVERY_LIMIT if vfs <= LIMITED else None
    return [
        _figure("full discovery", "wall", node.vfs, [_time(everything) for _ in range(runs)], limit),
        _figure(
            "a look for changes without events",
            "wall",
            node.vfs,
            [_time(lambda: fingerprint(node.fake.sys)) for _ in range(runs)],
        ),
    ]


def measure(vfs: int, runs: int) -> list[Figure]:
    """Every figure for this many VFs."""
    with tempfile.TemporaryDirectory(prefix="multus-bench-") as scratch:
        figures = discover(Path(scratch), vfs=vfs, runs=runs)
    with tempfile.TemporaryDirectory(prefix="multus-bench-") as scratch:
        return [*figures, *anyio.run(partial(follow, Path(scratch), vfs=vfs, runs=runs))]


def main() -> int:
    """Print the figures; 1 when a limit is not kept."""
    parser = argparse.ArgumentParser(prog="benchmarks.discovery", description=__doc__)
    parser.add_argument("--vfs", type=int, nargs="+", default=CURVE, help="how many there are, one after the other")
    parser.add_argument("--runs", type=int, default=20)
    chosen = parser.parse_args()
    figures = [figure for vfs in chosen.vfs for figure in measure(vfs, chosen.runs)]
    output.table(
        ("WHAT", "", *(f"{vfs} VFs" for vfs in chosen.vfs), "LIMIT ms"),
        [
            (*what, *(f"{each.median:.2f} ({each.worst:.2f})" for each in row), _limit(row))
            for what, row in _rows(figures).items()
        ],
    )
    OUT.mkdir(exist_ok=True)
    (OUT / "discovery.json").write_bytes(msgspec.json.format(msgspec.json.encode(figures), indent=2))
    return 0 if all(each.kept for each in figures) else 1


def _rows(figures: Sequence[Figure]) -> dict[tuple[str, str], list[Figure]]:
    """The same thing with few and with many VFs."""
    rows: dict[tuple[str, str], list[Figure]] = {}
    for figure in figures:
        rows.setdefault((figure.what, figure.clock), []).append(figure)
    return rows


def _limit(row: Sequence[Figure]) -> str:
    limits = {each.limit for each in row if each.limit is not None}
    return "".join(f"{limit:g}" for limit in limits) + (" MISS" if not all(each.kept for each in row) else "") or "-"


def _time(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return (time.perf_counter() - started) * 1000


def _figure(what: str, clock: str, vfs: int, times: Sequence[float], limit: float | None = None) -> Figure:
    median, worst = statistics.median(times), max(times)
    return Figure(what=what, clock=clock, vfs=vfs, median=median, worst=worst, runs=len(times), limit=limit)


if __name__ == "__main__":
    sys.exit(main())

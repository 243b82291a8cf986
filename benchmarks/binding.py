"""`python -m benchmarks.binding BDF...`: VFs to vfio-pci and back, beside dpdk-devbind.py on the same VFs.

Ours is what the daemon does: checks, the record on disk, the MAC, the bind, and the wait for the device node. Theirs is
a program of its own, with the start of its interpreter, since that is how it is used; it saves nothing and waits for
nothing. Needs root and VFs that nobody uses: tests/vm/guest/test_speed.py runs it in the tests' virtual machine.
"""

import argparse
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import anyio
import msgspec

from dpdk.drivers import Binder
from dpdk.kernel import Kernel
from dpdk.plans import VFIO
from multus.cli import output
from multus.journal import Journal

DEVBIND = "dpdk-devbind.py"


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One way of doing it. Milliseconds: the median of one VF at a time, and all of them together."""

    who: str
    vfs: int
    bind_ms: float
    restore_ms: float
    bind_all_ms: float
    restore_all_ms: float


async def ours(vfs: Sequence[str]) -> Row:
    """By the binder on a journal; all at a time in one task group."""
    with tempfile.TemporaryDirectory(prefix="multus-bench-") as scratch:
        async with Journal.open(Path(scratch, "journal.db")) as journal:
            binder = Binder(Kernel(), journal.records)

            async def bind(bdf: str) -> None:
                await binder.apply_bind(await binder.plan(bdf, VFIO))

            async def restore(bdf: str) -> None:
                if await binder.restore(bdf) is None:
                    raise RuntimeError(f"{bdf} was not bound")

            single = [(await _timed(bind, bdf), await _timed(restore, bdf)) for bdf in vfs]
            begin = time.perf_counter()
            async with anyio.create_task_group() as group:
                for plan in await binder.plan_all(vfs, VFIO):
                    group.start_soon(binder.apply_bind, plan)
            together = [time.perf_counter() - begin, await _together(restore, vfs)]
    return _row("multus", single, together)


def theirs(vfs: Sequence[str], driver: str, *, single: int = 3) -> Row | None:
    """By DPDK's program, `single` of the VFs one by one; None where it is not installed."""
    program = shutil.which(DEVBIND)
    if program is None:
        return None
    times = [(_devbind(program, VFIO, [bdf]), _devbind(program, driver, [bdf])) for bdf in vfs[:single]]
    together = [_devbind(program, VFIO, vfs), _devbind(program, driver, vfs)]
    return _row(DEVBIND, times, together, vfs=len(vfs))


def _devbind(program: str, driver: str, vfs: Sequence[str]) -> float:
    begin = time.perf_counter()
    subprocess.run([program, "--bind", driver, *vfs], check=True, capture_output=True, timeout=120)
    seconds = time.perf_counter() - begin
    for bdf in vfs:
        now = Path(f"/sys/bus/pci/devices/{bdf}/driver").readlink().name
        if now != driver:
            raise RuntimeError(f"{DEVBIND} left {bdf} on {now}")
    return seconds


async def _timed(work: Callable[[str], Coroutine[Any, Any, None]], bdf: str) -> float:
    begin = time.perf_counter()
    await work(bdf)
    return time.perf_counter() - begin


async def _together(work: Callable[[str], Coroutine[Any, Any, None]], vfs: Sequence[str]) -> float:
    begin = time.perf_counter()
    async with anyio.create_task_group() as group:
        for bdf in vfs:
            group.start_soon(work, bdf)
    return time.perf_counter() - begin


def _row(who: str, single: Sequence[tuple[float, float]], together: Sequence[float], *, vfs: int = 0) -> Row:
    bind, restore = ([each[index] for each in single] for index in range(2))
    return Row(
        who=who,
        vfs=vfs or len(single),
        bind_ms=statistics.median(bind) * 1000,
        restore_ms=statistics.median(restore) * 1000,
        bind_all_ms=together[0] * 1000,
        restore_all_ms=together[1] * 1000,
    )


def show(rows: Sequence[Row]) -> None:
    """The table."""
    header = ("BY", "VFS", "BIND ms", "RESTORE ms", "BIND ALL ms", "RESTORE ALL ms")
    values = [(each.who, str(each.vfs), *(f"{ms:.0f}" for ms in msgspec.structs.astuple(each)[2:])) for each in rows]
    output.table(header, values)


def measure(vfs: Sequence[str], driver: str) -> list[Row]:
    """Both, on VFs that are on `driver` before and after."""
    rows = [anyio.run(ours, vfs)]
    other = theirs(vfs, driver)
    return [*rows, other] if other is not None else rows


def main() -> None:
    """Measure and print; JSON in benchmarks/out."""
    parser = argparse.ArgumentParser(prog="benchmarks.binding", description=__doc__)
    parser.add_argument("vfs", metavar="BDF", nargs="+")
    parser.add_argument("--driver", default="", help="the VFs' own driver (default: the one that the first is on)")
    chosen = parser.parse_args()
    driver = chosen.driver or Path(f"/sys/bus/pci/devices/{chosen.vfs[0]}/driver").readlink().name
    rows = measure(chosen.vfs, driver)
    show(rows)
    out = Path(__file__).parent / "out"
    out.mkdir(exist_ok=True)
    (out / "binding.json").write_bytes(msgspec.json.format(msgspec.json.encode(rows), indent=2))


if __name__ == "__main__":
    main()

"""`python -m benchmarks.scale`: what an attach costs with many networks, NADs and pods, and after many attaches.

Four parts, each with a bar: the cost per network to 32 of them; 10 to 10,000 NADs in the cluster; 10 to 1,000 pods
attached on the node; 5,000 attaches. The second and third measure by turns on a node that has few. JSON and curves in
benchmarks/out; exit code 1 when a bar is missed.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import msgspec

from benchmarks import limit, servers
from benchmarks.attach import secondary
from benchmarks.bars import Bar
from benchmarks.compare import OUT
from benchmarks.curves import FEW, Point, flat, panels, slopes
from benchmarks.endurance import Sample, endure
from benchmarks.nodes import DEFAULT, Node
from benchmarks.phases import Shares, collect, shares
from benchmarks.plot import page
from benchmarks.side import Contender, Side
from multus.cli import output

_PARTS: Final = ("networks", "nads", "attaches", "pods")
_BATCH: Final = 8
_SECONDARIES: Final = 2  # networks of a pod among many NADs or pods


class Report(msgspec.Struct, kw_only=True):
    """All that was found."""

    cores: int
    native: str
    apiserver: str
    networks: list[Point] = []
    nads: list[Point] = []
    pods: list[Point] = []
    attaches: list[Sample] = []
    bars: list[Bar] = []
    seconds: float = 0.0


def main() -> int:
    """Run the parts and print them."""
    chosen = _arguments()
    begin = time.monotonic()
    report = Report(cores=os.cpu_count() or 1, native=chosen.native, apiserver=chosen.apiserver)
    for part in chosen.parts:
        with tempfile.TemporaryDirectory(prefix="multus-bench-") as scratch, ExitStack() as stack:
            start = time.monotonic()
            _run(part, report, chosen, Path(scratch), stack)
            print(f"  {part}: {time.monotonic() - start:.0f} s", flush=True)
    report.seconds = time.monotonic() - begin
    print()
    output.table(
        ("BAR", "WANTED", "FOUND", ""),
        [(bar.what, bar.wanted, bar.found, "pass" if bar.passed else "MISS") for bar in report.bars],
    )
    OUT.mkdir(exist_ok=True)
    (OUT / f"{chosen.out}.json").write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2))
    (OUT / f"{chosen.out}.svg").write_text(page(panels(report)))
    print(f"\n{report.seconds:.0f} s; written: {OUT / chosen.out}.json and .svg")
    return 0 if all(bar.passed for bar in report.bars) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.scale", description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=_PARTS, default=_PARTS)
    parser.add_argument("--networks", type=int, nargs="+", default=[0, 1, 2, 4, 8, 16, 24, 32])
    parser.add_argument("--nads", type=int, nargs="+", default=[100, 1000, 10_000], help="beside a node with 10")
    parser.add_argument("--pods", type=int, nargs="+", default=[100, 1000], help="beside a node with 10")
    parser.add_argument("--attaches", type=int, default=5000)
    parser.add_argument("--minutes", type=float, default=3.0, help="for the attaches: fewer if need be (%(default)s)")
    parser.add_argument("--each", type=int, default=32, help="pods measured a point and node (%(default)s)")
    parser.add_argument("--native", choices=("default", "off"), default="default")
    parser.add_argument("--apiserver", choices=("light", "real"), default="light")
    parser.add_argument("--out", default="scale", help="the files' name (%(default)s)")
    return parser.parse_args()


def _run(part: str, report: Report, chosen: argparse.Namespace, scratch: Path, stack: ExitStack) -> None:
    def node(name: str, networks: int) -> Side:
        settings = {"manifests": "", **({"nativeDelegates": []} if chosen.native == "off" else {})}
        box = stack.enter_context(Node(scratch / name, default=DEFAULT, settings=settings))
        side = Side(name, box, servers.choose(chosen.apiserver))
        stack.callback(side.close)
        side.start({f"n{number}": secondary(number) for number in range(1, networks + 1)})
        return side

    match part:
        case "networks":
            side = node("ours", max(chosen.networks))
            for count in chosen.networks:
                add, delete = _by_turns([side], count, chosen.each // 2)[0]
                report.networks.append(_told(part, Point(count=count, add_ms=add, del_ms=delete)))
            side.clean()
            report.bars += slopes(report.networks)
        case "nads":
            few, many = node("few", FEW), node("many", FEW)
            held = FEW
            for count in sorted(chosen.nads):
                for number in range(held + 1, count + 1):
                    many.server.ask("nad", name=f"n{number}", config=_unused(number))
                held = count
                _settled(many)
                report.nads.append(_told(part, _beside(few, many, count, chosen.each)))
            for each in (few, many):
                each.clean()
            report.bars += flat("NADs", report.nads)
        case "pods":
            few, many = node("few", FEW), node("many", FEW)
            kernels = _kernels(few, many, stack)
            _attach(few, FEW)
            held = 0
            for count in sorted(chosen.pods):
                _attach(many, count - held)
                held = count
                _settled(many)
                report.pods.append(_told(part, _beside(few, many, count, chosen.each, kernels)))
            for each, wanted in ((few, FEW), (many, held)):
                if len(each.box.recorded()) != wanted:
                    raise RuntimeError(f"{each.name}: {len(each.box.recorded())} pods are recorded, {wanted} attached")
            report.bars += flat("pods on the node", report.pods)
        case "attaches":
            until = chosen.minutes * 60
            side = node("ours", 1)
            report.attaches, bars = endure(side, chosen.attaches, until=time.monotonic() + until)
            report.bars += bars


def _by_turns(
    them: Sequence[Contender], networks: int, pods: int, where: list[Shares] | None = None
) -> list[tuple[float, float]]:
    """Medians in ms of ADD and DEL for each, one pod at a time, checked; by turns.

    `where` gets what the ADDs and DELs of each daemon spent their time on, in that order.
    """
    parts: dict[tuple[str, str], list[dict[str, float]]] = {}
    calls: list[dict[str, list[float]]] = [{"ADD": [], "DEL": []} for _ in them]
    names = [f"n{number}" for number in range(1, networks + 1)]
    for turn in range(max(pods // _BATCH, 1)):
        for each, found in list(zip(them, calls, strict=True))[:: 1 if turn % 2 == 0 else -1]:
            batch = each.pods(_BATCH, names)
            for command, times in found.items():
                took = each.call(command, batch, at_a_time=1)
                times.extend(took.calls)
                if isinstance(each, Side) and where is not None:
                    parts.setdefault((each.name, command), []).extend(collect(each, command, batch, took))
                for sandbox in batch if command == "ADD" else ():
                    each.check(sandbox, networks)
            each.remove(batch)
    if where is not None:
        where += [shares(key[1], calls, networks=networks, at_a_time=1) for key, calls in sorted(parts.items())]
    return [(statistics.median(found["ADD"]) * 1000, statistics.median(found["DEL"]) * 1000) for found in calls]


def _beside(few: Side, many: Side, count: int, pods: int, kernels: Sequence[limit.Kernel] = ()) -> Point:
    them: list[Contender] = [few, many, *kernels]
    where: list[Shares] = []
    found = _by_turns(them, _SECONDARIES, pods, where)
    kernel = [add for add, _ in found[2:]] or [0.0, 0.0]
    return Point(
        count=count,
        add_ms=found[1][0],
        del_ms=found[1][1],
        few_add_ms=found[0][0],
        few_del_ms=found[0][1],
        kernel_add_ms=kernel[1],
        few_kernel_add_ms=kernel[0],
        grown=_grown(*where),
    )


def _grown(few_add: Shares, few_del: Shares, many_add: Shares, many_del: Shares) -> dict[str, float]:
    """What takes longer among many: milliseconds more by phase or plugin, those of at least a millisecond."""
    found = {}
    for few, many in ((few_add, many_add), (few_del, many_del)):
        for name, value in {**many.phases, **many.plugins}.items():
            more = value - {**few.phases, **few.plugins}.get(name, 0.0)
            if more >= 1.0:
                found[f"{many.command} {name}"] = more
    return found


def _kernels(few: Side, many: Side, stack: ExitStack) -> list[limit.Kernel]:
    """The bare kernel's work on the very nodes: what many pods cost there is not ours."""
    networks = {f"n{number}": secondary(number) for number in range(1, _SECONDARIES + 1)}
    made = [limit.Kernel(side.box, networks, prefix=f"{side.name}-kernel") for side in (few, many)]
    for each in made:
        stack.callback(each.close)
    return made


def _attach(side: Side, count: int) -> None:
    """So many pods that stay, checked."""
    names = [f"n{number}" for number in range(1, _SECONDARIES + 1)]
    while count > 0:
        batch = side.pods(min(count, 64), names)
        side.call("ADD", batch, at_a_time=16)
        for sandbox in batch:
            side.check(sandbox, len(names))
        count -= len(batch)


def _settled(side: Side) -> None:
    """Until the daemon has taken in what is new: its CPU rests."""
    before, rests = -1.0, 0
    while rests < 3:
        now = side.cpu()
        rests = rests + 1 if now - before < 0.02 else 0
        before = now
        time.sleep(0.3)


def _unused(number: int) -> str:
    return msgspec.json.encode({**secondary(1), "name": f"unused{number}"}).decode()


def _told(part: str, point: Point) -> Point:
    beside = f"; with {FEW}: ADD {point.few_add_ms:.1f}, DEL {point.few_del_ms:.1f}" if point.few_add_ms else ""
    if point.kernel_add_ms:
        beside += f"; bare kernel's ADD {point.kernel_add_ms:.1f}, with {FEW} {point.few_kernel_add_ms:.1f}"
    if point.grown:
        beside += "; more in " + ", ".join(f"{name} {more:.1f}" for name, more in point.grown.items())
    print(f"{point.count:>6} {part}: ADD {point.add_ms:.1f} ms, DEL {point.del_ms:.1f} ms{beside}", flush=True)
    return point


if __name__ == "__main__":
    sys.exit(main())

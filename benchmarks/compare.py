"""`python -m benchmarks.compare [--short]`: ours beside upstream's thick daemon and thin plugin, and beside the limits.

Nodes in boxes, alike but for daemon and plugin binary; the same networks, caller and kind of API server; batches of all
by turns, in one run. Tables and bars on the terminal, JSON and a plot in benchmarks/out.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec

from benchmarks import limit, peers, servers
from benchmarks.attach import memory, secondary
from benchmarks.bars import Bar, judge
from benchmarks.nodes import DEFAULT, Node, Thin, Upstream
from benchmarks.phases import Shares, collect, print_shares, shares
from benchmarks.plot import draw
from benchmarks.rows import Memory, Row, make_row, print_limits, print_machine, print_rows
from benchmarks.side import Batch, CallsFailedError, Contender, Side
from multus.cli import output
from multus.cli.box import Box
from tests.go_programs import NoProgramsError

OUT = Path(__file__).parent / "out"
_SHORT = ((0, 1), (1, 1), (4, 1), (8, 1), (4, 64))
UPSTREAM = ("thick", "thin")
_BATCH = 12  # pods of a batch at least: each is followed by a pause


def main() -> None:
    """Run every point and print it."""
    chosen = _arguments()
    points = _points(chosen)
    pods = chosen.pods or (12 if chosen.short else 48)
    attaches = chosen.attaches if chosen.attaches is not None else 200 if chosen.short else 500
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="multus-bench-") as scratch, ExitStack() as stack:
        networks = {f"n{number}": secondary(number) for number in range(1, max(3, *(each for each, _ in points)) + 1)}
        sides = _sides(Path(scratch), stack, chosen)
        for side in sides:
            side.start(networks)
        limits = _limits(Path(scratch), stack, networks) if not chosen.no_limit else []
        rows: list[Row] = []
        where: list[Shares] = []
        gave_up: dict[str, str] = {}
        for number, at_a_time in points:
            here = [side for side in sides if side.name not in gave_up]
            them: list[Contender] = [*here, *(limits if at_a_time == 1 else ())]
            found, parts = measure(them, gave_up, networks=number, at_a_time=at_a_time, pods=pods)
            print_rows(found, header=not rows)
            rows += found
            where += parts
        held = [_memory(side, attaches) for side in sides if side.box.daemon is not None and side.name not in gave_up]
    bars = judge(rows, held)
    print_limits(rows)
    print_machine(rows)
    print_shares(where)
    _report(rows, where, held, bars, gave_up, chosen, time.monotonic() - begin)


def measure(
    them: Sequence[Contender], gave_up: dict[str, str], *, networks: int, at_a_time: int, pods: int
) -> tuple[list[Row], list[Shares]]:
    """One point, all by turns; `networks` beside the default one. Where the time of ours went is with it.

    One of upstream's whose calls fail is put into `gave_up` with what it said: it has no row, and runs no more.
    """
    batches: dict[tuple[str, str], list[Batch]] = {}
    calls: dict[str, list[dict[str, float]]] = {"ADD": [], "DEL": []}
    names = [f"n{number}" for number in range(1, networks + 1)]
    size = max(at_a_time, min(_BATCH, pods))
    done = 0
    while done < pods:
        # By turns, and each first as often as the last.
        for each in list(them if (done // size) % 2 == 0 else reversed(them)):
            if each.name in gave_up:
                continue
            batch = each.pods(size, names)
            for command in ("ADD", "DEL"):
                try:
                    took = each.call(command, batch, at_a_time=at_a_time)
                except CallsFailedError as error:
                    if each.name not in UPSTREAM:
                        raise
                    gave_up[each.name] = f"{networks} networks, {at_a_time} at a time: {error}"
                    print(f"{each.name}: {gave_up[each.name]}", flush=True)
                    break
                batches.setdefault((each.name, command), []).append(took)
                if isinstance(each, Side) and each.name == "ours":
                    calls[command] += collect(each, command, batch, took)
                if command == "ADD":
                    for sandbox in batch:
                        each.check(sandbox, networks)
            else:
                each.remove(batch)
        done += size
    them = [each for each in them if each.name not in gave_up]
    for each in them:
        each.clean()
    point = {"networks": networks, "at_a_time": at_a_time}
    rows = [make_row(each.name, batches[each.name, "ADD"], batches[each.name, "DEL"], **point) for each in them]
    return rows, [shares(command, found, **point) for command, found in calls.items() if found]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.compare", description=__doc__)
    parser.add_argument("--short", action="store_true", help="the points of the bars only, with few pods")
    parser.add_argument("--networks", type=int, nargs="+", help="beside the default one (0 1 2 4 8 16)")
    parser.add_argument("--at-a-time", type=int, nargs="+", help="pods (1 16 64)")
    parser.add_argument("--pods", type=int, help="pods a point and side, at least one batch (48; short: 12)")
    parser.add_argument("--attaches", type=int, help="attaches before memory is read for the last time (500)")
    parser.add_argument("--ours", action="store_true", help="without upstream")
    parser.add_argument("--no-thin", action="store_true", help="without upstream's thin plugin")
    parser.add_argument("--no-limit", action="store_true", help="without the bare kernel and the plugins by hand")
    parser.add_argument(
        "--native", choices=("default", "off", "both"), default="default", help="the plugins inside the daemon"
    )
    parser.add_argument("--apiserver", choices=("light", "real"), default="light", help="real: etcd and kube-apiserver")
    parser.add_argument("--out", default="compare", help="the files' name (%(default)s)")
    return parser.parse_args()


def _points(chosen: argparse.Namespace) -> list[tuple[int, int]]:
    if chosen.short and not chosen.networks and not chosen.at_a_time:
        return list(_SHORT)
    at_a_time, networks = chosen.at_a_time or (1, 16, 64), chosen.networks or (0, 1, 2, 4, 8, 16)
    return [(number, together) for together in at_a_time for number in networks]


def _sides(scratch: Path, stack: ExitStack, chosen: argparse.Namespace) -> list[Side]:
    server = servers.choose(chosen.apiserver)
    programs: Mapping[str, object] = {"manifests": "", "nativeDelegates": []}
    settings = programs if chosen.native == "off" else {"manifests": ""}
    boxes: list[tuple[str, Box]] = [("ours", Node(scratch / "ours", default=DEFAULT, settings=settings))]
    if chosen.native == "both":
        boxes.append(("programs", Node(scratch / "programs", default=DEFAULT, settings=programs)))
    if not chosen.ours:
        try:
            print(f"upstream {peers.VERSION}: looking for it, or building it ...", flush=True)
            peers.build()
            boxes.append(("thick", Upstream(scratch / "thick")))
            if not chosen.no_thin:
                boxes.append(("thin", Thin(scratch / "thin")))
        except NoProgramsError as error:
            print(f"ours only: {error}")
    sides = [Side(name, stack.enter_context(box), server) for name, box in boxes]
    for side in sides:
        stack.callback(side.close)
    return sides


def _limits(scratch: Path, stack: ExitStack, networks: Mapping[str, Mapping[str, Any]]) -> list[Contender]:
    by_hand = limit.ByHand(stack.enter_context(limit.Bare(scratch / "by-hand")), networks)
    made: list[Contender] = [by_hand]
    for kind in (limit.Kernel, limit.KernelAtOnce):
        kernel = kind(stack.enter_context(limit.Bare(scratch / kind.name)), networks)
        stack.callback(kernel.close)
        made.append(kernel)
    return made


def _memory(side: Side, attaches: int) -> Memory:
    names = ["n1", "n2", "n3"][: 3 if attaches >= 500 else 1]
    while side.attached < attaches:
        batch = side.pods(32, names)
        side.call("ADD", batch, at_a_time=16)
        for sandbox in batch:
            side.check(sandbox, len(names))
        side.call("DEL", batch, at_a_time=16)
        side.remove(batch)
    time.sleep(1.0)
    return Memory(side=side.name, idle_mib=side.idle_mib, end_mib=memory(side.box), attaches=side.attached)


def _report(
    rows: Sequence[Row],
    where: Sequence[Shares],
    held: Sequence[Memory],
    bars: Sequence[Bar],
    gave_up: Mapping[str, str],
    chosen: argparse.Namespace,
    took: float,
) -> None:
    print()
    for each in held:
        end = f"{each.end_mib:.1f} after {each.attaches} attaches"
        print(f"{each.side}: {each.idle_mib:.1f} MiB resident when idle, {end}")
    busiest = max(row.server_busy for row in rows)
    print(f"API server ({chosen.apiserver}): at most {busiest:.0%} of one core; all of it took {took:.0f} s\n")
    if bars:
        output.table(
            ("BAR", "WANTED", "FOUND", ""),
            [(bar.what, bar.wanted, bar.found, "pass" if bar.passed else "MISS") for bar in bars],
        )
    OUT.mkdir(exist_ok=True)
    body = {
        "upstream": peers.VERSION if any(each.side == "thick" for each in held) else "",
        "cores": os.cpu_count(),
        "apiserver": chosen.apiserver,
        "native": chosen.native,
        "seconds": took,
        "rows": rows,
        "phases": where,
        "memory": held,
        "bars": bars,
        "gave_up": gave_up,
    }
    (OUT / f"{chosen.out}.json").write_bytes(msgspec.json.format(msgspec.json.encode(body), indent=2))
    (OUT / f"{chosen.out}.svg").write_text(draw(rows))
    print(f"\nwritten: {OUT / chosen.out}.json and .svg")


if __name__ == "__main__":
    main()

"""`python -m benchmarks.compare [--short]`: ours beside upstream's thick daemon, on one machine, in one run.

Two nodes in boxes, alike but for daemon and plugin binary; the same networks, caller and kind of API server; batches of
both by turns. Table and bars on the terminal, JSON and a plot in benchmarks/out.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import msgspec

from benchmarks import peers
from benchmarks.attach import memory, secondary
from benchmarks.bars import Bar, judge
from benchmarks.plot import draw
from benchmarks.side import DEFAULT, Batch, Side, Upstream
from multus.cli import output
from multus.cli.box import Box

OUT = Path(__file__).parent / "out"
_HEADER = (
    *("NETWORKS", "AT A TIME", "SIDE", "PODS", "ADD ms", "p99", "DEL ms", "p99", "ADD/s", "DEL/s"),
    *("OWN CPU", "CPU ms", "+SHIM", "REQUESTS"),
)


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One side at one point. Milliseconds a pod; CPU of ADD and DEL together; requests an ADD and DEL by kind.

    `networks` counts eth0. `own_ms` is the daemon's, `cpu_ms` that and its children's, `shim_ms`
    the plugin binary's.
    `server_busy` is the share of one core that the API server took: far below 1, or it was the bottleneck.
    """

    side: str
    networks: int
    at_a_time: int
    pods: int
    add_ms: float
    add_p99_ms: float
    del_ms: float
    del_p99_ms: float
    adds_per_second: float
    dels_per_second: float
    own_ms: float
    cpu_ms: float
    shim_ms: float
    server_busy: float
    requests: dict[str, float]

    @property
    def per_attach(self) -> float:
        """Requests an attach and detach cost, watches and lists not counted."""
        return sum(count for what, count in self.requests.items() if not what.startswith(("list", "watch")))


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """A daemon's resident MiB, when idle and after that many attaches."""

    side: str
    idle_mib: float
    end_mib: float
    attaches: int


def main() -> None:
    """Run every point and print it."""
    parser = argparse.ArgumentParser(prog="benchmarks.compare", description=__doc__)
    parser.add_argument("--short", action="store_true", help="the points of the bars only, with few pods")
    parser.add_argument("--networks", type=int, nargs="+", help="eth0 included")
    parser.add_argument("--at-a-time", type=int, nargs="+")
    parser.add_argument("--pods", type=int, help="pods a point and side, at least one batch")
    parser.add_argument("--attaches", type=int, help="attaches before memory is read for the last time")
    parser.add_argument("--ours", action="store_true", help="without upstream")
    chosen = parser.parse_args()
    points = _points(chosen.networks, chosen.at_a_time, short=chosen.short)
    pods = chosen.pods or (16 if chosen.short else 64)
    attaches = chosen.attaches if chosen.attaches is not None else 200 if chosen.short else 500
    with tempfile.TemporaryDirectory(prefix="multus-bench-") as scratch, ExitStack() as stack:
        sides = _sides(Path(scratch), stack, with_upstream=not chosen.ours)
        networks = {f"n{number}": secondary(number) for number in range(1, max(each for each, _ in points))}
        for side in sides:
            side.start(networks)
        rows: list[Row] = []
        for number, at_a_time in points:
            rows += measure(sides, networks=number, at_a_time=at_a_time, pods=max(pods, at_a_time))
            _print(rows[-len(sides) :], header=len(rows) == len(sides))
        held = [_memory(side, attaches) for side in sides]
    bars = judge(rows, held)
    _report(rows, held, bars)


def measure(sides: Sequence[Side], *, networks: int, at_a_time: int, pods: int) -> list[Row]:
    """One point, the sides by turns."""
    adds: dict[str, list[Batch]] = {side.name: [] for side in sides}
    dels: dict[str, list[Batch]] = {side.name: [] for side in sides}
    names = [f"n{number}" for number in range(1, networks)]
    size = max(at_a_time, 4)
    done = 0
    while done < pods:
        # By turns, and each first as often as the other.
        for side in sides if (done // size) % 2 == 0 else reversed(sides):
            batch = side.pods(size, names)
            adds[side.name].append(side.call("ADD", batch, at_a_time=at_a_time))
            for sandbox in batch:
                side.check(sandbox, networks)
            dels[side.name].append(side.call("DEL", batch, at_a_time=at_a_time))
            side.remove(batch)
        done += size
    for side in sides:
        side.clean()
    return [_row(side.name, adds[side.name], dels[side.name], networks=networks, at_a_time=at_a_time) for side in sides]


def _points(networks: Sequence[int] | None, at_a_time: Sequence[int] | None, *, short: bool) -> list[tuple[int, int]]:
    if short and not networks and not at_a_time:
        return [(1, 1), (4, 1), (8, 1), (4, 64)]
    return [(number, together) for together in at_a_time or (1, 16, 64) for number in networks or (1, 2, 4, 8, 16)]


def _sides(scratch: Path, stack: ExitStack, *, with_upstream: bool) -> list[Side]:
    sides = [Side("ours", stack.enter_context(Box(scratch / "ours", default=DEFAULT, settings={"manifests": ""})))]
    if with_upstream:
        try:
            print(f"upstream {peers.VERSION}: looking for it, or building it ...", flush=True)
            peers.build()
            sides.append(Side("upstream", stack.enter_context(Upstream(scratch / "upstream"))))
        except peers.NoPeerError as error:
            print(f"ours only: {error}")
    for side in sides:
        stack.callback(side.close)
    return sides


def _memory(side: Side, attaches: int) -> Memory:
    while side.attached < attaches:
        batch = side.pods(32, ["n1", "n2", "n3"][: 3 if attaches >= 500 else 1])
        side.call("ADD", batch, at_a_time=16)
        side.call("DEL", batch, at_a_time=16)
        side.remove(batch)
    time.sleep(1.0)
    return Memory(side=side.name, idle_mib=side.idle_mib, end_mib=memory(side.box), attaches=side.attached)


def _row(name: str, adds: Sequence[Batch], dels: Sequence[Batch], *, networks: int, at_a_time: int) -> Row:
    both = [*adds, *dels]
    attach = sorted(call * 1000 for batch in adds for call in batch.calls)
    detach = sorted(call * 1000 for batch in dels for call in batch.calls)
    requests: Counter[str] = Counter()
    for batch in both:
        requests.update(batch.requests)
    pods = len(attach)
    return Row(
        side=name,
        networks=networks,
        at_a_time=at_a_time,
        pods=pods,
        add_ms=statistics.median(attach),
        add_p99_ms=attach[int(len(attach) * 0.99)],
        del_ms=statistics.median(detach),
        del_p99_ms=detach[int(len(detach) * 0.99)],
        adds_per_second=statistics.median(len(batch.calls) / batch.spent for batch in adds),
        dels_per_second=statistics.median(len(batch.calls) / batch.spent for batch in dels),
        own_ms=sum(batch.own_cpu for batch in both) * 1000 / pods,
        cpu_ms=sum(batch.daemon_cpu for batch in both) * 1000 / pods,
        shim_ms=sum(batch.shim_cpu for batch in both) * 1000 / pods,
        server_busy=max(batch.server_cpu / batch.spent for batch in both),
        requests={what: count / pods for what, count in sorted(requests.items())},
    )


def _print(rows: Sequence[Row], *, header: bool) -> None:
    lines = [
        (
            str(row.networks),
            str(row.at_a_time),
            row.side,
            str(row.pods),
            *(f"{value:.1f}" for value in (row.add_ms, row.add_p99_ms, row.del_ms, row.del_p99_ms)),
            *(f"{value:.1f}" for value in (row.adds_per_second, row.dels_per_second, row.own_ms, row.cpu_ms)),
            f"{row.cpu_ms + row.shim_ms:.1f}",
            f"{row.per_attach:.2f}",
        )
        for row in rows
    ]
    if header:
        print("  ".join(title.rjust(9) for title in _HEADER))
    for line in lines:
        print("  ".join(cell.rjust(9) for cell in line), flush=True)


def _report(rows: Sequence[Row], held: Sequence[Memory], bars: Sequence[Bar]) -> None:
    for each in held:
        end = f"{each.end_mib:.1f} after {each.attaches} attaches"
        print(f"{each.side}: {each.idle_mib:.1f} MiB resident when idle, {end}")
    busiest = max(row.server_busy for row in rows)
    print(f"API server: at most {busiest:.0%} of one core\n")
    if bars:
        output.table(
            ("BAR", "WANTED", "FOUND", ""),
            [(bar.what, bar.wanted, bar.found, "pass" if bar.passed else "MISS") for bar in bars],
        )
    OUT.mkdir(exist_ok=True)
    body = {
        "upstream": peers.VERSION if len(held) > 1 else "",
        "cores": os.cpu_count(),
        "rows": rows,
        "memory": held,
        "bars": bars,
    }
    (OUT / "compare.json").write_bytes(msgspec.json.format(msgspec.json.encode(body), indent=2))
    (OUT / "compare.svg").write_text(draw(rows))
    print(f"\nwritten: {OUT / 'compare.json'}, {OUT / 'compare.svg'}")


if __name__ == "__main__":
    main()

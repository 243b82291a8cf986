"""What was measured at a point, and how it is printed."""

import os
import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Final

import msgspec

from benchmarks.side import Batch
from multus.cli import output

LIMITS: Final = ("by-hand", "kernel", "kernel-1")
_HEADER: Final = (
    *("NETWORKS", "AT A TIME", "SIDE", "PODS", "ADD ms", "p99", "DEL ms", "p99", "ADD/s", "DEL/s"),
    *("OWN CPU", "CPU ms", "+SHIM", "CALLER", "REQUESTS"),
)


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One side at one point. Milliseconds a pod; CPU of ADD and DEL together; requests an ADD and DEL by kind.

    `networks` counts those beside the default one. `own_ms` is the daemon's CPU, `cpu_ms` that and its children's,
    `shim_ms` what the caller executed, `caller_ms` the caller's own. `server_busy` is the share of one core that the
    API server took: far below 1, or it was the bottleneck. `busy` is how many cores each kept busy for the calls' time:
    the daemon (with what it does after its answers), its plugins, the shim, the API server and the caller.
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
    caller_ms: float
    server_busy: float
    busy: dict[str, float]
    requests: dict[str, float]

    @property
    def per_attach(self) -> float:
        """Requests an attach and detach cost, watches and lists not counted."""
        return sum(count for what, count in self.requests.items() if not what.startswith(("list", "watch")))

    @property
    def all_cpu_ms(self) -> float:
        """CPU of an ADD and a DEL, whoever spent it."""
        return self.cpu_ms + self.shim_ms


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """A daemon's resident MiB, when idle and after that many attaches."""

    side: str
    idle_mib: float
    end_mib: float
    attaches: int


def make_row(name: str, adds: Sequence[Batch], dels: Sequence[Batch], *, networks: int, at_a_time: int) -> Row:
    """The row of a point's batches."""
    both = [*adds, *dels]
    attach = sorted(call * 1000 for batch in adds for call in batch.calls)
    detach = sorted(call * 1000 for batch in dels for call in batch.calls)
    requests: Counter[str] = Counter()
    for batch in both:
        requests.update(batch.requests)
    pods = len(attach)
    spent = sum(batch.spent for batch in both)
    cpu = {
        "daemon": sum(batch.own_cpu for batch in both),
        "plugins": sum(batch.daemon_cpu - batch.own_cpu for batch in both),
        "shim": sum(batch.shim_cpu for batch in both),
        "server": sum(batch.server_cpu for batch in both),
        "caller": sum(batch.caller_cpu for batch in both),
    }
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
        own_ms=cpu["daemon"] * 1000 / pods,
        cpu_ms=(cpu["daemon"] + cpu["plugins"]) * 1000 / pods,
        shim_ms=cpu["shim"] * 1000 / pods,
        caller_ms=cpu["caller"] * 1000 / pods,
        server_busy=max(batch.server_cpu / batch.spent for batch in both),
        busy={who: seconds / spent for who, seconds in cpu.items()},
        requests={what: count / pods for what, count in sorted(requests.items())},
    )


def print_rows(rows: Sequence[Row], *, header: bool) -> None:
    """The rows of a point, below the table's header when they are the first."""
    if header:
        print("  ".join(title.rjust(9) for title in _HEADER))
    for row in rows:
        cells = (
            str(row.networks),
            str(row.at_a_time),
            row.side,
            str(row.pods),
            *(f"{value:.1f}" for value in (row.add_ms, row.add_p99_ms, row.del_ms, row.del_p99_ms)),
            *(f"{value:.1f}" for value in (row.adds_per_second, row.dels_per_second, row.own_ms, row.cpu_ms)),
            f"{row.all_cpu_ms:.1f}",
            *(("-", "-") if row.side in LIMITS else (f"{row.caller_ms:.2f}", f"{row.per_attach:.2f}")),
        )
        print("  ".join(cell.rjust(9) for cell in cells), flush=True)


def print_machine(rows: Sequence[Row]) -> None:
    """Who took the machine while many pods came and went at a time."""
    bursts = [row for row in rows if row.at_a_time > 1]
    if bursts:
        output.heading(f"Who took the machine in a burst: cores kept busy, of {os.cpu_count()}")
        output.table(
            ("NETWORKS", "AT A TIME", "SIDE", *(who.upper() for who in bursts[0].busy)),
            [
                (str(row.networks), str(row.at_a_time), row.side, *(f"{cores:.2f}" for cores in row.busy.values()))
                for row in bursts
            ],
        )


def print_limits(rows: Sequence[Row]) -> None:
    """Ours beside the limits: how many times as long it takes, one pod at a time."""
    points = {(row.side, row.networks): row for row in rows if row.at_a_time == 1}
    lines = []
    for networks in sorted({number for side, number in points if side in LIMITS}):
        ours = points["ours", networks]
        for what, attribute in (("ADD", "add_ms"), ("DEL", "del_ms")):
            found: float = getattr(ours, attribute)
            limits: list[float] = [getattr(points[side, networks], attribute) for side in LIMITS]
            ratios = [found / limit for limit in limits]
            cells = (f"{found:.1f}", *(f"{each:.1f}" for each in limits), *(f"{each:.2f}" for each in ratios))
            lines.append((str(networks), what, *cells))
    if lines:
        output.heading("Ours beside the limits, one pod at a time: medians in ms, and ours to each of them")
        names = ("BY HAND", "KERNEL", "KERNEL, 1 DEL")
        output.table(("NETWORKS", "", "OURS", *names, *(f"TO {name}" for name in names)), lines)

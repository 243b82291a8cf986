"""What we want to be, as ratios to upstream's thick daemon in the same run, and whether we are."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from benchmarks.rows import Memory, Row

_MIB = 80.0  # resident after 500 attaches


class Bar(msgspec.Struct, frozen=True, kw_only=True):
    """One bar, in words and figures."""

    what: str
    wanted: str
    found: str
    passed: bool


def judge(rows: "Sequence[Row]", held: "Sequence[Memory]") -> list[Bar]:
    """Every bar whose point was measured on both sides."""
    return [*_ratios(rows), *_alone(rows, held)]


def _ratios(rows: "Sequence[Row]") -> Iterator[Bar]:
    points = {(row.side, row.networks, row.at_a_time): row for row in rows}
    wanted: list[tuple[str, int, int, Callable[[Row], float], float, bool]] = [
        ("ADD p50, the default network alone", 0, 1, lambda row: row.add_ms, 0.5, False),
        ("ADD p50, 1 network", 1, 1, lambda row: row.add_ms, 0.5, False),
        ("ADD p50, 8 networks", 8, 1, lambda row: row.add_ms, 0.2, False),
        ("DEL p50, 8 networks", 8, 1, lambda row: row.del_ms, 0.2, False),
        ("pods per second, 64 x 4 networks", 4, 64, lambda row: row.adds_per_second, 4.0, True),
        *((f"CPU of ADD and DEL, {networks} networks", networks, at, lambda row: row.all_cpu_ms, 0.4, False)
          for networks, at in ((0, 1), (1, 1), (4, 1), (8, 1), (4, 64))),
    ]  # fmt: skip
    for what, networks, at_a_time, value, limit, above in wanted:
        ours, theirs = (points.get((side, networks, at_a_time)) for side in ("ours", "thick"))
        if ours is None or theirs is None:
            continue
        ratio = value(ours) / value(theirs)
        passed = ratio >= limit if above else ratio <= limit
        name = what if not what.startswith("CPU") else f"{what}, {at_a_time} at a time"
        yield Bar(what=name, wanted=f"{'>=' if above else '<='} {limit:g}", found=f"{ratio:.2f}", passed=passed)


def _alone(rows: "Sequence[Row]", held: "Sequence[Memory]") -> Iterator[Bar]:
    ours = [row for row in rows if row.side == "ours"]
    writes = max(sum(count for what, count in row.requests.items() if what.startswith("patch")) for row in ours)
    others = max(row.per_attach - row.requests.get("patch pods", 0.0) for row in ours)
    yield Bar(
        what="API requests an attach",
        wanted="<= 1 write, 0 reads",
        found=f"{writes:.2f} and {others:.2f}",
        passed=writes <= 1 and others == 0,
    )
    for each in held:
        if each.side == "ours":
            yield Bar(
                what=f"MiB resident after {each.attaches} attaches",
                wanted=f"<= {_MIB:g}",
                found=f"{each.end_mib:.1f}",
                passed=each.end_mib <= _MIB,
            )

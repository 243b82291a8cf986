"""What `benchmarks.scale` finds, as bars and curves."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from benchmarks.bars import Bar
from benchmarks.plot import Panel

if TYPE_CHECKING:
    from benchmarks.scale import Report

FEW: Final = 10
"""NADs, or pods, of the node that others are held to."""

_MORE: Final = 0.10  # that an attach may take longer among many
_SLOPE: Final = 1.10  # cost of one more network among many, to that among fewer


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """Medians in ms of one pod at a time, with `count` networks, NADs or pods.

    `few_...` is the node with few, by turns; `kernel_...` the bare kernel's work on the same nodes, if measured.
    `grown` is what takes longer than on the node with few: milliseconds by phase, plugin and IPAM.
    """

    count: int
    add_ms: float
    del_ms: float
    few_add_ms: float = 0.0
    few_del_ms: float = 0.0
    kernel_add_ms: float = 0.0
    few_kernel_add_ms: float = 0.0
    grown: dict[str, float] = {}


def slopes(points: Sequence[Point]) -> list[Bar]:
    """What one more network costs in the upper half of those measured, to what it costs in the quarter below."""
    found = {point.count: point for point in points}
    most = max(found)
    half = max((count for count in found if count <= most / 2), default=0)
    quarter = max((count for count in found if count <= half / 2), default=0)
    if not quarter:
        return []
    bars = []
    for what in ("add_ms", "del_ms"):
        top, middle, low = (float(getattr(found[count], what)) for count in (most, half, quarter))
        ratio = (top - middle) / (most - half) / ((middle - low) / (half - quarter))
        name = f"{what[:3].upper()}: one more network, {half} to {most}, to {quarter} to {half}"
        bars.append(Bar(what=name, wanted=f"<= {_SLOPE:g}", found=f"{ratio:.2f}", passed=ratio <= _SLOPE))
    return bars


def flat(what: str, points: Sequence[Point]) -> list[Bar]:
    """Among most of them, beside the node with few."""
    last = max(points, key=lambda point: point.count)
    bars = []
    for command, value, few in (("ADD", last.add_ms, last.few_add_ms), ("DEL", last.del_ms, last.few_del_ms)):
        more = value / few - 1
        name = f"{command}: {last.count:,} {what} to {FEW}"
        bars.append(Bar(what=name, wanted=f"< +{_MORE:.0%}", found=f"{more:+.1%}", passed=more < _MORE))
    return bars


def panels(report: "Report") -> list[Panel]:
    """A plot for each part."""
    found = []
    for points, across in (
        (report.networks, "networks beside the default one"),
        (report.nads, "NADs"),
        (report.pods, "pods attached on the node"),
    ):
        if points:
            lines = {
                "ADD": [(point.count, point.add_ms) for point in points],
                "DEL": [(point.count, point.del_ms) for point in points],
            }
            if points[0].few_add_ms:
                lines |= {
                    f"ADD, {FEW}": [(point.count, point.few_add_ms) for point in points],
                    f"DEL, {FEW}": [(point.count, point.few_del_ms) for point in points],
                }
            logarithmic = points is not report.networks
            found.append(Panel(title="one pod at a time: ms", across=across, lines=lines, logarithmic=logarithmic))
    if report.attaches:
        for title, lines in (
            ("memory: MiB", {"resident": [(each.attaches, each.mib) for each in report.attaches]}),
            ("descriptors", {"open": [(each.attaches, float(each.descriptors)) for each in report.attaches]}),
            (
                "16 at a time: ms",
                {
                    "ADD": [(each.attaches, each.add_ms) for each in report.attaches],
                    "DEL": [(each.attaches, each.del_ms) for each in report.attaches],
                },
            ),
        ):
            found.append(Panel(title=title, across="attaches", lines=lines))
    return found

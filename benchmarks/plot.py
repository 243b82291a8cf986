"""Plots: panels of lines beside one another in one SVG, drawn by hand."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

import msgspec

if TYPE_CHECKING:
    from benchmarks.rows import Row

_WIDE, _HIGH, _LEFT, _TOP, _BOTTOM = 300, 260, 56, 40, 40  # of one panel, in pixels
_COLOURS = {
    "ours": "#0b7285",
    "programs": "#74b816",
    "thick": "#e8590c",
    "thin": "#a61e4d",
    "by-hand": "#868e96",
    "kernel": "#212529",
}
_OTHERS = ("#0b7285", "#e8590c", "#74b816", "#a61e4d")


class Panel(msgspec.Struct, frozen=True, kw_only=True):
    """One plot: lines by name, each of points (across, up). `logarithmic` is of the axis across."""

    title: str
    across: str
    lines: Mapping[str, Sequence[tuple[float, float]]]
    logarithmic: bool = False


def draw(rows: "Sequence[Row]") -> str:
    """ADD and DEL medians of one pod at a time, and pods a second of the largest burst, over the networks."""
    one, many = min(each.at_a_time for each in rows), max(each.at_a_time for each in rows)

    def lines(at_a_time: int, attribute: str) -> dict[str, list[tuple[float, float]]]:
        found: dict[str, list[tuple[float, float]]] = {}
        for row in rows:
            if row.at_a_time == at_a_time and row.side in _COLOURS:
                found.setdefault(row.side, []).append((row.networks, getattr(row, attribute)))
        return found

    across = "networks beside the default one"
    return page(
        [
            Panel(title=f"ADD, {one} at a time: ms", across=across, lines=lines(one, "add_ms")),
            Panel(title=f"DEL, {one} at a time: ms", across=across, lines=lines(one, "del_ms")),
            Panel(title=f"ADD, {many} at a time: pods/s", across=across, lines=lines(many, "adds_per_second")),
        ]
    )


def page(panels: Sequence[Panel]) -> str:
    """The SVG."""
    width = len(panels) * (_WIDE + _LEFT) + 16
    body = "".join(
        f'<g transform="translate({n * (_WIDE + _LEFT)} 0)">{_panel(each)}</g>\n' for n, each in enumerate(panels)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{_HIGH + _TOP + _BOTTOM}" '
        f'font-family="sans-serif" font-size="12">\n<rect width="100%" height="100%" fill="white"/>\n{body}</svg>\n'
    )


def _panel(panel: Panel) -> str:
    points = [point for line in panel.lines.values() for point in line]
    top = _ceiling(max(up for _, up in points))
    ticks = sorted({across for across, _ in points})
    first, last = (min(ticks), max(ticks)) if panel.logarithmic else (0.0, max(*ticks, 1.0))

    def scaled(number: float) -> float:
        return math.log(number) if panel.logarithmic else number

    def x(number: float) -> float:
        span = scaled(last) - scaled(first)
        return _LEFT + (_WIDE - 12) * ((scaled(number) - scaled(first)) / span if span else 0.5)

    def y(amount: float) -> float:
        return _TOP + _HIGH * (1 - amount / top)

    parts = [f'<text x="{_LEFT}" y="20" font-weight="bold">{escape(panel.title)}</text>']
    for tick in (0, top / 4, top / 2, top * 3 / 4, top):
        parts.append(f'<path d="M{_LEFT} {y(tick):.1f}h{_WIDE - 12}" stroke="#ddd"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for number in ticks if len(ticks) <= 8 else (first, last / 2, last):
        parts.append(f'<text x="{x(number):.1f}" y="{_TOP + _HIGH + 16}" text-anchor="middle">{number:g}</text>')
    middle, below = _LEFT + (_WIDE - 12) / 2, _TOP + _HIGH + 32
    parts.append(f'<text x="{middle:.1f}" y="{below}" text-anchor="middle">{escape(panel.across)}</text>')
    for row, (name, line) in enumerate(panel.lines.items()):
        colour = _COLOURS.get(name, _OTHERS[row % len(_OTHERS)])
        placed = [(x(across), y(up)) for across, up in sorted(line)]
        drawn = " ".join(f"{across:.1f},{down:.1f}" for across, down in placed)
        parts.append(f'<polyline points="{drawn}" fill="none" stroke="{colour}" stroke-width="2"/>')
        if len(placed) <= 20:
            parts += [f'<circle cx="{across:.1f}" cy="{down:.1f}" r="3" fill="{colour}"/>' for across, down in placed]
        parts.append(f'<text x="{_LEFT + 8}" y="{_TOP + 14 + 16 * row}" fill="{colour}">{escape(name)}</text>')
    return "".join(parts)


def _ceiling(value: float) -> float:
    """The next round number, for the axis."""
    step = 1.0
    while step * 10 < value:
        step *= 10
    return next((step * factor for factor in (1, 2, 4, 6, 8) if step * factor >= value), step * 10)

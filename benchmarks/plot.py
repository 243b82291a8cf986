"""The plot: three panels in one SVG, drawn by hand."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.compare import Row

_WIDE, _HIGH, _LEFT, _TOP, _BOTTOM = 300, 260, 56, 40, 40  # of one panel, in pixels
_COLOURS = {"ours": "#0b7285", "upstream": "#e8590c"}


def draw(rows: "Sequence[Row]") -> str:
    """ADD and DEL medians of one pod at a time, and pods a second of the largest burst, over the networks."""
    single = [row for row in rows if row.at_a_time == min(each.at_a_time for each in rows)]
    burst = [row for row in rows if row.at_a_time == max(each.at_a_time for each in rows)]
    one, many = single[0].at_a_time, burst[0].at_a_time
    panels = [
        _panel(f"ADD, {one} at a time: ms", single, lambda row: row.add_ms),
        _panel(f"DEL, {one} at a time: ms", single, lambda row: row.del_ms),
        _panel(f"ADD, {many} at a time: pods/s", burst, lambda row: row.adds_per_second),
    ]
    width = len(panels) * (_WIDE + _LEFT) + 16
    body = "".join(f'<g transform="translate({n * (_WIDE + _LEFT)} 0)">{text}</g>\n' for n, text in enumerate(panels))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{_HIGH + _TOP + _BOTTOM}" '
        f'font-family="sans-serif" font-size="12">\n<rect width="100%" height="100%" fill="white"/>\n{body}</svg>\n'
    )


def _panel(title: str, rows: "Sequence[Row]", value: "Callable[[Row], float]") -> str:
    top = _ceiling(max(value(row) for row in rows))
    networks = sorted({row.networks for row in rows})
    last = max(networks)

    def x(number: float) -> float:
        return _LEFT + (_WIDE - 12) * number / last

    def y(amount: float) -> float:
        return _TOP + _HIGH * (1 - amount / top)

    parts = [f'<text x="{_LEFT}" y="20" font-weight="bold">{title}</text>']
    for tick in (0, top / 4, top / 2, top * 3 / 4, top):
        parts.append(f'<path d="M{_LEFT} {y(tick):.1f}h{_WIDE - 12}" stroke="#ddd"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for number in networks:
        parts.append(f'<text x="{x(number):.1f}" y="{_TOP + _HIGH + 16}" text-anchor="middle">{number}</text>')
    parts.append(f'<text x="{x(last / 2):.1f}" y="{_TOP + _HIGH + 32}" text-anchor="middle">networks, eth0 too</text>')
    for row, (side, colour) in enumerate(_COLOURS.items()):
        points = [(x(each.networks), y(value(each))) for each in rows if each.side == side]
        if not points:
            continue
        line = " ".join(f"{across:.1f},{down:.1f}" for across, down in sorted(points))
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{across:.1f}" cy="{down:.1f}" r="3" fill="{colour}"/>' for across, down in points]
        parts.append(f'<text x="{_LEFT + 8}" y="{_TOP + 14 + 16 * row}" fill="{colour}">{side}</text>')
    return "".join(parts)


def _ceiling(value: float) -> float:
    """The next round number, for the axis."""
    step = 1.0
    while step * 10 < value:
        step *= 10
    return next((step * factor for factor in (1, 2, 4, 6, 8) if step * factor >= value), step * 10)

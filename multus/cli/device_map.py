"""The map of a node's NICs, VFs, pools and holders as SVG, written by hand: no library, one file, any browser."""

from collections.abc import Iterator, Sequence
from html import escape
from typing import Final

import msgspec

from devices.inventory import PF, VF
from multus.cli.device_view import View
from multus.cli.output import printable

_ROW, _GAP, _TOP, _MARGIN = 26, 18, 64, 24
_PF_X, _PF_WIDTH = 24, 270
_VF_X, _VF_WIDTH = 354, 340
_POOL_X, _POOL_WIDTH = 764, 230
_POD_X, _POD_WIDTH = 1064, 360
_WIDTH: Final = _POD_X + _POD_WIDTH + _MARGIN
_CHARACTER = 6.7  # pixels of the font below, about: what is longer than its box is cut

_ROWS_IN_FULL = 16
"""A PF with more VFs than this has those alike, next to each other and free, drawn as one."""

_COLOURS: Final = ("#2563eb", "#059669", "#d97706", "#7c3aed", "#db2777", "#0891b2", "#65a30d", "#dc2626")
_GREY: Final = "#94a3b8"
_STYLE: Final = (
    "text{font:12px ui-monospace,Menlo,Consolas,monospace;fill:#0f172a}"
    ".h{font-weight:600;font-size:14px}.d{fill:#64748b}.w{fill:#fff}path{fill:none;stroke-width:1.5}"
)


class _Row(msgspec.Struct, frozen=True, kw_only=True):
    """One box for one VF, or for several that are alike."""

    vfs: tuple[VF, ...]
    pool: str
    y: float


def draw(view: View) -> str:
    """The whole drawing."""
    parts: list[str] = []
    lines: list[str] = []
    pools = sorted({*view.pools.values()})
    colours = {pool: _COLOURS[index % len(_COLOURS)] for index, pool in enumerate(pools)}
    y = float(_TOP)
    origins: dict[str, list[tuple[float, float]]] = {pool: [] for pool in pools}
    held: dict[str, list[tuple[float, str, str]]] = {}
    for pf in view.inventory.pfs:
        rows = [msgspec.structs.replace(row, y=y + index * _ROW) for index, row in enumerate(_rows(pf, view))]
        height = max(len(rows) * _ROW, 3 * _ROW) - 6
        parts += _pf_box(pf, y, height)
        for row in rows:
            colour = colours.get(row.pool, _GREY)
            middle = row.y + (_ROW - 6) / 2
            lines.append(_curve(_PF_X + _PF_WIDTH, y + height / 2, _VF_X, middle, "#cbd5e1"))
            parts += _vf_box(row, view, colour)
            if row.pool:
                origins[row.pool].append((_VF_X + _VF_WIDTH, middle))
            for vf in row.vfs:
                for who, words in _holders(vf, view):
                    held.setdefault(who, []).append((middle, words, row.pool))
        if pf.bdf in view.pools:
            origins[view.pools[pf.bdf]].append((_PF_X + _PF_WIDTH, y + height / 2))
        for who, words in _holders(pf, view):
            held.setdefault(who, []).append((y + height / 2, words, view.pools.get(pf.bdf, "")))
        y += height + _GAP
    centres: dict[str, float] = {}
    pool_y = float(_TOP)
    for pool in sorted(pools, key=lambda pool: min((each[1] for each in origins[pool]), default=0.0)):
        centres[pool] = pool_y + 20
        parts += _box(_POOL_X, pool_y, _POOL_WIDTH, 40, colours[pool], pool, filled=True)
        lines += [_curve(x, at, _POOL_X, centres[pool], colours[pool]) for x, at in origins[pool]]
        pool_y += 40 + _GAP
    pod_y = float(_TOP)
    for pod in sorted(held, key=lambda pod: min(each[0] for each in held[pod])):
        height = 26 + 18 * len(held[pod])
        parts += _box(_POD_X, pod_y, _POD_WIDTH, height, "#0f172a", "")
        parts.append(_text(_POD_X + 10, pod_y + 18, pod, _POD_WIDTH - 20, "h"))
        for index, (at, words, pool) in enumerate(held[pod]):
            line_y = pod_y + 36 + 18 * index
            parts.append(_text(_POD_X + 10, line_y, words, _POD_WIDTH - 20, "d"))
            start = (_POOL_X + _POOL_WIDTH, centres[pool]) if pool in centres else (_VF_X + _VF_WIDTH, at)
            lines.append(_curve(*start, _POD_X, line_y - 4, colours.get(pool, _GREY)))
        pod_y += height + _GAP
    return _page(max(y, pool_y, pod_y) + _MARGIN, [*lines, *parts], empty=not view.inventory.pfs)


def _rows(pf: PF, view: View) -> Iterator[_Row]:
    """The boxes of a PF's VFs, not placed yet."""
    run: list[VF] = []
    for vf in pf.vfs:
        alike = run and len(pf.vfs) > _ROWS_IN_FULL and _kind(vf, view) == _kind(run[-1], view)
        if run and not (alike and not _taken(vf, view)):
            yield _Row(vfs=tuple(run), pool=view.pools.get(run[0].bdf, ""), y=0)
            run = []
        run.append(vf)
    if run:
        yield _Row(vfs=tuple(run), pool=view.pools.get(run[0].bdf, ""), y=0)


def _kind(vf: VF, view: View) -> tuple[object, ...]:
    return vf.driver, view.pools.get(vf.bdf, ""), vf.guarded, _taken(vf, view)


def _taken(vf: VF, view: View) -> bool:
    return vf.bdf in view.holders or vf.bdf in view.owners


def _holders(device: PF | VF, view: View) -> Iterator[tuple[str, str]]:
    """Who has it, and what of it there is to say: pods, else whom it was given to."""
    pods = view.holders.get(device.bdf, ())
    for holder in pods:
        yield holder.pod, f"{holder.interface}  {device.bdf}  {holder.network}"
    if not pods and device.bdf in view.owners:
        yield view.owners[device.bdf], device.bdf


def _pf_box(pf: PF, y: float, height: float) -> Iterator[str]:
    colour = "#b91c1c" if pf.guarded else "#0f172a"
    about = f"{pf.bdf} {pf.netdev} {pf.guarded}".strip()
    yield from _box(_PF_X, y, _PF_WIDTH, height, colour, "", title=about)
    yield _text(_PF_X + 10, y + 19, f"{pf.netdev or '(no netdev)'}  {pf.link}", _PF_WIDTH - 20, "h")
    numa = f"  NUMA {pf.numa}" if pf.numa >= 0 else ""
    yield _text(_PF_X + 10, y + 38, f"{pf.bdf}  {pf.driver or 'no driver'}{numa}", _PF_WIDTH - 20, "d")
    last = f"{len(pf.vfs)} of {pf.total_vfs} VFs" if pf.total_vfs else "no SR-IOV"
    yield _text(_PF_X + 10, y + 56, f"{last}{'  the node needs it' if pf.guarded else ''}", _PF_WIDTH - 20, "d")


def _vf_box(row: _Row, view: View, colour: str) -> Iterator[str]:
    first, last = row.vfs[0], row.vfs[-1]
    if len(row.vfs) > 1:
        words = f"{first.index} to {last.index}  {len(row.vfs)} free VFs  {first.driver or 'no driver'}"
        about = f"{first.bdf} to {last.bdf}"
    else:
        words = f"{first.index}  {first.bdf}  {first.netdev or first.driver or 'no driver'}"
        about = f"MAC {view.mac(first) or 'none'}, IOMMU group {first.iommu_group or 'none'}, driver {first.driver}"
    yield from _box(_VF_X, row.y, _VF_WIDTH, _ROW - 6, colour, "", title=about, thick=_taken(first, view))
    yield _text(_VF_X + 8, row.y + 14, words, _VF_WIDTH - 16, "")


def _box(
    x: float,
    y: float,
    width: float,
    height: float,
    colour: str,
    words: str,
    *,
    title: str = "",
    filled: bool = False,
    thick: bool = False,
) -> Iterator[str]:
    told = f"<title>{_clean(title)}</title>" if title else ""
    fill = colour if filled else "#fff"
    yield (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="5" fill="{fill}" stroke="{colour}"'
        f' stroke-width="{2.5 if thick else 1.2}">{told}</rect>'
    )
    if words:
        yield _text(x + 10, y + height / 2 + 4, words, width - 20, "w" if filled else "")


def _text(x: float, y: float, words: str, width: float, style: str) -> str:
    room = int(width / _CHARACTER)
    shown = words if len(words) <= room else words[: room - 1] + "\u2026"
    named = f' class="{style}"' if style else ""
    return f'<text x="{x:g}" y="{y:g}"{named} xml:space="preserve">{_clean(shown)}</text>'


def _curve(x: float, y: float, to_x: float, to_y: float, colour: str) -> str:
    half = (x + to_x) / 2
    return f'<path d="M{x:g} {y:g}C{half:g} {y:g} {half:g} {to_y:g} {to_x:g} {to_y:g}" stroke="{colour}"/>'


def _page(height: float, parts: Sequence[str], *, empty: bool) -> str:
    headings = ((_PF_X, "NICs"), (_VF_X, "Virtual functions"), (_POOL_X, "Pools"), (_POD_X, "Held by"))
    top = [_text(x, 36, words, 300, "h") for x, words in headings]
    if empty:
        top.append(_text(_PF_X, _TOP + 16, "no network devices on this machine's PCI buses", 600, "d"))
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height:g}"'
            f' viewBox="0 0 {_WIDTH} {height:g}">',
            f"<style>{_STYLE}</style>",
            f'<rect width="{_WIDTH}" height="{height:g}" fill="#f8fafc"/>',
            *parts,
            *top,
            "</svg>\n",
        ]
    )


def _clean(text: str) -> str:
    """Text that is harmless in XML; it has no place for control characters at all."""
    return escape(printable(text))

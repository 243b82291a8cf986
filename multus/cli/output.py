"""What the tools print: tables, steps and colours; plain where nobody looks at a terminal."""

import os
import sys
from collections.abc import Iterable, Sequence
from typing import Final

_CODES: Final = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}


def paint(text: str, style: str) -> str:
    """The text in a colour or weight, on a terminal that wants it (https://no-color.org)."""
    if not sys.stdout.isatty() or "NO_COLOR" in os.environ:
        return text
    return f"\x1b[{_CODES[style]}m{text}\x1b[0m"


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, indent: str = "") -> None:
    """Columns as wide as their widest cell. What comes from a cluster is made harmless to a terminal."""
    clean = [tuple(printable(cell) for cell in row) for row in rows]
    widths = [max(len(row[index]) for row in (tuple(header), *clean)) for index in range(len(header))]

    def line(row: Sequence[str]) -> str:
        return "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()

    print(indent + paint(line(header), "bold"))
    for row in clean:
        print(indent + line(row))


def printable(text: str) -> str:
    """Control characters as escapes: a name must not move the cursor."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def heading(text: str) -> None:
    """A part of the output begins."""
    print(f"\n{paint(text, 'bold')}", flush=True)


def good(text: str, seconds: float | None = None) -> None:
    """Something went as it should; how long it took, in seconds."""
    took = paint(f"  {seconds * 1000:.0f} ms", "dim") if seconds is not None else ""
    print(f"  {paint('ok', 'green')}  {text}{took}", flush=True)


def bad(text: str) -> None:
    """Something is wrong."""
    print(f"  {paint('no', 'red')}  {printable(text)}", flush=True)


def note(text: str) -> None:
    """By the way."""
    print(paint(f"      {text}", "dim"), flush=True)

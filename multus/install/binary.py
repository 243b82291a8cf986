"""The shim in the host's directory of CNI plugins: put there, recognised, taken away."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from multus.files import FileError, read_small
from multus.install.errors import InstallError
from multus.install.steps import Remove, Restore, Step, Write, aside, holds, keep_predecessor, leftovers, present

NAMES: Final = ("multus", "multus-shim")
"""What configurations call the shim: ours and the walk-through's "multus", upstream's generated ones "multus-shim"."""

_MODE: Final = 0o755
_MAX_SHIM = 16 * 1024 * 1024  # ours has less than one; upstream's, in Go, has 50
# What the shim prints for --version, as it stands in the program: to start an unknown program just to ask is no idea.
_VERSION: Final = re.compile(rb"\0multus ([0-9A-Za-z][0-9A-Za-z.+~_-]{0,63})\n\0")


def own_shim() -> Path:
    """The shim that came with this installation of the package: beside the interpreter."""
    return Path(sys.executable).parent / "multus"


def shim_version(data: bytes) -> str:
    """Which release of the shim a program is; "" when it is another program."""
    found = _VERSION.search(data) if data.startswith(b"\x7fELF") else None
    return found[1].decode() if found else ""


def read_shim(path: Path) -> bytes:
    """The shim that is to be installed.

    :raises InstallError: it is not there, or another program.
    """
    try:
        data = read_small(path, limit=_MAX_SHIM)
    except FileError as error:
        hint = "it is made when the package is installed (make setup); --multus-bin-file names another place"
        raise InstallError(f"no shim to install: {error.message}", hint=hint) from None
    if not shim_version(data):
        hint = "--multus-bin-file must name the program that is built from multus/shim/multus.c"
        raise InstallError(f"{path} is not multus's shim", hint=hint)
    return data


def plan_binary(shim: bytes, directory: Path, names: Sequence[str]) -> list[Step]:
    """Steps that put the shim there under each name; none where it is there already.

    A program of somebody else by that name is set aside. A running shim is no obstacle: its file is not written to,
    it is replaced.
    """
    steps: list[Step] = leftovers(directory, NAMES)
    for name in names:
        path = directory / name
        if present(path):
            if holds(path, shim, _MODE):
                continue
            if not shim_version(_content(path)):
                steps += keep_predecessor(path)
        steps.append(Write(path=path, data=shim, mode=_MODE, what=f"the shim, {shim_version(shim)}"))
    return steps


def plan_removal(directory: Path) -> tuple[list[Step], list[str]]:
    """Steps that take our programs away and bring back what was there before; and what is left alone, for people."""
    steps: list[Step] = []
    left = []
    for path in (directory / name for name in NAMES):
        there = present(path)
        if there and not shim_version(_content(path)):
            left.append(f"left {path}: it is not multus's shim")
            if present(aside(path)):
                steps.append(Remove(path=aside(path), what="somebody put a newer one in its place"))
        elif present(aside(path)):
            steps.append(Restore(path=path))
        elif there:
            steps.append(Remove(path=path, what="the shim"))
    return steps + leftovers(directory, NAMES), left


def _content(path: Path) -> bytes:
    """b"" for what is no program of ours by its size or kind."""
    if path.is_dir():
        raise InstallError(f"{path} is a directory", hint="move it away: the runtime could not start it")
    try:
        return read_small(path, limit=_MAX_SHIM)
    except FileError:
        return b""

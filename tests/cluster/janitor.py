"""Removes what a run of the lane leaves: its directory and its control groups. Its processes end by themselves.

    python janitor.py DIRECTORY      waits for its standard input to end, as it does with the run, however that ends

The next run removes what was left where even the janitor was killed.
"""

import contextlib
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

STATE: Final = Path("/var/tmp")  # overlays need a file system under them that is not in memory
CGROUPS: Final = Path("/sys/fs/cgroup")
PREFIX: Final = "multus-cluster-"
_PATIENCE: Final = 20.0  # seconds for killed processes to leave their control groups


def remove(directory: Path, cgroups: Path = CGROUPS, *, patience: float = _PATIENCE) -> None:
    """Remove a run's directory, and the control groups of the process that it is named for."""
    name = PREFIX + _owner(directory)
    end = time.monotonic() + patience
    while groups := [path for root in _roots(cgroups, name) for path in sorted(root.glob("**/"), reverse=True)]:
        for path in groups:
            with contextlib.suppress(OSError):
                path.rmdir()
        if time.monotonic() > end:
            break
        time.sleep(0.05)
    shutil.rmtree(directory, ignore_errors=True)


def sweep(state: Path = STATE, cgroups: Path = CGROUPS) -> None:
    """Remove what runs left whose process is gone."""
    left = {path.name: path for path in (*_roots(cgroups, f"{PREFIX}*"), *state.glob(f"{PREFIX}*"))}
    for path in left.values():
        owner = _owner(path)
        if owner.isdigit() and not Path("/proc", owner).exists():
            remove(path if path.parent == state else state / path.name, cgroups)


@contextmanager
def watched(directory: Path) -> Iterator[None]:
    """Have the directory and the control groups removed when the block ends, or this process does."""
    command = [sys.executable, __file__, str(directory)]
    janitor = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    try:
        yield
    finally:
        janitor.communicate(timeout=_PATIENCE + 40)


def _roots(cgroups: Path, name: str) -> list[Path]:
    return [*cgroups.glob(name), *cgroups.glob(f"*/{name}")]


def _owner(path: Path) -> str:
    return path.name.removeprefix(PREFIX).partition("-")[0]


if __name__ == "__main__":
    sys.stdin.read()
    remove(Path(sys.argv[1]))

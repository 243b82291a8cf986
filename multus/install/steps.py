"""Changes of a host's files as steps: each happens wholly or not at all, so a crash leaves the old or the new state.

They are planned first, and told or performed then. Whoever performs holds the directory, so that of two that install
at once neither takes the other's temporary file for what a crash has left.
"""

import fcntl
import os
import shutil
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from multus.files import TEMP_MARK, FileError, read_small, remove, replace, sync_directory
from multus.install.errors import InstallError

_PATIENCE: Final = 10.0  # seconds to wait for another one that installs


class Write(msgspec.Struct, frozen=True, kw_only=True):
    """A file gets this content and mode; `what` it is, for people."""

    path: Path
    data: bytes
    mode: int
    what: str


class SetAside(msgspec.Struct, frozen=True, kw_only=True):
    """A file that is not ours is kept under another name, for `Restore`; it stays in its place, too."""

    path: Path


class Restore(msgspec.Struct, frozen=True, kw_only=True):
    """What was set aside comes back, over whatever is in its place."""

    path: Path


class Remove(msgspec.Struct, frozen=True, kw_only=True):
    """A file goes; `what` it is, for people."""

    path: Path
    what: str


class RemoveEmpty(msgspec.Struct, frozen=True, kw_only=True):
    """A directory goes if nothing is in it."""

    path: Path


Step = Write | SetAside | Restore | Remove | RemoveEmpty


def aside(path: Path) -> Path:
    """Where a file is kept that was there before ours. Runtimes read no configuration with such a suffix."""
    return path.with_name(f".{path.name}.before-multus")


def present(path: Path) -> bool:
    """Whether there is anything at this path, a dangling link too."""
    return os.path.lexists(path)


def holds(path: Path, data: bytes, mode: int) -> bool:
    """Whether this very file is there already; a link to it does not count."""
    try:
        info = path.lstat()
        return (
            stat.S_ISREG(info.st_mode)
            and stat.S_IMODE(info.st_mode) == mode
            and info.st_size == len(data)
            and read_small(path, limit=len(data)) == data
        )
    except (OSError, FileError):
        return False


def keep_predecessor(path: Path) -> list[Step]:
    """Steps that keep somebody else's file before ours comes into its place; none when that has been done."""
    kept = aside(path)
    if present(kept) and path.lstat().st_ino == kept.lstat().st_ino:
        return []  # both names lead to one file: whoever kept it did not get further
    return [SetAside(path=path)]


def leftovers(directory: Path, names: Iterable[str]) -> list[Step]:
    """Steps that remove what a crash left of files by these names; the directory must be held."""
    prefixes = tuple(f".{name}{TEMP_MARK}-" for name in names)
    try:
        found = sorted(path for path in directory.iterdir() if path.name.startswith(prefixes))
    except OSError as error:
        raise FileError(f"cannot list {directory}: {error.strerror or error}") from None
    return [Remove(path=path, what="left by a crash") for path in found]


def describe(step: Step, *, done: bool) -> str:
    """The step as a line for people: as done, or as what would be done."""
    match step:
        case Write():
            return f"{'wrote' if done else 'would write'} {step.path} ({step.what}, {len(step.data)} bytes)"
        case SetAside():
            return f"{'kept' if done else 'would keep'} the {step.path} of before as {aside(step.path).name}"
        case Restore():
            return f"{'put back' if done else 'would put back'} the {step.path} of before"
        case Remove():
            return f"{'removed' if done else 'would remove'} {step.path} ({step.what})"
        case RemoveEmpty():
            return f"{'removed' if done else 'would remove'} {step.path} if it is empty"


def perform(steps: Iterable[Step]) -> list[str]:
    """Do the steps in order; a line for each.

    :raises FileError: one could not be done; those before it are.
    """
    lines = []
    for step in steps:
        try:
            _perform(step)
        except OSError as error:
            raise FileError(f"cannot {describe(step, done=False)[6:]}: {error.strerror or error}") from None
        lines.append(describe(step, done=True))
    return lines


def _perform(step: Step) -> None:
    match step:
        case Write():
            replace(step.path, step.data, mode=step.mode)
        case SetAside():
            _set_aside(step.path)
        case Restore():
            aside(step.path).replace(step.path)
            sync_directory(step.path.parent)
        case Remove():
            remove(step.path)
        case RemoveEmpty():
            _remove_empty(step.path)


def _set_aside(path: Path) -> None:
    """A second name for the same file, so that it comes back with owner, mode and times; a copy where none can be."""
    temporary = path.with_name(f".{path.name}{TEMP_MARK}-before-{os.getpid()}")
    try:
        os.link(path, temporary, follow_symlinks=False)
    except OSError:
        shutil.copy2(path, temporary, follow_symlinks=False)
    temporary.replace(aside(path))
    sync_directory(path.parent)


def _remove_empty(path: Path) -> None:
    if path.is_dir() and not path.is_symlink() and not any(path.iterdir()):
        path.rmdir()
        sync_directory(path.parent)


@contextmanager
def holding(directory: Path, *, patience: float = _PATIENCE) -> Iterator[None]:
    """Keep other installers of ours out of a directory, across containers too; they wait `patience` seconds.

    :raises InstallError: another one holds it for longer, or there is no such directory.
    """
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise InstallError(
            f"cannot use the directory {directory}: {error.strerror or error}",
            hint="it belongs to the container runtime: is it the host's, and mounted?",
        ) from None
    try:
        end = time.monotonic() + patience
        while not _locked(descriptor):
            if time.monotonic() > end:
                raise InstallError(f"another program installs into {directory}", hint="wait for it, or end it")
            time.sleep(0.02)
        yield
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True  # a file system without locks: there is nobody to be told
    return True

"""Stored DELs as files: what the shim writes (`spool()` in multus.c), read by the daemon that was away.

A file `<container>-<interface>.<nonce>.del` holds the request frame of `multus.wire`; the shim writes it under another
name, syncs and renames it, so what has that suffix is whole. What cannot be understood is set aside as `.bad` for a
person to look at, because the runtime was told that the DEL is done.
"""

import logging
import re
import stat
import time
from collections.abc import Collection
from pathlib import Path
from typing import ClassVar, Final

import msgspec

from multus.cni import document
from multus.cni.request import Command, parse_request
from multus.errors import Fault, MultusError
from multus.files import FileError, read_small
from multus.wire import MAX_REQUEST, FrameError, decode_request

logger = logging.getLogger(__name__)

_WAITING, _SET_ASIDE, _UNFINISHED = ".del", ".bad", ".tmp"
_ABANDONED: Final = 3600.0  # seconds after which a half-written file is a dead shim's
_NONCE = re.compile(r"([0-9a-f]{16})[0-9a-f]{16}")  # as the shim makes them: nanoseconds since the epoch come first


class SpoolError(MultusError):
    """Stored DELs cannot be kept where they should be."""

    fault: ClassVar[Fault] = Fault.OPERATOR


class SpoolEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One stored DEL: the file's name, when it was stored (seconds since the epoch), and the call."""

    name: str
    stored: float
    container_id: str
    ifname: str
    env: dict[str, str]
    conf: bytes


def stored_at(nonce: str, *, default: float) -> float:
    """When a shim made the call of this name, in seconds since the epoch; `default` for a name of other making."""
    made = _NONCE.fullmatch(nonce)
    return int(made[1], 16) / 1e9 if made else default


def read_entries(directory: Path, *, without: Collection[str] = ()) -> list[SpoolEntry]:
    """The stored DELs but those named in `without`, oldest first.

    :raises SpoolError: the directory cannot be read.
    """
    try:
        paths = [path for path in directory.iterdir() if path.suffix == _WAITING and path.name not in without]
    except OSError as error:
        raise SpoolError(f"cannot list {directory}: {error.strerror}", hint="has somebody removed it?") from None
    found = []
    for path in paths:
        try:
            found.append(_decode(path))
        except FileError as error:
            if not error.missing:  # else it was carried out this moment
                logger.error("a stored DEL cannot be read now: %s", error)
        except MultusError as error:
            _set_aside(path, error)
    return sorted(found, key=lambda entry: (entry.stored, entry.name))


def sweep(directory: Path) -> None:
    """Remove what shims that were killed left half-written: their runtimes were told of no success. Raises OSError."""
    for path in directory.glob(f".*{_UNFINISHED}"):
        try:
            if time.time() - path.lstat().st_mtime > _ABANDONED:
                path.unlink()
        except FileNotFoundError:
            continue  # its shim lives, and has just renamed it


def _decode(path: Path) -> SpoolEntry:
    """:raises FileError: it is not readable at the moment. :raises MultusError: it will never be a DEL."""
    try:
        info = path.lstat()
    except OSError as error:
        raise FileError(f"{path}: {error.strerror}", missing=isinstance(error, FileNotFoundError)) from None
    if not stat.S_ISREG(info.st_mode) or info.st_size > MAX_REQUEST:
        raise FrameError("not a file that a shim stored")
    frame = decode_request(read_small(path, limit=MAX_REQUEST))
    request = parse_request(frame.env, frame.conf)
    if request.command is not Command.DEL:
        raise FrameError(f"{request.command}, where only a DEL can be stored")
    document.decode(frame.conf)
    return SpoolEntry(
        name=path.name,
        # A copied file's own time is not the DEL's, so the nonce's is preferred.
        stored=stored_at(request.nonce, default=info.st_mtime),
        container_id=request.container_id,
        ifname=request.ifname,
        env=frame.env,
        conf=frame.conf,
    )


def _set_aside(path: Path, why: MultusError) -> None:
    aside = path.with_suffix(_SET_ASIDE)
    logger.error("%s can never be carried out, and is set aside as %s: %s", path, aside.name, why)
    try:
        path.rename(aside)
    except OSError as error:
        logger.error("cannot rename %s: %s", path, error.strerror)

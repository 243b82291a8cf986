"""The files in which `host-local` keeps who has which address: one per address, under one lock for each network.

Programs and this process work on the same files at the same time. Everything blocks: call it from a worker thread.
Source of the files: containernetworking/plugins 1.1, host-local's disk backend.
"""

import errno
import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

from multus.cni.errors import CNIError, Code

_PATIENCE: Final = 30.0  # seconds for the lock; it is held for some milliseconds
_PAUSE, _LONGEST_PAUSE = 0.0005, 0.01
_LAST: Final = "last_reserved_ip."
_NO_TMPFILE: Final = frozenset({errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT})
_LIMIT: Final = 4096  # bytes that are read of a file
_SETTLED: Final = 50_000_000  # nanoseconds: two of the kernel's file times that are further apart cannot be equal
_DIRECTORIES: Final = 256  # whose files are remembered


class Store:
    """One network's addresses, while its lock is held."""

    def __init__(self, directory: str) -> None:
        self._directory = directory

    def held(self, container_id: str, ifname: str) -> list[str]:
        """Names of the files that say so, also those of versions that did not tell interfaces apart."""
        owners = _owners(container_id, ifname)
        return [os.path.basename(path) for path, content in self._files() if content in owners]  # noqa: PTH119

    def reserve(self, address: str, container_id: str, ifname: str) -> bool:
        """Take an address; False when somebody has it. Its file is never seen without its content.

        :raises OSError: it cannot be written.
        """
        path, content = f"{self._directory}/{address}", _owners(container_id, ifname)[0]
        if os.path.lexists(path):
            return False
        try:
            return self._link(path, content)
        except OSError as error:
            if error.errno not in _NO_TMPFILE:
                raise
        return _create(path, content)

    def remember(self, range_id: int, address: str) -> None:
        """Note the address that the set gave last.

        :raises OSError: it cannot be written.
        """
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        descriptor = os.open(f"{self._directory}/{_LAST}{range_id}", flags, 0o644)
        try:
            os.write(descriptor, address.encode())
        finally:
            os.close(descriptor)

    def last(self, range_id: int) -> str:
        """The address that the set gave last, "" when unknown."""
        return (_read(f"{self._directory}/{_LAST}{range_id}") or b"").decode(errors="replace")

    def give_back(self, address: str) -> None:
        """Let go of an address that `reserve` took."""
        with suppress(FileNotFoundError):
            os.unlink(f"{self._directory}/{address}")  # noqa: PTH108

    def release(self, container_id: str, ifname: str, *, known: Sequence[str] = ()) -> None:
        """Let go of all that the interface has; files that cannot be removed are left, as the program does.

        `known` are all its addresses, where those are known: if it has them, no others are looked for.
        """
        exact, coarse = _owners(container_id, ifname)
        paths = [f"{self._directory}/{address}" for address in known]
        if paths and all((_read(path) or b"").strip() == exact for path in paths):
            for path in paths:
                with suppress(OSError):
                    os.unlink(path)  # noqa: PTH108
            return
        found = self._files()
        mine = [path for path, content in found if content == exact]
        for path in mine or [path for path, content in found if content == coarse]:
            with suppress(OSError):
                os.unlink(path)  # noqa: PTH108

    def _files(self) -> list[tuple[str, bytes]]:
        if len(_seen) > _DIRECTORIES:
            _seen.clear()
        return _walk(self._directory)

    def _link(self, path: str, content: bytes) -> bool:
        """Write a file that has no name, then give it one: a name in use is refused, and nothing is left of a crash."""
        descriptor = os.open(self._directory, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o644)
        try:
            os.write(descriptor, content)
            # Only with a descriptor does Python follow the link; the path is absolute, so it means nothing else.
            os.link(f"/proc/self/fd/{descriptor}", path, src_dir_fd=descriptor, follow_symlinks=True)
        except FileExistsError:
            return False
        finally:
            os.close(descriptor)
        return True


@contextmanager
def locked(data_dir: str, network: str) -> Iterator[Store]:
    """The network's store; made when there is none.

    :raises OSError: it cannot be made or opened.
    :raises CNIError: somebody holds the lock all the time.
    """
    directory = os.path.normpath(f"{data_dir}/{network}")
    descriptor = _open_lock(directory)
    try:
        _lock(descriptor, directory)
        yield Store(directory)
    finally:
        os.close(descriptor)


def _open_lock(directory: str) -> int:
    flags = os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC
    try:
        return os.open(f"{directory}/lock", flags, 0o750)
    except FileNotFoundError:
        Path(directory).mkdir(mode=0o755, parents=True, exist_ok=True)
        return os.open(f"{directory}/lock", flags, 0o750)


def _lock(descriptor: int, directory: str) -> None:
    """Not by waiting in the kernel: a thread that waits there for somebody who is stopped cannot be had back."""
    deadline, pause = time.monotonic() + _PATIENCE, _PAUSE
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                hint = "see who holds it in /proc/locks"
                raise CNIError(Code.TRY_AGAIN_LATER, f"{directory}/lock is held all the time", hint=hint) from None
        else:
            return
        time.sleep(pause)
        pause = min(pause * 1.5, _LONGEST_PAUSE)


def _owners(container_id: str, ifname: str) -> tuple[bytes, bytes]:
    """What a file of the interface says, and what one of the container says."""
    container = container_id.strip()
    return os.fsencode(f"{container}\r\n{ifname}"), os.fsencode(container)


def _create(path: str, content: bytes) -> bool:
    """For file systems that have no files without names."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    except FileExistsError:
        return False
    try:
        os.write(descriptor, content)
    except OSError:
        os.unlink(path)  # noqa: PTH108
        raise
    finally:
        os.close(descriptor)
    return True


class _Seen(NamedTuple):
    """A file as it was read. Whatever is made under its name later has another inode or a later ctime."""

    inode: int
    ctime: int
    content: bytes


_seen: dict[str, dict[str, _Seen]] = {}  # by directory and path: reading a file takes ten times as long as a look at it


def _walk(directory: str) -> list[tuple[str, bytes]]:
    """Every file below the directory, with its content; those that cannot be read are left out."""
    try:
        entries = list(os.scandir(directory))
    except OSError:
        return []
    found: list[tuple[str, bytes]] = []
    before, now = _seen.get(directory, {}), {}
    settled = time.time_ns() - _SETTLED
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            found += _walk(entry.path)
        elif entry.name != "lock" and not entry.name.startswith(_LAST) and (seen := _look(entry, before)) is not None:
            found.append((entry.path, seen.content))
            if seen.ctime < settled:
                now[entry.path] = seen
    _seen[directory] = now
    return found


def _look(entry: "os.DirEntry[str]", before: dict[str, _Seen]) -> _Seen | None:
    try:
        info = entry.stat()
    except OSError:
        return None
    seen = before.get(entry.path)
    if seen is not None and (seen.inode, seen.ctime) == (info.st_ino, info.st_ctime_ns):
        return seen
    content = _read(entry.path)
    return None if content is None else _Seen(info.st_ino, info.st_ctime_ns, content.strip())


def _read(path: str) -> bytes | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            return os.read(descriptor, _LIMIT)
        finally:
            os.close(descriptor)
    except OSError:
        return None

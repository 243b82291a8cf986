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
_DIRECTORIES: Final = 256  # whose files are remembered


class Store:
    """One network's addresses, while its lock is held."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._holders = _current(directory)

    def held(self, container_id: str, ifname: str) -> list[str]:
        """Names of the files that say so, also those of versions that did not tell interfaces apart."""
        if self._holders is None:
            self._holders = _Holders()
            for path, content in _walk(self._directory):
                self._holders.add(os.path.basename(path), content)  # noqa: PTH119
        exact, coarse = _owners(container_id, ifname)
        names = sorted(self._holders.of(exact) | self._holders.of(coarse))
        return [name for name in names if _says(f"{self._directory}/{name}") in (exact, coarse)]

    def close(self) -> None:
        """Nothing more is done while the lock is held: keep whose the files are, for whoever has it next."""
        _kept.pop(self._directory, None)
        if self._holders is not None:
            if len(_kept) > _DIRECTORIES:
                _kept.clear()
            with suppress(OSError):
                _kept[self._directory] = _Kept(_changed(self._directory), self._holders)

    def reserve(self, address: str, container_id: str, ifname: str) -> bool:
        """Take an address; False when somebody has it. Its file is never seen without its content.

        :raises OSError: it cannot be written.
        """
        path, content = f"{self._directory}/{address}", _owners(container_id, ifname)[0]
        if os.path.lexists(path):
            return False
        try:
            taken = self._link(path, content)
        except OSError as error:
            if error.errno not in _NO_TMPFILE:
                raise
            taken = _create(path, content)
        if taken and self._holders is not None:
            self._holders.add(address, content)
        return taken

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
            self._unlink(f"{self._directory}/{address}")

    def release(self, container_id: str, ifname: str, *, known: Sequence[str] = ()) -> None:
        """Let go of all that the interface has; files that cannot be removed are left, as the program does.

        `known` are all its addresses, where those are known: if it has them, no others are looked for.
        """
        exact, coarse = _owners(container_id, ifname)
        paths = [f"{self._directory}/{address}" for address in known]
        if paths and all(_says(path) == exact for path in paths):
            for path in paths:
                with suppress(OSError):
                    self._unlink(path)
            return
        found = _walk(self._directory)
        mine = [path for path, content in found if content == exact]
        for path in mine or [path for path, content in found if content == coarse]:
            with suppress(OSError):
                self._unlink(path)

    def _unlink(self, path: str) -> None:
        os.unlink(path)  # noqa: PTH108
        if self._holders is not None:
            self._holders.remove(os.path.basename(path))  # noqa: PTH119

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
        store = Store(directory)
        try:
            yield store
        finally:
            store.close()
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


class _Holders:
    """Files by name, and by what they say: whose they are."""

    def __init__(self) -> None:
        self._owners: dict[str, bytes] = {}
        self._names: dict[bytes, set[str]] = {}

    def of(self, owner: bytes) -> set[str]:
        return self._names.get(owner, set())

    def add(self, name: str, owner: bytes) -> None:
        self._owners[name] = owner
        self._names.setdefault(owner, set()).add(name)

    def remove(self, name: str) -> None:
        owner = self._owners.pop(name, None)
        if owner is not None:
            self._names[owner].discard(name)
            if not self._names[owner]:
                del self._names[owner]


class _Kept(NamedTuple):
    """Whose a directory's files were when it had that time of change, in nanoseconds."""

    changed: int
    holders: _Holders


_kept: dict[str, _Kept] = {}
"""By directory. A node with many pods has a file for each in every network's: to look at all of them takes longer than
the rest of an ADD. Who makes a file within one tick of the kernel's clock after us is not noticed by that: what he has
is nobody else's all the same, for its file is there."""


def _changed(directory: str) -> int:
    return os.stat(directory).st_mtime_ns  # noqa: PTH116


def _current(directory: str) -> _Holders | None:
    """What is known of the directory, unless it has changed since."""
    kept = _kept.get(directory)
    with suppress(OSError):
        if kept is not None and kept.changed == _changed(directory):
            return kept.holders
    return None


def _walk(directory: str) -> list[tuple[str, bytes]]:
    """Every file below the directory, with its content; those that cannot be read are left out."""
    try:
        entries = list(os.scandir(directory))
    except OSError:
        return []
    found: list[tuple[str, bytes]] = []
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            found += _walk(entry.path)
        elif entry.name != "lock" and not entry.name.startswith(_LAST) and (content := _says(entry.path)) is not None:
            found.append((entry.path, content))
    return found


def _says(path: str) -> bytes | None:
    """Whose the file is, None when it cannot be read."""
    content = _read(path)
    return None if content is None else content.strip()


def _read(path: str) -> bytes | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            return os.read(descriptor, _LIMIT)
        finally:
            os.close(descriptor)
    except OSError:
        return None

"""Network namespaces: which one a path leads to, what is in it, and how to do something inside.

A thread that enters a namespace does not go on before it is back, so that none of a pool is ever left in a pod. Forking
children for it, as libraries do, copies the page tables of a daemon each time: 11 to 20 ms against 0.02 here.
"""

import errno
import fcntl
import logging
import os
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar

from devices.errors import NamespaceError
from devices.linux import rtnetlink, syscalls

P = ParamSpec("P")
T = TypeVar("T")

DIRECTORY: Final = Path("/run/netns")
"""Where `ip netns` keeps the namespaces that have names."""
HERE: Final = "/proc/thread-self/ns/net"
"""The namespace that the calling thread is in."""

logger = logging.getLogger(__name__)

_LEAVE_PAUSE: Final = 0.1  # seconds between two tries
_NS_GET_NSTYPE = 0xB703
_ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EACCES, errno.ESTALE})


def identity(path: str) -> str | None:
    """What tells one namespace from another, as "device:inode"; None when no network namespace is at `path`.

    An inode number is used again after its namespace is gone, so it identifies a namespace only while that lives.

    :raises NamespaceError: the kernel could not say.
    """
    try:
        found = os.stat(path)  # noqa: PTH116 (the hot path of every call: a Path costs more than the stat)
        if found.st_dev != _nsfs() or not stat.S_ISREG(found.st_mode) or not _is_network(path):
            return None
    except ValueError:  # a NUL in it
        return None
    except OSError as error:
        if error.errno in _ABSENT:
            return None
        raise _refused(path, error) from None
    return f"{found.st_dev}:{found.st_ino}"


def interface_names(path: str) -> tuple[str, ...]:
    """The names of all interfaces in the namespace, in the kernel's order.

    :raises NamespaceError: it cannot be entered.
    :raises KernelError: the kernel did not list them.
    """
    return run_in(path, _names)


def run_in(path: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call `function` inside the namespace; the calling thread is where it was when this returns.

    :raises NamespaceError: it cannot be entered; and whatever `function` raises.
    """
    descriptor = open_file(path)
    try:
        with inside(path, descriptor):
            return function(*args, **kwargs)
    finally:
        os.close(descriptor)


def open_file(path: str) -> int:
    """A descriptor of the namespace, for `inside`; the caller closes it.

    :raises NamespaceError: there is none.
    """
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except ValueError:
        raise NamespaceError(f"not a path: {path!r:.80}", code=errno.EINVAL) from None
    except OSError as error:
        raise _refused(path, error) from None


@contextmanager
def inside(path: str, descriptor: int, *, home: int = -1) -> Iterator[None]:
    """While the block runs, the calling thread is in the namespace of an open file; `path` names it in errors.

    `home` is a descriptor of where the thread is, for whoever has one.

    :raises NamespaceError: it cannot be entered.
    """
    back = home if home >= 0 else open_file(HERE)
    try:
        try:
            syscalls.enter(descriptor)
        except OSError as error:
            raise _refused(path, error) from None
        try:
            yield
        finally:
            _go_back(back)
    finally:
        if home < 0:
            os.close(back)


def open_socket(path: str) -> socket.socket:
    """A netlink socket (see `rtnetlink`) that lives in the namespace, for use from any thread.

    :raises NamespaceError: it cannot be entered.
    :raises KernelError: out of descriptors or memory.
    """
    return run_in(path, rtnetlink.connect)


@contextmanager
def iproute(path: str) -> Iterator[Any]:
    """A pyroute2 IPRoute whose socket lives in the namespace: what changes more than routes uses this, in one thread.

    :raises NamespaceError: it cannot be entered.
    :raises KernelError: out of descriptors or memory.
    """
    from pyroute2 import IPRoute

    # Not its netns=, which forks, and with its default flags makes a namespace that is missing. Its default groups
    # would subscribe it to every change, queued where nobody reads.
    with open_socket(path) as connection, IPRoute(fileno=os.dup(connection.fileno()), flags=0, groups=0) as route:
        yield route


def create(name: str) -> str:
    """Make a namespace that `ip netns` knows as `name` too; its path.

    :raises NamespaceError: the name is in use or is none, or this process may not.
    """
    path = str(_named(name))
    try:
        DIRECTORY.mkdir(mode=0o755, parents=True, exist_ok=True)
        _share_directory()
        os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0))
    except FileExistsError:
        raise NamespaceError(f"there is a network namespace {name!r} already", code=errno.EEXIST) from None
    except OSError as error:
        raise _refused(path, error) from None
    try:
        _in_thread(partial(_make, path))
    except BaseException:
        Path(path).unlink(missing_ok=True)
        raise
    return path


def delete(name: str) -> bool:
    """Take the namespace's name away, and with it the namespace unless somebody is in it; False when it has none.

    :raises NamespaceError: it could not be removed.
    """
    path = _named(name)
    try:
        syscalls.unmount(str(path))
    except OSError as error:
        if error.errno == errno.ENOENT:
            return False
        if error.errno != errno.EINVAL:  # a name without a namespace: what a crash in the middle of create left
            raise _refused(str(path), error) from None
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise _refused(str(path), error) from None
    return True


def _names() -> tuple[str, ...]:
    with rtnetlink.connect() as connection:
        links = rtnetlink.links(connection)
    return tuple(rtnetlink.text(link.attributes.get(rtnetlink.IFNAME, b"")) for link in links)


@cache
def _nsfs() -> int:
    """The device number of the one file system that all namespaces are files of."""
    return os.stat("/proc/self/ns/net").st_dev  # noqa: PTH116


def _is_network(path: str) -> bool:
    """Whether it is not a namespace of another type; when that cannot be asked, what stat told is enough."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            return True
        raise
    try:
        return fcntl.ioctl(descriptor, _NS_GET_NSTYPE) == syscalls.CLONE_NEWNET
    except OSError:  # a kernel older than 4.11
        return True
    finally:
        os.close(descriptor)


def _in_thread(task: Callable[[], T]) -> T:
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(task())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, name="netns", daemon=True).start()
    return outcome.result()


def _go_back(home: int) -> None:
    """A thread of a pool that stayed in a pod would do somebody else's work there: it waits until it can leave."""
    while True:
        try:
            syscalls.enter(home)
        except OSError as error:
            logger.critical("a thread cannot leave a pod's namespace: %s", error)
            time.sleep(_LEAVE_PAUSE)
        else:
            return


def _make(path: str) -> None:
    try:
        syscalls.leave()
        syscalls.bind_mount(HERE, path)
    except OSError as error:
        raise _refused(path, error) from None


def _share_directory() -> None:
    """Let what is mounted there be seen in other mount namespaces, as `ip netns add` does, and under its lock."""
    directory = str(DIRECTORY)
    lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            syscalls.share_mount(directory)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            syscalls.bind_mount(directory, directory, recursive=True)
            syscalls.share_mount(directory)
    finally:
        os.close(lock)


def _named(name: str) -> Path:
    if not name or "/" in name or "\0" in name or name in (".", "..") or len(os.fsencode(name)) > 255:
        raise NamespaceError(f"{name[:60]!a} is no name for a network namespace", code=errno.EINVAL)
    return DIRECTORY / name


def _refused(path: str, error: OSError) -> NamespaceError:
    code = error.errno or 0
    if code in _ABSENT:
        return NamespaceError(
            f"there is no network namespace at {path}",
            hint="the pod is gone, or the directory is not mounted into the daemon with HostToContainer propagation",
            code=code,
            gone=True,
        )
    if code == errno.EINVAL:
        return NamespaceError(f"{path} is not a network namespace", code=code)
    hint = "root is needed (CAP_SYS_ADMIN)" if code == errno.EPERM else ""
    return NamespaceError(f"network namespace {path}: {error.strerror or error}", hint=hint, code=code)

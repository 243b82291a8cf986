"""A process: started cheaply, and our ends of its pipes.

It is started with vfork from a worker thread: 0.6 ms with 90 MB resident, where a fork copies page tables for 5 ms. The
loop never waits for the kernel to load a program. In another root, the thread is a new one that moves there itself, so
that this costs no fork either, and every link on the way is followed inside that root.
"""

import errno
import logging
import os
import signal
import stat
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import ClassVar, Final, TypeVar

import anyio
import anyio.to_thread

from devices.linux import syscalls
from multus.errors import Fault, MultusError

logger = logging.getLogger(__name__)

CHUNK: Final = 64 * 1024  # what a pipe holds
_BUSY_PAUSES: Final = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)  # seconds: an installer copies for no longer
_TERM_GRACE: Final = 1.0  # seconds between SIGTERM and SIGKILL
_KILL_GRACE: Final = 5.0  # seconds for the kernel to end what was killed; one that waits for a disk may take longer
_POLL: Final = 0.002  # seconds, where the kernel has no pidfd (before 5.3)

T = TypeVar("T")


class StartError(MultusError):
    """The program could not be started: `path` was refused, "" when it was found nowhere; `code` is an errno."""

    fault: ClassVar[Fault] = Fault.OPERATOR

    def __init__(self, path: str, code: int, reason: str) -> None:
        super().__init__(reason)
        self.path = path
        self.code = code


class Running:
    """A process that was started, and our ends of its pipes."""

    def __init__(self, process: subprocess.Popen[bytes], data: bytes) -> None:
        assert process.stdin and process.stdout and process.stderr
        self._process = process
        self._stdin = process.stdin
        self._pending = memoryview(data)
        self.stdout = process.stdout.fileno()
        self.stderr = process.stderr.fileno()
        for pipe in (process.stdin, process.stdout, process.stderr):
            os.set_blocking(pipe.fileno(), False)
        try:
            self._pidfd = os.pidfd_open(process.pid)
        except OSError:  # too old a kernel, or no descriptor left
            self._pidfd = -1
        self._push()

    def _push(self) -> None:
        """Hand over what the pipe takes now; the end of it is the end of the program's stdin."""
        try:
            while self._pending:
                self._pending = self._pending[os.write(self._stdin.fileno(), self._pending[:CHUNK]) :]
        except BlockingIOError:
            return
        except OSError:  # it has closed its stdin, which is its own business
            self._pending = memoryview(b"")
        self._stdin.close()

    @property
    def hungry(self) -> bool:
        """Whether there is more for its stdin than the pipe took at once; a conf seldom is."""
        return bool(self._pending)

    async def feed(self) -> None:
        """Hand over what the pipe did not take at once."""
        while self._pending:
            await anyio.wait_writable(self._stdin.fileno())
            self._push()

    async def read(self, descriptor: int, keep: Callable[[bytes], None]) -> None:
        """Read to the end."""
        while True:
            await anyio.wait_readable(descriptor)
            try:
                chunk = os.read(descriptor, CHUNK)
            except BlockingIOError:
                continue
            if not chunk:
                return
            keep(chunk)

    async def wait(self) -> None:
        """Until the program has ended; its children may live."""
        if self._pidfd >= 0:
            await anyio.wait_readable(self._pidfd)
            return
        while self._ended() is None:  # noqa: ASYNC110 (there is nothing else to wait on)
            await anyio.sleep(_POLL)

    def _ended(self) -> os.waitid_result | None:
        return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)

    async def end(self) -> None:
        """SIGTERM, then SIGKILL for whoever is left of the group; its id is not used again before `close` reaps."""
        self._signal(signal.SIGTERM)
        with anyio.move_on_after(_TERM_GRACE):
            await self.wait()
        self._signal(signal.SIGKILL)
        with anyio.move_on_after(_KILL_GRACE):
            await self.wait()

    def _signal(self, number: signal.Signals) -> None:
        try:
            os.killpg(self._process.pid, number)
        except OSError as error:
            logger.warning("process group %d: %s: %s", self._process.pid, number.name, error)

    def close(self) -> int:
        """Give every descriptor back, and leave the reaping to another thread; the status."""
        ended = self._ended()
        for pipe in (self._stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()
        if self._pidfd >= 0:
            os.close(self._pidfd)
        _reaper.take(self._process)
        if ended is None:
            logger.error("process %d does not end although it was killed", self._process.pid)
            return -signal.SIGKILL
        return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status


class _Reaper:
    """Reaps in a thread of its own.

    With a process, the kernel throws away what it knew of it under /proc, and lets others run meanwhile: on a busy
    machine that takes up to 30 ms, which the loop must not spend there.
    """

    def __init__(self) -> None:
        self._queue: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def take(self, process: subprocess.Popen[bytes]) -> None:
        """Reap it as soon as it has ended."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="reaper", daemon=True)
            self._thread.start()
        self._queue.put(process)

    def _run(self) -> None:
        while True:
            self._queue.get().poll()


_reaper: Final = _Reaper()


async def start(
    name: str, *, search: Sequence[str], env: Mapping[str, str], data: bytes, root: str, deadline: float
) -> Running:
    """Start the first `name` in the directories of `search`, in a process group of its own, `data` on its stdin.

    While the program is being written ("text file busy") it is tried again, for some seconds and until `deadline` (of
    anyio's clock). `root` is another root directory, "" ours.

    :raises StartError: it was not found, or the kernel refused it.
    """
    spawn = partial(_spawn, name, search, env, data)
    attempt = partial(in_root, root, spawn) if root else spawn
    for pause in _BUSY_PAUSES:
        try:
            return await anyio.to_thread.run_sync(attempt)
        except StartError as error:
            if error.code != errno.ETXTBSY or anyio.current_time() + pause > deadline:
                raise
            logger.debug("%s is being written, trying again in %g s", error.path, pause)
        await anyio.sleep(pause)
    return await anyio.to_thread.run_sync(attempt)


def _spawn(name: str, search: Sequence[str], env: Mapping[str, str], data: bytes) -> Running:
    path = _find(name, search)
    try:
        process = subprocess.Popen(
            [path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            cwd="/",
            env=env,
            process_group=0,
        )
    except OSError as error:
        raise StartError(path, error.errno or 0, error.strerror or str(error)) from None
    except ValueError as error:  # a NUL, or what is no text, in the environment
        raise StartError(path, errno.EINVAL, str(error)) from None
    return Running(process, data)


def _find(name: str, search: Sequence[str]) -> str:
    for directory in search:
        path = Path(directory, name)
        try:
            if stat.S_ISREG(path.stat().st_mode):
                return str(path)
        except (OSError, ValueError):
            continue
    raise StartError("", errno.ENOENT, "not found")


def in_root(root: str, task: Callable[[], T]) -> T:
    """Call `task` in a new thread whose root directory is `root`."""
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(_moved(root, task))
        except BaseException as error:
            outcome.set_exception(error)

    thread = threading.Thread(target=run, name="chroot", daemon=True)
    thread.start()
    thread.join()
    return outcome.result()


def _moved(root: str, task: Callable[[], T]) -> T:
    try:
        syscalls.own_directories()
        os.chroot(root)
        os.chdir("/")
    except OSError as error:
        raise StartError(root, error.errno or 0, error.strerror or str(error)) from None
    except ValueError as error:
        raise StartError(root, errno.EINVAL, str(error)) from None
    return task()

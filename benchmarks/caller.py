"""A cheap caller: executes programs, so many at a time, and times each from its start to its end, all in one thread.

What the caller costs is taken from the daemons that are measured beside it on the same cores; a container runtime,
which is a Go program, costs them little. Outputs go into memory files, so that no program waits for a reader.
"""

import os
import select
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import msgspec

_LIMIT: Final = 700.0  # seconds; the plugin binaries themselves give up before
# What Python ignores and a program does not expect to be ignored; subprocess restores the same.
_SIGNALS: Final = (signal.SIGPIPE, signal.SIGXFSZ)


class CallerError(Exception):
    """A program could not be started, or did not end; those that ran beside it were killed."""


class Program(msgspec.Struct, frozen=True, kw_only=True):
    """A command line with its whole environment; a program without a slash is looked for in this process's PATH."""

    line: list[str]
    env: Mapping[str, str]


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """How a program ended: its exit code (below zero: the signal), its outputs, and when, in monotonic seconds."""

    code: int
    stdout: bytes
    stderr: bytes
    begin: float
    end: float

    @property
    def seconds(self) -> float:
        """From before it was started until its end was seen."""
        return self.end - self.begin


def run(programs: Sequence[Program], *, stdin: bytes, at_a_time: int, limit: float = _LIMIT) -> list[Ended]:
    """Run every program, each with `stdin` as its input; how they ended, in the order of `programs`.

    :raises CallerError: one cannot be started, or has not ended `limit` seconds after its start.
    """
    with _Caller(stdin, limit) as caller:
        for number, program in enumerate(programs):
            while caller.running == at_a_time:
                caller.wait()
            caller.start(number, program)
            caller.look()  # a start takes long enough to see the others' ends too late
        while caller.running:
            caller.wait()
        return [caller.ended[number] for number in range(len(programs))]


class _Running(msgspec.Struct, frozen=True, kw_only=True):
    number: int
    pid: int
    stdout: int
    stderr: int
    begin: float


class _Caller:
    """Those that run, by their pidfd and oldest first; and those that have ended, by their number."""

    def __init__(self, stdin: bytes, limit: float) -> None:
        self.ended: dict[int, Ended] = {}
        self._running: dict[int, _Running] = {}
        self._limit = limit
        self._poll = select.epoll()
        self._stdin = os.memfd_create("stdin")
        with open(self._stdin, "wb", closefd=False) as file:
            file.write(stdin)
        # Each program opens its input anew, for a position of its own.
        opened = (os.POSIX_SPAWN_OPEN, 0, f"/proc/self/fd/{self._stdin}", os.O_RDONLY, 0)
        self._actions = [opened, *((os.POSIX_SPAWN_CLOSE, fd) for fd in _inheritable())]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pidfd, one in self._running.items():
            _kill(one.pid)
            for fd in (pidfd, one.stdout, one.stderr):
                os.close(fd)
        self._poll.close()
        os.close(self._stdin)

    @property
    def running(self) -> int:
        """How many run."""
        return len(self._running)

    def start(self, number: int, program: Program) -> None:
        """Start one.

        :raises CallerError: it cannot be.
        """
        outputs: list[int] = []
        pid = 0
        try:
            for name in ("stdout", "stderr"):
                outputs.append(os.memfd_create(name))
            begin = time.monotonic()
            pid = os.posix_spawnp(
                program.line[0],
                program.line,
                program.env,
                file_actions=[*self._actions, *((os.POSIX_SPAWN_DUP2, fd, to) for to, fd in enumerate(outputs, 1))],
                setsigdef=_SIGNALS,
            )
            pidfd = os.pidfd_open(pid)
        except OSError as error:
            if pid:
                _kill(pid)
            for fd in outputs:
                os.close(fd)
            raise CallerError(f"cannot run {program.line[0]}: {error.strerror}") from None
        self._running[pidfd] = _Running(number=number, pid=pid, stdout=outputs[0], stderr=outputs[1], begin=begin)
        self._poll.register(pidfd, select.EPOLLIN)

    def look(self) -> None:
        """Take up those that have ended, without waiting."""
        self._take_up(0)

    def wait(self) -> None:
        """Wait until at least one has ended.

        :raises CallerError: the oldest one's time is over.
        """
        oldest = next(iter(self._running.values()))
        if not self._take_up(max(oldest.begin + self._limit - time.monotonic(), 0)):
            raise CallerError(f"a program has not ended after {self._limit:g} s")

    def _take_up(self, seconds: float) -> bool:
        found = self._poll.poll(seconds)
        end = time.monotonic()
        for pidfd, _ in found:
            one = self._running.pop(pidfd)
            # To close it is not enough: a program that is just being started may have a copy of it still.
            self._poll.unregister(pidfd)
            os.close(pidfd)
            code = os.waitstatus_to_exitcode(os.waitpid(one.pid, 0)[1])
            self.ended[one.number] = Ended(
                code=code, stdout=_content(one.stdout), stderr=_content(one.stderr), begin=one.begin, end=end
            )
        return bool(found)


def _kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def _content(memory: int) -> bytes:
    """What was written into a memory file; closes it."""
    with open(memory, "rb", buffering=0) as file:
        file.seek(0)
        return file.read()


def _inheritable() -> list[int]:
    """This process's descriptors that a program would get beside the first three, which subprocess would close."""
    found = []
    for fd in [int(path.name) for path in Path("/proc/self/fd").iterdir()]:
        try:
            if fd > 2 and os.get_inheritable(fd):
                found.append(fd)
        except OSError:  # the listing's own
            continue
    return found

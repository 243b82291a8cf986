"""One program run to its end: fed, read within bounds, and ended in time, whatever it does."""

import os
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Final

import anyio
import msgspec

from multus.delegates.process import CHUNK, StartError, start

__all__ = ["End", "Outcome", "StartError", "execute"]

STDERR_KEPT: Final = 8 * 1024  # the end of it: that is where programs say why they gave up
_OUTPUT_GRACE: Final = 0.2  # seconds after the program's end, for children of its that still write


class End(Enum):
    """Why a program is no longer running."""

    EXITED = "exited"
    LATE = "killed: it had not ended in time"
    FLOODED = "killed: it printed too much"


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What a program came to. `status` is its exit status, or a signal's number, negative; `stderr` is only the end."""

    end: End
    status: int
    stdout: bytes
    stderr: bytes


async def execute(
    name: str,
    *,
    search: Sequence[str],
    env: Mapping[str, str],
    data: bytes,
    timeout: float,
    max_output: int,
    root: str = "",
) -> Outcome:
    """Run the first `name` in the directories of `search`, with `data` on its stdin; `timeout` in seconds.

    It is in a process group of its own, which is ended with it when it is late, floods us, or the caller is cancelled.
    `root` is another root directory for the search and the program ("" is ours).

    :raises StartError: it was not found, or the kernel refused it.
    """
    deadline = anyio.current_time() + timeout
    running = await start(name, search=search, env=env, data=data, root=root, deadline=deadline)
    output, complaints = bytearray(), bytearray()
    flooded = False

    def keep(chunk: bytes) -> None:
        nonlocal flooded
        flooded = flooded or len(output) + len(chunk) > max_output
        if flooded:
            group.cancel_scope.cancel()
        else:
            output.extend(chunk)

    def keep_end(chunk: bytes) -> None:
        complaints.extend(chunk)
        del complaints[:-STDERR_KEPT]

    exited = False
    try:
        with anyio.move_on_at(deadline):
            async with anyio.create_task_group() as group:
                if running.hungry:
                    group.start_soon(running.feed)
                group.start_soon(running.read, running.stdout, keep)
                group.start_soon(running.read, running.stderr, keep_end)
                await running.wait()
                exited = True
                group.cancel_scope.deadline = anyio.current_time() + _OUTPUT_GRACE
        if exited:  # whatever the program itself wrote is in the pipes by now
            _drain(running.stdout, keep)
            _drain(running.stderr, keep_end)
    finally:
        with anyio.CancelScope(shield=True):
            if not exited or flooded:
                await running.end()
            status = running.close()
    end = End.FLOODED if flooded else End.EXITED if exited else End.LATE
    return Outcome(end=end, status=status, stdout=bytes(output), stderr=bytes(complaints))


def _drain(descriptor: int, keep: Callable[[bytes], None]) -> None:
    """Take what lies in a pipe; no more than two of them hold, should somebody be filling it still."""
    for _ in range(2):
        try:
            chunk = os.read(descriptor, CHUNK)
        except BlockingIOError:
            return
        if not chunk:
            return
        keep(chunk)

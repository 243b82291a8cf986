"""CNI calls that run on behalf of a connected caller: bounded, called off when he hangs up, waited for at the end."""

import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import anyio
import anyio.abc

from multus.cni.errors import CNIError, to_cni
from multus.errors import MultusError

logger = logging.getLogger(__name__)

# What gives resources back goes on when its caller is gone, and does not queue behind calls that take some.
_FREEING = ("DEL", "GC")


class Calls:
    """The calls that run now; `limit` of those that take resources at a time (ADD, CHECK, STATUS).

    DEL and GC are not counted into the limit: how many of them run, and in what order, is the core's to say.
    """

    def __init__(self, *, limit: int) -> None:
        self._places = anyio.Semaphore(limit)
        self._idle = anyio.Event()
        self.running = 0
        self.draining = False

    def drain(self) -> None:
        """Start no more calls."""
        self.draining = True
        if self.running == 0:
            self._idle.set()

    async def idle(self) -> None:
        """Wait until, after `drain`, the last one has ended."""
        await self._idle.wait()

    @contextmanager
    def counted(self) -> Iterator[None]:
        """`idle` waits for the block: a call and the sending of its answer."""
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1
            if self.draining and self.running == 0:
                self._idle.set()

    async def attend(
        self, stream: anyio.abc.ByteReceiveStream, command: str, operation: Callable[[], Awaitable[bytes]]
    ) -> bytes | CNIError | None:
        """The operation's outcome; None when nobody is left to be told, or when it should be asked elsewhere.

        A caller that closes its connection calls an ADD off, and the core undoes it; a DEL or GC runs to its end.
        """
        if self.draining:
            return None
        outcome: bytes | CNIError | None = None
        gone = False
        running = anyio.CancelScope()

        async def watch() -> None:
            nonlocal gone
            await _until_closed(stream)
            gone = True
            if command not in _FREEING:
                logger.info("the caller of %s is gone: called off", command)
                running.cancel()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch)
            with running:
                outcome = await self._run(command, operation)
            tasks.cancel_scope.cancel()
        return None if gone else outcome

    async def _run(self, command: str, operation: Callable[[], Awaitable[bytes]]) -> bytes | CNIError:
        try:
            if command in _FREEING:
                return await operation()
            async with self._places:
                return await operation()
        except MultusError as error:
            return to_cni(error)
        except Exception as error:
            logger.exception("%s failed: a defect of ours", command)
            return to_cni(error)


async def _until_closed(stream: anyio.abc.ByteReceiveStream) -> None:
    try:
        while True:
            await stream.receive()  # a call is all that a connection carries: what follows is not kept
    except (anyio.EndOfStream, anyio.BrokenResourceError):
        return

"""Who may run now: so many delegates, DEL before ADD; one operation a container at a time; one visit after another."""

import heapq
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from enum import IntEnum
from typing import ClassVar

import anyio
import anyio.lowlevel

from multus.errors import Fault, MultusError


class Priority(IntEnum):
    """Lower runs first: a DEL frees what an ADD may be waiting for."""

    DELETE = 0
    ADD = 1
    CHECK = 2


class Slots:
    """A semaphore whose waiters queue by priority, then by arrival.

    >>> async with slots.hold(Priority.ADD): ...
    """

    def __init__(self, total: int) -> None:
        if total < 1:
            raise ValueError(f"slots must be at least 1, got {total}")
        self._free = total
        self._waiting: list[tuple[int, int, anyio.Event]] = []
        self._granted: set[anyio.Event] = set()
        self._arrivals = 0

    @property
    def waiting(self) -> int:
        """How many operations wait for a slot."""
        return len(self._waiting)

    @asynccontextmanager
    async def hold(self, priority: Priority) -> AsyncIterator[None]:
        """Hold one slot for the length of the block."""
        await self._acquire(priority)
        try:
            yield
        finally:
            self._release()

    def resize(self, change: int) -> None:
        """Add (or take back, when negative) slots while the daemon runs; running work is never interrupted."""
        self._free += change
        self._grant()

    async def _acquire(self, priority: Priority) -> None:
        if self._free > 0 and not self._waiting:
            self._free -= 1
            return
        turn = anyio.Event()
        self._arrivals += 1
        entry = (int(priority), self._arrivals, turn)
        heapq.heappush(self._waiting, entry)
        try:
            await turn.wait()
            # Granted and cancelled in one breath: wait() may return all the same, and the block must not begin.
            await anyio.lowlevel.checkpoint_if_cancelled()
        except BaseException:
            # A waiter that is cancelled after it was granted its slot must hand it on.
            if turn in self._granted:
                self._granted.discard(turn)
                self._release()
            else:
                self._waiting.remove(entry)
                heapq.heapify(self._waiting)
            raise
        self._granted.discard(turn)

    def _release(self) -> None:
        self._free += 1
        self._grant()

    def _grant(self) -> None:
        while self._free > 0 and self._waiting:
            _, _, turn = heapq.heappop(self._waiting)
            self._free -= 1
            self._granted.add(turn)
            turn.set()


class _Turn:
    def __init__(self) -> None:
        self.began = anyio.current_time()
        self.done = anyio.Event()


class Queue:
    """One after another, unless one takes longer than `patience` seconds: then the next begins beside it.

    For short work in threads that is Python's for the most part: side by side, they take each other's time for it. Of
    64 pods at once, two thirds of the CPU and of the time it takes with four beside each other.
    """

    def __init__(self, patience: float = 0.05) -> None:
        self._patience = patience
        self._first = anyio.Lock()
        self._newest: _Turn | None = None

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for the turn, in order of arrival; the block is it."""
        async with self._first:
            if self._newest is not None:
                with anyio.move_on_after(self._newest.began + self._patience - anyio.current_time()):
                    await self._newest.done.wait()
            mine = self._newest = _Turn()
        try:
            yield
        finally:
            mine.done.set()
            if self._newest is mine:
                self._newest = None


class CalledOffError(MultusError):
    """An ADD that a DEL of the same container overtook."""

    fault: ClassVar[Fault] = Fault.PEER
    retry: ClassVar[bool] = True


class _Lane:
    def __init__(self) -> None:
        self.lock = anyio.Lock()
        self.adds: dict[anyio.CancelScope, str] = {}  # each with the interface name that the runtime asked for
        self.users = 0


class Lanes:
    """One operation a container at a time; a DEL does not wait for an ADD, it calls it off."""

    def __init__(self) -> None:
        self._lanes: dict[str, _Lane] = {}

    def busy(self, container_id: str) -> bool:
        """Whether an operation of this container runs or waits."""
        return container_id in self._lanes

    @asynccontextmanager
    async def adding(self, container_id: str, ifname: str = "") -> AsyncIterator[None]:
        """Hold the container's lane; the block is cancelled, running or waiting, when its DEL arrives.

        That is one for the same `ifname`, or, when either names none, one for the container.

        The block's own cleanup runs inside the lane, so the DEL starts only after the ADD is undone.

        :raises CalledOffError: in place of the cancellation.
        """
        async with self._lane(container_id) as lane:
            with anyio.CancelScope() as scope:
                lane.adds[scope] = ifname
                try:
                    async with lane.lock:
                        yield
                finally:
                    del lane.adds[scope]
            if scope.cancelled_caught:
                raise CalledOffError(f"container {container_id}: a DEL called this ADD off")

    @asynccontextmanager
    async def holding(self, container_id: str, ifname: str = "", *, calling_off: bool = False) -> AsyncIterator[None]:
        """Hold the container's lane for anything but an ADD; `calling_off` cancels the ADDs for `ifname`, "" for all.

        Two runtimes, or one with two networks, know a container by an interface name each: an ADD is its own DEL's.
        """
        async with self._lane(container_id) as lane:
            if calling_off:
                for scope, theirs in lane.adds.items():
                    if ifname == theirs or not (ifname and theirs):
                        scope.cancel()
            async with lane.lock:
                yield

    @asynccontextmanager
    async def _lane(self, container_id: str) -> AsyncIterator[_Lane]:
        lane = self._lanes.setdefault(container_id, _Lane())
        lane.users += 1
        try:
            yield lane
        finally:
            lane.users -= 1
            if lane.users == 0:
                self._lanes.pop(container_id, None)


class Gone:
    """The last containers, by interface name, of which nothing is left: runtimes repeat DELs, up to five times seen."""

    _ROOM = 1024

    def __init__(self) -> None:
        self._keys: OrderedDict[tuple[str, str], None] = OrderedDict()

    def __contains__(self, key: tuple[str, str]) -> bool:
        return key in self._keys

    def add(self, key: tuple[str, str]) -> None:
        """Its DELs that follow have nothing to look for."""
        self._keys[key] = None
        while len(self._keys) > self._ROOM:
            self._keys.popitem(last=False)

    def discard(self, key: tuple[str, str]) -> None:
        """It is about to have something again."""
        self._keys.pop(key, None)

"""One sandbox's networks are attached: each when those it waits for stand.

Those that wait for nothing else are made on one visit to the pod, one after another: each on a visit of its own, they
would wait for one another's turn at the interpreter, and at the kernel's lock. The others run concurrently, as soon as
they may or, after some of a visit, when that has ended. The first failure calls off what has not started.
"""

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from time import monotonic
from typing import ClassVar

import anyio
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread

from multus.cni.errors import CNIError, to_cni
from multus.cni.result import Result
from multus.delegates.chain import NOTHING, Begin, Stretch
from multus.delegates.visit import Visit
from multus.errors import Fault, MultusError
from multus.sandbox import Attachment, Sandbox
from multus.slots import Priority, Queue, Slots
from multus.timeline import since, span

_GRACE = 5.0  # seconds that running delegates are given after another one failed


class AttachError(MultusError):
    """A network could not be attached; whatever had been was taken down again."""

    fault: ClassVar[Fault] = Fault.PEER

    def __init__(self, sandbox: Sandbox, attachment: Attachment, cause: Exception) -> None:
        where = f"{sandbox.pod_namespace}/{sandbox.pod_name}/{sandbox.pod_uid}:{attachment.network}"
        super().__init__(f'[{where}]: error adding container to network "{attachment.network}": {cause}')
        self.cause = cause
        self.attachment = attachment

    def as_cni(self) -> CNIError:
        """The delegate's own code and details, under a message that names the pod and the network."""
        told = to_cni(self.cause)
        return CNIError(told.code, self.message, told.details)


class Attaching:
    """The ADD of a sandbox's networks.

    `begin` says what can be done of one on a visit, `visit` does it there, `finish` does the rest, or all of it.
    `results` get each network's by position, also when others fail. Visits of different pods stand in the `queue`.
    """

    def __init__(
        self,
        sandbox: Sandbox,
        results: dict[int, Result],
        *,
        begin: Callable[[Attachment], Begin | None],
        visit: Callable[[Attachment, Begin, Visit], Stretch],
        finish: Callable[[Attachment, Stretch], Awaitable[Result]],
        slots: Slots,
        queue: Queue,
    ) -> None:
        self._sandbox = sandbox
        self._results = results
        self._waiting = list(sandbox.attachments)
        self._work = {item.position: begin(item) for item in sandbox.attachments}
        self._visit = visit
        self._finish = finish
        self._slots = slots
        self._queue = queue
        self._turns: set[anyio.CancelScope] = set()
        self._failures: list[AttachError] = []
        self._group = anyio.create_task_group()
        self._began = monotonic()
        self._cancelled = anyio.get_cancelled_exc_class()

    async def run(self) -> None:
        """Attach them all.

        :raises AttachError: for the first in order that failed. Nothing is undone here.
        """
        async with self._group:
            self._advance()
        if self._failures:
            # Several may fail at once: the earliest in the annotation is named, whichever came first.
            raise min(self._failures, key=lambda failure: failure.attachment.position)

    def _advance(self) -> None:
        """Start what waits for nothing any more: with those on a visit, those that wait only for them."""
        together: list[Attachment] = []
        reached = set(self._results)
        while ready := [item for item in self._waiting if self._is_ready(item, reached)]:
            for item in ready:
                self._waiting.remove(item)
                if self._work[item.position] is not None:
                    together.append(item)
                    reached.add(item.position)
                else:
                    self._group.start_soon(self._alone, item, NOTHING, name=f"attach {item.network}")
        if together:
            self._group.start_soon(self._together, together, name=f"visit {self._sandbox.container_id}")

    def _is_ready(self, item: Attachment, reached: set[int]) -> bool:
        prompt = self._work[item.position] is not None
        return (reached if prompt else self._results.keys()) >= set(item.after)

    async def _together(self, items: list[Attachment]) -> None:
        async with AsyncExitStack() as held:
            if not await self._turn(held, items[0]):
                return
            async with self._queue.turn():
                begun = await anyio.to_thread.run_sync(self._on_visit, items)
        if self._failures:
            self._call_off()
            return
        for item in items:
            if item.position in begun:
                self._group.start_soon(self._alone, item, begun[item.position], name=f"attach {item.network}")
            elif item.position not in self._results:  # it waits for one of those
                self._waiting.append(item)
        self._advance()

    def _on_visit(self, items: list[Attachment]) -> dict[int, Stretch]:
        """In a thread: those that are begun, but not done."""
        begun: dict[int, Stretch] = {}
        with Visit(self._sandbox.netns) as visit:
            for item in items:
                if self._failures:
                    break  # of one that is made alone
                if not self._results.keys() >= set(item.after):
                    continue
                try:
                    anyio.from_thread.check_cancelled()
                except self._cancelled:
                    break  # the caller hears of it himself
                work = self._work[item.position]
                assert work is not None
                try:
                    stretch = self._visit(item, work, visit)
                except MultusError as error:
                    self._failures.append(AttachError(self._sandbox, item, error))
                    break
                if stretch.is_whole:
                    assert stretch.result is not None
                    self._results[item.position] = stretch.result
                else:
                    begun[item.position] = stretch
        return begun

    async def _alone(self, item: Attachment, begun: Stretch) -> None:
        async with AsyncExitStack() as held:
            if not await self._turn(held, item):
                return
            try:
                self._results[item.position] = await self._finish(item, begun)
            except MultusError as error:
                self._failures.append(AttachError(self._sandbox, item, error))
                self._call_off()
                return
        self._advance()

    async def _turn(self, held: AsyncExitStack, item: Attachment) -> bool:
        """Wait for a slot; False when it is called off."""
        if item.after:
            since("after", self._began, ifname=item.ifname)
        with anyio.CancelScope() as scope:
            self._turns.add(scope)
            with span("turn", ifname=item.ifname):
                await held.enter_async_context(self._slots.hold(Priority.ADD))
        self._turns.discard(scope)
        # A slot that is free is had without a pause, in which nobody hears that all is called off.
        await anyio.lowlevel.checkpoint_if_cancelled()
        return not (scope.cancelled_caught or self._failures)

    def _call_off(self) -> None:
        """What runs may finish: a plugin killed half way leaves more for its DEL than one that returned."""
        self._waiting.clear()
        for scope in self._turns:
            scope.cancel()
        scope = self._group.cancel_scope
        scope.deadline = min(scope.deadline, anyio.current_time() + _GRACE)  # of the first failure

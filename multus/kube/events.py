"""Events about pods: kept for a moment, thinned out, and sent one after the other, so that no attach waits for them.

The limits are those of client-go's event correlator, which every API server is used to: 25 at once for one pod, then
one in five minutes; what was said a moment ago is not said again.
"""

import logging
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from typing import Final

import anyio
import msgspec

from multus.errors import MultusError
from multus.kube.cluster import EventKind
from multus.kube.objects import Pod

logger = logging.getLogger(__name__)

_QUEUED: Final = 256
_PODS: Final = 1024  # pods whose budgets are remembered
_BURST, _REFILL = 25, 300.0  # events a pod may have at once; seconds until it may have one more
_SAME: Final = 60.0  # seconds in which the very same is not repeated: the kubelet tries a pod again every few
_PACE: Final = 0.1  # seconds between two that are sent


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Something to be told about a pod; `at` is Unix time."""

    namespace: str
    name: str
    uid: str
    kind: EventKind
    reason: str
    message: str
    at: float


class _Budget:
    def __init__(self, now: float) -> None:
        self.left = float(_BURST)
        self.counted = now
        self.last: tuple[str, str] = ("", "")
        self.last_at = -_SAME

    def takes(self, reason: str, message: str, now: float) -> bool:
        self.left = min(self.left + (now - self.counted) / _REFILL, float(_BURST))
        self.counted = now
        if (reason, message) == self.last and now - self.last_at < _SAME:
            return False
        if self.left < 1.0:
            return False
        self.left -= 1.0
        self.last, self.last_at = (reason, message), now
        return True


class Announcer:
    """Takes events at once and hands them to `send` in the background. `clock` is monotonic, `wall` Unix time."""

    def __init__(
        self,
        send: Callable[[Event], Awaitable[None]],
        *,
        clock: Callable[[], float],
        wall: Callable[[], float],
        pace: float = _PACE,
    ) -> None:
        self._send = send
        self._clock = clock
        self._wall = wall
        self._pace = pace
        self._queue: deque[Event] = deque()
        self._news = anyio.Event()
        self._budgets: OrderedDict[tuple[str, str, str], _Budget] = OrderedDict()
        self._dropped = 0

    def announce(self, pod: Pod, *, kind: EventKind, reason: str, message: str) -> None:
        """Queue an event, or drop it with a log line."""
        if not pod.name:
            return
        now = self._clock()
        key = pod.namespace, pod.name, pod.uid
        budget = self._budgets.setdefault(key, _Budget(now))
        self._budgets.move_to_end(key)
        if len(self._budgets) > _PODS:
            self._budgets.popitem(last=False)
        if not budget.takes(reason, message, now):
            logger.debug("event of pod %s/%s is not sent, it has had enough: %s", pod.namespace, pod.name, message)
            return
        if len(self._queue) >= _QUEUED:
            self._dropped += 1
            logger.debug("event of pod %s/%s is lost, too many wait: %s", pod.namespace, pod.name, message)
            return
        self._queue.append(
            Event(
                namespace=pod.namespace,
                name=pod.name,
                uid=pod.uid,
                kind=kind,
                reason=reason,
                message=message,
                at=self._wall(),
            )
        )
        self._news.set()

    async def run(self) -> None:
        """Send until cancelled."""
        while True:
            while self._queue:
                event = self._queue.popleft()
                try:
                    await self._send(event)
                except MultusError as error:
                    logger.warning("event of pod %s/%s is lost: %s", event.namespace, event.name, error)
                await anyio.sleep(self._pace)
            if self._dropped:
                logger.warning("%d events of pods were lost: more came than could be sent", self._dropped)
                self._dropped = 0
            self._news = anyio.Event()
            await self._news.wait()

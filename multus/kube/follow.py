"""Keeps a cache true to a collection of the API server: sends what the watch driver asks for, and paces it."""

import logging
import random
from typing import Generic

import anyio

from multus.kube.api import MAX_BODY, Answer, Api, Stream, checked
from multus.kube.backoff import Backoff
from multus.kube.cache import Cache
from multus.kube.errors import BusyError, ClusterError, NotFoundError
from multus.kube.requests import Request, describe
from multus.kube.watching import Driver, Lost, Replace, T

logger = logging.getLogger(__name__)

_WATCH = (240, 480)  # seconds after which the server ends a watch; by chance, so that nodes do not come back together
_SILENCE = 90.0  # seconds without a byte: bookmarks come every minute, so the connection is dead
_LIST_TIMEOUT = 60.0  # seconds for one page
_MAX_SAID = 1 << 20  # bytes of a refusal
_HEALTHY = 1.0  # seconds that a watch which told something must have lasted for pauses to start small again
_QUIET_HEALTHY = 10.0  # the same for one that had nothing to tell
_FIRST, _LONGEST = 0.5, 30.0  # seconds between tries


class Follower(Generic[T]):
    """Fills `cache`. `current` is true while a watch stands, that is, while the cache is at most its delay behind."""

    def __init__(
        self,
        api: Api,
        driver: Driver[T],
        cache: Cache[T],
        *,
        silence: float = _SILENCE,
        pauses: Backoff | None = None,
    ) -> None:
        self.current = False
        self._api = api
        self._driver = driver
        self._cache = cache
        self._silence = silence
        self._pauses = pauses or Backoff(_FIRST, _LONGEST)
        self._failing = False

    async def run(self) -> None:
        """Follow until cancelled; whatever happens on the way is logged and tried again."""
        while True:
            request = self._driver.next_request(seconds=random.randint(*_WATCH))  # noqa: S311
            try:
                pause = await (self._list(request) if request.verb == "list" else self._watch(request))
            except ClusterError as error:
                pause = self._failed(error)
            finally:
                self.current = False
            await anyio.sleep(pause)

    async def _list(self, request: Request) -> float:
        try:
            with anyio.fail_after(_LIST_TIMEOUT):
                async with self._api.stream(request, silence=self._silence) as stream:
                    await self._check(stream, request)
                    data = await stream.rest(MAX_BODY)
        except TimeoutError:
            raise ClusterError(f"{describe(request)}: not done within {_LIST_TIMEOUT:g} s") from None
        except NotFoundError as error:
            # The kind is not defined (yet), so there is nothing of it; asked for again now and then.
            self._cache.apply(Replace({}))
            raise NotFoundError(error.message, hint="is its CustomResourceDefinition applied?") from None
        change = self._driver.page(data)
        if isinstance(change, Lost):
            raise ClusterError(change.why)
        if change is not None:
            self._cache.apply(change)
            logger.debug("%s: %d objects", self._driver.what.resource, len(self._cache))
        return 0.0

    async def _watch(self, request: Request) -> float:
        begun, told = anyio.current_time(), False
        lost = ""
        try:
            async with self._api.stream(request, silence=self._silence) as stream:
                await self._check(stream, request)
                self.current = True
                async for chunk in stream.chunks():
                    before = self._driver.version
                    lost = self._take(chunk)
                    if self._driver.version not in ("", before):
                        told = True
                        self._works()
                    if lost:
                        break
        finally:
            lasted = anyio.current_time() - begun
            if lasted >= (_HEALTHY if told else _QUIET_HEALTHY):
                self._pauses.reset()
        if lost:
            raise ClusterError(lost)
        # The server ended it, as it was asked to; one that does so at once must not be asked in a tight loop.
        return 0.0 if lasted >= _HEALTHY else self._pauses.next()

    def _take(self, chunk: bytes) -> str:
        """Apply what the chunk tells; why the watch is of no more use, or ""."""
        for change in self._driver.feed(chunk):
            if isinstance(change, Lost):
                return change.why
            self._cache.apply(change)
        return ""

    async def _check(self, stream: Stream, request: Request) -> None:
        """Tell the driver of a refusal, then raise it."""
        if stream.status != 200:
            self._driver.refused(stream.status)
            checked(request, Answer(status=stream.status, body=await stream.rest(_MAX_SAID), after=stream.after))
            raise ClusterError(f"{describe(request)}: the server answers {stream.status}")

    def _works(self) -> None:
        if self._failing:
            logger.info("%s: followed again", self._driver.what.resource)
        self._failing = False

    def _failed(self, error: ClusterError) -> float:
        pause = max(self._pauses.next(), error.after if isinstance(error, BusyError) else 0.0)
        # Told once; a server that is away for an hour is not worth a thousand lines.
        level = logging.DEBUG if self._failing else logging.WARNING
        logger.log(level, "%s cannot be followed, tried again in %.1f s: %s", self._driver.what.resource, pause, error)
        self._failing = True
        return pause

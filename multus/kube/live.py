"""The cluster behind an API server: this node's pods and all NADs in memory, a live read where that is not enough."""

import logging
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TypeVar

import anyio
import anyio.abc

from multus.kube.api import Api, checked
from multus.kube.cache import Cache
from multus.kube.claims import Claim, Slice, decode_claim, decode_slices
from multus.kube.cluster import EventKind
from multus.kube.errors import ClusterError, NotFoundError, RefusedError, missing_nad, uid_mismatch
from multus.kube.events import Announcer, Event
from multus.kube.follow import Follower
from multus.kube.objects import NAD, Pod, decode_nad, decode_pod
from multus.kube.requests import (
    Request,
    all_nads,
    describe,
    get_claim,
    get_nad,
    get_pod,
    list_page,
    patch_status,
    pods_on,
    post_event,
    slices_of,
)
from multus.kube.watching import Driver, Put

logger = logging.getLogger(__name__)

_PATIENCE = 20.0  # seconds for a live read, repeated while the server is busy or away
_STALE_PATIENCE = 3.0  # the same when there is something to fall back on
_SYNC_WAIT = 10.0  # seconds that a start waits for the caches
_WRITE_TIMEOUT = 5.0
_EVENT_TIMEOUT = 10.0
_PAGE = 500

_O = TypeVar("_O")


class LiveCluster:
    """Implements `Cluster` and `Claims`. `node` is this node's name; `patience` bounds a live read in seconds."""

    def __init__(
        self, api: Api, node: str, *, patience: float = _PATIENCE, stale_patience: float = _STALE_PATIENCE
    ) -> None:
        self._api = api
        self._node = node
        self._patience = patience
        self._stale_patience = min(stale_patience, patience)
        self._pods: Cache[Pod] = Cache()
        self._nads: Cache[NAD] = Cache()
        self._pod_follower = Follower(api, Driver(pods_on(node), decode_pod, page_size=_PAGE), self._pods)
        self._nad_follower = Follower(api, Driver(all_nads(), decode_nad, page_size=_PAGE), self._nads)
        self._announcer = Announcer(self._post, clock=time.monotonic, wall=time.time)

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Follow this node's pods and all NADs, and send events."""
        async with anyio.create_task_group() as group:
            group.start_soon(self._pod_follower.run, name="follow pods")
            group.start_soon(self._nad_follower.run, name="follow NADs")
            group.start_soon(self._announcer.run, name="send events")
            with anyio.move_on_after(_SYNC_WAIT) as wait:
                await self._pods.synced.wait()
                await self._nads.synced.wait()
            if wait.cancelled_caught:
                logger.warning("the API server has not told all yet after %g s: what is missing is read", _SYNC_WAIT)
            task_status.started()

    @property
    def is_current(self) -> bool:
        """Whether both watches are up to date."""
        return self._pod_follower.current and self._nad_follower.current

    async def pod(self, namespace: str, name: str, *, uid: str = "") -> Pod:
        """The pod, from memory when that holds this very one and is up to date."""
        request = get_pod(namespace, name)
        held = self._pods.get(namespace, name)
        if held is None or not uid or not _is_same(held, uid):
            return await self._find_pod(request, namespace, name, uid)
        if self._pod_follower.current:
            return held
        try:
            live = await self._read(request, decode_pod, within=self._stale_patience)
        except ClusterError as error:
            if not error.retry:
                raise
            logger.warning("pod %s/%s is taken as last seen: %s", namespace, name, error)
            return held
        return _expect(live, uid)

    async def _find_pod(self, request: Request, namespace: str, name: str, uid: str) -> Pod:
        """The pod from the API server, or from the watch if that brings it first."""
        found: list[Pod] = []
        failure: ClusterError | None = None

        async def watch(scope: anyio.CancelScope) -> None:
            found.append(await self._pods.wait(namespace, name, lambda pod: _is_same(pod, uid)))
            scope.cancel()

        async with anyio.create_task_group() as group:
            if uid:
                group.start_soon(watch, group.cancel_scope)
            try:
                live = await self._read(request, decode_pod, within=self._patience)
                found.append(_expect(live, uid))
            except ClusterError as error:
                failure = error
            group.cancel_scope.cancel()
        if found:
            return found[0]
        assert failure is not None
        raise failure

    async def nad(self, namespace: str, name: str) -> NAD:
        """The NetworkAttachmentDefinition, from memory when that is up to date."""
        request = get_nad(namespace, name)
        held = self._nads.get(namespace, name)
        if held is not None and self._nad_follower.current:
            return held
        try:
            return await self._read(
                request, decode_nad, within=self._patience if held is None else self._stale_patience
            )
        except NotFoundError:
            raise missing_nad(namespace, name) from None
        except ClusterError as error:
            if held is None or not error.retry:
                raise
            logger.warning("network-attachment-definition %s/%s is taken as last seen: %s", namespace, name, error)
            return held

    async def claim(self, namespace: str, name: str) -> Claim:
        """One ResourceClaim, as of now."""
        return await self._read(get_claim(namespace, name), decode_claim, within=self._patience)

    async def slices(self, driver: str) -> tuple[Slice, ...]:
        """The driver's ResourceSlices that may hold devices of this node, as of now."""
        found: list[Slice] = []
        for node in (self._node, ""):
            what, more = slices_of(driver, node), ""
            while True:
                request = list_page(what, limit=_PAGE, more=more, fresh=True)
                page, more = await self._read(request, decode_slices, within=self._patience)
                found += page
                if not more:
                    break
        return tuple(found)

    async def set_network_status(self, pod: Pod, status: str) -> None:
        """Write the annotation with one PATCH; none when it says so already, or the pod is gone."""
        known = self._pods.get(pod.namespace, pod.name)
        if known is None or known.uid != pod.uid:
            known = pod
        if known.status == status:
            return
        request = patch_status(pod.namespace, pod.name, uid=pod.uid, status=status)
        answer = await self._api.ask(request, timeout=_WRITE_TIMEOUT)
        if answer.status == 404 or (answer.status in (409, 422) and await self._replaced(pod)):
            logger.info("pod %s/%s is gone: its network-status is not written", pod.namespace, pod.name)
            return
        self._learn(checked(request, answer))

    def _learn(self, data: bytes) -> None:
        """Remember what a PATCH made of the pod, for the watch may tell it later than the next write comes."""
        try:
            pod = decode_pod(data)
        except ValueError as error:
            logger.debug("the answer to a PATCH cannot be read: %s", error)
            return
        held = self._pods.get(pod.namespace, pod.name)
        if held is not None and held.uid == pod.uid:
            self._pods.apply(Put(pod))

    async def _replaced(self, pod: Pod) -> bool:
        """Whether a refused PATCH was for a pod that is no more."""
        try:
            live = await self._read(get_pod(pod.namespace, pod.name), decode_pod, within=_WRITE_TIMEOUT)
        except NotFoundError:
            return True
        return live.uid != pod.uid

    async def event(self, pod: Pod, *, kind: EventKind, reason: str, message: str) -> None:
        """Queue an event; `run` sends it."""
        self._announcer.announce(pod, kind=kind, reason=reason, message=message)

    async def _post(self, event: Event) -> None:
        request = post_event(
            event.namespace,
            event.name,
            uid=event.uid,
            node=self._node,
            kind=event.kind,
            reason=event.reason,
            message=event.message,
            now=datetime.fromtimestamp(event.at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            suffix=uuid.uuid4().hex[:16],
        )
        checked(request, await self._api.ask(request, timeout=_EVENT_TIMEOUT))

    async def _read(self, request: Request, decode: Callable[[bytes], _O], *, within: float) -> _O:
        data = await self._api.read(request, within=within)
        try:
            return decode(data)
        except ValueError as error:
            raise RefusedError(f"{describe(request)}: the object cannot be read: {error}"[:500]) from None


def _is_same(pod: Pod, uid: str) -> bool:
    """Whether a pod in memory is the very one that the runtime means."""
    return pod.uid == uid or (pod.static and pod.mirrors in ("", uid))


def _expect(pod: Pod, uid: str) -> Pod:
    # What the API server says of a static pod now is as good as it gets: the mirror follows its pod in its own time.
    if uid and pod.uid != uid and not pod.static:
        raise uid_mismatch(pod.namespace, pod.name, expected=uid, got=pod.uid)
    return pod

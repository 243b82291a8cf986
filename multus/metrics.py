"""What Prometheus is told, on a port of its own; off unless metricsPort is set.

Nothing here is imported by a daemon without metrics: it observes through plain functions that do nothing by default.
"""

import logging
import socket
import time
from collections import Counter as Tally
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from functools import partial
from importlib.metadata import version
from ipaddress import ip_address
from typing import TYPE_CHECKING, ClassVar, Final

import anyio
import anyio.abc
import h11
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    ProcessCollector,
    generate_latest,
)

from devices.statistics import Statistics
from multus.device_metrics import DeviceCollector
from multus.errors import Fault, MultusError
from multus.sandbox import Sandbox, State

if TYPE_CHECKING:
    from multus.kube.requests import Request

logger = logging.getLogger(__name__)

_BUCKETS: Final = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0)  # seconds
_PHASE_BUCKETS: Final = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0, 30.0)
_MAX_REQUEST: Final = 16 * 1024
_PATIENCE: Final = 10.0  # seconds for one scrape, from its first byte to our last
_SCRAPES: Final = 8  # at once


class MetricsError(MultusError):
    """Metrics cannot be served."""

    fault: ClassVar[Fault] = Fault.OPERATOR


class Metrics:
    """The instruments of one daemon."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        GCCollector(registry=self._registry)
        build = Gauge("multus_build_info", "The daemon's version.", ["version"], registry=self._registry)
        build.labels(version("multus")).set(1)
        self._calls = Histogram(
            "multus_cni_seconds",
            "CNI calls of the runtime, from request to answer.",
            ["command", "outcome"],
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self._delegates = Histogram(
            "multus_delegate_seconds",
            "One network of one pod, all its plugins, without waiting for a turn.",
            ["command", "network", "delegate", "outcome"],
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self._phases = Histogram(
            "multus_phase_seconds",
            "Phases of ADDs and DELs; those of networks that run side by side add up to more than the call.",
            ["command", "phase"],
            buckets=_PHASE_BUCKETS,
            registry=self._registry,
        )
        self._waiting = Gauge(
            "multus_delegates_waiting", "Networks whose turn has not come yet.", registry=self._registry
        )
        self._journal = Gauge(
            "multus_journal_sandboxes", "Pods' sandboxes in the journal.", ["state"], registry=self._registry
        )
        self._failing = Gauge(
            "multus_journal_failing", "Sandboxes that could not be taken down so far.", registry=self._registry
        )
        self._requests = Counter(
            "multus_api_requests",
            "Requests of the API server; code 0 is no answer.",
            ["verb", "resource", "code"],
            registry=self._registry,
        )

    @contextmanager
    def call(self, command: str) -> Iterator[None]:
        """Measure the block as one CNI call."""
        # Only commands that exist are labels: what a caller writes must not grow the daemon's memory.
        known = command if command in ("ADD", "DEL", "CHECK", "STATUS", "GC", "VERSION") else "other"
        with _timed(lambda outcome, seconds: self._calls.labels(known, outcome).observe(seconds)):
            yield

    @contextmanager
    def delegate(self, command: str, network: str, kind: str) -> Iterator[Callable[[], None]]:
        """Measure the block as one network's attachment or detachment; `kind` is its first plugin's type.

        The block is given what it calls if it was only a part.
        """
        observe = self._delegates.labels
        with _timed(lambda outcome, took: observe(command, network, kind, outcome).observe(took)) as forget:
            yield forget

    def phase(self, command: str, phase: str, seconds: float) -> None:
        """A phase of a call took that long (`multus.timeline`)."""
        self._phases.labels(command, phase).observe(seconds)

    def requested(self, request: "Request", status: int) -> None:
        """The API server answered a request with `status`, or did not: 0."""
        self._requests.labels(request.verb, request.resource, str(status)).inc()

    def watch_queue(self, waiting: Callable[[], int]) -> None:
        """Where to ask how many wait."""
        self._waiting.set_function(waiting)

    def watch_devices(self, statistics: Callable[[], Statistics]) -> None:
        """Where to ask what the pools hold."""
        self._registry.register(DeviceCollector(statistics))

    def count(self, sandboxes: list[Sandbox]) -> None:
        """What the journal holds now."""
        tally = Tally(each.state for each in sandboxes)
        for state in State:
            self._journal.labels(str(state)).set(tally[state])
        self._failing.set(sum(each.failures > 0 for each in sandboxes))

    def text(self) -> bytes:
        """Everything, as Prometheus reads it."""
        return generate_latest(self._registry)


@contextmanager
def _timed(observe: Callable[[str, float], None]) -> Iterator[Callable[[], None]]:
    """Observe the block, unless it calls what it is given: then there is more to come."""
    begin = time.monotonic()
    outcome = "cancelled"
    whole = True

    def forget() -> None:
        nonlocal whole
        whole = False

    try:
        yield forget
        outcome = "ok"
    except Exception:
        outcome = "error"
        raise
    finally:
        if whole:
            observe(outcome, time.monotonic() - begin)


@asynccontextmanager
async def listening(host: str, port: int) -> AsyncIterator[anyio.abc.SocketListener]:
    """A listener for scrapes on an address; "::" is all of them, of both families.

    :raises MetricsError: it is no address, or cannot be had.
    """
    try:
        # Not through the resolver: on a node that has only lo yet it refuses even addresses.
        family = socket.AF_INET6 if ip_address(host).version == 6 else socket.AF_INET
        with ExitStack() as failing:
            raw = failing.enter_context(socket.socket(family))
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            raw.bind((host, port))
            raw.listen(_SCRAPES)
            raw.setblocking(False)
            listener = await anyio.abc.SocketListener.from_socket(raw)
            failing.pop_all()
    except (OSError, ValueError) as error:
        raise MetricsError(
            f"metrics cannot be served on {host} port {port}: {error}",
            hint='choose another "metricsPort" or "metricsBind"; on the host\'s network its ports are shared by all',
        ) from None
    async with listener:
        yield listener


async def serve(
    metrics: Metrics,
    listener: anyio.abc.SocketListener,
    journal: Callable[[], Awaitable[list[Sandbox]]],
    *,
    task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Answer scrapes until cancelled."""
    limit = anyio.CapacityLimiter(_SCRAPES)
    task_status.started()
    await listener.serve(partial(_answer, metrics, journal, limit))


async def _answer(
    metrics: Metrics,
    journal: Callable[[], Awaitable[list[Sandbox]]],
    limit: anyio.CapacityLimiter,
    stream: anyio.abc.SocketStream,
) -> None:
    """One connection, one request. Whatever the other side does is its own trouble."""
    try:
        async with stream:
            with anyio.move_on_after(_PATIENCE):
                async with limit:
                    http = h11.Connection(h11.SERVER, max_incomplete_event_size=_MAX_REQUEST)
                    status, body = await _reply(metrics, journal, await _request(http, stream))
                    headers = [("Content-Type", CONTENT_TYPE_LATEST), ("Content-Length", str(len(body)))]
                    head = http.send(h11.Response(status_code=status, headers=[*headers, ("Connection", "close")]))
                    await stream.send((head or b"") + (http.send(h11.Data(data=body)) or b""))
    except (anyio.BrokenResourceError, anyio.EndOfStream, anyio.ClosedResourceError, h11.ProtocolError) as error:
        logger.debug("a scrape of the metrics broke off: %s", error)


async def _request(http: h11.Connection, stream: anyio.abc.SocketStream) -> h11.Request:
    while True:
        event = http.next_event()
        if isinstance(event, h11.Request):
            return event
        http.receive_data(await stream.receive())


async def _reply(
    metrics: Metrics, journal: Callable[[], Awaitable[list[Sandbox]]], request: h11.Request
) -> tuple[int, bytes]:
    if request.target.partition(b"?")[0] != b"/metrics":
        return 404, b"see /metrics\n"
    if request.method != b"GET":
        return 405, b"GET it\n"
    try:
        metrics.count(await journal())
    except MultusError as error:
        logger.warning("metrics of the journal are of the last scrape: %s", error)
    return 200, metrics.text()

"""The daemon's socket: one connection, one CNI call; our shim's frames and upstream's HTTP on the same path.

The first byte tells them apart: NUL begins a frame (`multus.wire`), a letter HTTP (`multus.upstream`).
"""

import logging
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Protocol

import anyio
import anyio.abc
import msgspec

from multus.byhand_asks import Operation
from multus.calls import Calls
from multus.cni.errors import CNIError, Code, to_cni
from multus.errors import MultusError
from multus.listener import ListenerError, listen, trusted
from multus.timeline import received
from multus.upstream import (
    Answer,
    DeviceRequest,
    Exchange,
    InterfaceAttributes,
    Probe,
    TimelineQuery,
    conclude,
    failure,
)
from multus.wire import HEADER_SIZE, MAX_OUTPUT, FrameError, RequestFrame, decode_request, encode_response, request_size

__all__ = ["Handler", "InterfaceAttributes", "ListenerError", "Server"]

logger = logging.getLogger(__name__)

_EXCERPT = 4096  # characters of an error message that is too long to be sent


class Handler(Protocol):
    """What stands behind the socket."""

    async def cni(self, env: Mapping[str, str], conf: bytes) -> bytes:
        """Carry out one CNI call; the bytes for stdout. Raises MultusError. Cancelled when an ADD's caller is gone."""
        ...

    async def delegate(self, env: Mapping[str, str], conf: bytes, attributes: InterfaceAttributes) -> bytes:
        """Carry out a call for one interface of a running pod (hot-plug), `conf` being its network's. As `cni`."""
        ...

    def ready(self) -> tuple[bool, str]:
        """Whether attaches can be served now, and if not, why."""
        ...


class Server:
    """Serves `handler` on the socket.

    `limit` calls that take resources (ADD, CHECK, STATUS) are with the handler at a time; DEL, GC and health probes
    do not wait for them. At most `connections` are held; further ones wait in the kernel's queue. A request must
    arrive, and its answer be taken, within `peer_seconds`. `timelines` tells where a container's calls spent time,
    `devices` does what is asked of the node's pools.
    """

    def __init__(
        self,
        socket_path: Path,
        handler: Handler,
        *,
        limit: int = 256,
        connections: int = 1024,
        peer_seconds: float = 10.0,
        drain_seconds: float = 20.0,
        timelines: Callable[[str], bytes] = lambda container: b"[]",
        devices: Callable[[Operation, bytes], Awaitable[bytes]] | None = None,
    ) -> None:
        self._path = socket_path
        self._handler = handler
        self._calls = Calls(limit=limit)
        self._room = anyio.Semaphore(connections)
        self._peer_seconds = peer_seconds
        self._drain_seconds = drain_seconds
        self._timelines = timelines
        self._devices = devices
        self._accepting = anyio.CancelScope()
        self._stopped: anyio.Event | None = None

    async def serve(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Serve until `drain` is called; when cancelled instead, what runs is cancelled as well.

        The socket's file stays behind: removing it might hit a successor's, and a shim takes either for "away".

        :raises ListenerError: when the socket cannot be made.
        """
        self._stopped = anyio.Event()
        try:
            async with await listen(self._path) as listener, anyio.create_task_group() as tasks:
                task_status.started()
                with self._accepting:
                    await self._accept(listener, tasks)
                await listener.aclose()  # whoever queues there is reset, and turns to the successor
                with anyio.move_on_after(self._drain_seconds) as patience:
                    await self._calls.idle()
                if patience.cancelled_caught:
                    logger.warning("%d calls did not end in %g s: cancelled", self._calls.running, self._drain_seconds)
                tasks.cancel_scope.cancel()
        finally:
            self._stopped.set()

    async def drain(self) -> None:
        """Take no further calls; return when those that run have ended, or were cancelled after `drain_seconds`."""
        self._calls.drain()
        self._accepting.cancel()
        if self._stopped is not None:
            await self._stopped.wait()

    async def _accept(self, listener: anyio.abc.SocketListener, tasks: anyio.abc.TaskGroup) -> None:
        while True:
            await self._room.acquire()
            try:
                stream = await listener.accept()
            except anyio.BrokenResourceError as error:
                self._room.release()
                # Out of descriptors, most likely: what runs will give some back.
                logger.error("cannot accept a connection on %s: %s", self._path, error.__cause__ or error)
                await anyio.sleep(0.1)
            except BaseException:
                self._room.release()
                raise
            else:
                tasks.start_soon(self._client, stream)

    async def _client(self, stream: anyio.abc.SocketStream) -> None:
        """One connection, start to end. Nothing that a peer sends may end the server."""
        try:
            async with stream:
                if not trusted(stream):
                    return
                with anyio.fail_after(self._peer_seconds):
                    begin = await stream.receive()
                received()
                if begin[0] == 0:
                    await self._frame(stream, begin)
                elif begin[:1].isalpha():
                    await self._http(stream, begin)
                else:
                    logger.warning("a peer on %s speaks neither our protocol nor HTTP", self._path)
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            logger.debug("a peer on %s closed its connection early", self._path)
        except TimeoutError:
            logger.warning("a peer on %s took longer than %g s: given up", self._path, self._peer_seconds)
        except Exception:
            logger.exception("a connection on %s failed: a defect of ours", self._path)
        finally:
            self._room.release()

    async def _frame(self, stream: anyio.abc.SocketStream, begin: bytes) -> None:
        try:
            with anyio.fail_after(self._peer_seconds):
                request = await _read_frame(stream, begin)
        except FrameError as error:
            logger.warning("a request on %s was refused: %s", self._path, error)
            refusal = CNIError(Code.DECODING_FAILURE, error.message, hint=error.hint)
            await self._send(stream, _response(refusal, b""))
            return
        command = request.env.get("CNI_COMMAND", "")
        with self._calls.counted():
            outcome = await self._calls.attend(stream, command, lambda: self._handler.cni(request.env, request.conf))
            if outcome is not None:
                await self._send(stream, _response(outcome, request.conf))

    async def _http(self, stream: anyio.abc.SocketStream, begin: bytes) -> None:
        exchange = Exchange()
        with anyio.fail_after(self._peer_seconds):
            request = exchange.feed(begin)
            while request is None:
                if more := exchange.go_on():
                    await stream.send(more)
                request = exchange.feed(await stream.receive())
        if isinstance(request, Probe):
            request = self._health(request)
        elif isinstance(request, TimelineQuery):
            request = Answer(body=self._timelines(request.container))
        elif isinstance(request, DeviceRequest):
            await self._give(stream, exchange, request)
            return
        if isinstance(request, Answer):
            await self._send(stream, exchange.answer(request))
            return
        env, conf, attributes = request.env, request.conf, request.attributes

        def operation() -> Awaitable[bytes]:
            if attributes is None:
                return self._handler.cni(env, conf)
            return self._handler.delegate(env, conf, attributes)

        with self._calls.counted():
            outcome = await self._calls.attend(stream, env["CNI_COMMAND"], operation)
            if outcome is not None:
                await self._send(stream, exchange.answer(conclude(request, outcome)))

    async def _give(self, stream: anyio.abc.SocketStream, exchange: Exchange, request: DeviceRequest) -> None:
        """Devices are taken or given back: to the end, whether or not the caller waits for it."""
        if self._devices is None or self._calls.draining:
            refusal = CNIError(Code.NOT_AVAILABLE, "multusd is shutting down" if self._devices else "it has no devices")
            await self._send(stream, exchange.answer(failure(refusal, status=503)))
            return
        with self._calls.counted():
            try:
                answer = Answer(body=await self._devices(request.operation, request.body))
            except MultusError as error:
                answer = failure(to_cni(error))
            except Exception as error:
                logger.exception("%s of devices failed: a defect of ours", request.operation)
                answer = failure(to_cni(error), status=500)
            await self._send(stream, exchange.answer(answer))

    def _health(self, probe: Probe) -> Answer:
        ready, reason = (False, "multusd is shutting down") if self._calls.draining else self._handler.ready()
        if ready or not probe.readiness:
            return Answer()
        return failure(CNIError(Code.NOT_AVAILABLE, reason), status=500)

    async def _send(self, stream: anyio.abc.SocketStream, data: bytes) -> None:
        with anyio.fail_after(self._peer_seconds):
            await stream.send(data)


async def _read_frame(stream: anyio.abc.SocketStream, begin: bytes) -> RequestFrame:
    data = bytearray(begin)
    while len(data) < HEADER_SIZE:
        data += await stream.receive()
    size = HEADER_SIZE + sum(request_size(bytes(data[:HEADER_SIZE])))
    while len(data) < size:
        data += await stream.receive(min(size - len(data), 1024 * 1024))
    return decode_request(bytes(data))


class _Versioned(msgspec.Struct):
    version: str = msgspec.field(default="", name="cniVersion")


def _response(outcome: bytes | CNIError, conf: bytes) -> bytes:
    """The frame for a call's outcome; an error is written in the version of the caller's conf."""
    if not isinstance(outcome, CNIError):
        try:
            return encode_response(0, outcome)
        except FrameError as error:
            outcome = CNIError(Code.INTERNAL, error.message)
    try:
        version = msgspec.json.decode(conf, type=_Versioned).version
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        version = ""
    data = outcome.encode(version or "1.0.0")
    if len(data) > MAX_OUTPUT:
        data = CNIError(outcome.code, f"{outcome.message[:_EXCERPT]}...").encode("1.0.0")
    return encode_response(1, data)

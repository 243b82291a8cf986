"""The transport: sends `multus.kube.requests` to the API server through kubernetes_asyncio and gives back raw bytes.

Of that library only its configuration, TLS and connections are used, and no more of it is loaded: its models are 36 MiB
and cost 900 µs for a pod where ours cost 6, and it does not look at the status of an answer that it does not decode.
"""

import importlib
import logging
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import msgspec

from multus.kube import library
from multus.kube.backoff import Backoff
from multus.kube.credentials import Credentials, drop_temporary_files, fingerprint, read_credentials
from multus.kube.errors import BusyError, ClusterError, NotFoundError, RefusedError
from multus.kube.requests import Request, describe, forbidden

logger = logging.getLogger(__name__)

MAX_BODY = 256 << 20  # bytes of one answer: a whole cluster's NADs may come at once, whatever the page size
_MAX_SAID = 64 << 10  # bytes of an error's body
_MAX_AFTER = 60.0  # seconds of Retry-After that are honoured
_CONNECT = 5.0  # seconds until a connection stands, TLS included
_LOOK_EVERY = 1.0  # seconds between looks at the credentials' files
_RENEW_EVERY = 5.0  # seconds between renewals because of a 401
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 2.0  # seconds between tries of a read


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """An answer, whatever its status; `after` is Retry-After in seconds, 0 without one."""

    status: int
    body: bytes
    after: float = 0.0


class Stream:
    """An answer whose body is still coming. `status` and `after` as in `Answer`."""

    def __init__(self, response: Any, request: Request, after: float) -> None:
        self._response = response
        self._request = request
        self.status: int = response.status
        self.after = after

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body in pieces of at most some MiB, until the server ends it.

        :raises ClusterError: the connection broke, or was silent for longer than agreed.
        """
        body = self._response.content.iter_any()
        while True:
            with _mapped(self._request):
                chunk = await anext(body, None)
            if chunk is None:
                return
            yield chunk

    async def rest(self, limit: int) -> bytes:
        """The whole body.

        :raises ClusterError: as `chunks`, or it is larger than `limit` bytes.
        """
        held = bytearray()
        async for chunk in self.chunks():
            held += chunk
            if len(held) > limit:
                raise ClusterError(f"{describe(self._request)}: the answer is larger than {limit} bytes")
        return bytes(held)


class _Link:
    """One set of credentials and its connections; closed when it is retired and nobody uses it any more."""

    def __init__(self, credentials: Credentials, client: Any) -> None:
        self.credentials = credentials
        self.client = client
        self.made = anyio.current_time()
        self._users = 0
        self._retired = False

    @asynccontextmanager
    async def used(self) -> AsyncIterator[None]:
        """Keep the connections open for the length of the block."""
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            await self._close_if_done()

    async def retire(self) -> None:
        """Close as soon as nobody uses it."""
        self._retired = True
        await self._close_if_done()

    async def _close_if_done(self) -> None:
        if self._retired and self._users == 0:
            with anyio.CancelScope(shield=True):
                await self.client.close()


class Api:
    """An API server. Made by `Api.open`; may be used by many tasks at once."""

    def __init__(self, kubeconfig: str, link: _Link, service_account: dict[str, Path]) -> None:
        self._kubeconfig = kubeconfig
        self._service_account = service_account
        self._link = link
        self._looked = link.made
        self._refused: object = None  # the look of files that could not be used
        self._lock = anyio.Lock()
        self.observe: Callable[[Request, int], None] = lambda request, status: None  # told of each answer; 0: none

    @classmethod
    @asynccontextmanager
    async def open(cls, kubeconfig: str = "", *, service_account: Path | None = None) -> AsyncIterator["Api"]:
        """Read the credentials: of a kubeconfig, or with "" of the pod that this is. Nothing is sent yet.

        :raises RefusedError: they cannot be used.
        """
        where = {} if service_account is None else {"service_account": service_account}
        link = await _connect(kubeconfig, where)
        api = cls(kubeconfig, link, where)
        try:
            yield api
        finally:
            await api._link.retire()

    async def read(self, request: Request, *, within: float, attempt: float = 10.0) -> bytes:
        """The body of a successful answer. A request that may be repeated (GET) is, for at most `within` seconds.

        :raises NotFoundError: the server says so. :raises RefusedError: it will not, whenever it is asked.
        :raises ClusterError: no good answer.
        """
        pauses = Backoff(_FIRST_PAUSE, _LONGEST_PAUSE)
        end = anyio.current_time() + within
        while True:
            try:
                answer = await self.ask(request, timeout=min(attempt, max(end - anyio.current_time(), 0.0)))
                return checked(request, answer)
            except ClusterError as error:
                pause = max(pauses.next(), error.after if isinstance(error, BusyError) else 0.0)
                if not error.retry or request.method != "GET" or anyio.current_time() + pause >= end:
                    raise
                logger.debug("%s; asked again in %.1f s", error, pause)
            await anyio.sleep(pause)

    async def ask(self, request: Request, *, timeout: float, limit: int = MAX_BODY) -> Answer:
        """One request, sent once (twice when the server did not know our token), and its answer within `timeout`.

        :raises ClusterError: no answer.
        """
        try:
            with anyio.fail_after(timeout):
                async with self.stream(request, silence=timeout) as stream:
                    body = await stream.rest(limit if stream.status < 400 else _MAX_SAID)
                    return Answer(status=stream.status, body=body, after=stream.after)
        except TimeoutError:
            raise ClusterError(
                f"{describe(request)}: no answer within {timeout:g} s",
                hint="is the API server overloaded, or does the network drop packets?",
            ) from None

    @asynccontextmanager
    async def stream(self, request: Request, *, silence: float) -> AsyncIterator[Stream]:
        """One request whose answer is read as it comes; `silence` is how many seconds may pass without a byte.

        :raises ClusterError: no answer.
        """
        async with AsyncExitStack() as held:
            link = await self._current()
            await held.enter_async_context(link.used())
            response = await self._send(link, request, silence)
            held.callback(response.close)  # at once: what is left of a watch is not waited for
            if response.status == 401 and (renewed := await self._renewed(link)) is not link:
                response.close()
                await held.enter_async_context(renewed.used())
                response = await self._send(renewed, request, silence)
                held.callback(response.close)
            yield Stream(response, request, _after(response))

    async def _send(self, link: _Link, request: Request, silence: float) -> Any:
        aiohttp = importlib.import_module("aiohttp")
        status = 0
        try:
            with _mapped(request):
                response = await link.client.request(
                    request.method,
                    link.credentials.configuration.host + request.path,
                    query_params=list(request.query),
                    headers=await _headers(link, request),
                    body=request.body,
                    _preload_content=False,
                    _request_timeout=aiohttp.ClientTimeout(connect=_CONNECT, sock_connect=_CONNECT, sock_read=silence),
                )
            status = response.status
            return response
        finally:
            self.observe(request, status)

    async def _current(self) -> _Link:
        """The connections to use now: new ones when the files that the credentials came from have changed."""
        link, now = self._link, anyio.current_time()
        if now - self._looked < _LOOK_EVERY:
            return link
        self._looked = now
        seen = await anyio.to_thread.run_sync(fingerprint, link.credentials.files)
        if seen in (link.credentials.fingerprint, self._refused):
            return self._link
        async with self._lock:
            if self._link is link:
                self._refused = None if await self._renew() else seen
        return self._link

    async def _renewed(self, link: _Link) -> _Link:
        """What to try after `link` was not let in; `link` itself when that was tried a moment ago."""
        async with self._lock:
            if self._link is link and anyio.current_time() - link.made >= _RENEW_EVERY:
                await self._renew()
        return self._link

    async def _renew(self) -> bool:
        old = self._link
        try:
            self._link = await _connect(self._kubeconfig, self._service_account)
        except ClusterError as error:
            old.made = anyio.current_time()
            logger.warning("the credentials for the API server were changed and cannot be read: %s", error)
            return False
        logger.info("the credentials for the API server were read again")
        await old.retire()
        return True


async def _connect(kubeconfig: str, where: dict[str, Path]) -> _Link:
    def load() -> tuple[Credentials, Any]:
        # The first import takes half a second.
        return read_credentials(kubeconfig, **where), library.load("client.rest").RESTClientObject

    credentials, make = await anyio.to_thread.run_sync(load)
    try:
        client = make(credentials.configuration)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise RefusedError(
            f"the certificates for the API server cannot be used: {error}",
            hint="check the certificate authority, the client certificate and its key",
        ) from None
    finally:
        await anyio.to_thread.run_sync(drop_temporary_files)
    return _Link(credentials, client)


async def _headers(link: _Link, request: Request) -> dict[str, str]:
    headers = {"Accept": "application/json", "Content-Type": request.content_type, "User-Agent": "multusd"}
    known = (await link.credentials.configuration.auth_settings()).get("BearerToken")  # renews a token that runs out
    if known and known["value"]:
        headers[known["key"]] = known["value"]
    return headers


class _mapped:  # noqa: N801 (reads as a statement)
    """Turns whatever the libraries raise into a ClusterError."""

    def __init__(self, request: Request) -> None:
        self._request = request

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if not isinstance(error, Exception) or isinstance(error, ClusterError):
            return
        aiohttp = importlib.import_module("aiohttp")
        theirs = library.load("client.exceptions").OpenApiException
        known = (aiohttp.ClientError, aiohttp.http.HttpProcessingError, theirs, OSError, TimeoutError)
        # ValueError: a header that cannot be sent, such as a token with a line break inside.
        if isinstance(error, (*known, ValueError)):
            said = str(error) or type(error).__name__
            raise ClusterError(
                f"{describe(self._request)}: {said}"[:500], hint="is the API server up, and its address right?"
            ) from None


def _after(response: Any) -> float:
    """Retry-After, spread by chance: everybody was told the same."""
    said = response.headers.get("Retry-After", "")
    if not (said.isascii() and said.isdigit() and len(said) < 10):
        return 0.0  # absent, or a date, which would need both clocks to agree
    return min(float(said), _MAX_AFTER) * (1.0 + 0.25 * random.random())  # noqa: S311


class _Status(msgspec.Struct):
    message: str = ""


def checked(request: Request, answer: Answer) -> bytes:
    """The body of an answer with a good status.

    :raises NotFoundError: 404. :raises BusyError: 429 and 5xx. :raises RefusedError: any other 4xx.
    :raises ClusterError: anything else.
    """
    status = answer.status
    if 200 <= status < 300:
        return answer.body
    said = _said(answer.body)
    message = f"{describe(request)}: the API server answers {status}{': ' if said else ''}{said}"
    if status == 404:
        raise NotFoundError(message)
    if status == 401:
        raise ClusterError(message, hint="the token has expired or is of another cluster: check the credentials")
    if status == 403:
        raise RefusedError(message, hint=forbidden(request))
    if status == 429 or status >= 500:
        raise BusyError(message, after=answer.after)
    if status in (408, 409, 410):
        raise ClusterError(message)
    if 400 <= status < 500:
        raise RefusedError(message)
    raise ClusterError(message, hint="is that an API server?")


def _said(body: bytes) -> str:
    """The message of a Status, or the beginning of whatever else came (a proxy's page)."""
    try:
        text = msgspec.json.decode(body, type=_Status).message
    except (ValueError, RecursionError):
        text = body[:200].decode("utf-8", "replace")
    return " ".join(text.split())[:500]

"""A Kubernetes API server as far as this project asks one, on a real socket: pods, NADs, claims, slices, events.

It lists in pages, watches from a version, forgets old versions (410), merges patches with the uid as a precondition,
and can be told to misbehave at chosen requests.
"""

import asyncio
import json
import socket
import ssl
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from aiohttp import web

Object = dict[str, Any]
Misbehaviour = Literal["reset", "hang", "garbage", "cut", "slow"]

_LISTS = {
    "pods": "/api/v1/pods",
    "network-attachment-definitions": "/apis/k8s.cni.cncf.io/v1/network-attachment-definitions",
    "resourceslices": "/apis/resource.k8s.io/v1/resourceslices",
}
_OBJECTS = {
    "pods": "/api/v1/namespaces/{namespace}/pods/{name}",
    "network-attachment-definitions": (
        "/apis/k8s.cni.cncf.io/v1/namespaces/{namespace}/network-attachment-definitions/{name}"
    ),
    "resourceclaims": "/apis/resource.k8s.io/v1/namespaces/{namespace}/resourceclaims/{name}",
}
NETWORK_STATUS = "k8s.v1.cni.cncf.io/network-status"


@dataclass
class Seen:
    """A request that came in."""

    method: str
    path: str
    query: dict[str, str]
    token: str
    body: Any = None

    @property
    def verb(self) -> str:
        """RBAC's word for it."""
        if self.method == "GET":
            one = self.path.rstrip("/").split("/")[-2] in _OBJECTS
            return "get" if one else "watch" if "watch" in self.query else "list"
        return {"PATCH": "patch", "POST": "create"}.get(self.method, self.method.lower())

    @property
    def what(self) -> str:
        """Such as "list pods" or "patch pods"."""
        known = [part for part in self.path.split("/") if part in (*_OBJECTS, *_LISTS, "events")]
        return f"{self.verb} {known[-1] if known else '?'}"


@dataclass
class Fault:
    """What to do to some requests: those that `what` is the beginning of, after `skip` of them, `times` times."""

    what: str
    do: Misbehaviour | int
    skip: int = 0
    times: int = 1
    after: str = ""  # Retry-After


@dataclass
class _Change:
    version: int
    kind: str
    type: str
    object: Object
    before: Object | None


@dataclass
class FakeApiServer:
    """`async with FakeApiServer().serving() as server`. Objects are put and deleted by the test."""

    url: str = ""
    tokens: set[str] | None = None  # those that are let in; None: everybody
    seen: list[Seen] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    events: list[Object] = field(default_factory=list)
    missing: set[str] = field(default_factory=set)  # kinds that are not defined
    version: int = 100
    page_limit: int = 10_000
    _oldest: int = 0
    _objects: dict[str, dict[tuple[str, str], Object]] = field(default_factory=dict)
    _history: list[_Change] = field(default_factory=list)
    _watchers: dict[str, list["asyncio.Queue[bytes | None]"]] = field(default_factory=dict)
    _selectors: dict[int, str] = field(default_factory=dict)
    _stopping: asyncio.Event = field(default_factory=asyncio.Event)

    @asynccontextmanager
    async def serving(
        self, *, port: int = 0, tls: ssl.SSLContext | None = None, listener: socket.socket | None = None
    ) -> AsyncIterator["FakeApiServer"]:
        """Serve on a loopback port, or on a socket that is bound already, for the length of the block."""
        self._stopping = asyncio.Event()
        app = web.Application(middlewares=[self._misbehave], client_max_size=8 << 20)
        self.route(app.router)
        runner = web.AppRunner(app, shutdown_timeout=0.2, handler_cancellation=True)
        await runner.setup()
        try:
            site: web.BaseSite = web.TCPSite(runner, "127.0.0.1", port, ssl_context=tls)
            if listener is not None:
                site = web.SockSite(runner, listener)
            await site.start()
            host, bound = runner.addresses[0][:2]
            self.url = f"{'https' if tls else 'http'}://{host}:{bound}"
            yield self
        finally:
            self._stopping.set()
            self.end_watches()
            await runner.cleanup()

    def route(self, router: web.UrlDispatcher) -> None:
        """What is answered, and by what."""
        for kind, path in _LISTS.items():
            router.add_get(path, self._handler(self._list, kind))
        for kind, path in _OBJECTS.items():
            router.add_get(path, self._handler(self._get, kind))
        router.add_patch(f"{_OBJECTS['pods']}/status", self._handler(self._patch, "pods"))
        router.add_post("/api/v1/namespaces/{namespace}/events", self._handler(self._event, "events"))

    # what a test does

    def put(self, kind: str, name: str, namespace: str = "default", **rest: Any) -> Object:
        """Create or change an object; `rest` is its annotations, uid, spec and status."""
        old = self._objects.setdefault(kind, {}).get((namespace, name))
        metadata = {
            "name": name,
            "namespace": namespace,
            "uid": rest.pop("uid", None) or (old["metadata"]["uid"] if old else str(uuid.uuid4())),
            "annotations": rest.pop("annotations", {}),
        }
        made = {"metadata": metadata, **rest}
        self._store(kind, made)
        return made

    def pod(self, name: str, namespace: str = "default", *, node: str = "node-1", **rest: Any) -> Object:
        """A pod on a node."""
        return self.put("pods", name, namespace, spec={"nodeName": node, "containers": [{"name": "c"}]}, **rest)

    def nad(self, name: str, namespace: str = "default", config: str = "{}", **rest: Any) -> Object:
        """A NetworkAttachmentDefinition."""
        return self.put("network-attachment-definitions", name, namespace, spec={"config": config}, **rest)

    def delete(self, kind: str, name: str, namespace: str = "default") -> None:
        """Remove an object."""
        gone = self._objects[kind].pop((namespace, name))
        self.version += 1
        gone = {**gone, "metadata": {**gone["metadata"], "resourceVersion": str(self.version)}}
        self._publish(_Change(self.version, kind, "DELETED", gone, gone))

    def get(self, kind: str, name: str, namespace: str = "default") -> Object:
        """An object as stored."""
        return self._objects[kind][namespace, name]

    def compact(self) -> None:
        """Forget all versions before now."""
        self.version += 1
        self._oldest = self.version
        self._history.clear()

    def bookmark(self, kind: str) -> None:
        """Tell the watchers where they are."""
        self.version += 1
        line = {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": str(self.version)}}}
        self.send(kind, json.dumps(line).encode() + b"\n")

    def send(self, kind: str, data: bytes) -> None:
        """Put raw bytes into the watches of a kind."""
        for queue in self._watchers.get(kind, ()):
            queue.put_nowait(data)

    def end_watches(self) -> None:
        """End every watch as a server does whose time is up."""
        for queues in self._watchers.values():
            for queue in queues:
                queue.put_nowait(None)

    def watching(self, kind: str) -> int:
        """How many watches of a kind stand."""
        return len(self._watchers.get(kind, ()))

    def fail(self, what: str, do: Misbehaviour | int, *, skip: int = 0, times: int = 1, after: str = "") -> None:
        """Misbehave at requests such as "get pods": `do` is a status, or a way to break the connection."""
        self.faults.append(Fault(what=what, do=do, skip=skip, times=times, after=after))

    def count(self, what: str) -> int:
        """How many such requests came in."""
        return sum(seen.what.startswith(what) for seen in self.seen)

    def kubeconfig(self, path: Path, *, token: str = "secret", **cluster: Any) -> Path:
        """Write a kubeconfig for this server, in place of what was there, in one step."""
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "here",
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
            "clusters": [{"name": "here", "cluster": {"server": self.url, **cluster}}],
            "users": [{"name": "me", "user": {"token": token}}],
        }
        temporary = path.with_name(f"{path.name}.new")
        temporary.write_text(json.dumps(content))
        temporary.replace(path)
        return path

    # what it does

    def _store(self, kind: str, made: Object) -> None:
        metadata = made["metadata"]
        key = metadata["namespace"], metadata["name"]
        old = self._objects.setdefault(kind, {}).get(key)
        self.version += 1
        metadata["resourceVersion"] = str(self.version)
        self._objects[kind][key] = made
        if old is not None and old["metadata"]["uid"] != metadata["uid"]:
            self._publish(_Change(self.version, kind, "DELETED", old, old))
            old = None
        self._publish(_Change(self.version, kind, "MODIFIED" if old else "ADDED", made, old))

    def _publish(self, change: _Change) -> None:
        self._history.append(change)
        for queue in self._watchers.get(change.kind, ()):
            if (line := _line(change, self._selectors[id(queue)])) is not None:
                queue.put_nowait(line)

    def _handler(self, do: Callable[[web.Request, str], Any], kind: str) -> Callable[[web.Request], Any]:
        async def handle(request: web.Request) -> web.StreamResponse:
            if kind in self.missing:
                return _status(404, "the server could not find the requested resource")
            answer: web.StreamResponse = await do(request, kind)
            return answer

        return handle

    @web.middleware
    async def _misbehave(self, request: web.Request, handler: Callable[[web.Request], Any]) -> web.StreamResponse:
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        body = await request.json() if request.can_read_body and "json" in request.content_type else None
        seen = Seen(request.method, request.path, dict(request.query), token, body)
        self.seen.append(seen)
        for fault in self.faults:
            if not seen.what.startswith(fault.what) or fault.times == 0:
                continue
            if fault.skip > 0:
                fault.skip -= 1
                continue
            fault.times -= 1
            return await self._faulty(request, fault, handler)
        if self.tokens is not None and token not in self.tokens:
            return _status(401, "Unauthorized")
        answer: web.StreamResponse = await handler(request)
        return answer

    async def _faulty(
        self, request: web.Request, fault: Fault, handler: Callable[[web.Request], Any]
    ) -> web.StreamResponse:
        transport = request.transport
        assert transport is not None
        if isinstance(fault.do, int):
            answer = _status(fault.do, "told to")
            if fault.after:
                answer.headers["Retry-After"] = fault.after
            return answer
        if fault.do == "hang":
            await self._stopping.wait()
        if fault.do == "slow":
            whole: web.Response = await handler(request)
            assert isinstance(whole.body, bytes)
            slow = web.StreamResponse(headers={"Content-Type": "application/json"})
            await slow.prepare(request)
            for position in range(0, len(whole.body), 16):
                await slow.write(whole.body[position : position + 16])
                await asyncio.sleep(0.001)
            return slow
        if fault.do == "garbage":
            transport.write(b"\x16\x03\x01 this is no HTTP\r\n\r\n")
        if fault.do == "cut":
            half = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 4096\r\n\r\n{"metadata":{'
            transport.write(half)
        if fault.do in ("garbage", "cut"):
            await asyncio.sleep(0.01)
        transport.abort()
        return web.Response()

    async def _get(self, request: web.Request, kind: str) -> web.Response:
        key = request.match_info["namespace"], request.match_info["name"]
        found = self._objects.get(kind, {}).get(key)
        return _status(404, f'{kind} "{key[1]}" not found') if found is None else web.json_response(found)

    async def _list(self, request: web.Request, kind: str) -> web.StreamResponse:
        selector = request.query.get("fieldSelector", "")
        if "watch" in request.query:
            return await self._watch(request, kind, selector)
        version, start = self.version, 0
        if token := request.query.get("continue"):
            version, start = (int(part) for part in token.split("-"))
            if version < self._oldest:
                return _status(410, "The provided continue parameter is too old")
        limit = min(int(request.query.get("limit", "0")) or self.page_limit, self.page_limit)
        items = [item for item in self._objects.get(kind, {}).values() if _selected(item, selector)]
        metadata = {"resourceVersion": str(version)}
        if start + limit < len(items):
            metadata["continue"] = f"{version}-{start + limit}"
        return web.json_response({"metadata": metadata, "items": items[start : start + limit] or None})

    async def _watch(self, request: web.Request, kind: str, selector: str) -> web.StreamResponse:
        version = int(request.query["resourceVersion"])
        queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        if version < self._oldest:
            gone = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}
            await response.write(json.dumps({"type": "ERROR", "object": gone}).encode() + b"\n")
            return response
        for change in self._history:
            if change.version > version and change.kind == kind and (line := _line(change, selector)) is not None:
                queue.put_nowait(line)
        self._watchers.setdefault(kind, []).append(queue)
        self._selectors[id(queue)] = selector
        try:
            async with asyncio.timeout(int(request.query["timeoutSeconds"])):
                while (data := await queue.get()) is not None:
                    await response.write(data)
        except TimeoutError:
            pass
        finally:
            self._watchers[kind].remove(queue)
            del self._selectors[id(queue)]
        return response

    async def _patch(self, request: web.Request, kind: str) -> web.Response:
        key = request.match_info["namespace"], request.match_info["name"]
        found = self._objects.get(kind, {}).get(key)
        if found is None:
            return _status(404, f'pods "{key[1]}" not found')
        if request.content_type != "application/merge-patch+json":
            return _status(415, "the body of the request was in an unknown format")
        change = (await request.json())["metadata"]
        if change.get("uid", found["metadata"]["uid"]) != found["metadata"]["uid"]:
            return _status(409, "Precondition failed: UID in precondition")
        metadata = dict(found["metadata"])
        metadata["annotations"] = {**metadata["annotations"], **change["annotations"]}
        made = {**found, "metadata": metadata}
        self._store(kind, made)
        return web.json_response(made)

    async def _event(self, request: web.Request, kind: str) -> web.Response:
        self.events.append(await request.json())
        return web.json_response(self.events[-1], status=201)


def _status(code: int, message: str) -> web.Response:
    return web.json_response({"kind": "Status", "code": code, "message": message}, status=code)


def _selected(item: Object, selector: str) -> bool:
    for each in filter(None, selector.split(",")):
        path, _, value = each.partition("=")
        found: Any = item
        for part in path.split("."):
            found = found.get(part, {}) if isinstance(found, dict) else {}
        if (found or "") != value:
            return False
    return True


def _line(change: _Change, selector: str) -> bytes | None:
    """What a watch with this selector is told of a change."""
    now, before = _selected(change.object, selector), change.before is not None and _selected(change.before, selector)
    if not now and not before:
        return None
    kind = change.type if now and (before or change.type != "MODIFIED") else "ADDED" if now else "DELETED"
    return json.dumps({"type": kind, "object": change.object}).encode() + b"\n"

"""The light API server of the comparison: the tests' one, in a process of its own, with what upstream's client needs.

That client (client-go) writes protobuf and puts whole objects where ours sends a merge patch in JSON; it reads either.
Real HTTP over TLS, on a node's loopback. It is told what to hold by lines of JSON on stdin and answers on stdout.
"""

import asyncio
import json
import os
import ssl
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from aiohttp import web

from tests.fake_apiserver import NETWORK_STATUS, FakeApiServer

PORT = 6443
_TYPES = {
    "pods": ("v1", "Pod"),
    "network-attachment-definitions": ("k8s.cni.cncf.io/v1", "NetworkAttachmentDefinition"),
}
_STATUS_PATH = "/api/v1/namespaces/{namespace}/pods/{name}/status"


class ApiServer:
    """Our end of the process. `enter` is put before its command line, to run it on a node."""

    def __init__(self, directory: Path, *, enter: Sequence[str]) -> None:
        self.account = directory
        _certificate(directory)
        self._process = subprocess.Popen(
            [*enter, sys.executable, "-m", __name__, str(directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parent.parent,
        )
        self.ask("version")

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    def ask(self, do: str, **arguments: Any) -> Any:
        """One thing to do; see `_Standin.told`."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the stand-in for the API server ended with {self._process.wait(10)}")
        return json.loads(line)

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()


class _Standin(FakeApiServer):
    def route(self, router: web.UrlDispatcher) -> None:
        super().route(router)
        router.add_put(_STATUS_PATH, self._handler(self._put, "pods"))

    def _store(self, kind: str, made: dict[str, Any]) -> None:
        version, name = _TYPES[kind]
        super()._store(kind, {"apiVersion": version, "kind": name, **made})

    async def _put(self, request: web.Request, kind: str) -> web.Response:
        """A whole pod, of which a status is written; its version must be the newest, as with the real one."""
        key = request.match_info["namespace"], request.match_info["name"]
        found = self._objects.get(kind, {}).get(key)
        if found is None:
            return web.json_response({"kind": "Status", "code": 404, "reason": "NotFound"}, status=404)
        annotations, version = _metadata(await request.read())
        if version != found["metadata"]["resourceVersion"]:
            return web.json_response({"kind": "Status", "code": 409, "reason": "Conflict"}, status=409)
        made = {**found, "metadata": {**found["metadata"], "annotations": annotations}}
        self._store(kind, made)
        return web.json_response(self._objects[kind][key])

    async def _event(self, request: web.Request, kind: str) -> web.Response:
        namespace = request.match_info["namespace"]
        body = {"apiVersion": "v1", "kind": "Event", "metadata": {"name": "e", "namespace": namespace}}
        return web.json_response(body, status=201)

    def told(self, do: str, **arguments: Any) -> Any:
        """Carry out what the benchmark asks for."""
        match do:
            case "pod":
                return self.pod(node="box", **arguments)["metadata"]["uid"]
            case "nad":
                self.nad(**arguments)
            case "delete":
                self.delete("pods", **arguments)
            case "status":
                text = self.get("pods", **arguments)["metadata"]["annotations"].get(NETWORK_STATUS)
                return json.loads(text) if text else None
            case "watching":
                return [self.watching(kind) for kind in _TYPES]
            case "requests":
                counted = Counter(seen.what for seen in self.seen)
                self.seen.clear()
                return counted
        return self.version


def _fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The length-delimited fields of a protobuf message; the others are skipped."""
    position = 0

    def number() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = data[position]
            position += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while position < len(data):
        key = number()
        match key & 7:
            case 0:
                number()
            case 1:
                position += 8
            case 2:
                size = number()
                yield key >> 3, data[position : position + size]
                position += size
            case 5:
                position += 4
            case other:
                raise ValueError(f"wire type {other}")


def _metadata(data: bytes) -> tuple[dict[str, str], str]:
    """Annotations and version of an object in Kubernetes' protobuf: k8s\\0, Unknown.raw, metadata."""
    if not data.startswith(b"k8s\0"):
        metadata = json.loads(data)["metadata"]
        return metadata["annotations"], metadata["resourceVersion"]
    raw = dict(_fields(data[4:]))[2]
    fields = list(_fields(dict(_fields(raw))[1]))
    pairs = [dict(_fields(value)) for field, value in fields if field == 12]
    return {pair[1].decode(): pair[2].decode() for pair in pairs}, dict(fields)[6].decode()


def _certificate(directory: Path) -> None:
    """A key, and a certificate that is its own authority; with a token, what a pod is given as its service account."""
    directory.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1",
         "-subj", "/CN=stand-in", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key.pem", "-out", "ca.crt"],
        cwd=directory, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(f"openssl: {done.stderr.strip()}")
    (directory / "token").write_text("token")


async def _serve(directory: Path) -> None:
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(directory / "ca.crt", directory / "key.pem")
    server = _Standin()
    async with server.serving(port=PORT, tls=tls):
        bookmarks = asyncio.create_task(_bookmarks(server))
        lines = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
        while line := await lines.readline():
            told: Mapping[str, Any] = json.loads(line)
            os.write(1, json.dumps(server.told(**told)).encode() + b"\n")
        bookmarks.cancel()


async def _bookmarks(server: _Standin) -> None:
    """As the real one: a watch that is told nothing for longer is taken for dead."""
    while True:
        await asyncio.sleep(60)
        for kind in _TYPES:
            server.bookmark(kind)


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1])))

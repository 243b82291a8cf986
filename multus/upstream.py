"""Upstream's shim protocol, HTTP/1.1 on the daemon's socket: bytes in, calls out, answers in, bytes out.

An older shim (during an upgrade) and the hot-plug controller speak it:

    POST /cni       {"env": {...}, "config": "<base64 of stdin>"}
    POST /delegate  the same and "interfaceAttributes": {"ips": [...], "mac": "...", "cni-args": {...}}
    GET or POST /healthz, /readyz

and, of our own, what `multusctl` asks:

    GET /timelines, or /timelines?container=ID                       where the time of calls went
    GET /devices, POST /devices/allocate, /release and /create       `multusctl vf` (multus.byhand)

200 carries {"Result": <result of CNI 1.0.0>} for an ADD and nothing otherwise; an error is 400 with the CNI error.
Source: multus-cni v4.3, pkg/server. One request a connection, as its client does it.
"""

from collections.abc import Mapping
from typing import Final
from urllib.parse import parse_qs

import h11
import msgspec

from multus.byhand_asks import Operation
from multus.cni.errors import CNIError, Code
from multus.cni.result import encode_result, parse_result
from multus.wire import MAX_CONF, MAX_ENV

MAX_BODY = MAX_CONF * 4 // 3 + 2 * MAX_ENV  # base64, and JSON's escapes in the environment
_MAX_HEAD = 32 * 1024
_COMMANDS = {"/cni": ("ADD", "DEL", "CHECK", "STATUS", "GC"), "/delegate": ("ADD", "DEL", "CHECK", "STATUS")}
_PROBES = ("/healthz", "/readyz")
_TIMELINES = "/timelines"
_DEVICES: Final[dict[str, tuple[Operation, bytes]]] = {
    "/devices": ("show", b"GET"),
    "/devices/allocate": ("allocate", b"POST"),
    "/devices/release": ("release", b"POST"),
    "/devices/create": ("create", b"POST"),
}


class InterfaceAttributes(msgspec.Struct, frozen=True, kw_only=True):
    """What the hot-plug controller asks of one interface: addresses (CIDR or bare), MAC, and `args.cni`."""

    ips: tuple[str, ...] = ()
    mac: str = ""
    cni_args: dict[str, object] = {}


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """An HTTP answer. A body is JSON."""

    status: int = 200
    body: bytes = b""


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """A CNI call; `attributes` only (and always) for one delegate's: /delegate."""

    env: dict[str, str]
    conf: bytes
    attributes: InterfaceAttributes | None = None


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    """A health question: whether the daemon runs, or whether it can serve attaches (`readiness`)."""

    readiness: bool


class TimelineQuery(msgspec.Struct, frozen=True, kw_only=True):
    """A question for where the last calls' time went; of one `container`, or "" for all."""

    container: str = ""


class DeviceRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody asks of the node's pools; `body` is a JSON document."""

    operation: Operation
    body: bytes = b""


Request = Call | Probe | TimelineQuery | DeviceRequest | Answer


class _Attributes(msgspec.Struct):
    ips: list[str] | None = None
    mac: str | None = None
    cni_args: dict[str, object] | None = msgspec.field(default=None, name="cni-args")


class _Envelope(msgspec.Struct):
    """The body, where Go writes null for what is empty."""

    env: dict[str, str] | None = None
    config: bytes | None = None
    interface_attributes: _Attributes | None = msgspec.field(default=None, name="interfaceAttributes")


class Exchange:
    """One HTTP connection's only request and its answer; does no I/O.

    Feed it what arrives until it returns the call, the probe, or the answer to a request that is neither.
    """

    def __init__(self) -> None:
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=_MAX_HEAD)
        self._request: h11.Request | None = None
        self._body = bytearray()

    def feed(self, data: bytes) -> Request | None:
        """The request, once `data` (b"" for the end of the stream) completes it. Never raises."""
        try:
            self._http.receive_data(data)
            while True:
                event = self._http.next_event()
                if isinstance(event, h11.Request):
                    self._request = event
                elif isinstance(event, h11.Data):
                    self._body += event.data
                    if len(self._body) > MAX_BODY:
                        return _refuse(Code.DECODING_FAILURE, f"body of more than {MAX_BODY} bytes", status=413)
                elif isinstance(event, h11.EndOfMessage):
                    return self._route()
                else:
                    return None
        except h11.RemoteProtocolError as error:
            return _refuse(Code.DECODING_FAILURE, f"not HTTP/1.1: {error}")

    def go_on(self) -> bytes:
        """What a client with a large body may wait for before it sends it (100 Continue), or b""."""
        if not self._http.they_are_waiting_for_100_continue:
            return b""
        return self._http.send(h11.InformationalResponse(status_code=100, headers=[])) or b""

    def answer(self, answer: Answer) -> bytes:
        """The answer's bytes; the connection ends with them."""
        headers = [("Content-Length", str(len(answer.body))), ("Connection", "close")]
        if answer.body:
            headers.append(("Content-Type", "application/json"))
        if answer.status == 405:
            headers.append(("Allow", self._allowed()))
        head = self._http.send(h11.Response(status_code=answer.status, headers=headers)) or b""
        if self._request is not None and self._request.method == b"HEAD":
            return head
        return head + (self._http.send(h11.Data(data=answer.body)) or b"")

    def _allowed(self) -> str:
        path = self._path()
        if path in _PROBES:
            return "GET, POST"
        return "GET" if path == _TIMELINES else _DEVICES[path][1].decode() if path in _DEVICES else "POST"

    def _path(self) -> str:
        return self._request.target.decode("ascii").partition("?")[0] if self._request else ""

    def _route(self) -> Request:
        assert self._request is not None
        method, path = self._request.method, self._path()
        if path in _PROBES:
            return Probe(readiness=path == "/readyz") if method in (b"GET", b"POST") else Answer(status=405)
        if path == _TIMELINES:
            query = parse_qs(self._request.target.decode("ascii").partition("?")[2])
            return TimelineQuery(container=query.get("container", [""])[0]) if method == b"GET" else Answer(status=405)
        if path in _DEVICES:
            operation, verb = _DEVICES[path]
            if method != verb:
                return Answer(status=405)
            return DeviceRequest(operation=operation, body=bytes(self._body))
        if path not in _COMMANDS:
            return Answer(status=404)
        if method != b"POST":
            return Answer(status=405)
        try:
            return _decode_call(path, bytes(self._body))
        except CNIError as error:
            return failure(error)


def conclude(call: Call, outcome: bytes | CNIError) -> Answer:
    """The answer to a call: stdout or the error. The client converts a result from 1.0.0 to its own version."""
    if isinstance(outcome, CNIError):
        return failure(outcome)
    if call.env.get("CNI_COMMAND") != "ADD":
        return Answer()
    try:
        result = encode_result(parse_result(outcome, where="the answer to an ADD"), "1.0.0")
    except CNIError as error:
        return failure(error)
    return Answer(body=msgspec.json.encode({"Result": msgspec.Raw(result)}))


def failure(error: CNIError, *, status: int = 400) -> Answer:
    """The answer to what failed."""
    return Answer(status=status, body=msgspec.json.encode({"details": "", **error.body()}))


def _refuse(code: Code, message: str, *, status: int = 400) -> Answer:
    return failure(CNIError(code, message), status=status)


def _decode_call(path: str, body: bytes) -> Call:
    try:
        envelope = msgspec.json.decode(body, type=_Envelope)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CNIError(Code.DECODING_FAILURE, f"POST {path}: {error}") from None
    env = {name: value for name, value in (envelope.env or {}).items() if name.startswith("CNI_")}
    _check_env(path, env)
    if path == "/cni" and env["CNI_COMMAND"] in ("ADD", "DEL", "CHECK"):
        env.setdefault("CNI_IFNAME", "eth0")  # as upstream's server does
    attributes = None
    if path == "/delegate":
        given = envelope.interface_attributes or _Attributes()
        attributes = InterfaceAttributes(ips=tuple(given.ips or ()), mac=given.mac or "", cni_args=given.cni_args or {})
    return Call(env=env, conf=envelope.config or b"", attributes=attributes)


def _check_env(path: str, env: Mapping[str, str]) -> None:
    """What must be there, in upstream's words; whether it is valid is not judged here."""
    command = env.get("CNI_COMMAND")
    if command not in _COMMANDS[path]:
        raise CNIError(Code.INVALID_ENVIRONMENT, "unexpected or missing CNI_COMMAND")
    if command in ("STATUS", "GC") and path == "/cni":
        return
    needed = ["CNI_CONTAINERID", "CNI_NETNS", "CNI_ARGS"]
    if path == "/delegate":
        needed.append("CNI_IFNAME")  # a call for the pod has eth0 as its default; here that would be the wrong one
    for name in needed:
        if name not in env:
            raise CNIError(Code.INVALID_ENVIRONMENT, f"missing {name}")
    arguments = {}
    for pair in filter(None, env["CNI_ARGS"].split(";")):
        name, separator, value = pair.partition("=")
        if not separator:
            raise CNIError(Code.INVALID_ENVIRONMENT, f"invalid CNI_ARG '{pair}'")
        arguments[name] = value
    for name in ("K8S_POD_NAMESPACE", "K8S_POD_NAME"):
        if path == "/cni" and name not in arguments:
            raise CNIError(Code.INVALID_ENVIRONMENT, f"missing {name}")

"""Upstream's shim protocol: what its clients send, what they must be told, and everything else that speaks HTTP."""

import base64
import json
from typing import Any

import h11
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multus.byhand_asks import Operation
from multus.cni.errors import CNIError, Code
from multus.upstream import (
    MAX_BODY,
    Answer,
    Call,
    DeviceRequest,
    Exchange,
    Probe,
    Request,
    TimelineQuery,
    conclude,
    failure,
)

ENV = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "c1",
    "CNI_NETNS": "/run/netns/x",
    "CNI_IFNAME": "eth0",
    "CNI_ARGS": "IgnoreUnknown=true;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;K8S_POD_UID=u1",
    "PATH": "/bin",
    "HOME": "/root",
}
CONF = b'{"cniVersion":"0.3.1","name":"multus","type":"multus"}'


def body(*, env: dict[str, str] | None = None, conf: bytes = CONF, **more: Any) -> bytes:
    return json.dumps({"env": ENV if env is None else env, "config": base64.b64encode(conf).decode(), **more}).encode()


def http(target: str, content: bytes = b"", *, method: str = "POST", headers: tuple[str, ...] = ()) -> bytes:
    """As Go's net/http writes it."""
    lines = [
        f"{method} {target} HTTP/1.1",
        "Host: dummy",
        "User-Agent: Go-http-client/1.1",
        f"Content-Length: {len(content)}",
        "Content-Type: application/json",
        "Connection: close",
        *headers,
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + content


def ask(data: bytes) -> tuple[Exchange, Request | None]:
    exchange = Exchange()
    return exchange, exchange.feed(data)


def parse(answer: bytes, *, method: str = "POST") -> tuple[int, dict[bytes, bytes], bytes]:
    """What a client reads of an answer, to its end."""
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method=method, target="/", headers=[("Host", "dummy")]))
    client.send(h11.EndOfMessage())
    client.receive_data(answer)
    client.receive_data(b"")
    response = client.next_event()
    assert isinstance(response, h11.Response)
    content = b""
    while isinstance(event := client.next_event(), h11.Data):
        content += event.data
    assert isinstance(event, h11.EndOfMessage)
    return response.status_code, dict(response.headers), content


def without(name: str) -> dict[str, str]:
    return {key: value for key, value in ENV.items() if key != name}


# ---------------------------------------------------------------- requests


def test_a_call_comes_out_with_its_cni_variables_only() -> None:
    _, call = ask(http("/cni", body()))
    assert isinstance(call, Call)
    assert call.env == {key: value for key, value in ENV.items() if key.startswith("CNI_")}
    assert call.conf == CONF
    assert call.attributes is None


@pytest.mark.parametrize("cut", range(1, 400, 7))
def test_a_call_may_come_in_pieces(cut: int) -> None:
    data = http("/cni", body())
    exchange = Exchange()
    assert exchange.feed(data[:cut]) is None
    assert isinstance(exchange.feed(data[cut:]), Call)


def test_a_chunked_body_and_http_1_0_are_taken() -> None:
    content = body()
    chunked = f"POST /cni HTTP/1.1\r\nHost: d\r\nTransfer-Encoding: chunked\r\n\r\n{len(content):x}\r\n".encode()
    _, call = ask(chunked + content + b"\r\n0\r\n\r\n")
    assert isinstance(call, Call)
    _, call = ask(f"POST /cni HTTP/1.0\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content)
    assert isinstance(call, Call)


def test_a_client_that_waits_for_100_is_told_to_go_on_once() -> None:
    content = body()
    exchange = Exchange()
    assert exchange.feed(http("/cni", content, headers=("Expect: 100-continue",))[: -len(content)]) is None
    assert exchange.go_on().startswith(b"HTTP/1.1 100")
    assert exchange.go_on() == b""
    assert isinstance(exchange.feed(content), Call)


def test_a_hot_plug_call_carries_attributes() -> None:
    attributes = {"ips": ["10.1.1.7/24"], "mac": "02:00:00:00:00:07", "cni-args": {"vlan": 7}}
    _, call = ask(http("/delegate", body(interfaceAttributes=attributes)))
    assert isinstance(call, Call)
    assert call.attributes is not None
    assert call.attributes.ips == ("10.1.1.7/24",)
    assert call.attributes.mac == "02:00:00:00:00:07"
    assert call.attributes.cni_args == {"vlan": 7}


@pytest.mark.parametrize("given", [None, {}, {"ips": None, "mac": "", "cni-args": None}])
def test_a_hot_plug_call_has_attributes_even_when_all_are_empty(given: Any) -> None:
    _, call = ask(http("/delegate", body(interfaceAttributes=given)))
    assert isinstance(call, Call)
    assert call.attributes is not None
    assert (call.attributes.ips, call.attributes.mac, call.attributes.cni_args) == ((), "", {})


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(("path", "readiness"), [("/healthz", False), ("/readyz", True), ("/readyz?verbose", True)])
def test_probes(method: str, path: str, readiness: bool) -> None:
    _, probe = ask(http(path, b"null", method=method))
    assert probe == Probe(readiness=readiness)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/cni", 405),
        ("PUT", "/cni", 405),
        ("GET", "/delegate", 405),
        ("DELETE", "/healthz", 405),
        ("HEAD", "/readyz", 405),
        ("POST", "/", 404),
        ("GET", "/metrics", 404),
        ("POST", "/cni/", 404),
        ("POST", "http://dummy/cni", 404),
        ("OPTIONS", "*", 404),
        ("CONNECT", "a:1", 404),
    ],
)
def test_other_methods_and_paths(method: str, path: str, status: int) -> None:
    exchange, answer = ask(http(path, b"", method=method))
    assert isinstance(answer, Answer)
    code, headers, content = parse(exchange.answer(answer), method=method)
    assert (code, content) == (status, b"")
    assert headers[b"connection"] == b"close"
    if status == 405:
        assert headers[b"allow"] == (b"POST" if path in ("/cni", "/delegate") else b"GET, POST")


@pytest.mark.parametrize(
    ("env", "says"),
    [
        (without("CNI_COMMAND"), "unexpected or missing CNI_COMMAND"),
        ({**ENV, "CNI_COMMAND": "VERSION"}, "unexpected or missing CNI_COMMAND"),
        ({**ENV, "CNI_COMMAND": "add"}, "unexpected or missing CNI_COMMAND"),
        (without("CNI_CONTAINERID"), "missing CNI_CONTAINERID"),
        (without("CNI_NETNS"), "missing CNI_NETNS"),
        (without("CNI_ARGS"), "missing CNI_ARGS"),
        ({**ENV, "CNI_ARGS": "K8S_POD_NAME=web"}, "missing K8S_POD_NAMESPACE"),
        ({**ENV, "CNI_ARGS": "K8S_POD_NAMESPACE=d"}, "missing K8S_POD_NAME"),
        ({**ENV, "CNI_ARGS": "K8S_POD_NAMESPACE:d"}, "invalid CNI_ARG 'K8S_POD_NAMESPACE:d'"),
    ],
)
def test_what_is_missing_is_said_in_upstreams_words(env: dict[str, str], says: str) -> None:
    _, answer = ask(http("/cni", body(env=env)))
    assert isinstance(answer, Answer)
    assert answer.status == 400
    assert json.loads(answer.body) == {"code": 4, "msg": says, "details": ""}


@pytest.mark.parametrize("command", ["STATUS", "GC"])
def test_status_and_gc_need_no_container(command: str) -> None:
    _, call = ask(http("/cni", body(env={"CNI_COMMAND": command})))
    assert isinstance(call, Call)


def test_a_value_with_an_equals_sign_is_kept_whole() -> None:
    _, call = ask(http("/cni", body(env={**ENV, "CNI_ARGS": ENV["CNI_ARGS"] + ";BLAH=foo=bar;"})))
    assert isinstance(call, Call)


def test_the_interface_may_be_missing_for_a_pod_and_not_for_one_interface() -> None:
    _, call = ask(http("/cni", body(env=without("CNI_IFNAME"))))
    assert isinstance(call, Call)
    assert call.env["CNI_IFNAME"] == "eth0"
    _, answer = ask(http("/delegate", body(env=without("CNI_IFNAME"))))
    assert isinstance(answer, Answer)
    assert b"missing CNI_IFNAME" in answer.body
    _, answer = ask(http("/delegate", body(env={"CNI_COMMAND": "GC"})))
    assert isinstance(answer, Answer)
    assert b"unexpected or missing CNI_COMMAND" in answer.body


def test_a_hot_plug_call_needs_no_pod() -> None:
    _, call = ask(http("/delegate", body(env={**ENV, "CNI_ARGS": ""})))
    assert isinstance(call, Call)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b'{"env":[],"config":""}',
        b'{"env":{"CNI_COMMAND":7}}',
        b'{"env":{},"config":"not base64!"}',
        b'{"env":{"CNI_COMMAND":"\\ud800"}}',
        b'{"env":{"CNI_COMMAND":"\xff"}}',
        b'{"env":' * 20000,
        b'{"interfaceAttributes":{"cni-args":{"a":' + b"[" * 5000 + b"]" * 5000 + b"}}}",
    ],
)
def test_a_bad_body_is_the_clients_fault(content: bytes) -> None:
    for path in ("/cni", "/delegate"):
        _, answer = ask(http(path, content))
        assert isinstance(answer, Answer)
        assert answer.status == 400
        assert json.loads(answer.body)["code"] in (4, 6)


def test_a_missing_config_is_left_to_the_core() -> None:
    for content in (json.dumps({"env": ENV}), json.dumps({"env": ENV, "config": None})):
        _, call = ask(http("/cni", content.encode()))
        assert isinstance(call, Call)
        assert call.conf == b""


def test_not_http_is_answered_in_http() -> None:
    for data in (
        b"hello\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"POST /cni HTTP/1.1\r\nHost: d\r\nContent-Length: x\r\n\r\n",
    ):
        exchange, answer = ask(data)
        assert isinstance(answer, Answer)
        status, _, content = parse(exchange.answer(answer))
        assert status == 400
        assert json.loads(content)["code"] == 6


def test_a_head_without_an_end_is_cut_short() -> None:
    exchange, answer = Exchange(), None
    for _ in range(100):
        answer = exchange.feed(b"X-Filler: " + b"x" * 1000) if answer is None else answer
    assert isinstance(answer, Answer)
    assert answer.status == 400


@pytest.mark.parametrize("method", ["POST", "HEAD"])
def test_a_body_without_an_end_is_cut_short(method: str) -> None:
    exchange = Exchange()
    answer = exchange.feed(f"{method} /cni HTTP/1.1\r\nHost: d\r\nContent-Length: {MAX_BODY + 1}\r\n\r\n".encode())
    chunk = bytes(1 << 20)
    for _ in range(MAX_BODY // len(chunk) + 1):
        answer = exchange.feed(chunk) if answer is None else answer
    assert isinstance(answer, Answer)
    status, _, content = parse(exchange.answer(answer), method=method)
    assert status == 413
    assert bool(content) == (method == "POST")


@settings(deadline=None)
@given(
    data=st.binary(max_size=200)
    | st.text(st.sampled_from("GETPOS /cni HTTP/1.\r\n:;0127héx"), max_size=80).map(str.encode)
)
def test_arbitrary_bytes_never_raise(data: bytes) -> None:
    for prefix in (
        b"",
        b"POST /cni HTTP/1.1\r\n",
        b"POST /cni HTTP/1.1\r\nHost: d\r\nTransfer-Encoding: chunked\r\n\r\n",
    ):
        exchange = Exchange()
        found = exchange.feed(prefix + data)
        if found is None:
            exchange.go_on()
            found = exchange.feed(b"")
        if isinstance(found, Answer):
            assert exchange.answer(found).startswith(b"HTTP/1.1 ")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(env=JSON, config=JSON, attributes=JSON, path=st.sampled_from(["/cni", "/delegate"]))
def test_arbitrary_bodies_never_raise(env: Any, config: Any, attributes: Any, path: str) -> None:
    content = json.dumps({"env": env, "config": config, "interfaceAttributes": attributes}).encode()
    assert ask(http(path, content))[1] is not None


# ---------------------------------------------------------------- answers

RESULT = {
    "cniVersion": "0.3.1",
    "interfaces": [{"name": "eth0", "sandbox": "/run/netns/x"}],
    "ips": [{"version": "4", "interface": 0, "address": "10.1.1.5/24"}],
    "dns": {},
}


def test_a_result_is_given_in_version_1_0_0() -> None:
    exchange, call = ask(http("/cni", body()))
    assert isinstance(call, Call)
    status, headers, content = parse(exchange.answer(conclude(call, json.dumps(RESULT).encode())))
    assert status == 200
    assert headers[b"content-type"] == b"application/json"
    result = json.loads(content)["Result"]
    assert result["cniVersion"] == "1.0.0"
    assert result["ips"] == [{"interface": 0, "address": "10.1.1.5/24"}]


@pytest.mark.parametrize("command", ["DEL", "CHECK", "STATUS", "GC"])
def test_other_commands_have_an_empty_body(command: str) -> None:
    exchange, call = ask(http("/cni", body(env={**ENV, "CNI_COMMAND": command})))
    assert isinstance(call, Call)
    assert parse(exchange.answer(conclude(call, b"")))[::2] == (200, b"")


def test_an_error_keeps_its_code() -> None:
    exchange, call = ask(http("/cni", body(env={**ENV, "CNI_COMMAND": "STATUS"})))
    assert isinstance(call, Call)
    error = CNIError(Code.NOT_AVAILABLE, "status failed", "no route", hint="wait")
    status, _, content = parse(exchange.answer(conclude(call, error)))
    assert status == 400
    assert json.loads(content) == {"code": 50, "msg": "status failed", "details": "no route; wait"}


def test_a_result_that_is_none_is_an_error() -> None:
    _, call = ask(http("/cni", body()))
    assert isinstance(call, Call)
    answer = conclude(call, b"garbage")
    assert answer.status == 400
    assert "msg" in msgspec.json.decode(answer.body)


def test_an_error_may_name_a_path_that_is_not_utf_8() -> None:
    answer = failure(CNIError(Code.INTERNAL, "cannot read /x/\udcff"), status=500)
    assert answer.status == 500
    assert json.loads(answer.body) == {"code": 999, "msg": "cannot read /x/\\udcff", "details": ""}


@pytest.mark.parametrize(
    ("target", "container"),
    [("/timelines", ""), ("/timelines?container=c1", "c1"), ("/timelines?other=1&container=a%2Bb", "a+b")],
)
def test_where_time_went_is_asked_for_by_container(target: str, container: str) -> None:
    _, query = ask(http(target, method="GET"))
    assert query == TimelineQuery(container=container)


def test_timelines_are_only_read() -> None:
    exchange, refused = ask(http("/timelines"))
    assert isinstance(refused, Answer)
    status, headers, _ = parse(exchange.answer(refused))
    assert (status, headers[b"allow"]) == (405, b"GET")


@pytest.mark.parametrize(
    ("method", "path", "operation"),
    [
        ("GET", "/devices", "show"),
        ("POST", "/devices/allocate", "allocate"),
        ("POST", "/devices/release", "release"),
        ("POST", "/devices/create", "create"),
    ],
)
def test_devices_are_asked_for(method: str, path: str, operation: Operation) -> None:
    _, request = ask(http(path, b"{}", method=method))
    assert request == DeviceRequest(operation=operation, body=b"{}")
    exchange, refused = ask(http(path, b"{}", method="PUT"))
    assert isinstance(refused, Answer)
    status, headers, _ = parse(exchange.answer(refused))
    assert (status, headers[b"allow"]) == (405, method.encode())

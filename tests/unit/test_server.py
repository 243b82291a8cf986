"""The socket's edge: right answers for good peers, and no bad peer in anybody's way."""

import base64
import fcntl
import json
import os
import resource
import socket
import termios
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.abc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from multus.byhand_asks import ByHandError, Operation
from multus.cni.errors import CNIError, Code
from multus.server import InterfaceAttributes, Server
from multus.wire import MAX_CONF, MAX_OUTPUT, ResponseFrame, decode_response, encode_request

pytestmark = pytest.mark.anyio

CONF = b'{"cniVersion":"0.4.0","name":"multus","type":"multus"}'
ENV = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "c1",
    "CNI_NETNS": "/run/netns/x",
    "CNI_IFNAME": "eth0",
    "CNI_ARGS": "K8S_POD_NAMESPACE=default;K8S_POD_NAME=web",
}
RESULT = b'{"cniVersion":"0.4.0","ips":[{"version":"4","address":"10.1.1.5/24"}]}'


class Fake:
    """Stands behind the socket: answers, or holds what it is told to hold."""

    def __init__(self) -> None:
        self.calls: list[tuple[dict[str, str], bytes, InterfaceAttributes | None]] = []
        self.ended: list[str] = []
        self.answer: bytes | Exception = RESULT
        self.holds: set[str] = set()  # container ids
        self.go = anyio.Event()
        self.health = (True, "")

    async def cni(self, env: Mapping[str, str], conf: bytes) -> bytes:
        return await self._answer(env, conf, None)

    async def delegate(self, env: Mapping[str, str], conf: bytes, attributes: InterfaceAttributes) -> bytes:
        return await self._answer(env, conf, attributes)

    async def _answer(self, env: Mapping[str, str], conf: bytes, attributes: InterfaceAttributes | None) -> bytes:
        self.calls.append((dict(env), conf, attributes))
        container = env.get("CNI_CONTAINERID", "")
        try:
            if container in self.holds:
                await self.go.wait()
        except anyio.get_cancelled_exc_class():
            self.ended.append(f"{container} cancelled")
            raise
        self.ended.append(f"{container} done")
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def ready(self) -> tuple[bool, str]:
        return self.health

    @property
    def asked(self) -> list[str]:
        """The containers that calls came for, in order."""
        return [env.get("CNI_CONTAINERID", "") for env, _, _ in self.calls]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "multus.sock"


@pytest.fixture
def fake() -> Fake:
    return Fake()


@asynccontextmanager
async def serving(server: Server) -> AsyncIterator[anyio.abc.TaskGroup]:
    """A group that the server runs in, for further tasks; it is stopped the hard way at the end."""
    async with anyio.create_task_group() as group:
        await group.start(server.serve)
        yield group
        group.cancel_scope.cancel()


@pytest.fixture
async def served(path: Path, fake: Fake) -> AsyncIterator[Path]:
    async with serving(Server(path, fake)):
        yield path


def frame(container: str = "c1", command: str = "ADD", conf: bytes = CONF) -> bytes:
    return encode_request({**ENV, "CNI_COMMAND": command, "CNI_CONTAINERID": container}, conf)


async def everything(stream: anyio.abc.SocketStream) -> bytes:
    """What the server sends, until it closes."""
    data = b""
    with anyio.fail_after(10):
        try:
            while True:
                data += await stream.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            return data


async def exchange(path: Path, data: bytes) -> bytes:
    async with await anyio.connect_unix(path) as stream:
        await stream.send(data)
        return await everything(stream)


async def call(path: Path, container: str = "c1", command: str = "ADD", conf: bytes = CONF) -> ResponseFrame:
    return decode_response(await exchange(path, frame(container, command, conf)))


def unread(stream: anyio.abc.SocketStream) -> int:
    """Bytes sent that the server has yet to take (TIOCOUTQ, unix(7))."""
    raw = stream.extra(anyio.abc.SocketAttribute.raw_socket)
    return int.from_bytes(fcntl.ioctl(raw, termios.TIOCOUTQ, bytes(4)), "little")


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(10):
        while not condition():
            await anyio.sleep(0.001)


# ---------------------------------------------------------------- frames


async def test_a_call_is_handed_over_and_answered(served: Path, fake: Fake) -> None:
    answer = await call(served)
    assert (answer.code, answer.stdout) == (0, RESULT)
    assert fake.calls == [(ENV, CONF, None)]


@pytest.mark.parametrize(
    ("conf", "version"),
    [
        (CONF, "0.4.0"),
        (b'{"cniVersion":"1.1.0"}', "1.1.0"),
        (b'{"cniVersion":""}', "1.0.0"),
        (b'{"cniVersion":7}', "1.0.0"),
        (b"{}", "1.0.0"),
        (b"\xff{", "1.0.0"),
        (b"[" * 100_000, "1.0.0"),
    ],
)
async def test_an_error_is_told_in_the_callers_version(served: Path, fake: Fake, conf: bytes, version: str) -> None:
    fake.answer = CNIError(Code.TRY_AGAIN_LATER, "not now", "busy", hint="wait")
    answer = await call(served, conf=conf)
    assert answer.code == 1
    assert json.loads(answer.stdout) == {"cniVersion": version, "code": 11, "msg": "not now", "details": "busy; wait"}


async def test_a_defect_is_answered_and_the_server_lives(
    served: Path, fake: Fake, caplog: pytest.LogCaptureFixture
) -> None:
    fake.answer = ZeroDivisionError("oops")
    answer = await call(served)
    assert json.loads(answer.stdout)["code"] == 999
    assert "ZeroDivisionError" in caplog.text
    fake.answer = RESULT
    assert (await call(served)).code == 0


@pytest.mark.parametrize(
    "answer",
    [
        bytes(MAX_OUTPUT + 1),
        CNIError(Code.INTERNAL, "x" * (MAX_OUTPUT + 1)),
        CNIError(Code.INTERNAL, "x", "y" * (MAX_OUTPUT + 1)),
        CNIError(Code.INTERNAL, "a path \udcff that is not UTF-8"),
    ],
    ids=["result", "message", "details", "surrogate"],
)
async def test_what_cannot_be_sent_becomes_an_error_that_can(
    served: Path, fake: Fake, answer: bytes | Exception
) -> None:
    fake.answer = answer
    told = await call(served)
    assert told.code == 1
    assert json.loads(told.stdout)["code"] == 999


async def test_a_request_may_come_byte_by_byte(served: Path) -> None:
    async with await anyio.connect_unix(served) as stream:
        for byte in frame():
            await stream.send(bytes([byte]))
        assert decode_response(await everything(stream)).code == 0


async def test_the_largest_request_and_result_pass(served: Path, fake: Fake) -> None:
    fake.answer = bytes(MAX_OUTPUT)
    conf = b"{}".ljust(MAX_CONF)
    assert len((await call(served, conf=conf)).stdout) == MAX_OUTPUT
    assert fake.calls[0][1] == conf


async def test_what_follows_a_call_is_not_kept(served: Path, fake: Fake) -> None:
    fake.holds = {"c1"}
    async with await anyio.connect_unix(served) as stream:
        await stream.send(frame())
        await until(lambda: fake.asked == ["c1"])
        await stream.send(frame("c2") * 100)
        await until(lambda: unread(stream) == 0)
        fake.go.set()
        assert decode_response(await everything(stream)).code == 0
    assert fake.asked == ["c1"]


async def test_another_release_is_told_so(served: Path, fake: Fake) -> None:
    answer = decode_response(await exchange(served, b"\0MULTUS\x02" + bytes(8)))
    error = json.loads(answer.stdout)
    assert (answer.code, error["code"]) == (1, 6)
    assert "install both" in error["details"]
    assert fake.calls == []


# ---------------------------------------------------------------- bad peers

GARBAGE = {
    "nothing": b"",
    "no protocol": b"\x16\x03\x01 a TLS hello",
    "half a header": frame()[:9],
    "half a frame": frame()[:-1],
    "half an HTTP head": b"POST /cni HT",
    "half an HTTP body": b"POST /cni HTTP/1.1\r\nHost: d\r\nContent-Length: 10\r\n\r\n{",
}


@pytest.mark.parametrize("what", GARBAGE)
async def test_a_peer_that_leaves_early_is_forgotten(served: Path, fake: Fake, what: str) -> None:
    async with await anyio.connect_unix(served) as stream:
        await stream.send(GARBAGE[what])
    assert (await call(served, "good")).code == 0
    assert fake.asked == ["good"]


@pytest.mark.parametrize("what", GARBAGE)
async def test_a_peer_that_is_slow_is_given_up(
    path: Path, fake: Fake, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    async with serving(Server(path, fake, peer_seconds=0.05)):
        assert await exchange(path, GARBAGE[what]) == b""
        assert (await call(path, "good")).code == 0
    assert fake.asked == ["good"]
    assert ("longer than 0.05 s" in caplog.text) == (what != "no protocol")


async def test_a_peer_that_does_not_take_its_answer_is_given_up(
    path: Path, fake: Fake, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(Server(path, fake, peer_seconds=0.1, connections=1)):
        fake.answer = bytes(1 << 22)  # more than a socket holds
        async with await anyio.connect_unix(path) as stream:
            await stream.send(frame())
            await until(lambda: "longer than" in caplog.text)
            fake.answer = RESULT
            assert (await call(path, "good")).code == 0
    assert fake.asked == ["c1", "good"]


async def test_a_call_may_take_longer_than_a_peer(path: Path, fake: Fake) -> None:
    fake.holds = {"c1"}
    async with serving(Server(path, fake, peer_seconds=0.05)) as group:

        async def release() -> None:
            await anyio.sleep(0.15)
            fake.go.set()

        group.start_soon(release)
        assert (await call(path)).code == 0


async def test_sizes_that_nobody_means_are_refused_before_they_are_sent(served: Path) -> None:
    for sizes in (b"\xff" * 8, b"\0\0\0\1\xff\xff\xff\xff"):
        answer = decode_response(await exchange(served, b"\0MULTUS\x01" + sizes))
        assert json.loads(answer.stdout)["code"] == 6


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.binary(max_size=120)
    | st.builds(
        lambda head, rest: head + rest, st.sampled_from([frame()[:8], b"POST /cni HTTP/1.1\r\n", b"GET /"]), st.binary()
    )
    | st.builds(
        lambda at, junk: frame("fuzz")[:at] + junk + frame("fuzz")[at + len(junk) :],
        st.integers(0, len(frame("fuzz"))),
        st.binary(max_size=4),
    ),
    leaves=st.booleans(),
)
async def test_whatever_a_peer_sends_the_next_call_is_answered(
    served: Path, fake: Fake, caplog: pytest.LogCaptureFixture, data: bytes, leaves: bool
) -> None:
    async with await anyio.connect_unix(served) as stream:
        await stream.send(data)
        if leaves:
            await stream.send_eof()
            await everything(stream)
        assert (await call(served, "good")).code == 0
    assert fake.asked[-1] == "good"
    assert "a defect" not in caplog.text


# ---------------------------------------------------------------- callers that hang up


async def test_an_add_is_called_off_when_its_caller_is_gone(served: Path, fake: Fake) -> None:
    fake.holds = {"c1"}
    async with await anyio.connect_unix(served) as stream:
        await stream.send(frame("c1"))
        await until(lambda: fake.asked == ["c1"])
    await until(lambda: fake.ended == ["c1 cancelled"])


@pytest.mark.parametrize("command", ["DEL", "GC"])
async def test_a_del_goes_on_when_its_caller_is_gone(served: Path, fake: Fake, command: str) -> None:
    fake.holds = {"c1"}
    async with await anyio.connect_unix(served) as stream:
        await stream.send(frame("c1", command))
        await until(lambda: fake.asked == ["c1"])
    assert (await call(served, "c2")).code == 0
    assert fake.ended == ["c2 done"]
    fake.go.set()
    await until(lambda: fake.ended == ["c2 done", "c1 done"])


async def test_an_http_caller_that_hangs_up_calls_its_add_off(served: Path, fake: Fake) -> None:
    fake.holds = {"c1"}
    async with await anyio.connect_unix(served) as stream:
        await stream.send(http("POST", "/cni", body()))
        await until(lambda: fake.asked == ["c1"])
    await until(lambda: fake.ended == ["c1 cancelled"])


# ---------------------------------------------------------------- bounds


async def test_adds_beyond_the_limit_wait_and_dels_pass_them(path: Path, fake: Fake) -> None:
    fake.holds = {"a1", "a2"}
    async with serving(Server(path, fake, limit=1)) as group:
        answers: list[ResponseFrame] = []

        async def add(container: str) -> None:
            answers.append(await call(path, container))

        group.start_soon(add, "a1")
        await until(lambda: fake.asked == ["a1"])
        group.start_soon(add, "a2")
        assert (await call(path, "d1", "DEL")).code == 0
        assert (await call(path, "g1", "GC")).code == 0
        assert fake.asked == ["a1", "d1", "g1"]
        assert (await exchange(path, http("GET", "/healthz"))).startswith(b"HTTP/1.1 200")
        fake.go.set()
        await until(lambda: len(answers) == 2)
        assert fake.asked == ["a1", "d1", "g1", "a2"]


async def test_more_connections_than_allowed_wait_their_turn(path: Path, fake: Fake) -> None:
    fake.holds = {"c0", "c1"}
    async with serving(Server(path, fake, connections=2)) as group:
        answered: list[str] = []

        async def add(container: str) -> None:
            await call(path, container)
            answered.append(container)

        for number in range(6):
            group.start_soon(add, f"c{number}")
            await until(lambda number=number: len(fake.calls) == min(number + 1, 2))  # type: ignore[misc]
        fake.go.set()
        await until(lambda: len(answered) == 6)
    assert fake.asked == [f"c{number}" for number in range(6)]


async def test_a_hundred_callers_at_once(served: Path, fake: Fake) -> None:
    async def add(container: str) -> None:
        assert (await call(served, container)).code == 0

    async with anyio.create_task_group() as group:
        for number in range(100):
            group.start_soon(add, f"c{number}")
    assert sorted(fake.asked) == sorted(f"c{number}" for number in range(100))


async def test_out_of_descriptors_it_serves_again_when_there_are_some(
    served: Path, fake: Fake, caplog: pytest.LogCaptureFixture
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket(socket.AF_UNIX) as client:
        lowest_free = os.dup(0)
        os.close(lowest_free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
        try:
            client.connect(str(served))
            client.send(frame("patient"))
            await until(lambda: "cannot accept a connection" in caplog.text)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        await until(lambda: fake.asked == ["patient"])
    assert "Too many open files" in caplog.text


# ---------------------------------------------------------------- HTTP


def body(**more: str) -> bytes:
    return json.dumps({"env": {**ENV, **more}, "config": base64.b64encode(CONF).decode()}).encode()


def http(method: str, target: str, content: bytes = b"") -> bytes:
    return f"{method} {target} HTTP/1.1\r\nHost: dummy\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content


def parts(answer: bytes) -> tuple[int, bytes]:
    head, _, content = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), content


async def test_upstreams_shim_adds_and_deletes(served: Path, fake: Fake) -> None:
    status, content = parts(await exchange(served, http("POST", "/cni", body())))
    assert status == 200
    assert json.loads(content)["Result"]["cniVersion"] == "1.0.0"
    assert parts(await exchange(served, http("POST", "/cni", body(CNI_COMMAND="DEL")))) == (200, b"")
    assert [(env["CNI_COMMAND"], conf, attributes) for env, conf, attributes in fake.calls] == [
        ("ADD", CONF, None),
        ("DEL", CONF, None),
    ]
    fake.answer = CNIError(Code.LIMITED_CONNECTIVITY, "no v6")
    status, content = parts(await exchange(served, http("POST", "/cni", body(CNI_COMMAND="STATUS"))))
    assert (status, json.loads(content)["code"]) == (400, 51)


async def test_the_hot_plug_controller_has_its_own_door(served: Path, fake: Fake) -> None:
    content = json.loads(body()) | {"interfaceAttributes": {"ips": ["10.0.0.1"], "mac": "", "cni-args": None}}
    status, _ = parts(await exchange(served, http("POST", "/delegate", json.dumps(content).encode())))
    assert status == 200
    assert fake.calls == [(ENV, CONF, InterfaceAttributes(ips=("10.0.0.1",)))]


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_health_and_readiness(served: Path, fake: Fake, method: str) -> None:
    for target in ("/healthz", "/readyz"):
        assert parts(await exchange(served, http(method, target))) == (200, b"")
    fake.health = (False, "multusd is starting")
    assert parts(await exchange(served, http(method, "/healthz"))) == (200, b"")
    status, content = parts(await exchange(served, http(method, "/readyz")))
    assert status == 500
    assert json.loads(content) == {"code": 50, "msg": "multusd is starting", "details": ""}


@pytest.mark.parametrize(
    ("method", "target", "status"), [("GET", "/cni", 405), ("PUT", "/readyz", 405), ("GET", "/x", 404)]
)
async def test_other_methods_and_paths(served: Path, fake: Fake, method: str, target: str, status: int) -> None:
    assert parts(await exchange(served, http(method, target))) == (status, b"")
    assert fake.calls == []


async def test_a_client_that_asks_before_it_sends_is_told_to_go_on(served: Path) -> None:
    content = body()
    head = f"POST /cni HTTP/1.1\r\nHost: d\r\nExpect: 100-continue\r\nContent-Length: {len(content)}\r\n\r\n"
    async with await anyio.connect_unix(served) as stream:
        await stream.send(head.encode())
        with anyio.fail_after(10):
            assert (await stream.receive()).startswith(b"HTTP/1.1 100")
        await stream.send(content)
        assert parts(await everything(stream))[0] == 200


# ---------------------------------------------------------------- the end


async def test_draining_ends_what_runs_and_takes_nothing_more(path: Path, fake: Fake) -> None:
    fake.holds = {"c1"}
    server = Server(path, fake)
    async with serving(server) as group:
        answers: list[ResponseFrame] = []

        async def add() -> None:
            answers.append(await call(path, "c1"))

        group.start_soon(add)
        await until(lambda: fake.asked == ["c1"])
        async with (
            await anyio.connect_unix(path) as late,
            await anyio.connect_unix(path) as ready,
            await anyio.connect_unix(path) as healthy,
        ):
            await ready.send(b"P")  # so that they are all accepted by now
            await healthy.send(b"P")
            await anyio.wait_all_tasks_blocked()
            drained = anyio.Event()

            async def drain() -> None:
                await server.drain()
                drained.set()

            group.start_soon(drain)
            await anyio.wait_all_tasks_blocked()
            await late.send(frame("late"))
            assert await everything(late) == b"", "no answer: the shim asks the successor"
            await ready.send(http("POST", "/readyz")[1:])
            status, content = parts(await everything(ready))
            assert (status, json.loads(content)["msg"]) == (500, "multusd is shutting down")
            await healthy.send(http("POST", "/healthz")[1:])
            assert parts(await everything(healthy)) == (200, b"")
        with pytest.raises(OSError, match="refused"):
            await anyio.connect_unix(path)
        assert not drained.is_set()
        fake.go.set()
        with anyio.fail_after(10):
            await drained.wait()
        await until(lambda: len(answers) == 1)
    assert answers[0].code == 0
    assert fake.asked == ["c1"]
    assert path.exists(), "a successor may have made it already"


async def test_draining_does_not_wait_for_idle_peers(path: Path, fake: Fake) -> None:
    server = Server(path, fake)
    async with serving(server), await anyio.connect_unix(path) as idle:
        await idle.send(frame()[:5])
        await anyio.wait_all_tasks_blocked()
        with anyio.fail_after(5):
            await server.drain()
        assert await everything(idle) == b""


async def test_what_does_not_end_is_cancelled_after_a_while(
    path: Path, fake: Fake, caplog: pytest.LogCaptureFixture
) -> None:
    fake.holds = {"c1"}
    server = Server(path, fake, drain_seconds=0.05)
    async with serving(server), await anyio.connect_unix(path) as stream:
        await stream.send(frame("c1", "DEL"))
        await until(lambda: fake.asked == ["c1"])
        with anyio.fail_after(5):
            await server.drain()
        assert await everything(stream) == b"", "no success for what was not done"
    assert fake.ended == ["c1 cancelled"]
    assert "1 calls did not end" in caplog.text


async def test_a_successor_gets_what_the_draining_one_does_not_take(path: Path, fake: Fake) -> None:
    fake.holds = {"c1"}
    old, successor = Server(path, fake), Fake()
    async with serving(old) as group:
        group.start_soon(call, path, "c1")
        await until(lambda: fake.asked == ["c1"])
        group.start_soon(old.drain)
        await anyio.wait_all_tasks_blocked()
        async with serving(Server(path, successor)):
            assert (await call(path, "c2")).code == 0
            fake.go.set()
            await until(lambda: fake.ended == ["c1 done"])
            assert (await call(path, "c3")).code == 0
    assert (fake.asked, successor.asked) == (["c1"], ["c2", "c3"])


async def test_draining_a_server_that_never_began_ends_it(path: Path, fake: Fake) -> None:
    server = Server(path, fake)
    await server.drain()
    with anyio.fail_after(5):
        await server.serve()


async def test_a_server_that_is_cancelled_cancels_what_runs(path: Path, fake: Fake) -> None:
    fake.holds = {"c1"}
    async with serving(Server(path, fake)):
        stream = await anyio.connect_unix(path)
        await stream.send(frame("c1"))
        await until(lambda: fake.asked == ["c1"])
    assert fake.ended == ["c1 cancelled"]
    await stream.aclose()


# ---------------------------------------------------------------- devices


class Devices:
    """What answers for the pools."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, bytes]] = []
        self.error: Exception | None = None
        self.go = anyio.Event()
        self.go.set()

    async def answer(self, operation: Operation, body: bytes) -> bytes:
        self.asked.append((operation, body))
        await self.go.wait()
        if self.error is not None:
            raise self.error
        return b'{"devices":[]}'


def wanting(body: bytes = b"{}") -> bytes:
    head = f"POST /devices/allocate HTTP/1.1\r\nHost: multus\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def test_devices_are_asked_for_and_refused(path: Path, fake: Fake) -> None:
    devices = Devices()
    async with serving(Server(path, fake, devices=devices.answer)):
        assert parts(await exchange(path, wanting(b'{"pool":"x"}'))) == (200, b'{"devices":[]}')
        assert parts(await exchange(path, http("GET", "/devices")))[0] == 200
        assert devices.asked == [("allocate", b'{"pool":"x"}'), ("show", b"")]
        devices.error = ByHandError("none is free", hint="wait")
        status, content = parts(await exchange(path, wanting()))
        assert (status, json.loads(content)) == (400, {"code": 7, "msg": "none is free", "details": "wait"})
        devices.error = ValueError("x")
        status, content = parts(await exchange(path, wanting()))
        assert (status, json.loads(content)["msg"]) == (500, "ValueError: x")
    assert fake.calls == []


async def test_devices_are_roots_alone(path: Path, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    devices = Devices()
    monkeypatch.setattr("multus.server.trusted", lambda stream: False)
    async with serving(Server(path, fake, devices=devices.answer)):
        assert await exchange(path, wanting()) == b""
    assert devices.asked == []


async def test_who_hangs_up_has_his_devices_all_the_same_and_the_end_waits_for_them(path: Path, fake: Fake) -> None:
    devices = Devices()
    devices.go = anyio.Event()
    server = Server(path, fake, devices=devices.answer)
    async with serving(server) as group:
        async with await anyio.connect_unix(path) as stream:
            await stream.send(wanting())
            await until(lambda: len(devices.asked) == 1)
        drained = anyio.Event()

        async def drain() -> None:
            await server.drain()
            drained.set()

        group.start_soon(drain)
        await anyio.sleep(0.05)
        assert not drained.is_set()
        devices.go.set()
        with anyio.fail_after(10):
            await drained.wait()


async def test_a_server_without_devices(served: Path) -> None:
    assert parts(await exchange(served, wanting()))[0] == 503

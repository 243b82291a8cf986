"""The program that the runtime executes: one call to the daemon, and nothing claimed that was not done."""

import json
import os
import resource
import shutil
import socket
import stat
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from multus.cni.errors import CNIError, Code
from multus.server import InterfaceAttributes, Server
from multus.spool import Spool
from multus.wire import MAX_CONF, MAX_OUTPUT, encode_response

if TYPE_CHECKING:
    from .conftest import Daemon, Runtime

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to be somebody else")

NOBODY = 65534


def run(runtime: "Runtime", command: str, conf: bytes | None = None, /, **env: str) -> tuple[int, bytes]:
    """A call to its end: exit code and stdout. Nothing ever goes to stderr."""
    if conf is None:
        conf = json.dumps(runtime.conf()).encode()
    return end(runtime.start(runtime.env(command, **env), conf))


def end(process: "subprocess.Popen[bytes]") -> tuple[int, bytes]:
    stdout, stderr = process.communicate(timeout=30)
    assert stderr == b""
    return process.returncode, stdout


def error(outcome: tuple[int, bytes]) -> dict[str, Any]:
    """The CNI error that a call ended with."""
    code, stdout = outcome
    assert code == 1, stdout
    body: dict[str, Any] = json.loads(stdout)
    assert {"cniVersion", "code", "msg"} <= set(body) <= {"cniVersion", "code", "msg", "details"}
    return body


def stored(runtime: "Runtime") -> list[str]:
    return sorted(path.name for path in runtime.spool.iterdir())


# ---------------------------------------------------------------- for people


def test_it_says_its_version(shim: Path) -> None:
    done = subprocess.run([shim, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("multus ")
    assert done.stdout.count("\n") == 1


def test_it_tells_a_person_what_it_is(runtime: "Runtime") -> None:
    for command in ("", "add", "FLY"):
        body = error(run(runtime, command))
        assert body["code"] == 4
        assert "multusctl" in body["details"]


def test_version_needs_no_daemon(runtime: "Runtime") -> None:
    code, stdout = run(runtime, "VERSION", b'{"cniVersion":"0.3.1"}')
    assert code == 0
    assert json.loads(stdout) == {
        "cniVersion": "1.1.0",
        "supportedVersions": ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"],
    }


@pytest.mark.parametrize("arguments", [["--version"], []])
def test_output_that_cannot_be_written_is_no_success(runtime: "Runtime", arguments: list[str]) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run([runtime.program, *arguments], env=runtime.env("VERSION"), stdout=full, input=b"")
    assert done.returncode == 1


def test_no_shared_library_and_no_interpreter(shim: Path) -> None:
    data = shim.read_bytes()
    assert data[:5] == b"\x7fELF\x02"
    offset, size, count = struct.unpack_from("<Q", data, 32)[0], *struct.unpack_from("<HH", data, 54)
    kinds = {struct.unpack_from("<I", data, offset + index * size)[0] for index in range(count)}
    assert 1 in kinds, "PT_LOAD"
    assert not kinds & {2, 3}, "PT_DYNAMIC, PT_INTERP"
    assert len(data) < 2_000_000


# ---------------------------------------------------------------- a daemon that answers


class Handler:
    """Stands behind a real server."""

    def __init__(self, answer: bytes | Exception) -> None:
        self.calls: list[tuple[dict[str, str], bytes]] = []
        self._answer = answer

    async def cni(self, env: Mapping[str, str], conf: bytes) -> bytes:
        self.calls.append((dict(env), conf))
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer

    async def delegate(self, env: Mapping[str, str], conf: bytes, attributes: InterfaceAttributes) -> bytes:
        raise NotImplementedError

    def ready(self) -> tuple[bool, str]:
        return True, ""


@contextmanager
def serving(runtime: "Runtime", answer: bytes | Exception = b"{}") -> Iterator[Handler]:
    """The real server, in a thread with a loop of its own."""
    handler, up, stop = Handler(answer), threading.Event(), threading.Event()

    async def serve() -> None:
        server = Server(runtime.socket, handler)
        async with anyio.create_task_group() as group:
            await group.start(server.serve)
            up.set()
            await anyio.to_thread.run_sync(stop.wait)
            group.cancel_scope.cancel()

    thread = threading.Thread(target=anyio.run, args=(serve,))
    thread.start()
    try:
        assert up.wait(10)
        yield handler
    finally:
        stop.set()
        thread.join(10)


@pytest.mark.parametrize("command", ["ADD", "DEL", "CHECK", "GC", "STATUS"])
def test_every_command_reaches_the_daemon_as_it_is(runtime: "Runtime", command: str) -> None:
    conf = json.dumps(runtime.conf(extra=["\N{SNOWMAN}", 1e30]), ensure_ascii=False).encode()
    answer = b'{"cniVersion":"0.4.0","dns":{}}\n' if command == "ADD" else b""
    with serving(runtime, answer) as handler:
        assert run(runtime, command, conf, MULTUS_NONCE="mine", CNI_EMPTY="", HOME="/root") == (0, answer)
    ((env, got),) = handler.calls
    assert got == conf
    nonce = env.pop("MULTUS_NONCE")
    assert nonce != "mine"
    assert len(nonce) == 32
    assert int(nonce[:16], 16) / 1e9 == pytest.approx(time.time(), abs=60), "it begins with the time"
    expected = {name: value for name, value in runtime.env(command).items() if name.startswith("CNI_")}
    assert env == {**expected, "CNI_EMPTY": ""}


def test_an_error_is_passed_on_with_its_code(runtime: "Runtime") -> None:
    with serving(runtime, CNIError(Code.NOT_AVAILABLE, "no network", hint="wait")):
        body = error(run(runtime, "STATUS"))
    assert body == {"cniVersion": "0.4.0", "code": 50, "msg": "no network", "details": "wait"}


def test_many_calls_at_once_have_different_names(runtime: "Runtime") -> None:
    conf = json.dumps(runtime.conf()).encode()
    with serving(runtime) as handler:
        calls = [runtime.start(runtime.env("ADD", CNI_CONTAINERID=f"c{number}"), conf) for number in range(20)]
        assert [end(process)[0] for process in calls] == [0] * 20
    assert len({env["MULTUS_NONCE"] for env, _ in handler.calls}) == 20


@as_root
def test_a_server_refuses_a_shim_that_is_not_roots(open_runtime: "Runtime") -> None:
    runtime = open_runtime
    conf = json.dumps(runtime.conf()).encode()
    with serving(runtime) as handler:
        runtime.socket_dir.chmod(0o755)
        body = error(end(runtime.start(runtime.env("ADD"), conf, user=NOBODY)))
        assert body["code"] == 5
        assert "must run as root" in body["details"]
        runtime.socket.chmod(0o666)  # somebody loosens the mode
        body = error(end(runtime.start(runtime.env("ADD"), conf, user=NOBODY)))
        assert body["code"] == 11
        assert handler.calls == []
        assert end(runtime.start(runtime.env("ADD"), conf))[0] == 0


# ---------------------------------------------------------------- what is passed through


@pytest.mark.parametrize("code", [0, 1, 7, 255])
def test_the_exit_code_is_the_daemons(runtime: "Runtime", daemon: "Daemon", code: int) -> None:
    process = runtime.start(runtime.env("ADD"), json.dumps(runtime.conf()).encode())
    connection = daemon.accept()
    connection.request()
    connection.answer(code, b"any\0bytes\xff")
    assert end(process) == (code, b"any\0bytes\xff")


def test_the_largest_conf_and_answer_pass(runtime: "Runtime", daemon: "Daemon") -> None:
    conf = json.dumps(runtime.conf()).encode().ljust(MAX_CONF)
    process = runtime.start(runtime.env("ADD"), conf)
    connection = daemon.accept()
    assert connection.request().conf == conf
    answer = os.urandom(1 << 16) * (MAX_OUTPUT >> 16)
    connection.answer(0, answer)
    assert end(process) == (0, answer)


def test_a_larger_conf_is_refused(runtime: "Runtime") -> None:
    body = error(run(runtime, "ADD", json.dumps(runtime.conf()).encode().ljust(MAX_CONF + 1)))
    assert body["code"] == 6


def test_larger_variables_are_refused(runtime: "Runtime") -> None:
    body = error(run(runtime, "ADD", CNI_A="x" * 100_000, CNI_B="x" * 100_000, CNI_C="x" * 100_000))
    assert body["code"] == 4


def test_a_runtime_with_non_blocking_pipes_gets_everything(runtime: "Runtime", daemon: "Daemon") -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    process = runtime.start(runtime.env("ADD"), json.dumps(runtime.conf()).encode(), stdout=writing)
    os.close(writing)
    connection = daemon.accept()
    connection.request()
    answer = os.urandom(1 << 20)
    connection.answer(0, answer)
    with os.fdopen(reading, "rb") as pipe:
        got = pipe.read(1000)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.1)  # the pipe is full: it waits, and does not give up
        assert got + pipe.read() == answer
    assert end(process)[0] == 0


@pytest.mark.parametrize("closed", ["<&-", ">&-", "<&- >&-", "<&- >&- 2>&-"])
def test_a_runtime_that_closed_its_pipes_confuses_nobody(runtime: "Runtime", daemon: "Daemon", closed: str) -> None:
    """The socket must not get the number of stdin, or our own output would go to the daemon."""
    command = ["sh", "-c", f'exec "$0" {closed}', str(runtime.program)]
    conf = b"" if "<" in closed else json.dumps(runtime.conf()).encode()
    if "<" in closed:  # no conf, so no directory: it would look in the default one
        process = runtime.start(runtime.env("VERSION"), conf, command=command)
        code, stdout = end(process)
        assert code == 0
        assert bool(stdout) == (">" not in closed.replace("2>", ""))
        return
    process = runtime.start(runtime.env("ADD"), conf, command=command)
    connection = daemon.accept()
    connection.request()
    connection.raw.sendall(encode_response(0, b"RESULT"))
    assert connection.raw.recv(100) == b"", "nothing but the request was sent"
    connection.raw.close()
    assert end(process) == (0, b"")


# ---------------------------------------------------------------- where the socket is


@pytest.mark.parametrize("spelling", ["daemonSocketDir", "DAEMONSOCKETDIR", "daemonsocketdir", "daemonSocket\\u0044ir"])
def test_the_key_counts_in_any_case(runtime: "Runtime", daemon: "Daemon", spelling: str) -> None:
    for slash in ("", "/"):
        text = '{"x":{"daemonSocketDir":"/no"},"%s" : "%s%s"}' % (spelling, runtime.socket_dir, slash)
        process = runtime.start(runtime.env("ADD", MULTUS_DAEMON_TIMEOUT="5"), text.encode())
        connection = daemon.accept()
        assert connection.request().conf == text.encode()
        connection.answer(0, b"")
        assert end(process)[0] == 0


@pytest.mark.parametrize("directory", ["run/multus", ".", "/" + "d" * 100])
def test_a_directory_that_cannot_be_is_a_wrong_configuration(runtime: "Runtime", directory: str) -> None:
    body = error(run(runtime, "ADD", json.dumps(runtime.conf(daemonSocketDir=directory)).encode()))
    assert body["code"] == 7
    assert directory in body["msg"]


# ---------------------------------------------------------------- a daemon that is away


@pytest.mark.parametrize(("command", "code"), [("ADD", 11), ("CHECK", 11), ("GC", 11), ("STATUS", 50)])
@pytest.mark.parametrize("what", ["nothing", "an empty directory", "a stale socket", "a file"])
def test_away_is_an_error_that_names_the_socket(runtime: "Runtime", command: str, code: int, what: str) -> None:
    if what != "nothing":
        runtime.socket_dir.mkdir()
    if what == "a stale socket":
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(str(runtime.socket))
    elif what == "a file":
        runtime.socket.touch()
    body = error(run(runtime, command))
    assert (body["cniVersion"], body["code"]) == ("0.4.0", code)
    assert str(runtime.socket) in body["msg"]
    assert "multus-cni-network" in body["msg"]
    assert "multusctl doctor" in body["details"]


def test_an_error_says_any_text_safely(runtime: "Runtime") -> None:
    name = 'a"\\\n\x01\x7f\N{SNOWMAN}' + "x" * 5000
    body = error(run(runtime, "ADD", json.dumps(runtime.conf(name=name, cniVersion='1"')).encode()))
    assert body["cniVersion"] == '1"'
    assert body["msg"].startswith('network a"\\\n\x01????x')


def test_it_waits_as_long_as_it_is_told(runtime: "Runtime") -> None:
    def waited(conf: dict[str, Any], **env: str) -> float:
        begin = time.monotonic()
        error(run(runtime, "ADD", json.dumps(conf).encode(), **env))
        return time.monotonic() - begin

    unsaid = runtime.conf()
    del unsaid["daemonTimeout"]
    assert waited(runtime.conf(daemonTimeout=0.4)) >= 0.3
    assert waited(unsaid, MULTUS_DAEMON_TIMEOUT="0.4") >= 0.3
    assert waited(runtime.conf(daemonTimeout=0), MULTUS_DAEMON_TIMEOUT="600") < 5, "the configuration comes first"


def test_it_waits_for_a_daemon_that_comes(runtime: "Runtime", make_daemon: "Callable[[Path], Daemon]") -> None:
    process = runtime.start(runtime.env("ADD"), json.dumps(runtime.conf(daemonTimeout=20)).encode())
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.1)
    with make_daemon(runtime.socket) as daemon:
        connection = daemon.accept()
        connection.request()
        connection.answer(0, b"late")
        assert end(process) == (0, b"late")


@pytest.mark.parametrize(
    "half",
    [
        b"",
        b"\0MULT",
        encode_response(0, b"wrong")[:-2],
        b"\0MULTUS\x02" + bytes(8),
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
    ],
    ids=["nothing", "half a header", "half an answer", "another release", "HTTP"],
)
def test_a_restart_in_the_middle_of_a_call_repeats_it_under_the_same_name(
    runtime: "Runtime", make_daemon: "Callable[[Path], Daemon]", half: bytes
) -> None:
    process = runtime.start(runtime.env("ADD"), json.dumps(runtime.conf(daemonTimeout=20)).encode())
    with make_daemon(runtime.socket) as old:
        connection = old.accept()
        first = connection.request()
        connection.raw.sendall(half)
        connection.raw.close()
    with make_daemon(runtime.socket) as new:
        connection = new.accept()
        second = connection.request()
        connection.answer(0, b"right")
    assert second == first
    assert end(process) == (0, b"right")


def test_time_with_a_daemon_is_not_time_without(runtime: "Runtime", daemon: "Daemon") -> None:
    process = runtime.start(runtime.env("ADD"), json.dumps(runtime.conf(daemonTimeout=1)).encode())
    connection = daemon.accept()
    connection.request()
    time.sleep(1.2)  # longer than a daemon may be away
    connection.raw.close()
    connection = daemon.accept()
    connection.request()
    connection.answer(0, b"done")
    assert end(process) == (0, b"done")


def test_one_that_closes_every_time_is_away(runtime: "Runtime", daemon: "Daemon") -> None:
    process = runtime.start(runtime.env("ADD"), json.dumps(runtime.conf(daemonTimeout=0.2)).encode())
    ended = threading.Event()

    def refuse() -> None:
        while not ended.is_set():
            daemon.accept().raw.close()

    thread = threading.Thread(target=refuse)
    thread.start()
    body = error(end(process))
    ended.set()
    with socket.socket(socket.AF_UNIX) as last:
        last.connect(str(daemon.path))
    thread.join(10)
    assert body["code"] == 11
    assert "closed the connection" in body["msg"] or "send" in body["msg"]


@as_root
def test_somebody_elses_socket_is_never_written_to(
    open_runtime: "Runtime", make_daemon: "Callable[[Path], Daemon]"
) -> None:
    runtime = open_runtime
    runtime.socket_dir.mkdir()
    os.chown(runtime.socket_dir, NOBODY, NOBODY)
    os.seteuid(NOBODY)
    try:
        daemon = make_daemon(runtime.socket)
    finally:
        os.seteuid(0)
    with daemon:
        body = error(run(runtime, "DEL"))
        connection = daemon.accept()
        assert connection.raw.recv(1) == b""
        connection.raw.close()
    assert body["code"] == 5
    assert f"belongs to user {NOBODY}" in body["msg"]


# ---------------------------------------------------------------- a DEL that waits on disk


def test_a_del_is_stored_for_the_daemon_that_comes(runtime: "Runtime") -> None:
    Spool(runtime.spool).prepare()
    conf = json.dumps(runtime.conf()).encode()
    before = time.time()
    for container, ifname in (("c1", "eth0"), ("c1", "net_1.2@x"), ("a" * 128, "eth0"), ("c1", "eth0")):
        assert run(runtime, "DEL", conf, CNI_CONTAINERID=container, CNI_IFNAME=ifname) == (0, b"")
    entries = Spool(runtime.spool).pending()
    assert [(entry.container_id, entry.ifname) for entry in entries] == [
        ("c1", "eth0"),
        ("c1", "net_1.2@x"),
        ("a" * 128, "eth0"),
        ("c1", "eth0"),
    ]
    for entry in entries:
        path = runtime.spool / entry.name
        nonce = entry.env["MULTUS_NONCE"]
        assert entry.name == f"{entry.container_id}-{entry.ifname}.{nonce}.del"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert before - 1 <= entry.stored <= time.time() + 1
        assert entry.conf == conf
        assert entry.env["CNI_ARGS"] == runtime.env("DEL")["CNI_ARGS"]
    assert len(stored(runtime)) == 4, "and nothing else: no temporary file"


def test_what_was_stored_is_carried_out_with_the_same_bytes(runtime: "Runtime") -> None:
    Spool(runtime.spool).prepare()
    asked: list[tuple[str, bytes]] = []
    conf = json.dumps(runtime.conf(odd="\N{SNOWMAN}")).encode()
    run(runtime, "DEL", conf)

    async def carry_out() -> None:
        async def handle(env: dict[str, str], got: bytes) -> None:
            asked.append((env["CNI_CONTAINERID"], got))

        async with anyio.create_task_group() as group:
            await group.start(Spool(runtime.spool).run, handle)
            while stored(runtime):
                await anyio.sleep(0.002)
            group.cancel_scope.cancel()

    anyio.run(carry_out)
    assert asked == [("c1", conf)]


def test_a_del_that_the_daemon_answers_is_not_stored(runtime: "Runtime") -> None:
    Spool(runtime.spool).prepare()
    with serving(runtime, CNIError(Code.TRY_AGAIN_LATER, "busy")):
        assert error(run(runtime, "DEL"))["code"] == 11
    assert stored(runtime) == []


@pytest.mark.parametrize("command", ["ADD", "CHECK", "GC", "STATUS"])
def test_nothing_but_a_del_is_stored(runtime: "Runtime", command: str) -> None:
    Spool(runtime.spool).prepare()
    error(run(runtime, command))
    assert stored(runtime) == []


@pytest.mark.parametrize("what", ["nothing", "a file", "a link", "open to others"])
def test_without_a_spool_a_del_is_not_claimed(runtime: "Runtime", what: str) -> None:
    runtime.cni_dir.mkdir()
    if what == "a file":
        runtime.spool.touch()
    elif what == "a link":
        (runtime.cni_dir / "other").mkdir()
        runtime.spool.symlink_to("other")
    elif what == "open to others":
        runtime.spool.mkdir()
        runtime.spool.chmod(0o770)
    body = error(run(runtime, "DEL"))
    assert body["code"] == 11
    assert str(runtime.spool) in body["msg"]
    assert "there is no socket" in body["msg"]
    if runtime.spool.is_dir():
        assert stored(runtime) == []


@as_root
def test_somebody_elses_spool_is_not_used(runtime: "Runtime") -> None:
    runtime.spool.mkdir(parents=True)
    os.chown(runtime.spool, NOBODY, NOBODY)
    assert "owner or mode" in error(run(runtime, "DEL"))["msg"]
    assert stored(runtime) == []


def test_a_disk_that_is_full_is_no_success(runtime: "Runtime") -> None:
    Spool(runtime.spool).prepare()
    conf = json.dumps(runtime.conf(filler="x" * 100_000)).encode()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:  # Python ignores SIGXFSZ, and this child inherits that: the write fails instead
        process = runtime.start(runtime.env("DEL"), conf, restore_signals=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    body = error(end(process))
    assert body["code"] == 11
    assert "File too large" in body["msg"]
    assert stored(runtime) == [], "and nothing half-written is left"


@pytest.mark.parametrize(
    "env",
    [
        {"CNI_CONTAINERID": ""},
        {"CNI_CONTAINERID": "../x"},
        {"CNI_CONTAINERID": ".x"},
        {"CNI_CONTAINERID": "-x"},
        {"CNI_CONTAINERID": "x" * 129},
        {"CNI_IFNAME": ""},
        {"CNI_IFNAME": "a/b"},
        {"CNI_IFNAME": ".."},
        {"CNI_IFNAME": "x" * 16},
    ],
)
def test_what_could_be_no_file_name_is_refused(runtime: "Runtime", env: dict[str, str]) -> None:
    Spool(runtime.spool).prepare()
    assert error(run(runtime, "DEL", **env))["code"] == 4
    assert stored(runtime) == []


def test_a_spool_next_to_an_old_socket_of_a_killed_daemon(runtime: "Runtime") -> None:
    Spool(runtime.spool).prepare()
    runtime.socket_dir.mkdir()
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(runtime.socket))
    assert run(runtime, "DEL") == (0, b"")
    assert len(stored(runtime)) == 1
    shutil.rmtree(runtime.spool)

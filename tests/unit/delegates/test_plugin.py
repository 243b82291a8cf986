"""One plugin binary: what it is given, how its failures read, and that no way to misbehave holds us up."""

import errno
import json
import logging
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from blockbuster import blockbuster_ctx
from hypothesis import given
from hypothesis import strategies as st

from multus.cni.errors import CNIError, Code
from multus.cni.request import Command
from multus.delegates import exec as execution
from multus.delegates import plugin, process
from multus.delegates.exec import End, Outcome
from multus.delegates.plugin import MAX_TEXT, STANDARD_PATH, Call, PluginError, Runner

if TYPE_CHECKING:
    from tests.conftest import Noop, Noops

pytestmark = pytest.mark.anyio

CONF = b'{"cniVersion": "1.0.0", "name": "n", "type": "noop", "big": 1e400}'


def _call(noop: "Noop | Noops", command: Command = Command.ADD, **changed: Any) -> Call:
    fields: dict[str, Any] = {
        "command": command,
        "conf": CONF,
        "container_id": "c1",
        "netns": "/run/netns/x",
        "ifname": "net1",
        "args": (("IgnoreUnknown", "true"), ("K8S_POD_NAME", "p")),
        "path": (noop.directory,),
    }
    return Call(**{**fields, **changed})


def _runner(timeout: float = 30.0) -> Runner:
    return Runner(timeout=lambda: timeout)


async def _until(condition: Callable[[], object]) -> None:
    with anyio.fail_after(20):
        while not condition():
            await anyio.sleep(0.002)


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _descriptors() -> list[str]:
    return sorted(path.name for path in Path("/proc/self/fd").iterdir())


async def _failure(runner: Runner, call: Call, name: str = "x") -> PluginError:
    with pytest.raises(PluginError) as caught:
        await runner(name, call)
    return caught.value


async def test_it_gets_the_environment_and_the_conf_and_nothing_else(noops: "Noops") -> None:
    noop = noops.install("x")
    ours = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(ours, True)
    try:
        printed = await _runner()("x", _call(noop))
    finally:
        os.close(ours)
    assert json.loads(printed)["interfaces"] == [{"name": "net1", "sandbox": "/run/netns/x"}]
    (call,) = noop.calls()
    given = {key: value for key, value in call["env"].items() if key != "LC_CTYPE"}  # Python's own doing
    assert given == {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": "c1",
        "CNI_NETNS": "/run/netns/x",
        "CNI_IFNAME": "net1",
        "CNI_ARGS": "IgnoreUnknown=true;K8S_POD_NAME=p",
        "CNI_PATH": noop.directory,
        "PATH": STANDARD_PATH,
        "GOMAXPROCS": "1",
    }
    assert call["stdin"].encode() == CONF
    assert call["cwd"] == "/"
    assert ours not in call["fds"] and {0, 1, 2} <= set(call["fds"])
    assert call["group"] == call["pid"] != os.getpid()


@pytest.mark.parametrize("command", [Command.STATUS, Command.GC])
async def test_a_command_for_the_node_names_no_container(noops: "Noops", command: Command) -> None:
    noop = noops.install("x")
    assert await _runner()("x", Call(command=command, conf=CONF, path=(noop.directory, "/other"))) == b""
    env = noop.calls()[0]["env"]
    assert {key for key in env if key.startswith("CNI_")} == {"CNI_COMMAND", "CNI_PATH"}
    assert env["CNI_PATH"] == f"{noop.directory}:/other"


async def test_a_delete_without_a_namespace_has_the_variable_empty(noops: "Noops") -> None:
    noop = noops.install("x")
    await _runner()("x", _call(noop, Command.DEL, netns="", args=()))
    env = noop.calls("DEL")[0]["env"]
    assert env["CNI_NETNS"] == "" and env["CNI_ARGS"] == ""


@pytest.mark.parametrize(
    ("steering", "code", "message", "details"),
    [
        ({"fail": {"ADD": {"code": 100, "msg": "no room", "details": "pool a"}}}, 100, "no room", "pool a"),
        ({"fail": {"ADD": {"code": 11, "msg": "later"}}}, 11, "later", ""),
        ({"fail": {"ADD": {"Code": 7, "MSG": "odd case"}}}, 7, "odd case", ""),
        ({"fail": {"ADD": {"msg": "no code"}}}, 999, "no code", ""),
        ({"fail": {"ADD": {"code": 0, "msg": "zero"}}}, 999, "zero", ""),
        ({"fail": {"ADD": {"code": -3, "msg": "minus"}}}, 999, "minus", ""),
        ({"fail": {"ADD": {"code": True, "msg": "a boolean"}}}, 999, "a boolean", ""),
        ({"fail": {"ADD": {"code": 2**70, "msg": "huge"}}}, 999, "huge", ""),
        ({"fail": {"ADD": {"code": 5, "msg": ["no", "text"]}}}, 5, "it printed no message but", ""),
        ({"fail": {"ADD": {"code": 5, "msg": "m", "details": {"a": 1}}}}, 5, "m", ""),
        ({"fail": {"ADD": {"code": 5, "msg": "m"}}, "stderr": {"ADD": "why\n"}}, 5, "m", "why"),
        ({"exit": {"ADD": 3}}, 999, "netplugin failed with no error message", "exit status 3"),
        ({"exit": {"ADD": 3}, "stderr": {"ADD": "panic: x\n"}}, 999, "netplugin failed: panic: x", "exit status 3"),
        (
            {"exit": {"ADD": 2}, "garbage": {"ADD": "oops"}},
            999,
            "error parsing its diagnostic message 'oops'",
            "status 2",
        ),
        ({"exit": {"ADD": 2}, "garbage": {"ADD": "[1]"}}, 999, "error parsing its diagnostic message '[1]'", ""),
        ({"exit": {"ADD": 2}, "garbage": {"ADD": "null"}}, 999, "error parsing its diagnostic message 'null'", ""),
        ({"die": ["ADD"]}, 999, "it died: signal SIGKILL", ""),
        ({"die": ["ADD"], "stderr": {"ADD": "last words"}}, 999, "it died: signal SIGKILL", "last words"),
    ],
    ids=lambda value: json.dumps(value)[:60] if isinstance(value, dict) else None,
)
async def test_how_a_failure_reads(
    noops: "Noops", steering: dict[str, Any], code: int, message: str, details: str
) -> None:
    error = await _failure(_runner(), _call(noops.install("x", **steering)))
    assert error.code == code
    assert error.message.startswith('plugin type="x" failed (add): ')
    assert message in error.message
    assert details in error.details
    assert bool(error.details) is bool(details) or "exit status" in error.details
    json.loads(error.encode("1.0.0"))


async def test_a_long_message_is_cut(noops: "Noops") -> None:
    said = {"code": 7, "msg": "m" * 100_000, "details": "d" * 100_000}
    error = await _failure(_runner(), _call(noops.install("x", fail={"DEL": said}), Command.DEL))
    assert "failed (delete): mmm" in error.message and error.message.endswith("... and 83616 characters more")
    assert len(error.message) < MAX_TEXT + 100 and len(error.details) < MAX_TEXT + 100


@given(
    stdout=st.binary(max_size=200)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["code", "msg", "details", "CODE", "x"]), inner, max_size=4)
        ),
        max_leaves=8,
    ).map(lambda value: json.dumps(value).encode()),
    stderr=st.binary(max_size=100),
    status=st.integers(min_value=-200, max_value=255).filter(bool),
)
def test_no_output_of_a_failed_plugin_breaks_us(stdout: bytes, stderr: bytes, status: int) -> None:
    outcome = Outcome(end=End.EXITED, status=status, stdout=stdout, stderr=stderr)
    error = plugin._failure("x", Command.ADD, outcome)
    told = json.loads(error.encode("1.1.0"))
    assert told["msg"] and isinstance(told["code"], int) and 0 < told["code"] < 2**32


async def test_one_that_takes_too_long_is_killed(noops: "Noops") -> None:
    noop = noops.install("x", hang=["DEL"])
    error = await _failure(_runner(0.5), _call(noop, Command.DEL))
    assert error.code == Code.TRY_AGAIN_LATER
    assert "failed (delete): it was killed because it had not ended after 0.5 s" in str(error)
    assert not [call for call in noop.calls() if _lives(call["pid"])]


async def test_the_timeout_is_asked_for_each_call(noops: "Noops") -> None:
    noop, timeout = noops.install("x", hang=["DEL"]), 30.0
    runner = Runner(timeout=lambda: timeout)
    await runner("x", _call(noop))
    timeout = 0.1
    assert "0.1 s" in str(await _failure(runner, _call(noop, Command.DEL)))


@pytest.mark.parametrize("how", ["hang", "stubborn"])
async def test_a_cancelled_call_leaves_no_process_behind(
    noops: "Noops", how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_TERM_GRACE", 0.1)
    noop = noops.install("x", **{how: ["ADD"], "linger": ["ADD"]})
    ready = "deaf to" if how == "stubborn" else "child"
    async with anyio.create_task_group() as group:
        group.start_soon(_runner(), "x", _call(noop))
        await _until(lambda: any(ready in call for call in noop.calls()))
        group.cancel_scope.cancel()
    (call,) = noop.calls()
    await _until(lambda: not Path(f"/proc/{call['pid']}").exists())  # reaped, too
    await _until(lambda: not _lives(call["child"]))  # the whole group; init reaps this one


async def test_one_that_is_cancelled_while_it_starts_leaves_no_process_behind(
    noops: "Noops", monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[process.Running] = []

    def spawn(*arguments: Any) -> process.Running:
        running = real(*arguments)
        started.append(running)
        anyio.from_thread.run_sync(group.cancel_scope.cancel)
        return running

    real = process._spawn
    monkeypatch.setattr(process, "_spawn", spawn)
    async with anyio.create_task_group() as group:
        group.start_soon(_runner(), "x", _call(noops.install("x", hang=["ADD"])))
    await _until(lambda: started[0]._process.returncode is not None)
    assert not Path(f"/proc/{started[0]._process.pid}").exists()


async def test_one_that_prints_without_end_is_killed(noops: "Noops") -> None:
    noop = noops.install("x", flood=["ADD"])
    error = await _failure(_runner(), _call(noop))
    assert error.code == Code.DECODING_FAILURE
    assert "it printed more than 4194304 bytes and was killed" in str(error)
    assert error.details.startswith("'xxx")
    assert not _lives(noop.calls()[0]["pid"])


async def test_of_a_long_complaint_the_end_is_kept(noops: "Noops") -> None:
    error = await _failure(_runner(), _call(noops.install("x", flood_err=["ADD"], exit={"ADD": 1})))
    assert error.message.endswith("the last words") and "failed: yyyy" in error.message
    assert len(error.message) < execution.STDERR_KEPT + 100


@pytest.mark.parametrize("how", ["deaf", "shut"])
async def test_one_that_does_not_read_its_conf_may_succeed(noops: "Noops", how: str) -> None:
    noop = noops.install("x", **{how: ["ADD"], "result": {"cniVersion": "1.0.0"}})
    conf = b'{"x": "%s"}' % (b"y" * 1_000_000)
    assert json.loads(await _runner()("x", _call(noop, conf=conf))) == {"cniVersion": "1.0.0"}


async def test_a_conf_longer_than_a_pipe_arrives_whole(noops: "Noops") -> None:
    noop = noops.install("x")
    conf = b'{"x": "%s"}' % (b"y" * 3_000_000)
    await _runner()("x", _call(noop, conf=conf))
    assert noop.calls()[0]["stdin"].encode() == conf


async def test_one_that_closes_its_output_early_is_waited_for(noops: "Noops") -> None:
    noop = noops.install("x", mute=["ADD"], hold=["ADD"])
    printed: list[bytes] = []

    async def run() -> None:
        printed.append(await _runner()("x", _call(noop)))

    async with anyio.create_task_group() as group:
        group.start_soon(run)
        await _until(noop.calls)
        fds = Path(f"/proc/{noop.calls()[0]['pid']}/fd")
        await _until(lambda: not (fds / "1").exists())
        await anyio.sleep(0.05)
        assert printed == []
        noop.release()
    assert printed == [b""]
    assert not _lives(noop.calls()[0]["pid"])


async def test_a_child_that_keeps_the_output_open_does_not_hold_us_up(noops: "Noops") -> None:
    noop = noops.install("x", linger=["ADD"])
    with anyio.fail_after(20):
        printed = await _runner(3600)("x", _call(noop))
    assert json.loads(printed)["interfaces"]
    assert _lives(noop.calls()[0]["child"])  # a plugin may leave a helper of its own, such as a DHCP client


async def test_what_is_in_the_pipe_at_the_end_is_read_even_so(noops: "Noops", monkeypatch: pytest.MonkeyPatch) -> None:
    async def too_slow(running: process.Running, descriptor: int, keep: Callable[[bytes], None]) -> None:
        await anyio.sleep_forever()

    monkeypatch.setattr(process.Running, "read", too_slow)
    monkeypatch.setattr(execution, "_OUTPUT_GRACE", 0.0)
    noop = noops.install("x", stderr={"DEL": "why"}, exit={"DEL": 1})
    assert json.loads(await _runner()("x", _call(noop)))["interfaces"]
    assert "why" in str(await _failure(_runner(), _call(noop, Command.DEL)))


def test_the_grace_for_such_children_is_short() -> None:
    assert execution._OUTPUT_GRACE <= 0.5


def _unfit(directory: Path, kind: str) -> None:
    path = directory / "x"
    match kind:
        case "missing":
            return
        case "directory":
            path.mkdir()
        case "not executable":
            path.write_text("#!/bin/sh\n")
            path.chmod(0o644)
        case "no program":
            path.write_bytes(b"\x7fELFnonsense")
            path.chmod(0o755)
        case "empty":
            path.touch(0o755)
        case "no interpreter":
            path.write_text("#!/nowhere/sh\n")
            path.chmod(0o755)
        case "dangling":
            path.symlink_to("/nowhere/x")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing", 'failed to find plugin "x" in path [{path}]'),
        ("directory", 'failed to find plugin "x" in path [{path}]'),
        ("dangling", 'failed to find plugin "x" in path [{path}]'),
        ("not executable", "cannot start {path}/x: it is not executable"),
        ("no program", "cannot start {path}/x: it is no program for this machine"),
        ("empty", "cannot start {path}/x: it is no program for this machine"),
        ("no interpreter", "cannot start {path}/x: what it needs to start is missing"),
    ],
)
async def test_one_that_cannot_be_run(tmp_path: Path, kind: str, words: str) -> None:
    _unfit(tmp_path, kind)
    error = await _failure(_runner(), Call(command=Command.CHECK, conf=CONF, path=(str(tmp_path),)))
    assert error.code == Code.INVALID_NETWORK_CONFIG
    assert error.message == f'plugin type="x" failed (check): {words.format(path=tmp_path)}'
    assert error.hint


async def test_directories_are_searched_in_order_and_relative_ones_not_at_all(
    noops: "Noops", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    noop = noops.install("x")
    monkeypatch.chdir(tmp_path)
    (second / "x").write_text("#!/bin/sh\nexit 9\n")
    (second / "x").chmod(0o755)
    await _runner()("x", _call(noop, path=("", "second", str(first), noop.directory, str(second))))
    assert len(noop.calls()) == 1


async def test_one_that_is_being_written_is_waited_for(noops: "Noops", caplog: pytest.LogCaptureFixture) -> None:
    noop = noops.install("x")
    caplog.set_level(logging.DEBUG, "multus.delegates")
    async with anyio.create_task_group() as group:
        with noop.program.open("ab"):
            group.start_soon(_runner(), "x", _call(noop))
            await _until(lambda: "is being written" in caplog.text)
            assert noop.calls() == []
    assert len(noop.calls()) == 1


async def test_one_that_is_being_written_for_ever(noops: "Noops", monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_BUSY_PAUSES", (0.001, 0.001))
    noop = noops.install("x")
    with noop.program.open("ab"):
        error = await _failure(_runner(), _call(noop))
    assert error.code == Code.TRY_AGAIN_LATER
    assert "it is being written all the time" in str(error)


async def test_the_deadline_ends_that_wait_too(noops: "Noops", monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_BUSY_PAUSES", (3600.0,))
    noop = noops.install("x")
    with noop.program.open("ab"), anyio.fail_after(20):
        error = await _failure(_runner(1.0), _call(noop))
    assert error.code == Code.TRY_AGAIN_LATER


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"args": (("A", "x" * 200_000),)}, "its environment is too long"),
        ({"netns": "/run/\0"}, "embedded null byte"),
        ({"ifname": "\ud800"}, "surrogates not allowed"),
    ],
)
async def test_an_environment_that_cannot_be_passed_on(noops: "Noops", changed: dict[str, Any], words: str) -> None:
    error = await _failure(_runner(), _call(noops.install("x"), **changed))
    assert words in str(error)


async def test_arguments_that_would_read_back_as_others(noops: "Noops") -> None:
    noop = noops.install("x")
    with pytest.raises(CNIError, match="CNI_ARGS"):
        await _runner()("x", _call(noop, args=(("A", "b;C=d"),)))
    assert noop.calls() == []


async def test_the_kernel_refuses_more_processes(noops: "Noops", monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(subprocess, "Popen", refuse)
    error = await _failure(_runner(), _call(noops.install("x")))
    assert error.code == Code.TRY_AGAIN_LATER and "Resource temporarily unavailable" in str(error)


async def test_a_kernel_without_pidfds(noops: "Noops", monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int) -> int:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(os, "pidfd_open", refuse)
    noop = noops.install("x", hang=["DEL"], exit={"CHECK": 4})
    assert json.loads(await _runner()("x", _call(noop)))["interfaces"]
    assert "exit status 4" in (await _failure(_runner(), _call(noop, Command.CHECK))).details
    assert "not ended" in str(await _failure(_runner(0.2), _call(noop, Command.DEL)))
    assert not [call for call in noop.calls() if _lives(call["pid"])]


async def test_the_loop_never_waits_and_no_descriptor_is_left(noops: "Noops", monkeypatch: pytest.MonkeyPatch) -> None:
    noop = noops.install("x", flood=["CHECK"], fail={"DEL": {"code": 5, "msg": "m"}})
    monkeypatch.setattr(process, "_TERM_GRACE", 0.1)
    runner = _runner()
    await runner("x", _call(noop))  # whatever is opened once is open now
    before = _descriptors()
    with blockbuster_ctx():
        await runner("x", _call(noop))
        await _failure(runner, _call(noop, Command.CHECK))
        await _failure(runner, _call(noop, Command.DEL))
        await _failure(runner, _call(noop), "missing")
        async with anyio.create_task_group() as group:
            for _ in range(10):
                group.start_soon(runner, "x", _call(noop))
    assert _descriptors() == before

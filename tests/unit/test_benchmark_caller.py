"""The benchmarks' caller, on real programs: what they are given, how many run, how they end, and what is left."""

import os
import resource
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest

from benchmarks.caller import CallerError, Ended, Program, run

_PATH = os.environ["PATH"]
_FOREVER = ["sleep", "infinity"]


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """No program runs or is a zombie after a test, and no descriptor is open, however it ended."""
    before = _children(), _descriptors()
    yield
    assert (_children(), _descriptors()) == before


def _children() -> str:
    return Path("/proc/thread-self/children").read_text()


def _descriptors() -> set[int]:
    listed = list(Path("/proc/self/fd").iterdir())  # with that of the listing, which is closed by now
    return {int(path.name) for path in listed if path.exists()}


def _shell(script: str, **env: str) -> Program:
    return Program(line=["sh", "-c", script], env={"PATH": _PATH, **env})


def _one(script: str, *, stdin: bytes = b"") -> Ended:
    [ended] = run([_shell(script)], stdin=stdin, at_a_time=1)
    return ended


@pytest.mark.parametrize(
    ("script", "code"), [("exit 0", 0), ("exit 3", 3), ("kill -9 $$", -signal.SIGKILL), ("kill $$", -signal.SIGTERM)]
)
def test_how_a_program_ended(script: str, code: int) -> None:
    ended = _one(f"echo out; echo err >&2; {script}")
    assert (ended.code, ended.stdout, ended.stderr) == (code, b"out\n", b"err\n")


@pytest.mark.parametrize("at_a_time", [1, 2, 7, 100])
def test_the_order_is_that_of_the_programs(at_a_time: int) -> None:
    programs = [_shell('read first; echo "$NUMBER $first"; exit "$NUMBER"', NUMBER=str(each)) for each in range(7)]
    ended = run(programs, stdin=b"all read this\nand not this\n", at_a_time=at_a_time)
    assert [(each.code, each.stdout) for each in ended] == [(each, b"%d all read this\n" % each) for each in range(7)]


def test_the_order_is_not_that_of_their_ends(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "done")
    first = _shell(f"cat {tmp_path}/done")
    ended = run([first, _shell(f"echo second >{tmp_path}/done")], stdin=b"", at_a_time=2)
    assert [each.stdout for each in ended] == [b"second\n", b""]


def test_no_program_is_nothing_to_do() -> None:
    assert run([], stdin=b"", at_a_time=4) == []


@pytest.mark.parametrize(("at_a_time", "waves"), [(1, 5), (3, 4), (8, 2)])
def test_so_many_run_at_a_time_and_no_more(tmp_path: Path, at_a_time: int, waves: int) -> None:
    # A wave's programs end only when all of them run: its last one lets the others go, with a line for each.
    log = tmp_path / "log"
    programs = []
    with ExitStack() as stack:
        for wave in range(waves):
            gate = tmp_path / f"gate{wave}"
            os.mkfifo(gate)
            # Held open, for what is written to outlast its writer.
            stack.callback(os.close, os.open(gate, os.O_RDWR))
            waits = _shell(f"echo + >>{log}; read -r _ <{gate}; echo - >>{log}")
            lets_go = _shell(f"echo + >>{log}; printf %s '{chr(10) * (at_a_time - 1)}' >{gate}; echo - >>{log}")
            programs += [*[waits] * (at_a_time - 1), lets_go]
        ended = run(programs, stdin=b"", at_a_time=at_a_time, limit=30)
    assert [each.code for each in ended] == [0] * len(programs)
    running = list(accumulate(1 if line == "+" else -1 for line in log.read_text().split()))
    assert (len(running), max(running), running[-1]) == (2 * len(programs), at_a_time, 0)
    for one in ended:
        assert sum(each.begin <= one.begin < each.end for each in ended) <= at_a_time


def test_a_call_is_timed_from_its_start_to_its_end() -> None:
    line = [sys.executable, "-I", "-S", "-c", "import time; print(time.monotonic())"]
    before = time.monotonic()
    ended = run([Program(line=line, env={}) for _ in range(3)], stdin=b"", at_a_time=1)
    stamps = [before]
    for each in ended:
        stamps += [each.begin, float(each.stdout), each.end]
        assert each.seconds == each.end - each.begin
    assert stamps == sorted(stamps)


def test_an_end_is_seen_while_others_are_still_started(monkeypatch: pytest.MonkeyPatch) -> None:
    spawn, pids = os.posix_spawnp, list[int]()

    def slow_second(*arguments: Any, **options: Any) -> int:
        if len(pids) == 1:
            with suppress(ChildProcessError):  # its end may have been seen already
                os.waitid(os.P_PID, pids[0], os.WEXITED | os.WNOWAIT)
        pids.append(spawn(*arguments, **options))
        return pids[-1]

    monkeypatch.setattr(os, "posix_spawnp", slow_second)
    first, _, third = run([_shell("exit 0")] * 3, stdin=b"", at_a_time=3)
    assert first.end <= third.begin


def test_big_inputs_and_outputs_stop_nobody() -> None:
    script = "wc -c; head -c 3000000 /dev/zero; head -c 2000000 /dev/zero >&2"
    for ended in run([_shell(script)] * 3, stdin=b"x" * 1_000_000, at_a_time=2):
        assert ended.stdout == b"1000000\n" + bytes(3_000_000)
        assert ended.stderr == bytes(2_000_000)


def test_a_program_has_the_environment_that_was_said_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOT_FOR_PROGRAMS", "1")
    [ended] = run([Program(line=["env"], env={"A": "1", "B": "x y"})], stdin=b"", at_a_time=1)
    assert sorted(ended.stdout.splitlines()) == [b"A=1", b"B=x y"]


def test_a_program_gets_no_descriptor_but_the_first_three() -> None:
    read, write = os.pipe()
    try:
        os.set_inheritable(write, True)
        open_ones = {int(name) for name in _one("ls /proc/$$/fd").stdout.split()}
    finally:
        os.close(read)
        os.close(write)
    assert write not in open_ones
    assert {0, 1, 2} <= open_ones


def test_a_program_ignores_no_signal_that_python_does() -> None:
    ignored = int(_one("grep SigIgn /proc/self/status").stdout.split()[1], 16)
    assert not ignored & (1 << signal.SIGPIPE - 1 | 1 << signal.SIGXFSZ - 1)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (["/nowhere/multus"], "cannot run /nowhere/multus: No such file or directory"),
        (["no-such-program-anywhere"], "cannot run no-such-program-anywhere: No such file or directory"),
        (["/"], "cannot run /: Permission denied"),
    ],
)
def test_a_program_that_cannot_be_started_ends_all(line: list[str], why: str) -> None:
    programs = [Program(line=each, env={"PATH": _PATH}) for each in (_FOREVER, _FOREVER, line)]
    with pytest.raises(CallerError) as caught:
        run(programs, stdin=b"", at_a_time=3)
    assert str(caught.value) == why


def test_a_program_that_does_not_end_ends_all() -> None:
    programs = [_shell("exit 0"), *[Program(line=_FOREVER, env={"PATH": _PATH})] * 3]
    with pytest.raises(CallerError, match=r"has not ended after 0\.05 s"):
        run(programs, stdin=b"", at_a_time=2, limit=0.05)


@pytest.mark.parametrize(("free", "enough"), [(3, False), (4, False), (5, True)])
def test_too_few_descriptors(free: int, enough: bool) -> None:
    # Two are the caller's; a program has two outputs and the descriptor of its process.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = _descriptors()
    unused = sorted(set(range(max(used) + 10)) - used)
    with ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(used) + 10, hard))
        for number in unused[free:]:
            os.dup2(0, number, inheritable=False)
            stack.callback(os.close, number)
        if enough:
            assert _one("exit 0").code == 0
        else:
            with pytest.raises(CallerError, match="Too many open files"):
                _one("exit 0")

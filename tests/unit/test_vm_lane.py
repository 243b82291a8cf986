"""The VM lane's account of what came out, also of a machine that falls silent."""

import os
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest

from tests.vm import lane, machine
from tests.vm.machine import Ending

A, B, C = (f"tests/vm/guest/test_x.py::test_{name}" for name in ("a", "a[with words]", "c"))
SILENT: Final = "the machine hung"


class Machine:
    """Says one console a start, and ends with a code, or falls silent without one."""

    def __init__(self, *runs: tuple[str, int | None]) -> None:
        self.runs = list(runs)
        self.without: list[list[str]] = []

    def __call__(self, without: Sequence[str], limit: float) -> Ending:
        self.without.append(list(without))
        console, code = self.runs.pop(0)
        why = SILENT if code is None else "the machine ended with 0"
        return Ending(code=code, why=why, cut=code is None, console=console, seconds=1.0)


def said(*results: str) -> str:
    """What pytest says in the machine, the last line perhaps not yet whole."""
    return "vm: start\n===== test session starts =====\n" + "\n".join(results)


def test_all_at_the_first_start() -> None:
    made = Machine((said(f"{A} PASSED  [ 30%]", f"{B} SKIPPED (no) [ 60%]", f"{C} FAILED  [99%]"), 1))
    assert lane.carry_out(made, written=3) == {"passed": 1, "skipped": 1, "failed": 1}


def test_after_silence_only_what_has_no_outcome_runs() -> None:
    made = Machine((said(f"{A} PASSED  [ 30%]", f"{B} "), None), (said(f"{B} PASSED", f"{C} PASSED"), 0))
    assert lane.carry_out(made, written=3) == {"passed": 3}
    assert made.without == [[], [A]]


def test_a_test_in_which_it_falls_silent_twice_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    silent = (said(f"{A} PASSED", f"{B} "), None)
    made = Machine(silent, (said(f"{B} "), None), (said(f"{C} PASSED"), 0))
    assert lane.carry_out(made, written=3) == {"passed": 2, "skipped": 1}
    assert made.without == [[], [A], [A, B]]
    assert f"{B} is left out" in capsys.readouterr().out


def test_a_machine_that_is_always_silent_is_told_and_counted(capsys: pytest.CaptureFixture[str]) -> None:
    made = Machine(*[("", None)] * lane.STARTS)
    assert lane.carry_out(made, written=3) == {"skipped": 3}
    assert "3 tests or more did not run: the machine hung" in capsys.readouterr().out


def test_a_failure_is_never_tried_again() -> None:
    made = Machine((said(f"{A} FAILED", f"{B} "), None))
    assert lane.carry_out(made, written=3) == {"failed": 1, "skipped": 2}


def test_an_error_after_a_failure_or_a_pass_is_a_failure() -> None:
    made = Machine((said(f"{A} FAILED", f"{A} ERROR", f"{B} PASSED", f"{B} ERROR"), 1))
    assert lane.carry_out(made, written=3) == {"failed": 2}


def test_a_collection_that_failed_is_a_failure() -> None:
    assert lane.carry_out(Machine(("no tests", 4)), written=3) == {"failed": 1}


def test_nothing_is_begun_when_no_time_is_left() -> None:
    made = Machine((said(f"{A} PASSED"), None))
    assert lane.carry_out(made, written=3, limit=30) == {"passed": 1, "skipped": 2}


def test_silence_after_the_last_test_costs_nothing() -> None:
    made = Machine((said(f"{A} PASSED", f"{B} PASSED", f"{C} PASSED"), None), ("no tests ran", lane.NOTHING_LEFT))
    assert lane.carry_out(made, written=3) == {"passed": 3}


def test_every_file_is_in_one_share() -> None:
    shares = lane.shares()
    names = sorted(Path(each).name for share in shares for each in share)
    benchmarks = {f"test_{name}.py" for name in lane.BENCHMARKS}
    assert set(names) | benchmarks == {path.name for path in lane.GUEST.glob("test_*.py")}
    assert len(names) == len(set(names)) and not benchmarks & set(names)
    assert len(shares) == lane.MACHINES and all(shares)
    assert {f"test_{name}.py" for name in lane.SECONDS} <= set(names)


def test_files_that_import_the_same_are_in_one_share() -> None:
    together = {f"test_{name}.py" for name in lane.TOGETHER}
    assert [len(together & {Path(each).name for each in share}) for share in lane.shares(2)] == [len(together), 0]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            ["tests/vm/guest/test_a.py", "-v", "tests/vm/guest/test_b_c.py"],
            ["-v", "--only=a,b_c", "tests/vm/guest"],
        ),
        (["tests/vm/guest/test_a.py::test_x[1]", "-v"], ["tests/vm/guest/test_a.py::test_x[1]", "-v"]),
        (
            ["tests/vm/guest/test_a.py", "tests/vm/guest/test_b.py::test_x"],
            ["tests/vm/guest/test_a.py", "tests/vm/guest/test_b.py::test_x"],
        ),
        (["-k", "words"], ["-k", "words"]),
    ],
)
def test_whole_files_are_looked_for_in_one_pass(given: list[str], told: list[str]) -> None:
    assert lane.in_guest(given) == told


def shell(*scripts: str) -> Counter[str]:
    """Lanes that are these scripts."""
    return lane.side_by_side([[script] for script in scripts], ("sh", "-c"))


def test_shares_run_at_once_and_are_added_up(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)  # each needs the other to be there
    done = shell(
        f"echo > {fifo}; echo 3 passed, 0 failed, 1 skipped",
        f"cat {fifo}; echo words; echo 4 passed, 2 failed, 0 skipped; exit 1",
    )
    assert done == {"passed": 7, "failed": 2, "skipped": 1}
    out = capsys.readouterr().out.splitlines()
    assert "1| 3 passed, 0 failed, 1 skipped" in out
    assert "2| words" in out


@pytest.mark.parametrize("script", ["echo 1 passed", "kill -9 $$", "echo 1 passed, 0 failed, 0 skipped; exit 3"])
def test_a_share_without_its_last_line_or_with_a_bad_end_is_a_failure(script: str) -> None:
    assert shell("echo 1 passed, 0 failed, 0 skipped", script)["failed"] == 1


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("5 passed\nvm: end 0\n", "0"),
        ("vm: end 12[  245.773343] sysrq: Power Off\n", "12"),
        ("vm: end 1", None),  # the next digit may still come
        ("he said vm: end 0\n", None),
    ],
)
def test_the_end_is_told_from_what_the_kernel_says_meanwhile(said: str, code: str | None) -> None:
    found = machine.END.search(said)
    assert (found and found[1]) == code


def test_a_machine_that_has_said_its_end_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "console").write_text("vm: start\nvm: end 0\n")
    with subprocess.Popen(["sleep", "60"]) as qemu:
        why, cut, _ = machine._watch(qemu, tmp_path / "console", time.monotonic() + 30, lambda _: None)
        assert qemu.poll() is None
        qemu.kill()
    assert (why, cut) == ("the machine said its end", False)


def test_a_silent_machine_is_woken_before_it_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its emulator is asked where its processors are, and to let them go on."""
    monkeypatch.setattr(machine, "DROWSY", 0.3)
    monkeypatch.setattr(machine, "SILENCE", 0.5)
    out = tmp_path / "out"
    out.mkdir()
    (out / "console").write_text("vm: start\n")
    asked = bytearray()

    def answer() -> None:
        client, _ = monitor.accept()
        with client:
            asked.extend(client.recv(1000))
            client.sendall(b"CPU#0\r\nRIP=ffffffff81cd1e9f RFL=00000206 [---Z-P-] HLT=1\r\nVM status: running\r\n")

    said: list[str] = []
    with socket.socket(socket.AF_UNIX) as monitor, subprocess.Popen(["sleep", "60"]) as qemu:
        monitor.bind(str(tmp_path / "monitor"))
        monitor.listen()
        emulator = threading.Thread(target=answer)
        emulator.start()
        why, cut, console = machine._watch(qemu, out / "console", time.monotonic() + 30, said.append)
        qemu.kill()
        emulator.join()
    assert (cut, console) == (True, "vm: start\n")
    assert "no sign of life" in why
    assert b"stop\ncont\n" in asked
    assert said[0] == "vm: start"
    assert said[1].endswith("woken: CPU#0 RIP=ffffffff81cd1e9f RFL=00000206 HLT=1 VM status: running")

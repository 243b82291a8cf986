"""Daemons of the VM lane, which are forked from a process that has imported everything."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm.guest.daemons import Daemon, Spawner


@pytest.fixture
def spawner() -> Iterator[Spawner]:
    made = Spawner()
    yield made
    made.close()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # fork, from Python 3.12 on
def test_each_is_a_process_of_its_own_with_its_own_log_and_environment(spawner: Spawner, tmp_path: Path) -> None:
    logs = [tmp_path / name for name in ("version", "refused")]
    first = spawner.start("--version", log=logs[0], env={})
    second = spawner.start("--config", str(tmp_path / "none.json"), log=logs[1], env={})
    assert len({first.pid, second.pid, os.getpid()}) == 3
    for daemon in (first, second):
        assert daemon.wait(20) == daemon.poll() == 0
        daemon.kill()  # says nothing about one that is gone
    assert logs[0].read_text().startswith("multusd ")
    assert "none.json" in logs[1].read_text()


def test_a_daemon_that_runs_is_waited_for_and_killed() -> None:
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    with subprocess.Popen(command) as process:
        daemon = Daemon(process.pid)
        assert daemon.poll() is None
        begin = time.monotonic()
        with pytest.raises(subprocess.TimeoutExpired):
            daemon.wait(0.05)
        assert time.monotonic() - begin >= 0.05
        daemon.terminate()
        assert daemon.wait(20) == 0

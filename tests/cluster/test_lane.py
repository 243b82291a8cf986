"""The lane itself: however a run ends, nothing of it stays."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.cluster import janitor
from tests.cluster.image import ROOT

_RUN = """
import json, os, sys, tempfile
from pathlib import Path
from tests.cluster import janitor
from tests.cluster.node import Node
directory = Path(tempfile.mkdtemp(prefix=f"{janitor.PREFIX}{os.getpid()}-", dir=janitor.STATE))
with janitor.watched(directory), Node(directory, name="killed", env=os.environ) as node:
    roots = f"/sys/fs/cgroup/{node.cgroup} /sys/fs/cgroup/*/{node.cgroup}"
    node.start("sleeper", "sh", "-c", f"for g in {roots}; do test -e $g && echo $$ >$g/cgroup.procs; done; sleep 1000")
    node.wait(lambda: node.run("pgrep", "sleep", check=False), "the sleeper")
    print(json.dumps([str(directory), os.readlink(f"/proc/{node.enter[1].partition('=')[2]}/ns/pid")]), flush=True)
    sys.stdin.read()
"""


def wait(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, f"waited 30 s for {what}"
        time.sleep(0.1)


def inside(namespace: str) -> list[str]:
    """Command lines of processes in a PID namespace."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if str((process / "ns/pid").readlink()) == namespace:
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


def groups(pid: int) -> list[Path]:
    name = f"{janitor.PREFIX}{pid}"
    return [*janitor.CGROUPS.glob(name), *janitor.CGROUPS.glob(f"*/{name}")]


def test_a_run_that_is_killed_leaves_nothing() -> None:
    run = subprocess.Popen([sys.executable, "-c", _RUN], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert run.stdout is not None
    try:
        directory, namespace = json.loads(run.stdout.readline())
        assert any("sleep" in each for each in inside(namespace))
        assert groups(run.pid)
        assert Path(directory, "over").is_dir()
    finally:
        run.kill()
        run.communicate()
    wait(lambda: not inside(namespace), "its processes to end")
    wait(lambda: not groups(run.pid), "its control groups to be removed")
    wait(lambda: not Path(directory).exists(), "its directory to be removed")
    assert directory not in Path("/proc/self/mountinfo").read_text()


def test_what_even_the_janitor_left_is_swept_by_the_next_run(tmp_path: Path) -> None:
    state, cgroups = tmp_path / "state", tmp_path / "cgroup"
    gone, alive = f"{janitor.PREFIX}4194303", f"{janitor.PREFIX}{os.getpid()}"  # no process has the largest id
    for name in (gone, alive):
        (state / f"{name}-x/over").mkdir(parents=True)
        (cgroups / "memory" / name / "kubepods").mkdir(parents=True)
        (cgroups / name).mkdir()
    janitor.sweep(state, cgroups)
    assert [each.name for each in state.iterdir()] == [f"{alive}-x"]
    assert {each.name for each in cgroups.rglob(f"{janitor.PREFIX}*")} == {alive}

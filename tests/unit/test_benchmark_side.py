"""A side's calls: the plugin binary is executed as a runtime does it, and every answer is looked at."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from benchmarks import side as side_module
from benchmarks.nodes import Thin
from benchmarks.side import CallsFailedError, Server, Side
from multus.cli import box as box_module
from multus.cli.box import Box, Sandbox
from multus.kube.objects import Pod

_RESULT = '{"cniVersion": "1.0.0", "ips": []}'
MakeSide = Callable[..., Side]


class NoServer:
    """An API server that is asked how much was asked."""

    account = Path("/nowhere")
    pid = os.getpid()

    def ask(self, do: str, **arguments: Any) -> Any:
        assert do == "requests"
        return {"patch pods": 1}

    def close(self) -> None:
        """Nothing was started."""


class EnteredThin(Thin):
    """A thin one whose node is entered by what can be run anywhere."""

    enter = ["env", "ENTERED=yes"]


@pytest.fixture
def make_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeSide:
    """Makes a side without a daemon, whose plugin binary is a shell script."""
    monkeypatch.setattr(side_module, "_SETTLE", 0.0)
    monkeypatch.setattr(box_module, "plugin_dir", lambda: tmp_path)

    def make(script: str, *, kind: type[Box] = Box) -> Side:
        box = kind(tmp_path)
        box.shim = tmp_path / "shim"
        box.shim.write_text(f"#!/bin/sh\ncd {tmp_path}\n{script}\n")
        box.shim.chmod(0o755)
        box.conf_dir.mkdir()
        (box.conf_dir / "00-multus.conf").write_text('{"name": "n", "type": "multus"}')
        made = Side("ours", box, lambda _: cast("Server", NoServer()))
        made._server = NoServer()
        return made

    return make


def sandboxes(count: int) -> list[Sandbox]:
    return [
        cast(
            "Sandbox", SimpleNamespace(pod=Pod(namespace="default", name=f"p{number}", uid="u"), netns=f"/ns/{number}")
        )
        for number in range(count)
    ]


def test_a_call_is_what_a_runtime_makes(make_side: MakeSide, tmp_path: Path) -> None:
    side = make_side(f"cat >conf; env >env; echo '{_RESULT}'")
    batch = side.call("ADD", sandboxes(1), at_a_time=1)
    assert json.loads((tmp_path / "conf").read_bytes()) == {"name": "n", "type": "multus"}
    said = set((tmp_path / "env").read_text().splitlines())
    assert said >= {
        "CNI_COMMAND=ADD",
        "CNI_CONTAINERID=multusctl-default-p0",
        "CNI_NETNS=/ns/0",
        "CNI_IFNAME=eth0",
        f"CNI_PATH={tmp_path}",
        "CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=p0;"
        "K8S_POD_INFRA_CONTAINER_ID=multusctl-default-p0;K8S_POD_UID=u",
    }
    assert len(batch.calls) == 1
    assert batch.requests == {"patch pods": 1}


@pytest.mark.parametrize(("kind", "entered"), [(Box, ""), (EnteredThin, "yes")])
def test_only_the_thin_one_is_executed_on_the_node(
    make_side: MakeSide, tmp_path: Path, kind: type[Box], entered: str
) -> None:
    make_side('echo "$ENTERED" >entered', kind=kind).call("DEL", sandboxes(1), at_a_time=1)
    assert (tmp_path / "entered").read_text() == f"{entered}\n"


def test_a_batch_counts_whose_cpu_it_was(make_side: MakeSide) -> None:
    side = make_side("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done")
    batch = side.call("DEL", sandboxes(3), at_a_time=2)
    assert 0 < batch.caller_cpu < batch.shim_cpu
    assert (batch.own_cpu, batch.daemon_cpu) == (0, 0)
    assert 0 < max(batch.calls) <= batch.spent


def test_adds_are_counted_and_dels_are_not(make_side: MakeSide) -> None:
    side = make_side("exit 0")
    for command, attached in (("ADD", 3), ("DEL", 3), ("ADD", 6)):
        assert len(side.call(command, sandboxes(3), at_a_time=3).calls) == 3
        assert side.attached == attached


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ('echo \'{"code": 7, "msg": "no such network"}\'; exit 1', "3 of 3 ADDs failed: .*no such network"),
        ("echo oh dear >&2; exit 1", "3 of 3 ADDs failed: .*without a CNI error: 'oh dear"),
        ("kill -9 $$", "3 of 3 ADDs failed: .*without a CNI error"),
        ("echo nonsense", "3 of 3 ADDs failed: .*printed what is no JSON: b'nonsense"),
        (f"[ $CNI_NETNS = /ns/1 ] && exit 1; echo '{_RESULT}'", "1 of 3 ADDs failed: "),
    ],
)
def test_calls_that_fail_are_no_figure(make_side: MakeSide, script: str, said: str) -> None:
    side = make_side(script)
    with pytest.raises(CallsFailedError, match=said):
        side.call("ADD", sandboxes(3), at_a_time=2)
    assert side.attached == 0


def test_the_failure_that_is_told_is_the_first_in_time(make_side: MakeSide, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "gate")
    # The first pod's call ends after the second's, and not before the third is there to let it go.
    script = """case $CNI_NETNS in
    /ns/0) read -r _ <gate; echo later >&2; exit 1;;
    /ns/1) echo earlier >&2; exit 1;;
    esac
    echo >gate"""
    with pytest.raises(CallsFailedError, match=r"2 of 3 ADDs failed: .*earlier"):
        make_side(script).call("ADD", sandboxes(3), at_a_time=2)


def test_a_binary_that_cannot_be_run(make_side: MakeSide, tmp_path: Path) -> None:
    side = make_side("exit 0")
    side.box.shim.unlink()
    with pytest.raises(CallsFailedError, match=f"ADDs failed: cannot run {tmp_path}/shim: No such file"):
        side.call("ADD", sandboxes(3), at_a_time=2)

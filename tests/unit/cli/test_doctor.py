"""`multusctl ready` and `multusctl doctor` against nodes that are well, and that are not."""

import json
import socket
import socketserver
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from multus.cli import main
from multus.cli.examine import Finding, configuration, hardware, kubelet, shim, state
from multus.cli.examine_devices import device_plugins
from multus.cli.ready import AskError, ask
from multus.install.binary import own_shim
from multus.journal import Journal
from multus.sandbox import Attachment, Sandbox, State
from multus.settings import DaemonSettings

OURS: dict[str, Any] = {
    "cniVersion": "1.0.0",
    "name": "multus-cni-network",
    "plugins": [{"type": "multus", "clusterNetwork": "cbr0"}],
}
OTHER = {"cniVersion": "1.0.0", "name": "cbr0", "plugins": [{"type": "bridge"}]}

Serve = Callable[[bytes], Path]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Starts something on a socket that answers everybody with the same bytes."""
    servers: list[socketserver.ThreadingUnixStreamServer] = []

    def start(answer: bytes) -> Path:
        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                self.request.recv(4096)
                self.request.sendall(answer)

        path = tmp_path / f"s{len(servers)}.sock"
        server = socketserver.ThreadingUnixStreamServer(str(path), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        return path

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def wrong(found: Iterator[Finding]) -> list[str]:
    return [each.what for each in found if each.level == "wrong"]


def sandbox(name: str, state: State, failures: int = 0, status: str | None = None) -> Sandbox:
    item = Attachment(position=0, network="default/net", ifname="net1", conf=b"{}")
    return Sandbox(
        container_id=f"id-of-{name}",
        ifname="eth0",
        state=state,
        netns="",
        netns_id="",
        boot_id="b",
        pod_namespace="default",
        pod_name=name,
        pod_uid="",
        failures=failures,
        status=status,
        attachments=(item,),
    )


@pytest.mark.parametrize(
    ("answer", "good", "said"),
    [
        (b"HTTP/1.1 200 \r\nContent-Length: 0\r\n\r\n", True, "yes"),
        (b'HTTP/1.1 500 \r\n\r\n{"msg": "multusd is starting"}', False, "multusd is starting"),
    ],
)
def test_the_daemons_own_word_is_passed_on(serve: Serve, answer: bytes, good: bool, said: str) -> None:
    found, text = ask(serve(answer))
    assert found is good
    assert said in text


@pytest.mark.parametrize("answer", [b"", b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1"])
def test_what_is_not_the_daemon_is_said(serve: Serve, answer: bytes) -> None:
    with pytest.raises(AskError, match="is not multusd"):
        ask(serve(answer))


def test_silence_ends(tmp_path: Path) -> None:
    path = tmp_path / "silent.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with pytest.raises(AskError, match="timed out"):
            ask(path, timeout=0.05)


def test_ready_is_an_exit_code(serve: Serve, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    serve(b"HTTP/1.1 200 \r\n\r\n").rename(tmp_path / "multus.sock")
    assert main(["ready", "--socket-dir", str(tmp_path)]) == 0
    assert main(["ready", "--alive", "--socket-dir", str(tmp_path)]) == 0
    assert main(["ready", "--socket-dir", str(tmp_path / "nowhere")]) == 1
    assert "is multusd running" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("files", "trouble"),
    [
        ({"00-multus.conflist": OURS, "10-flannel.conflist": OTHER}, ""),
        ({"10-flannel.conflist": OTHER}, "does not call multus"),
        ({"00-a.conflist": OTHER, "00-multus.conflist": OURS}, "00-a.conflist is in force, and does not call multus"),
        ({}, "no CNI configuration"),
        ({"00-multus.conflist": "{"}, "is no CNI configuration"),
        (
            {"00-multus.conf": {**OURS["plugins"][0], "cniVersion": "0.4.0", "name": "n", "clusterNetwork": "/none"}},
            "gone",
        ),
    ],
)
def test_the_configuration_in_force(tmp_path: Path, files: dict[str, Any], trouble: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    found = wrong(configuration(tmp_path))
    assert (len(found) == 1 and trouble in found[0]) if trouble else found == []


def test_the_shim(tmp_path: Path) -> None:
    assert "no shim" in wrong(shim(tmp_path))[0]
    data = own_shim().read_bytes()
    target = tmp_path / "multus"
    target.write_bytes(data)
    target.chmod(0o644)
    assert "cannot be executed" in wrong(shim(tmp_path))[0]
    target.chmod(0o755)
    assert wrong(shim(tmp_path)) == []
    target.write_bytes(data.replace(b"\0multus 0", b"\0multus 9", 1))
    assert "is 9" in wrong(shim(tmp_path))[0]
    target.write_text("#!/bin/sh\n")
    assert "another program" in wrong(shim(tmp_path))[0]


@pytest.mark.anyio
async def test_what_is_left_in_the_journal(tmp_path: Path) -> None:
    rows = [
        sandbox("well", State.ATTACHED),
        sandbox("untold", State.ATTACHED, status="[]"),
        sandbox("leaving", State.DELETING),
        sandbox("stuck", State.DELETING, failures=4),
    ]
    async with Journal.open(tmp_path / "journal.db") as journal:
        for row in rows:
            await journal.begin(row)
            if row.status is not None:
                await journal.status_pending(row.key, row.status)
    (tmp_path / "spool").mkdir()
    (tmp_path / "spool/1.del").write_text("{}")
    (tmp_path / "spool/.2.tmp").write_text("{}")
    found = list(state(tmp_path))
    assert "2 pods" in found[0].what
    told = wrong(iter(found))
    assert len(told) == 3
    assert any("untold" in each and "network-status" in each for each in told)
    assert any("stuck" in each and "4 tries: default/net" in each for each in told)
    assert any("1 stored" in each for each in told)


def test_a_node_that_never_ran_it(tmp_path: Path) -> None:
    assert "is not there" in wrong(state(tmp_path / "multus"))[0]


def test_the_kubelets_sockets(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "pod-resources").mkdir()
    serve(b"").rename(tmp_path / "pod-resources/kubelet.sock")
    (trouble,) = wrong(kubelet(tmp_path, needed=True))
    assert "device-plugins" in trouble
    assert wrong(kubelet(tmp_path, needed=False)) == []


def test_hardware_is_told_and_never_wrong(tmp_path: Path) -> None:
    assert [each.level for each in hardware(tmp_path)] == ["note", "note", "note"]
    (tmp_path / "kernel/iommu_groups/7").mkdir(parents=True)
    card = tmp_path / "bus/pci/devices/0000:03:00.0"
    card.mkdir(parents=True)
    (card / "sriov_totalvfs").write_text("8\n")
    told = [each.what for each in hardware(tmp_path)]
    assert "IOMMU: on, 1 group" in told[0]
    assert told[-1] == "SR-IOV: 0000:03:00.0"


@pytest.fixture
def healthy(tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A node without an API server; its daemon's file."""
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    (tmp_path / "net.d").mkdir()
    (tmp_path / "net.d/00-multus.conflist").write_text(json.dumps(OURS))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/multus").write_bytes(own_shim().read_bytes())
    (tmp_path / "bin/multus").chmod(0o755)
    serve(b"HTTP/1.1 200 \r\n\r\n").rename(tmp_path / "multus.sock")
    settings = {
        "cniConfigDir": str(tmp_path / "net.d"),
        "socketDir": str(tmp_path),
        "cniDir": str(tmp_path / "state"),
        "manifests": str(tmp_path / "manifests"),
    }
    (tmp_path / "daemon-config.json").write_text(json.dumps(settings))
    return tmp_path / "daemon-config.json"


@pytest.mark.anyio
async def test_a_node_that_is_well(healthy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (healthy.parent / "state").mkdir()
    async with Journal.open(healthy.parent / "state/journal.db"):
        pass
    command = ["doctor", "--config", str(healthy), "--cni-bin-dir", str(healthy.parent / "bin")]
    code = main(command)
    said = capsys.readouterr().out
    assert (code, "nothing is wrong" in said) == (0, True), said
    assert main([*command, "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) >= {"Settings", "Shim", "State", "API server", "Hardware"}


def test_one_trouble_does_not_hide_another(healthy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (healthy.parent / "multus.sock").unlink()
    (healthy.parent / "bin/multus").unlink()
    healthy.write_text(healthy.read_text().replace("{", '{"logLevle": "debug", ', 1))
    assert main(["doctor", "--config", str(healthy), "--cni-bin-dir", str(healthy.parent / "bin")]) == 1
    said = capsys.readouterr().out
    for part in (
        'did you mean "logLevel"',
        "there is no shim",
        "is multusd running",
        "state is not there",
        "4 things wrong",
    ):
        assert part in said, said


def test_a_file_that_cannot_be_read_is_a_finding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.json").write_text("[")
    assert main(["doctor", "--config", str(tmp_path / "bad.json"), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["Settings"][0]["level"] == "wrong"


def test_a_rival_is_told(tmp_path: Path) -> None:
    """Of the same resource, or of another one; not one of another kind, not a dead socket, and not our own."""
    pool = {"resourceName": "net", "resourcePrefix": "example.com", "selectors": {"drivers": ["iavf"]}}
    (tmp_path / "p.json").write_text(json.dumps({"resourceList": [pool]}))
    kubelet, run = tmp_path / "kubelet", tmp_path / "run"
    settings = DaemonSettings(
        device_config=str(tmp_path / "p.json"), kubelet_dir=str(kubelet), socket_dir=str(run), cni_dir=str(tmp_path)
    )
    program = """
import socket, sys
held = []
for path in sys.argv[1:]:
    held.append(socket.socket(socket.AF_UNIX))
    held[-1].bind(path)
    held[-1].listen()
print("listens", flush=True)
sys.stdin.read()
"""
    rivals = ("kubelet/device-plugins/example.com_net.sock", "kubelet/plugins_registry/intel.com_other.sock")
    for path in (*rivals, "run/multus.sock"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (kubelet / "device-plugins/intel.com_dead.sock").touch()
    assert [each.what for each in device_plugins(settings)] == ["1 pools: example.com/net"]

    def listening(*paths: str) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-c", program, *paths]
        process = subprocess.Popen(command, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"listens\n"
        return process

    with listening(*rivals, "kubelet/device-plugins/nvidia-gpu.sock") as process:
        told = wrong(device_plugins(settings))
        assert len(told) == 2
        assert told[0].startswith(f"another device plugin serves example.com/net on {tmp_path / rivals[0]} (python")
        assert f"another device plugin is at work, {tmp_path / rivals[1]} (python" in told[1]
        assert process.stdin is not None
        process.stdin.close()
    for path in rivals:
        (tmp_path / path).unlink()
    with listening("run/multus.sock", *rivals) as process:  # they are the daemon's
        assert wrong(device_plugins(settings)) == []
        assert process.stdin is not None
        process.stdin.close()
    assert list(device_plugins(msgspec.structs.replace(settings, manifests="m"))) == []

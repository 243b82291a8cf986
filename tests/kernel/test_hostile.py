"""Runtimes that give up, plugins that hang, callers that race each other: nothing is left, nobody waits for ever."""

import base64
import json
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from multus.cli.box import Box, Sandbox, plugin_dir
from multus.cli.runtime import container_id
from multus.cni.errors import CNIError, Code

if TYPE_CHECKING:
    from tests.conftest import Noops

NETWORKS = "k8s.v1.cni.cncf.io/networks"
ADDRESS = {"type": "host-local", "subnet": "10.9.0.0/16"}


def left(box: Box) -> list[str]:
    return [each for each in box.leftovers() if not each.startswith("interface br")]


def names(sandbox: Sandbox) -> list[str]:
    return sorted(link["ifname"] for link in json.loads(sandbox.run("ip", "-j", "link")) if link["ifname"] != "lo")


def bridge(**keys: Any) -> dict[str, Any]:
    return {"cniVersion": "1.0.0", "type": "bridge", "bridge": "br1", "ipam": ADDRESS, **keys}


def shim(box: Box, command: str, sandbox: Sandbox, **extra: str) -> "subprocess.Popen[bytes]":
    """The plugin as a runtime starts it, to be killed."""
    pod = sandbox.pod
    env = {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": container_id(pod),
        "CNI_NETNS": sandbox.netns,
        "CNI_IFNAME": "eth0",
        "CNI_PATH": "/nowhere",
        "CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAMESPACE={pod.namespace};K8S_POD_NAME={pod.name};K8S_POD_UID={pod.uid}",
        **extra,
    }
    process = subprocess.Popen([str(box.shim)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env)
    assert process.stdin
    process.stdin.write(box.conf())
    process.stdin.close()
    return process


def end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait(10)
    assert process.stdout
    process.stdout.close()


def together(count: int, task: Callable[[], object]) -> list[object]:
    outcomes: list[object] = []

    def run() -> None:
        try:
            task()
            outcomes.append(None)
        except CNIError as error:
            outcomes.append(error)

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return outcomes


def post(box: Box, path: str, env: dict[str, str], conf: bytes) -> tuple[int, Any]:
    data = json.dumps({"env": env, "config": base64.b64encode(conf).decode()}).encode()
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(60)
        client.connect(str(box.socket_dir / "multus.sock"))
        client.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    head, _, text = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(text) if text else None


def environment(command: str, sandbox: Sandbox, ifname: str) -> dict[str, str]:
    pod = sandbox.pod
    return {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": container_id(pod),
        "CNI_NETNS": sandbox.netns,
        "CNI_IFNAME": ifname,
        "CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAMESPACE={pod.namespace};K8S_POD_NAME={pod.name};K8S_POD_UID={pod.uid}",
    }


@pytest.fixture
def slow(make_box: Callable[..., Box], noops: "Noops") -> tuple[Box, Any]:
    """A node with the network `slow`, whose ADD waits to be released, and `n1`, a bridge."""
    for program in plugin_dir().iterdir():
        (noops.path / program.name).symlink_to(program)
    slow = noops.install("slow")
    slow.told(hold=["ADD"])
    box = make_box(plugins=noops.path)
    box.nad("n1", bridge())
    box.nad("slow", {"cniVersion": "1.0.0", "type": "slow"})
    box.start()
    return box, slow


def test_a_runtime_that_kills_the_plugin_in_the_middle_leaves_nothing(slow: tuple[Box, Any]) -> None:
    box, program = slow
    sandbox = box.pod("pod", annotations={NETWORKS: "n1,slow"})
    adding = shim(box, "ADD", sandbox)
    box.wait(lambda: program.calls("ADD"), "the slow plugin")
    end(adding)
    box.wait(lambda: left(box) == [], "the ADD to be undone")
    assert names(sandbox) == []
    assert together(5, lambda: box.cni("DEL", sandbox)) == [None] * 5
    assert left(box) == []


def test_five_dels_in_the_middle_of_an_add(slow: tuple[Box, Any]) -> None:
    box, program = slow
    sandbox = box.pod("pod", annotations={NETWORKS: "n1,slow"})
    adding = shim(box, "ADD", sandbox)
    box.wait(lambda: program.calls("ADD"), "the slow plugin")
    assert together(5, lambda: box.cni("DEL", sandbox)) == [None] * 5
    assert left(box) == []
    assert adding.stdout
    assert b"called this ADD off" in adding.stdout.read()
    end(adding)


def test_dels_that_wait_do_not_hang_one_after_the_other(make_box: Callable[..., Box], noops: "Noops") -> None:
    """A runtime gives up on a DEL and repeats it; the first one's failure is told, and the journal keeps the rest."""
    for program in plugin_dir().iterdir():
        (noops.path / program.name).symlink_to(program)
    hanging = noops.install("hanging", hang=["DEL"])
    box = make_box(plugins=noops.path, settings={"delegateTimeout": 5})
    box.nad("hanging", {"cniVersion": "1.0.0", "type": "hanging"})
    box.start()
    sandbox = box.pod("pod", annotations={NETWORKS: "hanging"})
    box.cni("ADD", sandbox)
    outcomes: list[object] = []
    first = threading.Thread(target=lambda: outcomes.extend(together(1, lambda: box.cni("DEL", sandbox))))
    first.start()
    box.wait(lambda: hanging.calls("DEL"), "the hanging plugin")
    assert together(4, lambda: box.cni("DEL", sandbox)) == [None] * 4
    assert len(hanging.calls("DEL")) < 4  # one; upkeep may have begun a second by now
    first.join(30)
    assert "had not ended after 5 s" in str(outcomes[0])
    hanging.told()
    box.wait(lambda: left(box) == [], "the journal to keep its promise")


def test_a_del_of_one_interface_name_leaves_another_s_add_alone(slow: tuple[Box, Any]) -> None:
    """Nobody attached eth9; what the pod's annotation says is eth0's, under way and when it is done."""
    box, program = slow
    sandbox = box.pod("pod", annotations={NETWORKS: "n1,slow"})
    adding = shim(box, "ADD", sandbox)
    box.wait(lambda: program.calls("ADD"), "the slow plugin")
    other = shim(box, "DEL", sandbox, CNI_IFNAME="eth9")
    time.sleep(0.3)  # it waits by now; had it not begun, the test would prove less
    program.release()
    assert adding.stdout
    said = adding.stdout.read()
    assert b"interfaces" in said, said
    end(adding)
    assert other.wait(30) == 0
    end(other)
    assert names(sandbox) == ["eth0", "net1"]
    assert program.calls("DEL") == []
    box.cni("DEL", sandbox)
    assert left(box) == []


def test_the_pod_s_del_does_not_wait_for_a_network_that_is_being_plugged_in(slow: tuple[Box, Any]) -> None:
    box, program = slow
    sandbox = box.pod("pod")
    box.cni("ADD", sandbox)
    conf = json.dumps({"cniVersion": "1.0.0", "name": "hot", "type": "slow"}).encode()
    answers: list[tuple[int, Any]] = []
    plugging = threading.Thread(
        target=lambda: answers.append(post(box, "/delegate", environment("ADD", sandbox, "hot1"), conf))
    )
    plugging.start()
    box.wait(lambda: program.calls("ADD"), "the slow plugin")
    outcome = box.cni("DEL", sandbox)
    plugging.join(30)
    assert outcome.seconds < 30
    assert answers[0][0] == 400
    assert left(box) == []


def test_disable_check_silences_our_own_look_too(box: Box) -> None:
    box.nad(
        "n1",
        {
            "cniVersion": "1.0.0",
            "disableCheck": True,
            "plugins": [{"type": "bridge", "bridge": "br1", "ipam": ADDRESS}],
        },
    )
    sandbox = box.pod("pod", annotations={NETWORKS: "n1"})
    box.cni("ADD", sandbox)
    sandbox.run("ip", "addr", "flush", "dev", "net1")
    box.cni("CHECK", sandbox)
    sandbox.run("ip", "addr", "flush", "dev", "eth0")
    with pytest.raises(CNIError):
        box.cni("CHECK", sandbox)
    box.cni("DEL", sandbox)
    assert left(box) == []


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"])
def test_every_version_of_the_runtime_s_conf(box: Box, version: str) -> None:
    conf = json.dumps({**json.loads(box.conf()), "cniVersion": version}).encode()
    box.nad("n1", bridge())
    sandbox = box.pod("pod", annotations={NETWORKS: "n1"})
    result = box.cni("ADD", sandbox, conf=conf).result
    assert result["cniVersion"] == version
    assert result["ip4" if version < "0.3" else "ips"]
    if version >= "0.4":
        box.cni("CHECK", sandbox, conf=conf)
    box.cni("DEL", sandbox, conf=conf)
    assert left(box) == []


def test_a_network_that_never_works_leaves_no_rows(make_box: Callable[..., Box], noops: "Noops") -> None:
    for program in plugin_dir().iterdir():
        (noops.path / program.name).symlink_to(program)
    bad = noops.install("bad")
    bad.told(fail={"ADD": {"code": 100, "msg": "no"}, "DEL": {"code": 100, "msg": "no"}})
    box = make_box(plugins=noops.path)
    box.nad("n1", bridge())
    box.nad("bad", {"cniVersion": "1.0.0", "type": "bad", "ipam": ADDRESS})
    box.nad("missing", {"cniVersion": "1.0.0", "type": "no-such-plugin", "ipam": ADDRESS})
    box.start()
    sandbox = box.pod("pod", annotations={NETWORKS: "n1,bad,missing"})
    for number in range(10):
        with pytest.raises(CNIError):
            box.cni("ADD", sandbox, CNI_CONTAINERID=f"try{number}")
        box.cni("DEL", sandbox, CNI_CONTAINERID=f"try{number}")
    assert left(box) == []
    assert names(sandbox) == []


def test_a_del_works_although_the_conf_no_longer_does(box: Box) -> None:
    box.nad("n1", bridge())
    sandbox = box.pod("pod", annotations={NETWORKS: "n1"})
    box.cni("ADD", sandbox)
    conf = {
        "cniVersion": "1.0.0",
        "name": "multus-cni-network",
        "type": "multus",
        "daemonSocketDir": str(box.socket_dir),
        "cniDir": str(box.state),
    }
    box.cni("DEL", sandbox, conf=json.dumps(conf).encode())
    assert left(box) == []


def test_nothing_is_plugged_into_another_namespace_at_the_same_path(box: Box, tmp_path: Path) -> None:
    """The pod has ended, its DEL is yet to come, and its path is somebody else's by now."""
    path = tmp_path / "netns"
    first, second = box.pod("first"), box.pod("second")
    path.symlink_to(first.netns)
    box.cni("ADD", first, CNI_NETNS=str(path))
    path.unlink()
    path.symlink_to(second.netns)
    conf = json.dumps(bridge(name="hot")).encode()
    code, answer = post(box, "/delegate", environment("ADD", first, "hot1"), conf)
    assert (code, answer["code"]) == (400, Code.UNKNOWN_CONTAINER)
    assert names(second) == []
    first.close()
    box.cni("DEL", first, CNI_NETNS=str(path))
    box.wait(lambda: left(box) == [], "the kernel, which empties a namespace that is gone in its own time")


def test_an_interface_is_unplugged_from_whichever_attachment_has_it(box: Box) -> None:
    """Two interface names of the runtime for one container, and hot-plug knows the container only."""
    sandbox = box.pod("pod")
    box.cni("ADD", sandbox)
    box.cni("ADD", sandbox, CNI_IFNAME="eth1")
    conf = json.dumps(bridge(name="hot")).encode()
    assert post(box, "/delegate", environment("ADD", sandbox, "hot1"), conf)[0] == 200
    code, answer = post(box, "/delegate", environment("ADD", sandbox, "eth1"), conf)
    assert code == 400
    assert "already has eth1" in answer["msg"]
    code, answer = post(box, "/delegate", environment("DEL", sandbox, "eth1"), conf)
    assert code == 400, "it is the default network of the second"
    assert names(sandbox) == ["eth0", "eth1", "hot1"]
    box.cni("DEL", sandbox, CNI_IFNAME="eth1")
    assert post(box, "/delegate", environment("DEL", sandbox, "hot1"), conf)[0] == 200
    assert names(sandbox) == ["eth0"]
    box.cni("DEL", sandbox)
    assert left(box) == []


def test_what_attached_is_deleted_with_its_result_when_another_network_failed(
    make_box: Callable[..., Box], noops: "Noops"
) -> None:
    for program in plugin_dir().iterdir():
        (noops.path / program.name).symlink_to(program)
    good, bad = noops.install("good"), noops.install("bad")
    bad.told(fail={"ADD": {"code": 100, "msg": "no"}}, delay={"ADD": 0.5})
    box = make_box(plugins=noops.path)
    box.nad("good", {"cniVersion": "1.0.0", "type": "good"})
    box.nad("bad", {"cniVersion": "1.0.0", "type": "bad"})
    box.start()
    sandbox = box.pod("pod", annotations={NETWORKS: "good,bad"})
    with pytest.raises(CNIError, match="no"):
        box.cni("ADD", sandbox)
    assert [bool(call["conf"].get("prevResult")) for call in good.calls("DEL")] == [True]


def test_a_failed_add_leaves_no_firewall_rules(make_box: Callable[..., Box], noops: "Noops") -> None:
    """The plugin removes an address's rules only when its DEL is told the address."""
    for program in plugin_dir().iterdir():
        (noops.path / program.name).symlink_to(program)
    noops.install("bad", fail={"ADD": {"code": 100, "msg": "no"}}, delay={"ADD": 0.5})
    box = make_box(plugins=noops.path)
    plugins = [{"type": "bridge", "bridge": "br1", "ipam": ADDRESS}, {"type": "firewall", "backend": "iptables"}]
    box.nad("fw", {"cniVersion": "1.0.0", "plugins": plugins})
    box.nad("bad", {"cniVersion": "1.0.0", "type": "bad"})
    box.start()
    sandbox = box.pod("pod", annotations={NETWORKS: "fw,bad"})
    with pytest.raises(CNIError, match="no"):
        box.cni("ADD", sandbox)
    assert left(box) == []
    assert "10.9.0." not in box.host("iptables-save")

"""One CNI call, several networks, through shim, socket and daemon, with the reference plugins in real namespaces."""

import base64
import itertools
import json
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from multus.cli.box import DEFAULT_NETWORK, Box, Sandbox, plugin_dir
from multus.cli.demo import MACVLAN_CONF
from multus.cni.errors import CNIError, Code

if TYPE_CHECKING:
    from tests.conftest import Noops

NETWORKS = "k8s.v1.cni.cncf.io/networks"
DEFAULT = "v1.multus-cni.io/default-network"


def bridge(number: int, **keys: Any) -> dict[str, Any]:
    """A network of its own: bridge and addresses."""
    ipam = {"type": "host-local", "subnet": f"10.9.{number}.0/24", **keys.pop("ipam", {})}
    return {"cniVersion": "1.0.0", "type": "bridge", "bridge": f"br{number}", "ipam": ipam, **keys}


def names(sandbox: Sandbox) -> list[str]:
    return sorted(link["ifname"] for link in json.loads(sandbox.run("ip", "-j", "link")) if link["ifname"] != "lo")


def left(box: Box) -> list[str]:
    """Bridges stay, as the plugin leaves them."""
    return [each for each in box.leftovers() if not each.startswith("interface br")]


def test_the_demo_shows_what_it_promises() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "multus.cli", "demo"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "pod multipod: eth0 and net1" in done.stdout
    assert "no interface, no address, no IPAM file, no journal row" in done.stdout


def test_eight_networks_in_the_order_of_the_annotation(box: Box) -> None:
    for number in range(8):
        box.nad(f"n{number}", bridge(number))
    sandbox = box.pod("pod", annotations={NETWORKS: ",".join(f"n{number}" for number in range(8))})
    result = box.cni("ADD", sandbox).result
    assert result["interfaces"][-1]["name"] == "eth0"
    assert names(sandbox) == ["eth0", *(f"net{number}" for number in range(1, 9))]
    status = box.status("pod")
    assert [entry["interface"] for entry in status] == ["eth0", *(f"net{number}" for number in range(1, 9))]
    assert [entry["name"] for entry in status] == ["cluster-net", *(f"default/n{number}" for number in range(8))]
    assert status[0]["default"] is True
    assert [entry["ips"][0].rsplit(".", 1)[0] for entry in status[1:]] == [f"10.9.{number}" for number in range(8)]
    box.cni("CHECK", sandbox)
    box.cni("DEL", sandbox)
    assert names(sandbox) == []
    assert left(box) == []


def test_the_walk_through_s_70_multus_conf(make_box: Callable[..., Box]) -> None:
    """A conf with inline delegates, as the pages' first Multus had it."""
    box = make_box(settings={"multusConfigFile": "none"})
    conf = {
        "name": "multus-cni-network",
        "type": "multus",
        "daemonSocketDir": str(box.socket_dir),
        "cniDir": str(box.state),
        "delegates": [
            {"type": "bridge", "cniVersion": "0.3.1", "name": "flannel-like", "bridge": "cni0",
             "isDefaultGateway": True, "ipam": {"type": "host-local", "subnet": "10.244.1.0/24"}},
            bridge(1, name="inline-second"),
        ],
    }  # fmt: skip
    (box.conf_dir / "70-multus.conf").write_text(json.dumps(conf))
    box.nad("macvlan-conf", MACVLAN_CONF)
    box.start()
    sandbox = box.pod("pod", annotations={NETWORKS: "macvlan-conf@first"})
    box.cni("ADD", sandbox)
    assert names(sandbox) == ["eth0", "first", "net1"]
    assert [entry["name"] for entry in box.status("pod")] == ["flannel-like", "inline-second", "default/macvlan-conf"]
    box.cni("DEL", sandbox)
    assert left(box) == []


def test_a_failing_network_takes_the_others_down_and_is_named(box: Box) -> None:
    box.nad("good", bridge(1))
    box.nad("bad", {"cniVersion": "1.0.0", "type": "macvlan", "master": "no-such-nic", "ipam": {}})
    sandbox = box.pod("pod", annotations={NETWORKS: "good,bad,good@again"})
    with pytest.raises(CNIError, match=r"default/pod.*default/bad.*macvlan.*Link not found"):
        box.cni("ADD", sandbox)
    assert names(sandbox) == []
    assert left(box) == []
    box.cni("DEL", sandbox)


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        ("missing", "cannot find a network-attachment-definition (missing) in namespace (default)"),
        ("[null]", "null"),
        ("good,", "name"),
        ("good@net9,good@net9", "net9"),
        ('[{"name":"good","interface":"sixteen-bytes-xx"}]', "sixteen-bytes-xx"),
        ('[{"name":"good","default-route":["10.0.0.1"]},{"name":"good","default-route":["10.0.0.2"]}]', "ECMP"),
        ("../../etc/passwd", "'/'"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_touched(box: Box, annotation: str, words: str) -> None:
    box.nad("good", bridge(1))
    sandbox = box.pod("pod", annotations={NETWORKS: annotation})
    with pytest.raises(CNIError) as caught:
        box.cni("ADD", sandbox)
    assert words in str(caught.value)
    assert caught.value.code == Code.INVALID_NETWORK_CONFIG
    assert names(sandbox) == []
    assert left(box) == []


def test_namespace_isolation_holds_for_the_default_network_too(make_box: Callable[..., Box]) -> None:
    box = make_box(settings={"namespaceIsolation": True})
    box.nad("theirs", bridge(1), namespace="other")
    box.start()
    for number, annotations in enumerate(({NETWORKS: "other/theirs"}, {DEFAULT: "other/theirs"})):
        sandbox = box.pod(f"pod{number}", annotations=annotations)
        with pytest.raises(CNIError, match="namespace isolation enabled, annotation violates permission"):
            box.cni("ADD", sandbox)
    assert left(box) == []


def test_another_default_network_is_eth0(box: Box) -> None:
    box.nad("mine", bridge(3), namespace="kube-system")
    sandbox = box.pod("pod", annotations={DEFAULT: "mine"})
    result = box.cni("ADD", sandbox).result
    assert result["ips"][0]["address"].startswith("10.9.3.")
    assert names(sandbox) == ["eth0"]
    box.cni("DEL", sandbox)
    assert left(box) == []


@pytest.mark.parametrize(
    ("route", "expected"),
    [(["10.9.1.254"], {"10.9.1.254"}), ([], {"10.9.1.1"}), (None, {"10.244.1.1"})],
)
def test_default_route_really_moves(box: Box, route: list[str] | None, expected: set[str]) -> None:
    """Upstream has left the old route in place since 4.2.2 and said nothing. `[]`: the network's own."""
    box.nad("n1", bridge(1, ipam={"routes": [{"dst": "0.0.0.0/0"}]} if route == [] else {}))
    element = {"name": "n1"} if route is None else {"name": "n1", "default-route": route}
    sandbox = box.pod("pod", annotations={NETWORKS: json.dumps([element])})
    box.cni("ADD", sandbox)
    routes = json.loads(sandbox.run("ip", "-j", "route", "show", "default"))
    assert {each["gateway"] for each in routes} == expected
    box.cni("CHECK", sandbox)
    box.cni("DEL", sandbox)
    assert left(box) == []


def test_a_network_upon_another_one_waits_for_it(make_box: Callable[..., Box], noops: "Noops") -> None:
    """Its master is the interface of a network that comes later in the annotation."""
    for program in plugin_dir().iterdir():
        (noops.path / program.name).symlink_to(program)
    above = noops.install("above")
    box = make_box(plugins=noops.path)
    box.nad("below", bridge(1))
    box.nad("above", {"cniVersion": "1.0.0", "type": "above", "master": "net2"})
    box.start()
    sandbox = box.pod("pod", annotations={NETWORKS: "above,below"})
    box.cni("ADD", sandbox)
    below = json.loads(box.host("ip", "-j", "link", "show", "br1"))
    assert len(below) == 1
    assert [call["env"]["CNI_IFNAME"] for call in above.calls("ADD")] == ["net1"]
    box.cni("DEL", sandbox)
    assert len(above.calls("DEL")) == 1
    assert left(box) == []


def test_an_address_of_the_pod_s_choice_and_a_chain(box: Box) -> None:
    chain = {
        "cniVersion": "1.0.0",
        "name": "chain",
        "plugins": [
            {"type": "bridge", "bridge": "br1", "capabilities": {"ips": True}, "ipam": {"type": "static"}},
            {"type": "tuning", "capabilities": {"mac": True}},
        ],
    }
    box.nad("static", chain)
    element = {"name": "static", "ips": ["10.9.1.77/24"], "mac": "02:00:00:00:00:77", "interface": "data"}
    sandbox = box.pod("pod", annotations={NETWORKS: json.dumps([element])})
    box.cni("ADD", sandbox)
    entry = box.status("pod")[1]
    assert (entry["interface"], entry["ips"], entry["mac"]) == ("data", ["10.9.1.77"], "02:00:00:00:00:77")
    assert "10.9.1.77/24" in sandbox.run("ip", "-brief", "address", "show", "data")
    box.cni("CHECK", sandbox)
    sandbox.run("ip", "link", "set", "data", "address", "02:00:00:00:00:78")
    with pytest.raises(CNIError, match="not as they were attached"):
        box.cni("CHECK", sandbox)
    box.cni("DEL", sandbox)
    assert left(box) == []


def test_del_works_without_namespace_pod_and_cluster_and_twice(box: Box) -> None:
    box.nad("macvlan-conf", MACVLAN_CONF)
    sandbox = box.pod("pod", annotations={NETWORKS: "macvlan-conf"})
    box.cni("ADD", sandbox)
    box.remove("pod")
    (box.manifests / "nad-default-macvlan-conf.yaml").unlink()
    box.cni("DEL", sandbox)
    box.cni("DEL", sandbox)
    box.wait(lambda: left(box) == [], "the kernel, which empties a namespace that is gone in its own time")


def test_a_second_add_is_refused_and_a_del_calls_an_add_off(box: Box) -> None:
    sandbox = box.pod("pod")
    box.cni("ADD", sandbox)
    with pytest.raises(CNIError, match="already has its networks"):
        box.cni("ADD", sandbox)
    box.cni("DEL", sandbox)
    assert left(box) == []


def test_many_pods_at_once(box: Box) -> None:
    box.nad("n1", bridge(1))
    box.nad("macvlan-conf", MACVLAN_CONF)
    sandboxes = [box.pod(f"pod{number}", annotations={NETWORKS: "n1,macvlan-conf"}) for number in range(12)]
    errors: list[Exception] = []

    def each(command: str, sandbox: Sandbox) -> None:
        try:
            box.cni(command, sandbox)
        except Exception as error:
            errors.append(error)

    for command in ("ADD", "DEL"):
        threads = [threading.Thread(target=each, args=(command, sandbox)) for sandbox in sandboxes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert errors == []
        if command == "ADD":
            assert all(names(sandbox) == ["eth0", "net1", "net2"] for sandbox in sandboxes)
            ips = {entry["ips"][0] for number in range(12) for entry in box.status(f"pod{number}")}
            assert len(ips) == 36
    assert left(box) == []


def test_add_waits_for_a_daemon_that_is_away_and_del_is_kept(box: Box) -> None:
    sandbox = box.pod("pod")
    box.stop()
    with pytest.raises(CNIError, match=str(box.socket_dir)) as caught:
        box.cni("ADD", sandbox, MULTUS_DAEMON_TIMEOUT="0.2")
    assert caught.value.code == Code.TRY_AGAIN_LATER
    waiting = threading.Thread(target=box.cni, args=("ADD", sandbox))
    waiting.start()
    time.sleep(0.5)  # it is waiting by now; had it not begun, it would find the daemon, and the test would prove less
    box.start()
    waiting.join(60)
    assert names(sandbox) == ["eth0"]
    box.stop()
    box.cni("DEL", sandbox, MULTUS_DAEMON_TIMEOUT="0.1")
    assert [path.suffix for path in (box.state / "spool").iterdir()] != []
    box.start()
    box.wait(lambda: left(box) == [], "the stored DEL")


def test_status_and_gc(make_box: Callable[..., Box]) -> None:
    """The reference plugins that distributions ship know neither, so the networks are of 1.0.0; nothing is asked."""
    box = make_box()
    box.start()
    box.nad("n1", bridge(1))
    kept, lost = (box.pod(name, annotations={NETWORKS: "n1"}) for name in ("kept", "lost"))
    box.cni("STATUS", kept)
    for sandbox in (kept, lost):
        box.cni("ADD", sandbox)
    conf = json.loads(box.conf())
    conf["cni.dev/valid-attachments"] = [{"containerID": "multusctl-default-kept", "ifname": "eth0"}]
    box.cni("GC", kept, conf=json.dumps(conf).encode())
    assert names(lost) == []
    assert names(kept) == ["eth0", "net1"]
    box.cni("DEL", kept)
    assert left(box) == []
    with pytest.raises(CNIError, match="valid-attachments"):
        box.cni("GC", kept)


def test_reload_takes_effect_without_a_restart(box: Box) -> None:
    box.nad("theirs", bridge(1), namespace="other")
    box.configure(namespaceIsolation=True)
    box.wait(lambda: "reloaded" in box.log.read_text(), "the reload")
    sandbox = box.pod("pod", annotations={NETWORKS: "other/theirs"})
    with pytest.raises(CNIError, match="namespace isolation"):
        box.cni("ADD", sandbox)


def test_what_upstream_attached_is_deleted_by_us(box: Box) -> None:
    """A node that changes over with pods running: upstream's scratch file and libcni's results are all there is."""
    sandbox = box.pod("pod")
    box.cni("ADD", sandbox)
    container = "multusctl-default-pod"
    box.stop()
    conf = json.dumps(DEFAULT_NETWORK).encode()
    scratch = [{"Conf": {}, "ConfList": {}, "Name": "cluster-net", "Bytes": base64.b64encode(conf).decode()}]
    for path in box.state.glob("journal.db*"):
        path.unlink()
    (box.state / container).write_text(json.dumps(scratch))
    box.remove("pod")
    box.start()
    box.cni("DEL", sandbox)
    assert left(box) == []
    assert not (box.state / container).exists()


def test_two_daemons_on_one_state_are_refused(box: Box) -> None:
    second = subprocess.run(
        [sys.executable, "-m", "multus.daemon", "--config", str(box.config)],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert second.returncode == 1
    assert "another multusd holds" in second.stderr


def test_attach_and_detach_by_hand(box: Box, tmp_path: Path) -> None:
    pod = tmp_path / "pod.yaml"
    pod.write_text(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: by-hand\n  annotations:\n"
        "    k8s.v1.cni.cncf.io/networks: macvlan-conf\nspec: {containers: []}\n"
    )
    box.nad("macvlan-conf", MACVLAN_CONF)
    sandbox = box.pod("unused")
    base = [sys.executable, "-m", "multus.cli"]
    files = ["-f", str(pod), "--config", str(box.config)]
    options = [*files, "--netns", sandbox.netns]
    shown = subprocess.run([*base, "explain", *files], capture_output=True, text=True, timeout=30, check=False)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert "default/macvlan-conf" in shown.stdout
    assert names(sandbox) == []
    done = subprocess.run([*base, "attach", *options], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "net1" in done.stdout
    listed = subprocess.run(
        [*base, "attachments", "--cni-dir", str(box.state)], capture_output=True, text=True, timeout=30, check=False
    )
    assert "default/by-hand" in listed.stdout
    assert "macvlan-conf" in listed.stdout
    done = subprocess.run([*base, "detach", *options], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert left(box) == []


def test_an_older_shim_and_hot_plug(box: Box) -> None:
    """Upstream's protocol on the same socket: an ADD by its shim, one more network by its hot-plug controller."""
    sandbox = box.pod("pod")
    env = {
        "CNI_CONTAINERID": "0123456789ab",
        "CNI_NETNS": sandbox.netns,
        "CNI_IFNAME": "eth0",
        "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=pod;K8S_POD_UID=" + sandbox.pod.uid,
    }

    def post(path: str, conf: bytes, **more: Any) -> tuple[int, Any]:
        command = more.pop("command")
        body = {
            "env": {**env, "CNI_COMMAND": command, **more.pop("env", {})},
            "config": base64.b64encode(conf).decode(),
            **more,
        }
        data = json.dumps(body).encode()
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(30)
            client.connect(str(box.socket_dir / "multus.sock"))
            client.sendall(
                f"POST {path} HTTP/1.1\r\nHost: dummy\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data
            )
            answer = b"".join(iter(lambda: client.recv(65536), b""))
        head, _, text = answer.partition(b"\r\n\r\n")
        return int(head.split()[1]), json.loads(text) if text else None

    code, answer = post("/cni", box.conf(), command="ADD")
    assert code == 200
    assert answer["Result"]["cniVersion"] == "1.0.0"
    extra = json.dumps({**bridge(4), "name": "plugged", "capabilities": {"ips": True}}).encode()
    plug = {"env": {"CNI_IFNAME": "hot1"}}
    code, answer = post("/delegate", extra, command="ADD", **plug)
    assert code == 200, answer
    assert names(sandbox) == ["eth0", "hot1"]
    code, answer = post("/delegate", extra, command="ADD", **plug)
    assert code == 400
    assert "hot1" in answer["msg"]
    assert post("/delegate", extra, command="CHECK", **plug)[0] == 200
    assert post("/delegate", extra, command="DEL", **plug)[0] == 200
    assert names(sandbox) == ["eth0"]
    assert post("/delegate", extra, command="ADD", **plug)[0] == 200
    assert post("/cni", box.conf(), command="DEL")[0] == 200  # takes the plugged one down as well
    assert left(box) == []


def test_a_daemon_that_drains_finishes_what_runs(box: Box) -> None:
    sandbox = box.pod("pod")
    thread = threading.Thread(target=lambda: box.cni("ADD", sandbox))
    thread.start()
    time.sleep(0.02)
    box.stop()
    box.start()
    thread.join(60)
    assert names(sandbox) == ["eth0"]
    box.cni("DEL", sandbox)
    assert left(box) == []


def test_subdirectory_and_auxiliary_chains(make_box: Callable[..., Box]) -> None:
    """Upstream's two chaining cases: plugins beside the default network's file, and a chain after all networks."""
    box = make_box(settings={"auxiliaryCNIChainName": "auxiliary"})
    for directory, setting in (("cluster-net", "arp_filter"), ("auxiliary", "arp_ignore")):
        (box.autoconf_dir / directory).mkdir()
        plugin = {"type": "tuning", "sysctl": {f"net.ipv4.conf.eth0.{setting}": "1"}}
        (box.autoconf_dir / directory / "10-tuning.conf").write_text(json.dumps(plugin))
    box.start()
    sandbox = box.pod("pod")
    box.cni("ADD", sandbox)
    for setting in ("arp_filter", "arp_ignore"):
        assert sandbox.run("cat", f"/proc/sys/net/ipv4/conf/eth0/{setting}").strip() == "1"
    assert [entry["name"] for entry in box.status("pod")] == ["cluster-net"]
    box.cni("DEL", sandbox)
    assert left(box) == []


def test_what_another_boot_left_is_undone_at_the_start(box: Box) -> None:
    """After a reboot the namespaces are gone and the addresses' files are not."""
    box.nad("n1", bridge(1))
    sandboxes = [box.pod(f"pod{number}", annotations={NETWORKS: "n1"}) for number in range(3)]
    for sandbox in sandboxes:
        box.cni("ADD", sandbox)
    box.kill()
    with closing(sqlite3.connect(box.state / "journal.db")) as journal:
        journal.execute("UPDATE sandbox SET boot_id = 'the boot before'")
        journal.commit()
    for number in range(3):
        box.remove(f"pod{number}")
    box.start()
    assert left(box) == []


def test_one_after_another_for_who_needs_it(make_box: Callable[..., Box], noops: "Noops") -> None:
    for program in plugin_dir().iterdir():
        (noops.path / program.name).symlink_to(program)
    recorder = noops.install("recorder")
    box = make_box(plugins=noops.path, settings={"attachOrder": "sequential"})
    for number in range(4):
        box.nad(f"n{number}", {"cniVersion": "1.0.0", "type": "recorder"})
    box.start()
    sandbox = box.pod("pod", annotations={NETWORKS: "n3,n1,n2,n0"})
    box.cni("ADD", sandbox)
    assert [call["env"]["CNI_IFNAME"] for call in recorder.calls("ADD")] == ["net1", "net2", "net3", "net4"]
    calls = recorder.calls("ADD")
    assert all(before["ended"] <= after["began"] for before, after in itertools.pairwise(calls))
    box.cni("DEL", sandbox)
    assert [call["env"]["CNI_IFNAME"] for call in recorder.calls("DEL")] == ["net4", "net3", "net2", "net1"]

"""Timelines of real attaches: through the daemon, its socket, its metrics and multusctl."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from multus.cli.box import Box
from multus.cli.demo import MACVLAN_CONF
from multus.cli.timeline import fetch
from multus.timeline import Timeline

_FETCH = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:9099/metrics').read().decode())"
POD = """apiVersion: v1
kind: Pod
metadata: {name: by-hand, annotations: {k8s.v1.cni.cncf.io/networks: macvlan-conf}}
spec: {containers: []}
"""


def phases(timeline: Timeline, ifname: str = "") -> list[str]:
    return [f"{each.phase} {each.what}".rstrip() for each in timeline.spans if each.ifname == ifname]


def multusctl(*arguments: str) -> str:
    command = [sys.executable, "-m", "multus.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("native", [[], ["bridge", "host-local", "macvlan", "portmap"]], ids=["programs", "native"])
def test_every_phase_and_network_is_in_it(make_box: Callable[..., Box], native: list[str]) -> None:
    box = make_box(settings={"nativeDelegates": native, "metricsPort": 9099})
    box.nad("macvlan-conf", MACVLAN_CONF)
    box.start()
    sandbox = box.pod("web", annotations={"k8s.v1.cni.cncf.io/networks": "macvlan-conf"})
    socket = box.socket_dir / "multus.sock"
    container = "multusctl-default-web"
    waited = box.cni("ADD", sandbox).seconds
    added = fetch(socket, "ADD", container, "eth0")
    assert (added.pod, added.outcome) == ("default/web", "ok")
    assert added.seconds <= waited
    wanted = ["queue", "resolve", "plan", "sandbox", "journal", "routes", "status", "journal"]
    assert phases(added) == wanted
    ipam = ["ipam host-local"] if native else []
    assert phases(added, "eth0") == ["turn", "network cluster-net", "plugin bridge", *ipam, "plugin portmap"]
    waited_for = [] if native else ["after", "turn"]  # it is made on the visit to the pod on which eth0 is
    assert phases(added, "net1") == [*waited_for, "network default/macvlan-conf", "plugin macvlan", *ipam]
    for each in added.spans:
        assert 0 <= each.begin <= each.end <= added.seconds
    # What no phase names is little: the spans of the call itself, and the stretch of its networks, are nearly all.
    networks = [each for each in added.spans if each.phase == "network"]
    named = sum(each.end - each.begin for each in added.spans if not each.ifname)
    named += max(each.end for each in networks) - min(each.begin for each in networks)
    assert named >= added.seconds * 0.5
    box.cni("DEL", sandbox)
    removed = fetch(socket, "DEL", container, "eth0")
    assert phases(removed) == ["queue", "journal", "journal"]
    assert "removal default/macvlan-conf" in phases(removed, "net1")
    told = box.host(sys.executable, "-c", _FETCH)
    for line in (
        'multus_phase_seconds_count{command="ADD",phase="network"} 2.0',
        'multus_phase_seconds_count{command="ADD",phase="status"} 1.0',
        'multus_phase_seconds_count{command="DEL",phase="removal"} 2.0',
    ):
        assert line in told.splitlines(), told


def test_multusctl_shows_it(box: Box, tmp_path: Path) -> None:
    pod = tmp_path / "pod.yaml"
    pod.write_text(POD)
    box.nad("macvlan-conf", MACVLAN_CONF)
    sandbox = box.pod("unused")
    options = ["-f", str(pod), "--config", str(box.config), "--netns", sandbox.netns, "--timeline"]
    shown = multusctl("attach", *options)
    for words in ("ADD default/by-hand: ok", "net1 default/macvlan-conf", "plugin macvlan", "status", "all of it"):
        assert words in shown
    gone = multusctl("detach", *options)
    assert "DEL default/by-hand: ok" in gone
    told: Any = json.loads(multusctl("attach", *options, "--json"))
    assert told["result"]["interfaces"]
    assert {each["phase"] for each in told["timeline"]["spans"]} >= {"resolve", "network", "plugin", "status"}
    told = json.loads(multusctl("detach", *options, "--json"))
    assert told["timeline"]["command"] == "DEL"
    assert box.leftovers() == []


def test_a_failed_attach_has_one_too(box: Box) -> None:
    box.nad("broken", {**MACVLAN_CONF, "master": "nosuch"})
    sandbox = box.pod("web", annotations={"k8s.v1.cni.cncf.io/networks": "broken"})
    with pytest.raises(Exception, match="Link not found"):
        box.cni("ADD", sandbox)
    failed = fetch(box.socket_dir / "multus.sock", "ADD", "multusctl-default-web", "eth0")
    assert failed.outcome == "error"
    assert "removal cluster-net" in phases(failed, "eth0")

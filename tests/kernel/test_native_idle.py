"""Chained plugins that have nothing to do, held against their programs: same answers, same errors, same rules."""

import json
import subprocess
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from devices.linux import netns
from multus.cli.box import Box, plugin_dir
from multus.cni.errors import CNIError
from multus.cni.request import Command
from multus.delegates.native.registry import native_delegates
from multus.delegates.plugin import Call, Runner

PREVIOUS: dict[str, Any] = {
    "interfaces": [{"name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": "POD"}],
    "ips": [{"interface": 0, "address": "10.70.0.2/24", "gateway": "10.70.0.1"}],
    "routes": [{"dst": "0.0.0.0/0"}],
    "dns": {"nameservers": ["10.70.0.1"]},
}
PORT = {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}
RATES = {"ingressRate": 1_000_000, "ingressBurst": 1_000_000}

# A plugin's conf, and whether its program is executed for it.
CONFS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "no ports": ("portmap", {"capabilities": {"portMappings": True}}, False),
    "an empty list": ("portmap", {"runtimeConfig": {"portMappings": []}}, False),
    "null": ("portmap", {"runtimeConfig": {"portMappings": None}}, False),
    "another capability": ("portmap", {"runtimeConfig": {"mac": "02:00:00:00:00:09"}}, False),
    "snat": ("portmap", {"snat": True, "conditionsV4": ["!", "-d", "192.0.2.0/24"]}, False),
    "a mark": ("portmap", {"snat": True, "markMasqBit": 12}, True),
    "a wrong mark": ("portmap", {"markMasqBit": 32}, True),
    "a port": ("portmap", {"runtimeConfig": {"portMappings": [PORT]}}, True),
    "a wrong port": ("portmap", {"runtimeConfig": {"portMappings": [{**PORT, "containerPort": 0}]}}, True),
    "no limits": ("bandwidth", {"capabilities": {"bandwidth": True}}, False),
    "limits of nothing": ("bandwidth", {"runtimeConfig": {"bandwidth": {}}}, False),
    "a rate without a burst": ("bandwidth", {"ingressRate": 5}, True),
    "a pod's rate without a burst": ("bandwidth", {"runtimeConfig": {"bandwidth": {"ingressRate": 5}}}, True),
}
VERSIONS = ("0.3.1", "0.4.0", "1.0.0")


def _conf(plugin: str, body: dict[str, Any], version: str, pod: str, *, previous: bool) -> bytes:
    conf: dict[str, Any] = {"cniVersion": version, "name": "net", "type": plugin, **body}
    if previous:
        text = json.loads(json.dumps(PREVIOUS).replace("POD", pod))
        if version != "1.0.0":
            text["ips"][0]["version"] = "4"
        conf["prevResult"] = {"cniVersion": version, **text}
    return json.dumps(conf).encode()


@pytest.mark.parametrize("previous", [True, False])
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("case", CONFS)
def test_as_the_program_does(make_namespace: Callable[[], Any], case: str, version: str, previous: bool) -> None:
    plugin, body, executes = CONFS[case]
    pod = make_namespace()
    pod.veth("eth0")
    commands = [Command.ADD, Command.CHECK, Command.DEL] if version != "0.3.1" else [Command.ADD, Command.DEL]
    program = Runner(timeout=lambda: 30.0)
    executed: list[str] = []

    async def watched(name: str, asked: Call) -> bytes:
        executed.append(name)
        return await program(name, asked)

    def rules() -> str:
        done = subprocess.run(["iptables-save"], capture_output=True, text=True, check=True)
        return "\n".join(line for line in done.stdout.splitlines() if not line.startswith("#"))

    def carry_out(delegate: Any) -> list[Any]:
        told: list[Any] = []
        for command in commands:
            call = Call(
                command=command,
                conf=_conf(plugin, body, version, pod.path, previous=previous),
                container_id="c1",
                netns=pod.path,
                ifname="eth0",
                path=(str(plugin_dir()),),
            )
            try:
                printed = anyio.run(delegate, plugin, call)
                told.append(json.loads(printed) if command is Command.ADD else printed)
            except CNIError as error:
                told.append((error.code, error.message.partition("panic")[0]))
            told.append(rules())
        return told

    expected = netns.run_in(make_namespace().path, carry_out, program)
    assert netns.run_in(make_namespace().path, carry_out, native_delegates((plugin,), watched)[plugin]) == expected
    # Without a result only DEL can be answered, and what bandwidth's CHECK looks at is not for us to say.
    spared = (
        {Command.ADD, Command.DEL, *([Command.CHECK] if plugin == "portmap" else [])} if previous else {Command.DEL}
    )
    assert len(executed) == len(commands) - (0 if executes else len(spared & set(commands)))


def test_a_pod_with_limits_gets_them(make_box: Callable[..., Box]) -> None:
    """Through the daemon: the pod's own limits come by the network's capability, and the program is executed."""
    box = make_box(settings={"nativeDelegates": ["portmap", "bandwidth"]})
    bridge = {"type": "bridge", "bridge": "br1", "ipam": {"type": "host-local", "subnet": "10.71.0.0/24"}}
    limited = {"type": "bandwidth", "capabilities": {"bandwidth": True}}
    box.nad("shaped", {"cniVersion": "1.0.0", "plugins": [bridge, {**limited, **RATES}]})
    box.nad("free", {"cniVersion": "1.0.0", "plugins": [bridge, limited]})
    box.start()
    for network, shaped in (("free", False), ("shaped", True)):
        sandbox = box.pod(network, annotations={"k8s.v1.cni.cncf.io/networks": network})
        box.cni("ADD", sandbox)
        assert ("tbf" in box.host("tc", "qdisc")) is shaped
        box.cni("DEL", sandbox)
    assert [each for each in box.leftovers() if each != "interface br1"] == []

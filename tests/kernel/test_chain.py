"""Networks of the reference plugins, in real namespaces: one stands for the node, one for the pod.

On the node's side the plugins run through a script that enters the node's namespace, so that no interface, rule or
address of the machine itself is touched.
"""

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from multus.cli.box import plugin_dir
from multus.cni.conf import NetworkConf, parse_conf, with_chained
from multus.cni.errors import Code
from multus.cni.request import ValidAttachment
from multus.cni.result import IP, SUPPORTED, Result, at_least
from multus.delegates.chain import Chain, Target
from multus.delegates.plugin import PluginError, Runner

pytestmark = pytest.mark.anyio


class Net:
    """A node and a pod; `plugins` is the directory of the scripts, `ipam` where host-local keeps its addresses."""

    def __init__(self, directory: Path) -> None:
        self.node = f"node-{os.getpid()}"
        self.pod = f"pod-{os.getpid()}"
        self.ipam = directory / "ipam"
        self.plugins = directory / "plugins"
        self.chain = Chain(Runner(timeout=lambda: 30.0), in_process={}, bin_dirs=lambda: (str(self.plugins),))
        self.target = Target(
            container_id="c1",
            netns=f"/run/netns/{self.pod}",
            ifname="net1",
            args=(("IgnoreUnknown", "true"),),
            runtime={"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]},
        )

    def set_up(self) -> None:
        self.plugins.mkdir()
        for program in plugin_dir().iterdir():
            script = self.plugins / program.name
            script.write_text(f"#!/bin/sh\nexec nsenter --net=/run/netns/{self.node} {program}\n")
            script.chmod(0o755)
        for name in (self.node, self.pod):
            _run("ip", "netns", "add", name)
            self.ip(name, "link", "set", "lo", "up")
        self.ip(self.node, "link", "add", "uplink", "type", "veth", "peer", "name", "wire")
        for name in ("uplink", "wire"):
            self.ip(self.node, "link", "set", name, "up")

    def tear_down(self) -> None:
        for name in (self.node, self.pod):
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)

    @property
    def checked(self) -> Target:
        """The target for CHECK: without ports, as portmap's (1.1.1) looks for those of IPv4 among IPv6 rules."""
        return msgspec.structs.replace(self.target, runtime={})

    def ip(self, namespace: str, *arguments: str) -> str:
        return _run("ip", "-n", namespace, *arguments)

    def links(self, namespace: str) -> set[str]:
        found = {link["ifname"] for link in json.loads(self.ip(namespace, "-j", "link"))}
        return found - {"lo", "uplink", "wire", "tunl0", "sit0", "ip6tnl0"}

    async def links_go(self, kept: set[str]) -> None:
        """Wait for the node to have no other links: a namespace that goes takes its own down a moment later."""
        with anyio.fail_after(20):
            while not self.links(self.node) <= kept:
                await anyio.sleep(0.01)

    def addresses(self, namespace: str, name: str) -> set[str]:
        (link,) = json.loads(self.ip(namespace, "-j", "addr", "show", "dev", name))
        found = [each for each in link["addr_info"] if each["scope"] == "global"]
        return {f"{each['local']}/{each['prefixlen']}" for each in found}

    def routes(self) -> set[str]:
        return {route["dst"] for route in json.loads(self.ip(self.pod, "-j", "route"))}

    def held(self) -> list[str]:
        """Addresses that host-local has given away."""
        return sorted(path.name for path in self.ipam.rglob("*") if path.name.startswith(("10.", "fd81")))

    def rules(self) -> str:
        return _run("ip", "netns", "exec", self.node, "iptables", "-t", "nat", "-S")

    def host_local(self, subnet: str = "10.81.0.0/24", **keys: Any) -> dict[str, Any]:
        return {"type": "host-local", "subnet": subnet, "dataDir": str(self.ipam), **keys}

    def both_families(self) -> dict[str, Any]:
        ranges = [[{"subnet": "10.81.0.0/24"}], [{"subnet": "fd81::/64"}]]
        return {"type": "host-local", "ranges": ranges, "dataDir": str(self.ipam)}

    def network(self, *plugins: dict[str, Any], version: str = "1.0.0", **keys: Any) -> NetworkConf:
        body = {"cniVersion": version, "name": "n", "plugins": plugins, **keys}
        return parse_conf(json.dumps(body).encode(), where="test")

    def chained(self) -> NetworkConf:
        return self.network(
            {"type": "bridge", "bridge": "br0", "isGateway": True, "ipam": self.both_families()},
            {"type": "tuning", "mtu": 1400, "sysctl": {"net.ipv4.conf.net1.arp_filter": "1"}},
            {"type": "portmap", "capabilities": {"portMappings": True}},
        )

    def macvlan(self, **keys: Any) -> NetworkConf:
        return self.network(
            {"type": "macvlan", "master": "uplink", "mode": "bridge", "ipam": self.host_local()}, **keys
        )

    def ptp(self) -> NetworkConf:
        return self.network({"type": "ptp", "ipam": self.host_local(routes=[{"dst": "0.0.0.0/0"}])})

    def static(self) -> NetworkConf:
        ipam = {"type": "static", "addresses": [{"address": "10.82.0.5/24", "gateway": "10.82.0.1"}]}
        return self.network({"type": "bridge", "bridge": "br1", "ipam": ipam})


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


@pytest.fixture
def net(tmp_path: Path) -> Iterator[Net]:
    made = Net(tmp_path)
    try:
        made.set_up()
        yield made
    finally:
        made.tear_down()


def _speaks(program: str) -> list[str]:
    done = subprocess.run(
        [plugin_dir() / program], env={"CNI_COMMAND": "VERSION"}, input=b"{}", capture_output=True, check=True
    )
    found: list[str] = json.loads(done.stdout)["supportedVersions"]
    return found


async def test_a_chain_of_bridge_tuning_and_portmap(net: Net) -> None:
    conf = net.chained()
    result = await net.chain.add(conf, net.target)
    assert [ip.address for ip in result.ips] == ["10.81.0.2/24", "fd81::2/64"]
    pod_side = [each for each in result.interfaces if each.sandbox]
    assert [each.name for each in pod_side] == ["net1"] and pod_side[0].sandbox == net.target.netns
    assert net.links(net.pod) == {"net1"} and net.addresses(net.pod, "net1") == {"10.81.0.2/24", "fd81::2/64"}
    (link,) = json.loads(net.ip(net.pod, "-j", "link", "show", "dev", "net1"))
    assert (link["mtu"], link["address"]) == (1400, pod_side[0].mac)
    assert "10.81.0.2:80" in net.rules() and "8080" in net.rules()
    assert net.held() == ["10.81.0.2", "fd81::2"]
    await net.chain.check(conf, net.checked, result)

    net.ip(net.pod, "link", "set", "net1", "mtu", "1300")
    with pytest.raises(PluginError, match=r'plugin type="tuning" failed \(check\): .*1400'):
        await net.chain.check(conf, net.checked, result)
    await net.chain.check(msgspec.structs.replace(conf, disable_check=True), net.checked, result)

    await net.chain.delete(conf, net.target, result)
    assert net.links(net.pod) == set() and net.links(net.node) == {"br0"}
    assert "10.81.0.2" not in net.rules() and net.held() == []
    await net.chain.delete(conf, net.target, result)


KINDS: dict[str, Callable[[Net], NetworkConf]] = {
    "bridge chain": Net.chained,
    "macvlan": Net.macvlan,
    "ptp": Net.ptp,
    "static": Net.static,
}


@pytest.mark.parametrize("kind", KINDS)
async def test_add_check_and_two_deletes(net: Net, kind: str) -> None:
    conf = KINDS[kind](net)
    before = net.links(net.node)
    result = await net.chain.add(conf, net.target)
    assert net.addresses(net.pod, "net1") == {ip.address for ip in result.ips} != set()
    await net.chain.check(conf, net.checked, result)
    await net.chain.delete(conf, net.target, result)
    assert net.links(net.pod) == set() and net.held() == []
    assert net.links(net.node) - before <= {"br0", "br1"}  # the plugin leaves its bridge
    await net.chain.delete(conf, net.target, result)


@pytest.mark.parametrize("kind", KINDS)
async def test_check_sees_an_address_that_is_gone(net: Net, kind: str) -> None:
    conf = KINDS[kind](net)
    result = await net.chain.add(conf, net.target)
    net.ip(net.pod, "addr", "flush", "dev", "net1")
    with pytest.raises(PluginError, match=r"failed \(check\): "):
        await net.chain.check(conf, net.checked, result)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("known", [True, False], ids=["path known", "no path"])
async def test_delete_after_the_namespace_has_gone(net: Net, kind: str, known: bool) -> None:
    conf = KINDS[kind](net)
    before = net.links(net.node)
    result = await net.chain.add(conf, net.target)
    _run("ip", "netns", "delete", net.pod)
    target = net.target if known else msgspec.structs.replace(net.target, netns="")
    for _ in range(2):
        await net.chain.delete(conf, target, result)
    assert net.held() == []
    await net.links_go(before | {"br0", "br1"})
    assert kind != "bridge chain" or "10.81.0.2" not in net.rules()


@pytest.mark.parametrize("kind", KINDS)
async def test_delete_of_an_add_that_left_no_result(net: Net, kind: str) -> None:
    """As after a crash between the plugin's end and our note of it."""
    conf = KINDS[kind](net)
    await net.chain.add(conf, net.target)
    await net.chain.delete(conf, net.target, None)
    assert net.links(net.pod) == set() and net.held() == []


async def test_ptp_gives_a_way_out(net: Net) -> None:
    result = await net.chain.add(net.ptp(), net.target)
    assert "default" in net.routes()
    assert [route.dst for route in result.routes] == ["0.0.0.0/0"]


async def test_addresses_by_capability(net: Net) -> None:
    conf = net.network(
        {
            "type": "macvlan",
            "master": "uplink",
            "capabilities": {"ips": True, "mac": True},
            "ipam": {"type": "static"},
        }
    )
    runtime = {"ips": ["10.83.0.7/24"], "mac": "0a:00:00:00:00:07"}
    target = msgspec.structs.replace(net.target, runtime=runtime)
    result = await net.chain.add(conf, target)
    assert result.ips == (IP(address="10.83.0.7/24", interface=0),)
    assert result.interfaces[0].mac == "0a:00:00:00:00:07"
    assert net.addresses(net.pod, "net1") == {"10.83.0.7/24"}
    await net.chain.delete(conf, target, result)


@pytest.mark.parametrize("version", SUPPORTED)
async def test_every_version_that_the_plugin_speaks(net: Net, version: str) -> None:
    conf = net.macvlan(version=version)
    if version not in _speaks("macvlan"):
        with pytest.raises(PluginError) as caught:
            await net.chain.add(conf, net.target)
        assert caught.value.code == Code.INCOMPATIBLE_VERSION
        return
    result = await net.chain.add(conf, net.target)
    assert [ip.address for ip in result.ips] == ["10.81.0.2/24"]
    assert bool(result.interfaces) is at_least(version, "0.3.0")
    await net.chain.check(conf, net.checked, result)
    await net.chain.delete(conf, net.target, result)
    assert net.links(net.pod) == set() and net.held() == []


@pytest.mark.parametrize(
    ("plugin", "words"),
    [
        ({"type": "macvlan", "master": "nowhere"}, r'type="macvlan" failed \(add\): .*[Ll]ink not found'),
        ({"type": "bridge", "bridge": "br0", "ipam": {"type": "absent"}}, r'type="bridge" failed \(add\): .*absent'),
        ({"type": "absent"}, r'failed to find plugin "absent" in path \[.*/plugins\]'),
    ],
)
async def test_what_the_reference_plugins_say_when_they_fail(net: Net, plugin: dict[str, Any], words: str) -> None:
    with pytest.raises(PluginError, match=words):
        await net.chain.add(net.network(plugin), net.target)


async def test_addresses_that_have_run_out(net: Net) -> None:
    small = net.host_local(rangeStart="10.81.0.9", rangeEnd="10.81.0.9")
    conf = net.network({"type": "macvlan", "master": "uplink", "ipam": small})
    await net.chain.add(conf, net.target)
    other = msgspec.structs.replace(net.target, container_id="c2", ifname="net2")
    with pytest.raises(PluginError, match=r"no IP addresses available in range set: 10\.81\.0\.9-10\.81\.0\.9"):
        await net.chain.add(conf, other)
    await net.chain.delete(conf, other, None)
    assert net.held() == ["10.81.0.9"]


async def test_a_failure_further_on_and_the_delete_of_what_was_done(net: Net) -> None:
    """As the core does after any failure: DEL for the network that failed half way."""
    bad = net.network({"type": "tuning", "sysctl": {"net.ipv4.no_such_thing": "1"}})
    conf = with_chained(net.macvlan(), bad.plugins)
    with pytest.raises(PluginError, match='plugin type="tuning" failed'):
        await net.chain.add(conf, net.target)
    assert net.held() == ["10.81.0.2"] and net.links(net.pod) == {"net1"}
    await net.chain.delete(conf, net.target, None)
    assert net.links(net.pod) == set() and net.held() == []


@pytest.mark.parametrize("command", ["status", "gc"])
async def test_node_wide_commands_of_a_network_in_1_1_0(net: Net, command: str) -> None:
    conf, target = net.macvlan(version="1.1.0"), net.target

    async def call() -> None:
        if command == "status":
            await net.chain.status(conf, ())
        else:
            await net.chain.gc(conf, [ValidAttachment(container_id=target.container_id, ifname=target.ifname)], ())

    if "1.1.0" in _speaks("macvlan"):
        await call()
    else:
        with pytest.raises(PluginError, match=f"failed \\({command}\\): "):
            await call()


async def test_nothing_comes_back_from_a_passed_result(net: Net) -> None:
    """tuning hands on what it was given: the last result of a chain is the first plugin's."""
    alone = await net.chain.add(net.static(), net.target)
    await net.chain.delete(net.static(), net.target, alone)
    tuned = with_chained(net.static(), net.network({"type": "tuning"}).plugins)
    result = await net.chain.add(tuned, net.target)
    assert _shape(result) == _shape(alone)


def _shape(result: Result) -> tuple[object, ...]:
    return result.ips, result.routes, result.dns, len(result.interfaces)

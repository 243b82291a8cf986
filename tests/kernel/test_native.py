"""What is done in this process, held against the reference plugins: same conf, same node, twin pods.

Each network is attached by the program and by us; result, kernel state and files have to be the same.
"""

import json
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from devices.linux import netns
from multus.cli.box import Box, plugin_dir
from multus.cni.args import Pairs
from multus.cni.errors import CNIError
from multus.cni.request import Command
from multus.delegates.chain import Delegate
from multus.delegates.native.registry import NATIVE, native_delegates
from multus.delegates.native.removal import remove_together
from multus.delegates.plugin import Call, Runner

PROGRAM, OURS = "program", "ours"
WAYS = (PROGRAM, OURS)


class Twins:
    """A node with an uplink, and a pod for each way; `run` carries out a call from within the node's namespace."""

    def __init__(self, directory: Path, make: Callable[[], Any]) -> None:
        self.node = make()
        self.pods = {PROGRAM: make(), OURS: make()}
        self.data = {PROGRAM: directory / "program", OURS: directory / "ours"}
        self.directory = directory
        self.node.veth("uplink")
        self.executed: list[str] = []

    def conf(self, way: str, body: dict[str, Any]) -> dict[str, Any]:
        """The conf with a data directory of its own."""
        full = {"cniVersion": "1.0.0", "name": "net", "type": "macvlan", **body}
        if full["type"] == "macvlan":
            full.setdefault("master", "uplink")
        if full.get("ipam", {}).get("type") == "host-local":
            full["ipam"] = {"dataDir": str(self.data[way]), **full["ipam"]}
        return full

    def run(
        self,
        way: str,
        body: dict[str, Any],
        command: Command = Command.ADD,
        *,
        pod: str = "",
        ifname: str = "net1",
        container: str = "c1",
        args: Pairs = (("IgnoreUnknown", "true"),),
        data: str = "",
        netns_path: str | None = None,
        plugin: str = "",
    ) -> dict[str, Any]:
        conf = self.conf(data or way, body)
        path = self.pods[pod or way].path if netns_path is None else netns_path
        call = Call(
            command=command,
            conf=json.dumps(conf).encode(),
            container_id=container,
            netns=path,
            ifname=ifname,
            args=args,
            path=(str(plugin_dir()),),
        )
        printed: bytes = netns.run_in(self.node.path, anyio.run, self._call, way, plugin or conf["type"], call)
        return json.loads(printed) if printed.strip() else {}

    async def _call(self, way: str, plugin: str, call: Call) -> bytes:
        program = Runner(timeout=lambda: 30.0)
        if way == PROGRAM:
            return await program(plugin, call)

        async def runner(name: str, asked: Call) -> bytes:
            self.executed.append(name)
            return await program(name, asked)

        return await native_delegates(NATIVE, runner)[plugin](plugin, call)

    def fails(self, way: str, *arguments: Any, **options: Any) -> tuple[int, str]:
        """Code and message of a failure, in words that do not tell the pods apart."""
        with pytest.raises(CNIError) as caught:
            self.run(way, *arguments, **options)
        message = caught.value.message.replace(self.pods[way].path, "POD").replace(str(self.data[way]), "DATA")
        return caught.value.code, message

    def state(self, way: str, ifname: str = "net1") -> dict[str, Any]:
        """All that the kernel tells of the pod's interface and routes, but for what is made up each time."""
        pod = self.pods[way]
        links = [each for each in json.loads(pod.ip("-d -j addr")) if each["ifname"] != "lo"]
        random = {link.pop("address") for link in links}
        for link in links:
            for key in ("ifindex", "link_index", "link_netnsid"):
                link.pop(key, None)
            assert link["ifname"] == ifname and len(random) == 1
            link["addr_info"] = [each for each in link["addr_info"] if each["scope"] != "link"]
            for each in link["addr_info"]:
                each.pop("valid_life_time"), each.pop("preferred_life_time")
        routes = [
            [
                {k: v for k, v in route.items() if k != "expires"}
                for route in json.loads(pod.ip(f"{family} -j route show table all"))
            ]
            for family in ("-4", "-6")
        ]
        kept = [[r for r in family if not str(r["dst"]).startswith(("fe80", "ff00", "multicast"))] for family in routes]
        sysctl = pod.name and _in(pod.name, f"cat /proc/sys/net/ipv4/conf/{ifname}/arp_notify || true") if links else ""
        return {"links": links, "routes": kept, "arp_notify": sysctl}

    def files(self, way: str) -> dict[str, tuple[str, str]]:
        """Modes and contents of host-local's files."""
        found = sorted(path for path in self.data[way].rglob("*"))
        return {
            str(path.relative_to(self.data[way])): (
                stat.filemode(path.stat().st_mode),
                path.read_bytes().decode() if path.is_file() else "",
            )
            for path in found
        }


def _in(name: str, command: str) -> str:
    done = subprocess.run(
        ["ip", "netns", "exec", name, "sh", "-c", command], capture_output=True, text=True, timeout=20, check=True
    )
    return done.stdout


@pytest.fixture
def twins(tmp_path: Path, make_namespace: Callable[[], Any]) -> Iterator[Twins]:
    yield Twins(tmp_path, make_namespace)


def _plain(result: dict[str, Any], twins: Twins, way: str, *, mac: str = "") -> dict[str, Any]:
    text = json.dumps(result).replace(twins.pods[way].path, "POD").replace(str(twins.data[way]), "DATA")
    plain: dict[str, Any] = json.loads(text)
    for interface in plain.get("interfaces", []):
        assert interface["mac"] == json.loads(twins.pods[way].ip("-j link show dev net1"))[0]["address"]
        if not mac:
            interface["mac"] = "MAC"
    return plain


HOST_LOCAL: dict[str, Any] = {"type": "host-local", "subnet": "10.83.0.0/24"}
STATIC: dict[str, Any] = {"type": "static", "addresses": [{"address": "10.84.0.7/24", "gateway": "10.84.0.1"}]}
DUAL: dict[str, Any] = {
    "type": "host-local",
    "ranges": [
        [
            {"subnet": "10.83.0.0/24", "rangeStart": "10.83.0.50", "rangeEnd": "10.83.0.51", "gateway": "10.83.0.254"},
            {"subnet": "10.85.0.0/16", "rangeStart": "10.85.3.0"},
        ],
        [{"subnet": "fd83::/64"}],
    ],
    "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}, {"dst": "fd99::/48", "gw": "fd83::9"}],
}
ASKED = (("IgnoreUnknown", "1"), ("K8S_POD_NAME", "p"))

CONFS: dict[str, tuple[dict[str, Any], Pairs]] = {
    "plain": ({"ipam": HOST_LOCAL}, ASKED),
    "no args": ({"ipam": HOST_LOCAL}, ()),
    "no addresses": ({}, ASKED),
    "empty ipam": ({"ipam": {}}, ASKED),
    "private": ({"mode": "private", "ipam": HOST_LOCAL}, ASKED),
    "vepa": ({"mode": "vepa", "ipam": HOST_LOCAL}, ASKED),
    "passthru": ({"mode": "passthru", "ipam": HOST_LOCAL}, ASKED),
    "bridge, mtu": ({"mode": "bridge", "mtu": 1400, "ipam": HOST_LOCAL}, ASKED),
    "mac": ({"mac": "02:00:00:00:00:83", "ipam": HOST_LOCAL}, ASKED),
    "mac by args": ({"mac": "02:00:00:00:00:83", "ipam": HOST_LOCAL}, (*ASKED, ("MAC", "02:00:00:00:00:84"))),
    "mac by capability": (
        {"capabilities": {"mac": True}, "runtimeConfig": {"mac": "02:00:00:00:00:85"}, "ipam": HOST_LOCAL},
        (*ASKED, ("MAC", "02:00:00:00:00:84")),
    ),
    "dns": ({"dns": {"nameservers": ["10.0.0.1"], "search": ["a", "b"]}, "ipam": HOST_LOCAL}, ASKED),
    "routes": (
        {"ipam": {**HOST_LOCAL, "routes": [{"dst": "0.0.0.0/0"}, {"dst": "10.9.0.0/16", "gw": "10.83.0.5"}]}},
        ASKED,
    ),
    "range": ({"ipam": {**HOST_LOCAL, "rangeStart": "10.83.0.20", "rangeEnd": "10.83.0.29"}}, ASKED),
    "gateway within": ({"ipam": {**HOST_LOCAL, "rangeStart": "10.83.0.20", "gateway": "10.83.0.20"}}, ASKED),
    "dual": ({"ipam": DUAL}, ASKED),
    "address by args": ({"ipam": HOST_LOCAL}, (*ASKED, ("IP", "10.83.0.77"))),
    "address in conf": ({"args": {"cni": {"ips": ["10.83.0.78"]}}, "ipam": HOST_LOCAL}, ASKED),
    "address by capability": ({"runtimeConfig": {"ips": ["10.85.3.9/16", "fd83::7"]}, "ipam": DUAL}, ASKED),
    "range by capability": (
        {"runtimeConfig": {"ipRanges": [[{"subnet": "10.86.0.0/24"}]]}, "ipam": {"type": "host-local"}},
        ASKED,
    ),
    "static": ({"ipam": STATIC}, ASKED),
    "static, several": (
        {
            "ipam": {
                "type": "static",
                "addresses": [
                    {"address": "10.84.0.7/24"},
                    {"address": "10.87.0.7/32", "version": "4"},
                    {"address": "fd84::7/64"},
                ],
                "routes": [{"dst": "10.88.0.0/16"}, {"dst": "10.89.0.0/16", "gw": "10.84.0.1"}, {"dst": "fd85::/64"}],
                "dns": {"nameservers": ["10.0.0.1"]},
            }
        },
        ASKED,
    ),
    "static, by args": ({"ipam": {"type": "static"}}, (*ASKED, ("IP", "10.84.0.8/24, 10.84.0.9/24"))),
    "static, in conf": ({"args": {"cni": {"ips": ["10.84.0.10/24"], "labels": []}}, "ipam": STATIC}, ASKED),
    "static, by capability": ({"runtimeConfig": {"ips": ["10.84.0.11/24"]}, "ipam": STATIC}, ASKED),
    "0.3.0": ({"cniVersion": "0.3.0", "ipam": HOST_LOCAL}, ASKED),
    "0.3.1": ({"cniVersion": "0.3.1", "ipam": HOST_LOCAL, "dns": {"domain": "d"}}, ASKED),
    "0.4.0": ({"cniVersion": "0.4.0", "ipam": DUAL}, ASKED),
}


@pytest.mark.parametrize("case", CONFS)
def test_the_same_result_state_and_files(twins: Twins, case: str) -> None:
    body, args = CONFS[case]
    seen = {}
    for way in (PROGRAM, OURS):
        result = twins.run(way, body, args=args)
        added = (_plain(result, twins, way, mac=body.get("mac", "")), twins.state(way), twins.files(way))
        twins.run(way, body, Command.DEL, args=args)
        twins.run(way, body, Command.DEL, args=args)
        seen[way] = (*added, twins.state(way), twins.files(way))
    assert seen[OURS] == seen[PROGRAM]
    assert seen[OURS][1]["links"] and not seen[OURS][3]["links"]
    assert not twins.executed, "it was not done natively"


@pytest.mark.parametrize("adder", WAYS)
@pytest.mark.parametrize("case", ["plain", "dual", "mac by capability", "static", "0.4.0"])
def test_what_one_added_the_other_checks_and_removes(twins: Twins, case: str, adder: str) -> None:
    body, args = CONFS[case]
    other = OURS if adder == PROGRAM else PROGRAM
    result = twins.run(adder, body, args=args)
    options: dict[str, Any] = {"args": args, "pod": adder, "data": adder}
    for way in WAYS:
        twins.run(way, {**body, "prevResult": result}, Command.CHECK, **options)
    twins.run(other, {**body, "prevResult": result}, Command.DEL, **options)
    assert not twins.state(adder)["links"]
    assert not [name for name in twins.files(adder) if name.count(".") > 1 and "last" not in name]


# What is refused: the conf, CNI_ARGS, and words that both say.
REFUSED: dict[str, tuple[dict[str, Any], Pairs, str]] = {
    "no master": ({"master": "nothing"}, ASKED, "Link not found"),
    "mtu": ({"mtu": 9000}, ASKED, "invalid MTU 9000"),
    "mode": ({"mode": "source"}, ASKED, "unknown macvlan mode"),
    "mac": ({"mac": "zz"}, ASKED, "MAC"),
    "no range": ({"ipam": {"type": "host-local"}}, ASKED, "no IP ranges specified"),
    "tiny subnet": ({"ipam": {**HOST_LOCAL, "subnet": "10.83.0.0/31"}}, ASKED, "too small"),
    "host bits": ({"ipam": {**HOST_LOCAL, "subnet": "10.83.0.1/24"}}, ASKED, "host bits"),
    "range outside": ({"ipam": {**HOST_LOCAL, "rangeStart": "10.84.0.1"}}, ASKED, "not in network"),
    "gateway asked for": ({"ipam": HOST_LOCAL}, (*ASKED, ("IP", "10.83.0.1")), "is subnet's gateway"),
    "none of the range": ({"ipam": HOST_LOCAL}, (*ASKED, ("IP", "10.99.0.1")), "failed to allocate all requested IPs"),
    "two of a range": (
        {"ipam": HOST_LOCAL, "args": {"cni": {"ips": ["10.83.0.8", "10.83.0.9"]}}},
        ASKED,
        "failed to allocate all requested IPs",
    ),
    "no address": ({"ipam": {**STATIC, "addresses": [{"address": "10.84.0.7"}]}}, ASKED, "CIDR notation"),
    "none at all": ({"ipam": {"type": "static"}}, ASKED, "IPAM plugin returned missing IP config"),
    "unknown argument": ({}, (("K8S_POD_NAME", "p"),), "unknown args"),
    "version": ({"cniVersion": "9.9.9"}, ASKED, "incompatible"),
    "no resolv.conf": ({"ipam": {**HOST_LOCAL, "resolvConf": "/does/not/exist"}}, ASKED, "no such file"),
    "unreachable gateway": (
        {"ipam": {**HOST_LOCAL, "routes": [{"dst": "10.9.0.0/16", "gw": "10.99.0.1"}]}},
        ASKED,
        "failed to add route",
    ),
    "the same route twice": (
        {"ipam": {**HOST_LOCAL, "routes": [{"dst": "10.9.0.0/16"}, {"dst": "10.9.0.0/16"}]}},
        ASKED,
        "failed to add route",
    ),
    "no such address plugin": ({"ipam": {"type": "nothing"}}, ASKED, 'failed to find plugin "nothing" in path'),
}


@pytest.mark.parametrize("case", REFUSED)
def test_the_same_refusal_and_nothing_is_left(twins: Twins, case: str) -> None:
    body, args, words = REFUSED[case]
    codes = {}
    for way in WAYS:
        codes[way], message = twins.fails(way, body, args=args)
        assert words in message
    if case != "no such address plugin":  # the program hides libcni's own code for that
        assert codes[OURS] == codes[PROGRAM]
    assert not twins.state(OURS)["links"]
    assert not [name for name in twins.files(OURS) if name.startswith("net/10.")]


@pytest.mark.parametrize("way", WAYS)
def test_an_interface_or_an_address_that_is_there_already(twins: Twins, way: str) -> None:
    body = {"ipam": HOST_LOCAL}
    twins.run(way, body)
    code, message = twins.fails(way, body)
    assert code == 999 and "file exists" in message.lower()
    twins.run(way, {}, Command.DEL)
    code, message = twins.fails(way, body)
    assert code == 999 and "duplicate allocation is not allowed" in message
    assert "net/10.83.0.2" in twins.files(way)


def test_a_name_that_the_node_has_too(twins: Twins) -> None:
    seen = {}
    for way in WAYS:
        result = twins.run(way, {"ipam": HOST_LOCAL}, ifname="uplink")
        assert [each["name"] for each in result["interfaces"]] == ["uplink"]
        seen[way] = twins.state(way, "uplink")
        twins.run(way, {"ipam": HOST_LOCAL}, Command.DEL, ifname="uplink")
        assert not twins.state(way, "uplink")["links"]
    assert seen[OURS] == seen[PROGRAM] and not twins.executed
    assert "uplink" in twins.node.ip("link")


def test_a_namespace_that_is_gone(twins: Twins) -> None:
    for way in WAYS:
        assert twins.fails(way, {}, netns_path="/run/netns/nothing")[0] == 999
        twins.run(way, {"ipam": HOST_LOCAL}, container="c2")
        for path in ("/run/netns/nothing", ""):
            twins.run(way, {"ipam": HOST_LOCAL}, Command.DEL, container="c2", netns_path=path)
        twins.run(way, {}, Command.DEL)
    assert twins.files(OURS) == twins.files(PROGRAM)


def test_without_its_master_a_del_is_done_all_the_same(twins: Twins) -> None:
    twins.run(OURS, {"ipam": HOST_LOCAL})
    twins.run(OURS, {"ipam": HOST_LOCAL, "master": "gone"}, Command.DEL)
    assert not twins.state(OURS)["links"] and set(twins.files(OURS)) == {"net", "net/lock", "net/last_reserved_ip.0"}


def test_what_is_not_understood_is_the_programs(twins: Twins) -> None:
    for body in ({"linkInContainer": False}, {"MTU": 1300}, {"cniVersion": "0.2.0", "ipam": HOST_LOCAL}):
        twins.executed.clear()
        twins.run(OURS, body)
        assert twins.executed == ["macvlan"]
        twins.run(OURS, body, Command.DEL)
    assert twins.executed == ["macvlan"] * 2
    twins.run(OURS, {"ipam": {**HOST_LOCAL, "Routes": []}})
    assert twins.executed == ["macvlan"] * 2 + ["host-local"]


@pytest.mark.parametrize("plugin", ["host-local", "static"])
def test_an_address_plugin_by_itself(twins: Twins, plugin: str) -> None:
    ipam = (
        {**HOST_LOCAL, "resolvConf": "/etc/resolv.conf"}
        if plugin == "host-local"
        else {**STATIC, "dns": {"domain": "d"}}
    )
    body = {"type": "bridge", "someKey": 1, "ipam": ipam}
    seen = {}
    for way in WAYS:
        result = twins.run(way, body, plugin=plugin)
        files = twins.files(way)
        twins.run(way, body, Command.DEL, plugin=plugin)
        seen[way] = (result, files, twins.files(way))
    assert seen[OURS] == seen[PROGRAM] and seen[OURS][0]["dns"] and not twins.executed


def test_addresses_go_round_and_the_pool_ends(twins: Twins) -> None:
    body = {"ipam": {**HOST_LOCAL, "rangeStart": "10.83.0.1", "rangeEnd": "10.83.0.4"}}
    given = []
    for turn, way in enumerate((PROGRAM, OURS, PROGRAM, OURS, OURS)):
        options: dict[str, Any] = {"plugin": "host-local", "data": OURS, "container": f"c{turn}"}
        given.append(twins.run(way, body, **options)["ips"][0]["address"])
        if turn % 2:
            twins.run(OURS if way == PROGRAM else PROGRAM, body, Command.DEL, **options)
    assert given == [f"10.83.0.{n}/24" for n in (2, 3, 4, 3, 3)]
    for way in WAYS:
        code, message = twins.fails(way, body, plugin="host-local", data=OURS, container=f"more-{way}")
        assert (code, "no IP addresses available in range set: 10.83.0.1-10.83.0.4" in message) == (999, True)


@pytest.mark.anyio
async def test_both_at_once_never_give_an_address_twice(tmp_path: Path) -> None:
    conf = {"cniVersion": "1.0.0", "name": "net", "ipam": {**DUAL, "dataDir": str(tmp_path)}}
    program = Runner(timeout=lambda: 60.0)
    ways: dict[str, Delegate] = {PROGRAM: program, OURS: native_delegates(NATIVE, program)["host-local"]}
    given: dict[str, list[str]] = {}
    limiter = anyio.CapacityLimiter(16)

    async def call(command: Command, container: str, way: str) -> None:
        asked = Call(
            command=command,
            conf=json.dumps(conf).encode(),
            container_id=container,
            netns="/run/netns/none",
            ifname="net1",
            path=(str(plugin_dir()),),
        )
        async with limiter:
            printed = await ways[way]("host-local", asked)
        if command is Command.ADD:
            given[container] = [ip["address"] for ip in json.loads(printed)["ips"]]

    async with anyio.create_task_group() as group:
        for number in range(50):
            group.start_soon(call, Command.ADD, f"c{number}", WAYS[number % 2])
    addresses = [address for each in given.values() for address in each]
    assert len(given) == 50 and len(addresses) == len(set(addresses)) == 100
    for container, mine in given.items():
        for address in mine:
            assert (tmp_path / "net" / address.split("/")[0]).read_bytes() == f"{container}\r\nnet1".encode()
    async with anyio.create_task_group() as group:
        for number in range(50):
            group.start_soon(call, Command.DEL, f"c{number}", WAYS[(number // 2) % 2])
    assert {path.name for path in (tmp_path / "net").iterdir()} == {"lock", "last_reserved_ip.0", "last_reserved_ip.1"}


# Where the daemon is killed: the plugin, and before this function of this module.
STEPS = [
    ("macvlan", "devices.linux.link_changes", "create_child"),
    ("macvlan", "multus.delegates.native.host_local", "locked"),
    ("macvlan", "multus.delegates.native.store", "Store.remember"),
    ("macvlan", "devices.linux.addressing", "adding_address"),
    ("macvlan", "devices.linux.link_changes", "adding_route"),
    ("macvlan", "multus.delegates.native.interface", "printed"),
    ("bridge", "devices.linux.link_changes", "create_veth"),
    ("bridge", "devices.linux.link_changes", "join_bridge"),
    ("bridge", "multus.delegates.native.store", "Store.remember"),
    ("bridge", "multus.delegates.native.bridge_port", "finish"),
]
KILLED = """
import importlib, os, signal, sys
import anyio
from devices.linux import netns
from multus.cni.request import Command
from multus.delegates.native.registry import NATIVE, native_delegates
from multus.delegates.plugin import Call, Runner

plugin, module, name, node, pod, conf, path = sys.argv[1:]
holder = importlib.import_module(module)
*inside, last = name.split(".")
for each in inside:
    holder = getattr(holder, each)
setattr(holder, last, lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
call = Call(command=Command.ADD, conf=conf.encode(), container_id="c1", netns=pod, ifname="net1", path=(path,))
delegate = native_delegates(NATIVE, Runner(timeout=lambda: 30.0))[plugin]
netns.run_in(node, anyio.run, delegate, plugin, call)
"""


@pytest.mark.parametrize(("plugin", "module", "name"), STEPS)
def test_what_a_kill_leaves_a_del_removes(twins: Twins, plugin: str, module: str, name: str) -> None:
    body: dict[str, Any] = {"type": plugin, "ipam": {**HOST_LOCAL, "routes": [{"dst": "0.0.0.0/0"}]}}
    if plugin == "bridge":
        body |= {"bridge": "br0", "isGateway": True}
    for way in WAYS:  # who removes it
        conf = json.dumps(twins.conf(way, body))
        words = [plugin, module, name, twins.node.path, twins.pods[way].path, conf, str(plugin_dir())]
        done = subprocess.run([sys.executable, "-c", KILLED, *words], capture_output=True, timeout=30)
        assert done.returncode == -signal.SIGKILL, done.stderr
        twins.run(way, body, Command.DEL)
        assert not twins.state(way)["links"]
        left = set(twins.files(way))
        assert left <= {"net", "net/lock", "net/last_reserved_ip.0"}
        assert "veth" not in twins.node.ip("-br link").replace("uplink", "")
        if plugin == "bridge" and way == PROGRAM:  # it cannot use a bridge that was left without a MAC
            twins.node.ip("link delete br0")
        assert twins.run(way, body)["ips"][0]["address"].startswith("10.83.0.")
        twins.run(way, body, Command.DEL)


def _socket(path: str) -> socket.socket:
    made = netns.run_in(path, socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
    made.settimeout(10)
    return made


BRIDGE: dict[str, Any] = {"type": "bridge", "bridge": "br0"}
BRIDGES: dict[str, tuple[dict[str, Any], Pairs]] = {
    "plain": ({"ipam": HOST_LOCAL}, ASKED),
    "no addresses": ({}, ASKED),
    "gateway": ({"isGateway": True, "ipam": HOST_LOCAL}, ASKED),
    "default gateway": ({"isDefaultGateway": True, "ipam": HOST_LOCAL}, ASKED),
    "dual": ({"isDefaultGateway": True, "ipam": {**DUAL, "routes": []}, "dns": {"domain": "d"}}, ASKED),
    "its own default route": (
        {"isDefaultGateway": True, "ipam": {**HOST_LOCAL, "routes": [{"dst": "0.0.0.0/0", "gw": "10.83.0.9"}]}},
        ASKED,
    ),
    "gateway of static": (
        {"isDefaultGateway": True, "ipam": {"type": "static", "addresses": [{"address": "10.84.0.7/24"}]}},
        ASKED,
    ),
    "mtu, hairpin": ({"mtu": 1400, "hairpinMode": True, "ipam": HOST_LOCAL}, ASKED),
    "mac by args": ({"ipam": HOST_LOCAL}, (*ASKED, ("MAC", "02:00:00:00:00:84"))),
    "mac in conf": (
        {"args": {"cni": {"mac": "02:00:00:00:00:86"}}, "ipam": HOST_LOCAL},
        (*ASKED, ("MAC", "02:00:00:00:00:84")),
    ),
    "mac by capability": (
        {"args": {"cni": {"mac": "02:00:00:00:00:86"}}, "runtimeConfig": {"mac": "02:00:00:00:00:85"}},
        ASKED,
    ),
    "all that is off": (
        {"ipMasq": False, "promiscMode": False, "vlan": 0, "forceAddress": False, "cniVersion": "0.3.1"},
        ASKED,
    ),
}


def _bridged(twins: Twins, result: dict[str, Any], way: str) -> tuple[dict[str, Any], object]:
    """The result without what is made up each time, and the node's side of it."""
    bridge, port, inside = result["interfaces"]
    deadline = time.monotonic() + 10
    while True:  # without addresses nobody waits for the link to carry
        links = {link["ifname"]: link for link in json.loads(twins.node.ip("-d -j addr"))}
        if links[bridge["name"]]["operstate"] == "UP" or time.monotonic() > deadline:
            break
        time.sleep(0.01)
    assert set(links) == {"lo", "uplink", "uplinkp", bridge["name"], port["name"]}
    own = json.loads(twins.pods[way].ip(f"-j link show dev {inside['name']}"))[0]["address"]
    assert [links[each["name"]]["address"] for each in (bridge, port)] + [own] == [
        each["mac"] for each in (bridge, port, inside)
    ]
    node = []
    for each in (links[bridge["name"]], links[port["name"]]):
        kept = {key: each.get(key) for key in ("flags", "mtu", "txqlen", "operstate", "master", "qdisc", "group")}
        kept["addresses"] = [(a["local"], a["prefixlen"]) for a in each["addr_info"] if a["scope"] != "link"]
        kept["hairpin"] = each["linkinfo"].get("info_slave_data", {}).get("hairpin")
        path = f"/proc/sys/net/ipv6/conf/{each['ifname']}"
        kept["accept_ra"] = _in(twins.node.name, f"cat {path}/accept_ra || true")
        node.append(kept)
    forward = _in(twins.node.name, "cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/all/forwarding")
    accept_dad = _in(twins.pods[way].name, f"cat /proc/sys/net/ipv6/conf/{inside['name']}/accept_dad || true")
    moves = bridge["mac"] == port["mac"]
    port["name"], inside["sandbox"] = "PORT", inside["sandbox"].replace(twins.pods[way].path, "POD")
    own_mac = inside["mac"]
    bridge["mac"] = port["mac"] = inside["mac"] = "MAC"
    return result, (node, forward, accept_dad, moves, own_mac if own_mac.startswith("02:00:00:00:00") else "")


@pytest.mark.parametrize("case", BRIDGES)
def test_a_bridge_with_the_same_result_state_and_files(twins: Twins, case: str) -> None:
    body, args = BRIDGES[case]
    seen = {}
    for way in WAYS:
        for name in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
            _in(twins.node.name, f"echo 0 > /proc/sys/net/{name}")
        result = twins.run(way, {**BRIDGE, **body}, args=args)
        added = (_bridged(twins, result, way), twins.state(way), twins.files(way))
        for _ in range(2):
            twins.run(way, {**BRIDGE, **body}, Command.DEL, args=args)
        seen[way] = (*added, twins.state(way), twins.files(way))
        twins.node.ip("link delete br0")
    assert seen[OURS] == seen[PROGRAM]
    assert seen[OURS][1]["links"] and not seen[OURS][3]["links"]
    assert not twins.executed, "it was not done natively"


@pytest.mark.parametrize("adder", WAYS)
def test_a_bridge_that_is_shared_by_both(twins: Twins, adder: str) -> None:
    other = OURS if adder == PROGRAM else PROGRAM
    body = {**BRIDGE, "isGateway": True, "ipam": HOST_LOCAL}
    results = {way: twins.run(way, body, data=OURS, container=way) for way in (adder, other)}
    addresses = {way: result["ips"][0]["address"] for way, result in results.items()}
    assert addresses == {adder: "10.83.0.2/24", other: "10.83.0.3/24"}
    with _socket(twins.pods[OURS].path) as sender:
        for path, address in (
            (twins.pods[PROGRAM].path, addresses[PROGRAM].split("/")[0]),
            (twins.node.path, "10.83.0.1"),
        ):
            with _socket(path) as receiver:
                receiver.bind((address, 8300))
                sender.sendto(b"hello", (address, 8300))
                assert receiver.recv(16) == b"hello"
    for way, by in ((adder, other), (other, adder)):
        options: dict[str, Any] = {"pod": way, "data": OURS, "container": way}
        twins.run(by, {**body, "prevResult": results[way]}, Command.CHECK, **options)
        twins.run(by, body, Command.DEL, **options)
        assert not twins.state(way)["links"]
    assert set(twins.files(OURS)) == {"net", "net/lock", "net/last_reserved_ip.0"}


BRIDGES_REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another address": ({"isGateway": True, "ipam": {**HOST_LOCAL, "gateway": "10.83.0.9"}}, "IP address different"),
    "no bridge": ({"bridge": "uplink", "ipam": HOST_LOCAL}, "already exists but is not a bridge"),
    "vlan": ({"vlan": 5000}, "invalid VLAN ID"),
    "both modes": ({"hairpinMode": True, "promiscMode": True}, "cannot set hairpin mode and promiscuous mode"),
    "mtu": ({"mtu": 100000, "ipam": HOST_LOCAL}, "failed to make veth pair"),
    "no addresses": ({"ipam": {"type": "static"}}, "IPAM plugin returned missing IP config"),
}


@pytest.mark.parametrize("case", BRIDGES_REFUSED)
def test_a_bridge_that_is_refused(twins: Twins, case: str) -> None:
    body, words = BRIDGES_REFUSED[case]
    codes = {}
    twins.node.ip("link add br0 type bridge")
    twins.node.ip("addr add 10.83.0.1/24 dev br0")
    for way in WAYS:
        codes[way], message = twins.fails(way, {**BRIDGE, **body})
        assert words in message
    assert codes[OURS] == codes[PROGRAM] and not twins.state(OURS)["links"]
    assert not [name for name in twins.files(OURS) if name.startswith("net/10.")]


@pytest.mark.anyio
async def test_paths_of_a_conf_are_those_of_the_root_that_plugins_run_in(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "elsewhere").mkdir(parents=True)
    (root / "data").symlink_to("/elsewhere")  # which is not ours
    (root / "resolv.conf").write_text("nameserver 10.0.0.9\n")
    conf = {
        "cniVersion": "1.0.0",
        "name": "net",
        "ipam": {**HOST_LOCAL, "dataDir": "/data", "resolvConf": "/resolv.conf"},
    }
    call = Call(command=Command.ADD, conf=json.dumps(conf).encode(), container_id="c1", netns="/n", ifname="net1")
    delegate = native_delegates(NATIVE, Runner(timeout=lambda: 30.0, chroot=str(root)), root=str(root))["host-local"]
    result = json.loads(await delegate("host-local", call))
    assert (result["ips"][0]["address"], result["dns"]["nameservers"]) == ("10.83.0.2/24", ["10.0.0.9"])
    assert (root / "elsewhere" / "net" / "10.83.0.2").read_bytes() == b"c1\r\nnet1"


def test_a_daemon_needs_no_program_for_them(make_box: Callable[..., Box], tmp_path: Path) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "portmap").symlink_to(plugin_dir() / "portmap")
    box = make_box(settings={"nativeDelegates": list(NATIVE)}, plugins=programs)
    box.start()
    for number in range(4):
        ipam = {"type": "host-local", "subnet": f"10.9.{number}.0/24"}
        box.nad(f"n{number}", {"cniVersion": "1.0.0", "type": "macvlan", "master": "eth0", "ipam": ipam})
    networks = {"k8s.v1.cni.cncf.io/networks": ",".join(f"n{number}" for number in range(4))}
    sandboxes = [box.pod(f"pod{number}", annotations=networks) for number in range(3)]
    for sandbox in sandboxes:
        box.cni("ADD", sandbox)
        names = [link["ifname"] for link in json.loads(sandbox.run("ip", "-j", "addr"))]
        assert sorted(names) == ["eth0", "lo", "net1", "net2", "net3", "net4"]
    assert box.status("pod2")[4]["ips"] == ["10.9.3.4"]
    for sandbox in sandboxes:
        box.cni("DEL", sandbox)
    assert box.leftovers() == []


@pytest.mark.parametrize("stuck", [False, True])
def test_interfaces_removed_together(twins: Twins, stuck: bool) -> None:
    space = twins.pods[OURS]
    for number in range(3):
        space.ip(f"link add d{number} type bridge")
    names = {"d0", "d1", "gone", *(["lo"] if stuck else [])}
    failed = remove_together(space.path, names)
    assert set(failed) == ({"lo"} if stuck else set())  # the loopback cannot be removed, and keeps no other
    left = {link["ifname"] for link in json.loads(space.ip("-j link"))}
    assert {"lo", "d2"} <= left and not {"d0", "d1"} & left
    assert remove_together(space.path, {"gone", "neither"}) == {} == remove_together("/run/netns/none", {"a", "b"})
    assert "d2" in space.ip("link")

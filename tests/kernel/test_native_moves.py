"""`tuning` and `host-device` done in this process, held against their programs: same conf, twin pods on one node.

Result, kernel state, files and errors have to be the same, and a DEL by one undoes the other's ADD.
"""

import json
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
from multus.delegates.native.host_device import HostDevice
from multus.delegates.native.registry import NATIVE, native_delegates
from multus.delegates.plugin import Call, Runner

PROGRAM, OURS = "program", "ours"
WAYS = (PROGRAM, OURS)
MACS = {PROGRAM: "02:00:00:00:01:01", OURS: "02:00:00:00:01:02"}
CROSSED = [(PROGRAM, OURS), (OURS, PROGRAM), (OURS, OURS)]
QUIET: Pairs = (("IgnoreUnknown", "true"),)


class Twins:
    """A node, and a pod for each way; `run` carries out a call from within the node's namespace."""

    def __init__(self, directory: Path, make: Callable[[], Any]) -> None:
        self.node = make()
        self.pods = {PROGRAM: make(), OURS: make()}
        self.data = {PROGRAM: directory / "program", OURS: directory / "ours"}
        self.executed: list[str] = []

    def run(
        self,
        way: str,
        body: dict[str, Any],
        command: Command = Command.ADD,
        *,
        of: str = "",
        ifname: str = "net1",
        args: Pairs = QUIET,
        path: str | None = None,
    ) -> Any:
        """A call by `way` for the pod and the files of `of`, or its own."""
        of = of or way
        text = json.dumps(body).replace("DATA", str(self.data[of])).replace("POD", self.pods[of].path)
        text = text.replace("HWADDR", MACS[of])
        call = Call(
            command=command,
            conf=text.replace("WAY", of).encode(),
            container_id="c1",
            netns=self.pods[of].path if path is None else path,
            ifname=ifname,
            args=args,
            path=(str(plugin_dir()),),
        )
        printed: bytes = netns.run_in(self.node.path, anyio.run, self._call, way, body["type"], call)
        return self.words(of, json.loads(printed)) if printed.strip() else {}

    async def _call(self, way: str, plugin: str, call: Call) -> bytes:
        program = Runner(timeout=lambda: 30.0)
        if way == PROGRAM:
            return await program(plugin, call)

        async def runner(name: str, asked: Call) -> bytes:
            self.executed.append(name)
            return await program(name, asked)

        return await native_delegates(NATIVE, runner)[plugin](plugin, call)

    def words(self, way: str, told: Any) -> Any:
        """What was said, in words that do not tell the twins apart."""
        text = json.dumps(told).replace(self.pods[way].path, "POD").replace(str(self.data[way]), "DATA")
        return json.loads(text.replace(way, "WAY").replace(MACS[way], "HWADDR"))

    def fails(self, way: str, body: dict[str, Any], command: Command = Command.ADD, **options: Any) -> Any:
        with pytest.raises(CNIError) as caught:
            self.run(way, body, command, **options)
        return self.words(way, [int(caught.value.code), caught.value.message])

    def files(self, way: str) -> dict[str, Any]:
        """Each file's content as JSON, and its mode."""
        return {
            path.name: (json.loads(path.read_text()), oct(path.stat().st_mode & 0o777))
            for path in sorted(self.data[way].glob("*"))
        }


@pytest.fixture
def twins(tmp_path: Path, make_namespace: Callable[[], Any]) -> Iterator[Twins]:
    yield Twins(tmp_path, make_namespace)


# tuning

PREVIOUS = {
    "interfaces": [{"name": "net1", "mac": "02:00:00:00:00:01", "sandbox": "POD"}, {"name": "other"}],
    "ips": [{"interface": 0, "address": "10.70.0.2/24", "gateway": "10.70.0.1"}],
    "routes": [{"dst": "0.0.0.0/0"}],
    "dns": {"nameservers": ["10.70.0.1"]},
}
MAC = "02:11:22:33:44:55"
ALL = {"mac": MAC, "mtu": 1400, "promisc": True, "allmulti": True}
TUNED: dict[str, dict[str, Any]] = {
    "nothing": {},
    "a sysctl": {"sysctl": {"net.ipv4.conf.net1.arp_notify": "1", "net.ipv4.conf.all.log_martians": "1"}},
    "a sysctl of the interface": {"sysctl": {"net.ipv4.conf.IFNAME.arp_ignore": "2"}},
    "mac": {"mac": MAC},
    "a mac of the runtime": {"mac": "02:00:00:00:00:07", "runtimeConfig": {"mac": MAC}, "capabilities": {"mac": True}},
    "mtu": {"mtu": 1400},
    "promisc": {"promisc": True},
    "promisc off": {"promisc": False},
    "allmulti": {"allmulti": True},
    "allmulti off": {"allmulti": False},
    "everything": {**ALL, "sysctl": {"net.ipv4.conf.net1.arp_filter": "1"}},
}
EXECUTED: dict[str, dict[str, Any]] = {
    "arguments": {"args": {"cni": {"mtu": 1300}}},
    "a queue's length": {"txQLen": 500},
    "a name of another case": {"MTU": 1300},
    "slashes": {"sysctl": {"net/ipv4/conf/net1/arp_notify": "1"}},
}
WRONG: dict[str, dict[str, Any]] = {
    "no such sysctl": {"sysctl": {"net.ipv4.conf.net1.nonsense": "1"}},
    "not the net's": {"sysctl": {"kernel.panic": "1"}},
    "a value that is none": {"sysctl": {"net.ipv4.conf.net1.arp_notify": "many"}},
    "too small an mtu": {"mtu": 10},
    "a mac for many": {"mac": "01:00:5e:00:00:01"},
    "no mac": {"mac": "nonsense"},
}


def tuning(version: str = "1.0.0", **body: Any) -> dict[str, Any]:
    previous: dict[str, Any] = json.loads(json.dumps(PREVIOUS))
    if version != "1.0.0":
        previous["ips"][0]["version"] = "4"
    base = {"cniVersion": version, "name": "net", "type": "tuning", "dataDir": "DATA"}
    return {**base, "prevResult": {"cniVersion": version, **previous}, **body}


def interface(twins: Twins, way: str) -> dict[str, Any]:
    """All of net1 that tuning can change."""
    pod = twins.pods[way]
    (link,) = json.loads(pod.ip("-d -j link show net1"))
    kept = {key: link.get(key) for key in ("address", "mtu", "flags", "promiscuity", "allmulti")}
    names = ("arp_notify", "arp_ignore", "arp_filter", "log_martians")
    paths = [f"/proc/sys/net/ipv4/conf/{each}/{name}" for each in ("net1", "all") for name in names]
    return kept | netns.run_in(pod.path, lambda: {path: Path(path).read_text() for path in paths})


def furnish(twins: Twins) -> dict[str, Any]:
    """The pods have net1, alike; how it is."""
    for way in WAYS:
        twins.pods[way].veth("net1", "10.70.0.2/24")
        twins.pods[way].ip("link set net1 address 02:00:00:00:00:01")
    found = interface(twins, PROGRAM)
    assert interface(twins, OURS) == found
    return found


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0"])
@pytest.mark.parametrize("case", TUNED)
def test_tuning_is_as_the_program_s(twins: Twins, case: str, version: str) -> None:
    before = furnish(twins)
    body = tuning(version, **TUNED[case])
    answers = [twins.run(way, body) for way in WAYS]
    assert answers[0] == answers[1]
    after = [interface(twins, way) for way in WAYS]
    assert after[0] == after[1]
    assert (after[1] == before) == (case in ("nothing", "promisc off", "allmulti off"))
    assert twins.files(OURS) == twins.files(PROGRAM)
    for way in WAYS:
        assert twins.run(way, body, Command.DEL) == {}
    assert interface(twins, OURS) == interface(twins, PROGRAM)
    assert twins.files(OURS) == twins.files(PROGRAM) == {}
    assert twins.executed == []


@pytest.mark.parametrize(("add", "delete"), CROSSED)
def test_what_one_tuned_the_other_brings_back(twins: Twins, add: str, delete: str) -> None:
    before = furnish(twins)
    body = tuning("1.0.0", **ALL)
    twins.run(add, body, of=OURS)
    assert interface(twins, OURS) != before
    assert list(twins.files(OURS)) == ["c1_net1.json"]
    twins.run(delete, body, Command.DEL, of=OURS)
    assert interface(twins, OURS) == before
    assert twins.files(OURS) == {}


@pytest.mark.parametrize("case", EXECUTED)
def test_what_is_not_understood_to_the_last_key_is_the_program_s(twins: Twins, case: str) -> None:
    furnish(twins)
    body = tuning(**EXECUTED[case])
    assert twins.run(OURS, body) == twins.run(PROGRAM, body)
    assert interface(twins, OURS) == interface(twins, PROGRAM)
    assert twins.executed == ["tuning"]


@pytest.mark.parametrize("case", WRONG)
def test_tuning_refuses_as_the_program_does(twins: Twins, case: str) -> None:
    furnish(twins)
    body = tuning(**WRONG[case])
    assert twins.fails(OURS, body) == twins.fails(PROGRAM, body)
    assert interface(twins, OURS) == interface(twins, PROGRAM)
    assert twins.files(OURS) == twins.files(PROGRAM)
    for way in WAYS:
        twins.run(way, body, Command.DEL)
    assert twins.files(OURS) == twins.files(PROGRAM) == {}


def test_tuning_without_what_it_needs_refuses_as_the_program_does(twins: Twins) -> None:
    furnish(twins)
    without = tuning(mtu=1400)
    del without["prevResult"]
    assert twins.fails(OURS, without) == twins.fails(PROGRAM, without)
    for command in (Command.ADD, Command.DEL):
        listed = tuning(sysctl=[["net.ipv4.conf.net1.arp_notify", "1"]])
        assert twins.fails(OURS, listed, command) == twins.fails(PROGRAM, listed, command)
    options: list[dict[str, Any]] = [{"ifname": "net7"}, {"path": "/run/netns/nosuch"}]
    for each in options:
        assert twins.fails(OURS, tuning(mtu=1400), **each) == twins.fails(PROGRAM, tuning(mtu=1400), **each)


def test_a_mac_of_the_arguments_wins_over_the_conf_s(twins: Twins) -> None:
    furnish(twins)
    args: Pairs = (*QUIET, ("MAC", MAC))
    body = tuning(mac="02:00:00:00:00:07")
    assert twins.run(OURS, body, args=args) == twins.run(PROGRAM, body, args=args)
    assert interface(twins, OURS)["address"] == interface(twins, PROGRAM)["address"] == MAC


def test_of_an_interface_that_is_gone_nothing_is_kept(twins: Twins) -> None:
    furnish(twins)
    for gone in ("interface", "pod"):
        twins.run(OURS, tuning(mtu=1400))
        assert twins.files(OURS) != {}
        if gone == "interface":
            twins.pods[OURS].ip("link del net1")
        twins.run(OURS, tuning(mtu=1400), Command.DEL, path="" if gone == "pod" else None)
        assert twins.files(OURS) == {}
        if gone == "interface":
            twins.pods[OURS].veth("net1")


# host-device

HOST_LOCAL = {"type": "host-local", "dataDir": "DATA", "subnet": "10.71.0.0/24", "routes": [{"dst": "10.99.0.0/16"}]}
DUAL = {
    "type": "host-local",
    "dataDir": "DATA",
    "ranges": [[{"subnet": "10.71.0.0/24"}], [{"subnet": "fd71::/64"}]],
    "routes": [{"dst": "fd99::/48"}],
}
STATIC = {"type": "static", "addresses": [{"address": "10.72.0.7/24", "gateway": "10.72.0.1"}]}
MOVED: dict[str, dict[str, Any]] = {
    "by name": {"device": "dWAY"},
    "by mac": {"hwaddr": "HWADDR"},
    "a name before a mac": {"device": "dWAY", "hwaddr": "02:00:00:00:09:09"},
    "host-local": {"device": "dWAY", "ipam": HOST_LOCAL, "dns": {"nameservers": ["10.71.0.1"]}},
    "both families": {"device": "dWAY", "ipam": DUAL},
    "static": {"device": "dWAY", "ipam": STATIC},
    "dns without addresses": {"device": "dWAY", "dns": {"nameservers": ["10.71.0.1"]}},
}
REFUSED: dict[str, dict[str, Any]] = {
    "nothing named": {},
    "no such name": {"device": "nosuch"},
    "no such mac": {"hwaddr": "02:00:00:00:09:09"},
    "no mac": {"hwaddr": "nonsense"},
    "no such PCI device": {"pciBusID": "0000:ff:1f.7"},
    "no PCI address": {"pciBusID": "../../x"},
    "no such path": {"kernelpath": "/sys/devices/nosuch"},
    "a path elsewhere": {"kernelpath": "/etc"},
}


def host_device(version: str = "1.0.0", **body: Any) -> dict[str, Any]:
    return {"cniVersion": version, "name": "net", "type": "host-device", **body}


def devices(twins: Twins) -> dict[str, Any]:
    """The node has a device for each way, up, with a MAC of its own and the other end in the node; how they are."""
    for way in WAYS:
        twins.node.veth(f"d{way}")
        twins.node.ip(f"link set d{way} address {MACS[way]}")
        twins.node.ip(f"link set d{way} mtu 1450")
    found = link(twins, twins.node, PROGRAM, "dprogram")
    assert link(twins, twins.node, OURS, "dours") == found
    return found


def link(twins: Twins, space: Any, way: str, name: str) -> dict[str, Any]:
    """An interface as the kernel tells of it, with its addresses and routes."""
    (found,) = json.loads(space.ip(f"-d -j addr show dev {name}"))
    for key in ("ifindex", "link_index", "link_netnsid", "link", "operstate", "flags", "group"):
        found.pop(key, None)
    for each in found["addr_info"]:
        for key in ("valid_life_time", "preferred_life_time", "tentative"):
            each.pop(key, None)
    found["addr_info"] = [each for each in found["addr_info"] if each["scope"] != "link"]
    (flags,) = json.loads(space.ip(f"-j link show dev {name}"))
    routes = [route for family in ("-4", "-6") for route in json.loads(space.ip(f"{family} -j route show dev {name}"))]
    kept = [route for route in routes if not route["dst"].startswith("fe80")]
    return dict(twins.words(way, {**found, "up": "UP" in flags["flags"], "routes": kept}))


def names(space: Any) -> list[str]:
    return sorted(each["ifname"] for each in json.loads(space.ip("-j link")))


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0"])
@pytest.mark.parametrize("case", MOVED)
def test_a_device_moves_as_by_the_program(twins: Twins, case: str, version: str) -> None:
    before = devices(twins)
    body = host_device(version, **MOVED[case])
    answers = [twins.run(way, body) for way in WAYS]
    assert answers[0] == answers[1]
    after = [link(twins, twins.pods[way], way, "net1") for way in WAYS]
    assert after[0] == after[1]
    assert after[1]["up"]
    assert after[1]["ifalias"] == "dWAY"
    assert not {"dprogram", "dours"} & set(names(twins.node))
    for way in WAYS:
        assert twins.run(way, body, Command.DEL) == {}
    back = [link(twins, twins.node, way, f"d{way}") for way in WAYS]
    assert back[0] == back[1]
    assert {key: back[1][key] for key in ("address", "mtu", "ifname")} == {
        key: before[key] for key in ("address", "mtu", "ifname")
    }
    assert [names(twins.pods[way]) for way in WAYS] == [["lo"], ["lo"]]
    assert twins.executed == []


@pytest.mark.parametrize(("add", "delete"), CROSSED)
def test_what_one_took_the_other_brings_back(twins: Twins, add: str, delete: str) -> None:
    devices(twins)
    body = host_device(device="dWAY", ipam=HOST_LOCAL)
    for _ in range(2):  # an alias that is left over must not matter
        twins.run(add, body, of=OURS)
        assert "dours" not in names(twins.node)
        twins.run(delete, body, Command.DEL, of=OURS)
        assert "dours" in names(twins.node)
        assert names(twins.pods[OURS]) == ["lo"]
        assert not list(twins.data[OURS].rglob("10.71.*"))


@pytest.mark.parametrize("case", REFUSED)
def test_a_device_is_refused_as_by_the_program(twins: Twins, case: str) -> None:
    devices(twins)
    body = host_device(**REFUSED[case])
    assert twins.fails(OURS, body) == twins.fails(PROGRAM, body)
    assert names(twins.pods[OURS]) == ["lo"]


def test_a_failed_add_leaves_the_device_on_the_node(twins: Twins) -> None:
    before = devices(twins)
    full = {**HOST_LOCAL, "ranges": [[{"subnet": "10.71.0.0/30", "rangeStart": "10.71.0.2", "rangeEnd": "10.71.0.2"}]]}
    del full["subnet"]
    bodies = {
        "no address left": host_device(device="dWAY", ipam=full),
        "a route that cannot be": host_device(
            device="dWAY", ipam={**STATIC, "routes": [{"dst": "10.99.0.0/16", "gw": "10.200.0.1"}]}
        ),
    }
    directory = twins.data[OURS] / "net"
    directory.mkdir(parents=True)
    (directory / "10.71.0.2").write_text("another\r\neth0")
    for body in bodies.values():
        twins.fails(OURS, body)
        assert names(twins.pods[OURS]) == ["lo"]
        back = link(twins, twins.node, OURS, "dours")
        assert back["address"] == before["address"]


def test_a_name_that_the_pod_has_already_is_refused(twins: Twins) -> None:
    before = devices(twins)
    for way in WAYS:
        twins.pods[way].veth("net1")
    body = host_device(device="dWAY")
    assert twins.fails(OURS, body)[0] == twins.fails(PROGRAM, body)[0]
    assert names(twins.pods[OURS]) == ["lo", "net1", "net1p"]
    assert link(twins, twins.node, OURS, "dours") == before


def test_a_device_whose_name_is_taken_meanwhile_stays_in_the_pod(twins: Twins) -> None:
    devices(twins)
    body = host_device(device="dWAY")
    twins.run(OURS, body)
    twins.node.ip("link add dours type veth peer name another")
    assert "another interface dWAY" in twins.fails(OURS, body, Command.DEL)[1]
    assert names(twins.pods[OURS]) == ["lo", "net1"]
    twins.node.ip("link del dours")
    twins.run(OURS, body, Command.DEL)
    assert "dours" in names(twins.node)


def test_what_is_gone_is_no_failure_and_gives_its_addresses_back(twins: Twins) -> None:
    devices(twins)
    body = host_device(device="dWAY", ipam=HOST_LOCAL)
    for gone in ("", "/run/netns/nosuch"):
        twins.run(OURS, body)
        assert list(twins.data[OURS].rglob("10.71.*"))
        twins.run(OURS, body, Command.DEL, path=gone)
        assert not list(twins.data[OURS].rglob("10.71.*"))
        for _ in range(2):
            twins.run(OURS, body, Command.DEL)
    assert twins.executed == []


def test_what_nobody_moved_here_is_the_program_s_to_judge(twins: Twins) -> None:
    devices(twins)
    for way in WAYS:
        twins.pods[way].veth("net1")
    body = host_device(device="dWAY")
    assert twins.fails(OURS, body, Command.DEL)[0] == twins.fails(PROGRAM, body, Command.DEL)[0]
    assert twins.executed == ["host-device"]


@pytest.mark.parametrize("key", ["pciBusID", "deviceID", "kernelpath"])
def test_a_device_is_found_by_where_it_is(twins: Twins, tmp_path: Path, key: str) -> None:
    devices(twins)
    root = tmp_path / "root"
    device = root / "sys/devices/pci0000:00/0000:01:00.0"
    (device / "net" / "dours").mkdir(parents=True)
    (device / "driver").symlink_to("../../../bus/pci/drivers/iavf")
    bus = root / "sys/bus/pci/devices"
    bus.mkdir(parents=True)
    (bus / "0000:01:00.0").symlink_to("../../../devices/pci0000:00/0000:01:00.0")
    executed: list[str] = []

    async def nobody(name: str, call: Call) -> bytes:
        executed.append(name)
        return b"{}"

    async def carry_out(call: Call) -> bytes:
        return await HostDevice(nobody, ipam=nobody, root=str(root))("host-device", call)

    bodies: dict[str, dict[str, Any]] = {
        "pciBusID": {"pciBusID": "0000:01:00.0", "deviceID": "0000:01:00.0"},
        "deviceID": {"pciBusID": "0000:09:00.0", "runtimeConfig": {"deviceID": "0000:01:00.0"}},
        "kernelpath": {"kernelpath": "/sys/devices/pci0000:00/0000:01:00.0"},
    }
    call = Call(
        command=Command.ADD,
        conf=json.dumps(host_device(**bodies[key])).encode(),
        container_id="c1",
        netns=twins.pods[OURS].path,
        ifname="net1",
        args=QUIET,
        path=(),
    )
    answer = json.loads(netns.run_in(twins.node.path, anyio.run, carry_out, call))
    assert [each["mac"] for each in answer["interfaces"]] == [MACS[OURS]]
    assert names(twins.pods[OURS]) == ["lo", "net1"]
    assert executed == []
    if key == "pciBusID":
        (device / "driver").unlink()
        (device / "driver").symlink_to("../../../bus/pci/drivers/vfio-pci")
        netns.run_in(twins.node.path, anyio.run, carry_out, call)
        assert executed == ["host-device"]


def test_a_daemon_needs_no_program_for_them(make_box: Callable[..., Box], tmp_path: Path) -> None:
    nothing = tmp_path / "no-programs"
    nothing.mkdir()
    box = make_box(plugins=nothing)
    chain = [
        {"type": "macvlan", "master": "eth0", "ipam": {"type": "host-local", "subnet": "10.73.0.0/24"}},
        {
            "type": "tuning",
            "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1"},
            "mtu": 1400,
            "dataDir": str(tmp_path / "kept"),
        },
    ]
    box.nad("tuned", {"cniVersion": "1.0.0", "name": "tuned", "plugins": chain})
    box.nad("moved", {"cniVersion": "1.0.0", "name": "moved", "type": "host-device", "device": "extra0"})
    box.host("ip", "link", "add", "extra0", "type", "veth", "peer", "name", "wire1")
    box.start()
    sandbox = box.pod("web", annotations={"k8s.v1.cni.cncf.io/networks": "tuned,moved"})
    for _ in range(2):
        box.cni("ADD", sandbox)
        links = {each["ifname"]: each for each in json.loads(sandbox.run("ip", "-j", "link"))}
        assert links["net1"]["mtu"] == 1400
        assert len(list((tmp_path / "kept").iterdir())) == 1
        assert links["net2"]["ifalias"] == "extra0"
        assert sandbox.run("cat", "/proc/sys/net/ipv4/conf/net1/arp_filter").strip() == "1"
        box.cni("DEL", sandbox)
        assert sorted(each["ifname"] for each in json.loads(sandbox.run("ip", "-j", "link"))) == ["lo"]
        assert "extra0" in box.host("ip", "-o", "link")
    left = [each for each in box.leftovers() if each not in ("interface extra0", "interface wire1")]
    assert left == []
    assert not list((tmp_path / "kept").iterdir())

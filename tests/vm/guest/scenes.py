"""A scene: one VF given to a pod and taken back, by our delegate or by upstream's plugin, and what came of it."""

import json
import shutil
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from msgspec.structs import replace

from devices.linux import netns as namespaces
from multus.cni.args import Pairs
from multus.cni.request import Command
from multus.delegates.plugin import Call
from multus.errors import MultusError
from tests.vm.guest.beside import PROGRAMS, Outcome, Row
from tests.vm.guest.hardware import Card, Hardware, Space, bind, driver, run, until

OWN_MAC: Final = "02:00:00:00:00:10"
"""What the VF's interface has on the host, where its driver would choose one by chance."""
STATE: Final = Path("/var/lib/cni")
ANNOUNCES: Final = (
    Path("/proc/sys/net/ipv4/conf/net1/arp_notify"),
    Path("/proc/sys/net/ipv6/conf/net1/ndisc_notify"),
)

Side = Callable[[str, Call], Awaitable[bytes]]


@dataclass(frozen=True, kw_only=True)
class Scene(Row):
    """One configuration. In commands {pf}, {host} (the VF's interface there) and {pod} are filled in.

    `conf` is without what all have; a None takes that out. `first` is done before ADD, `meanwhile` after it.
    `netns` is what ADD is told, `del_netns` what DEL is told, "POD" the pod's. `again`: a second pod wants the VF.
    """

    conf: Mapping[str, Any] = field(default_factory=dict)
    args: Pairs = ()
    driver: str = "igbvf"
    first: tuple[str, ...] = ()
    meanwhile: tuple[str, ...] = ()
    netns: str = "POD"
    del_netns: str = "POD"
    check: bool = False
    again: bool = False


class Stage:
    """A PF with one VF, which every scene finds as it was at first; a leftover of upstream's costs new VFs."""

    def __init__(self, hardware: Hardware) -> None:
        self._card: Card = hardware.cards[0]
        self._build()
        self.vf = self._card.vf(0)

    def _build(self) -> None:
        for each in json.loads(run("ip -j -d link")):
            if each.get("linkinfo", {}).get("info_kind") == "dummy":  # upstream takes a pod's own interface for its VF
                run(f"ip link del {each['ifname']}")
        self._card.create(1)
        until(lambda: self._card.carrier, "the carrier")  # igb drops it for new VFs, and takes rates only with one
        self._own_mac()
        self._clean, _ = self._look()

    async def play(self, row: Scene, side: Side) -> Outcome:
        """What came of it. Settings are told as what changed; {} is nothing."""
        self._prepare(row)
        pod, host = Space(), self._card.vf_netdev(0)
        second = Space() if row.again else None
        names = {"pf": self._card.netdev, "host": host, "pod": pod.name}
        try:
            for command in row.first:
                run(command.format(**names))
            before = self._look(host)
            call = self._call(row, pod)
            done, printed = await _do(side, Command.ADD, call)
            outcome: Outcome = {"add": done, "result": self._result(printed, pod)}
            outcome["vf"], outcome["host"] = map(_changes, before, self._look(host))
            outcome["pod"] = _inside(pod)
            for command in row.meanwhile:
                run(command.format(**names))
            if not Path(pod.path).exists():  # the kernel brings the interface back, and udev gives it names meanwhile
                until(lambda: self._card.vf_netdev(0), "the interface to come back")
                run("udevadm settle --timeout=20")
            if row.check:
                conf = {**json.loads(call.conf), "prevResult": json.loads(printed)}
                outcome["check"], _ = await _do(side, Command.CHECK, replace(call, conf=json.dumps(conf).encode()))
            if second is not None:
                other = self._call(row, second, container="c2")
                outcome["second add"], _ = await _do(side, Command.ADD, other)
                outcome["second del"], _ = await _do(side, Command.DEL, other)
            told = replace(call, netns=pod.path if row.del_netns == "POD" else row.del_netns)
            outcome["del"], _ = await _do(side, Command.DEL, told)
            until_settled(lambda: self._card.vf_netdev(0) == host)
            outcome["vf after"], outcome["host after"] = map(_changes, before, self._look(host))
            outcome["del again"], _ = await _do(side, Command.DEL, told)
        finally:
            for space in (pod, second):
                if space is not None:
                    space.close()
        return outcome

    def _prepare(self, row: Scene) -> None:
        """The VF as it is in the beginning, with the driver that the scene wants."""
        shutil.rmtree(STATE, ignore_errors=True)
        if driver(self.vf) != row.driver:
            bind(self.vf, "" if row.driver == "igbvf" else row.driver)
            until(lambda: row.driver != "igbvf" or self._card.vf_netdev(0), "the VF's interface")
            self._own_mac()
        settings, link = self._look(self._card.vf_netdev(0))
        usual = None if row.driver == "vfio-pci" else {"mac": OWN_MAC, "mtu": 1500, "up": False}
        if (settings, link) != (self._clean, usual):
            self._build()

    def _own_mac(self) -> None:
        if host := self._card.vf_netdev(0):
            run(f"ip link set {host} address {OWN_MAC}")

    def _look(self, host: str = "") -> tuple[dict[str, Any], dict[str, Any] | None]:
        """The VF as `ip` tells it of the PF, and its interface if it is on the host by that name."""
        found = {each["ifname"]: each for each in json.loads(run("ip -j -d link"))}
        settings = dict(found[self._card.netdev]["vfinfo_list"][0])
        link = found.get(host) if self._card.vf_netdev(0) == host else None
        return settings, link and {"mac": link["address"], "mtu": link["mtu"], "up": "UP" in link["flags"]}

    def _call(self, row: Scene, pod: Space, container: str = "c1") -> Call:
        base = {"cniVersion": "1.0.0", "name": "net", "type": "sriov", "deviceID": self.vf}
        conf = {key: value for key, value in {**base, **row.conf}.items() if value is not None}
        return Call(
            command=Command.ADD,
            conf=json.dumps(conf).encode(),
            container_id=container,
            netns=pod.path if row.netns == "POD" else row.netns,
            ifname="net1",
            args=row.args,
            path=(PROGRAMS, "/usr/lib/cni"),
        )

    def _result(self, printed: bytes, pod: Space) -> Any:
        """The result without what is of this run, and without an empty dns, which upstream prints and we do not."""
        if not printed:
            return None
        found = json.loads(printed.replace(pod.path.encode(), b"POD").replace(self.vf.encode(), b"VF"))
        if found.get("dns") == {}:
            del found["dns"]
        return found


def until_settled(condition: Callable[[], bool]) -> None:
    """Give the kernel a second to bring an interface back out of a namespace that is gone; it need not come."""
    try:
        until(condition, "", seconds=1)
    except AssertionError:
        return


async def _do(side: Side, command: Command, call: Call) -> tuple[str, bytes]:
    try:
        return "done", await side("sriov", replace(call, command=command))
    except MultusError as error:
        print(f"{command}: {error}")
        return "refused", b""


def _inside(pod: Space) -> Any:
    """net1 in the pod with addresses, routes and what it announces; None when there is none."""
    found = json.loads(run(f"ip -n {pod.name} -j addr"))
    net1 = next((each for each in found if each["ifname"] == "net1"), None)
    if net1 is None:
        return None
    addresses = [f"{each['local']}/{each['prefixlen']}" for each in net1["addr_info"] if each["scope"] != "link"]
    routes = []
    for family in ("-4", "-6") if addresses else ():
        for each in json.loads(run(f"ip {family} -n {pod.name} -j route show dev net1")):
            if each.get("protocol") != "kernel":
                routes.append(f"{each['dst']} via {each.get('gateway', 'link')}")
    return {
        "mac": net1["address"],
        "mtu": net1["mtu"],
        "up": "UP" in net1["flags"],
        "addresses": sorted(addresses),
        "routes": sorted(routes),
        "announces": namespaces.run_in(pod.path, lambda: [path.read_text().strip() for path in ANNOUNCES]),
    }


def _changes(before: Mapping[str, Any] | None, now: Mapping[str, Any] | None) -> Any:
    if before is None or now is None:
        return {} if before == now else "gone" if now is None else dict(now)
    return {key: now.get(key) for key in sorted({*before, *now}) if now.get(key) != before.get(key)}

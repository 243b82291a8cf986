"""The SR-IOV delegate on real VFs: what it sets is there, traffic obeys it, and everything is as before afterwards."""

import json
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from devices.linux import netns as namespaces
from devices.linux import rtnetlink, vfs
from devices.linux.vf_kernel import LinuxKernel
from devices.linux.vfs import VFState
from multus.cni.request import Command
from multus.cni.result import Result, parse_result
from multus.delegates.plugin import Call, Runner
from multus.delegates.sriov import AllocatedError, DriftError, Sriov
from multus.delegates.sriov_record import KIND, UpstreamFiles
from multus.errors import NodeError
from multus.journal import Journal
from tests.vm.guest.hardware import Card, Hardware, Space, bind, run, until

pytestmark = pytest.mark.anyio

SETTINGS: dict[str, Any] = {
    "vlan": 100,
    "vlanQoS": 3,
    "mac": "02:AA:00:00:00:01",
    "max_tx_rate": 200,
    "spoofchk": "off",
    "trust": "on",
}


class Delegate:
    """The delegate with a real journal and real address plugins."""

    def __init__(self, journal: Journal, directory: Path) -> None:
        runner = Runner(timeout=lambda: 60.0)
        self.journal = journal
        upstream = UpstreamFiles(directory / "upstream")
        self._sriov = Sriov(runner, journal.records, LinuxKernel(), boot_id="boot", upstream=upstream)
        self._directory = directory

    async def __call__(self, command: Command, space: str, bdf: str, *, container: str = "c1", **more: Any) -> bytes:
        conf = {"cniVersion": "1.0.0", "name": "net", "type": "sriov", "deviceID": bdf, **more}
        call = Call(
            command=command,
            conf=json.dumps(conf).encode(),
            container_id=container,
            netns=space,
            ifname="net1",
            path=("/usr/lib/cni",),
        )
        return await self._sriov("sriov", call)

    async def add(self, space: str, bdf: str, **more: Any) -> Result:
        return parse_result(await self(Command.ADD, space, bdf, **more), where="sriov")

    def ipam(self, address: str) -> dict[str, Any]:
        return {"type": "static", "addresses": [{"address": address}]}


@asynccontextmanager
async def delegate(directory: Path) -> AsyncIterator[Delegate]:
    async with Journal.open(directory / "journal.db") as journal:
        yield Delegate(journal, directory)


@pytest.fixture
def card(hardware: Hardware) -> Card:
    """A card with two VFs."""
    made = hardware.cards[0]
    made.create(2)
    until(lambda: made.carrier, "the carrier")  # igb drops it for new VFs, and takes rates only with one
    return made


@pytest.fixture
def listener(space: Callable[[], Space], card: Card) -> Iterator[Space]:
    """The other VF, in VLAN 100, at 10.9.0.2."""
    made = space()
    run(f"ip link set {card.netdev} vf 1 vlan 100")
    made.take(card.vf_netdev(1), "10.9.0.2/24")
    yield made
    run(f"ip link set {card.netdev} vf 1 vlan 0")


def state(card: Card, index: int = 0) -> VFState:
    with rtnetlink.connect() as connection:
        return vfs.read(connection, card.ifindex)[index]


def link(name: str, *, space: str = "") -> dict[str, Any]:
    inside = ["-n", space] if space else []
    done = subprocess.run(["ip", *inside, "-j", "link", "show", "dev", name], capture_output=True, check=True)
    (found,) = json.loads(done.stdout)
    return {
        "name": found["ifname"],
        "mac": found["address"],
        "mtu": found["mtu"],
        "up": "UP" in found["flags"],
        "altnames": sorted(found.get("altnames", [])),
    }


async def test_a_kernel_vf_with_everything_and_back(
    card: Card, space: Callable[[], Space], listener: Space, tmp_path: Path
) -> None:
    bdf, name = card.vf(0), card.vf_netdev(0)
    before = state(card), link(name)
    pod = space()
    async with delegate(tmp_path) as sriov:
        result = await sriov.add(pod.path, bdf, **SETTINGS, ipam=sriov.ipam("10.9.0.1/24"))
        (interface,) = result.interfaces
        assert (interface.name, interface.mac, interface.pci_id) == ("net1", "02:aa:00:00:00:01", bdf)
        assert state(card) == VFState(
            mac="02:aa:00:00:00:01",
            vlan=100,
            qos=3,
            proto=0x8100,
            spoofchk=False,
            trust=True,
            link_state="auto",
            min_tx=0,
            max_tx=200,
        )
        assert link("net1", space=pod.name)["mac"] == "02:aa:00:00:00:01"
        assert card.vf_netdev(0) == ""
        until(lambda: pod.reaches("10.9.0.2"), "the other VF of the VLAN")
        await sriov(Command.CHECK, pod.path, bdf, **SETTINGS)

        other = space()
        with pytest.raises(AllocatedError):
            await sriov.add(other.path, bdf, container="c2")

        run(f"ip link set {card.netdev} vf 0 vlan 7")
        with pytest.raises(DriftError, match="vlan 7"):
            await sriov(Command.CHECK, pod.path, bdf, **SETTINGS)
        run(f"ip -n {pod.name} link set net1 down name renamed mtu 1400")

        for _ in range(2):
            await sriov(Command.DEL, pod.path, bdf, **SETTINGS, ipam=sriov.ipam("10.9.0.1/24"))
            assert (state(card), link(name)) == before
        assert await sriov.journal.records.all(KIND) == []


@pytest.mark.parametrize(
    "refused", [{"link_state": "enable"}, {"vlan": 5, "vlanProto": "802.1ad"}, {"min_tx_rate": 100}]
)
async def test_what_this_hardware_refuses_is_rolled_back(
    card: Card, space: Callable[[], Space], tmp_path: Path, refused: dict[str, Any]
) -> None:
    bdf, name = card.vf(0), card.vf_netdev(0)
    before = state(card), link(name)
    pod = space()
    async with delegate(tmp_path) as sriov:
        with pytest.raises(NodeError, match="does not set"):
            await sriov.add(pod.path, bdf, **SETTINGS | refused)
        assert (state(card), link(name)) == before
        with pytest.raises(NodeError, match="there is no network namespace"):
            await sriov.add("/run/netns/none", bdf, **SETTINGS)
        assert (state(card), link(name)) == before
        assert await sriov.journal.records.all(KIND) == []


async def test_the_pod_is_gone_before_its_del(card: Card, space: Callable[[], Space], tmp_path: Path) -> None:
    bdf, name = card.vf(0), card.vf_netdev(0)
    before = state(card), link(name)
    pod = space()
    async with delegate(tmp_path) as sriov:
        await sriov.add(pod.path, bdf, **SETTINGS)
        namespaces.delete(pod.name)
        await sriov(Command.DEL, "", bdf, **SETTINGS)
        assert (state(card), link(name)) == before


async def test_the_next_pod_takes_over_from_one_that_is_gone(
    card: Card, space: Callable[[], Space], tmp_path: Path
) -> None:
    bdf, name = card.vf(0), card.vf_netdev(0)
    before = state(card), link(name)
    first, second = space(), space()
    async with delegate(tmp_path) as sriov:
        await sriov.add(first.path, bdf, **SETTINGS)
        namespaces.delete(first.name)
    async with delegate(tmp_path) as sriov:  # the daemon was restarted meanwhile
        # Not trusted, it may not ask its PF for a MAC, only be given one.
        result = await sriov.add(second.path, bdf, container="c2", vlan=9, mac="02:aa:00:00:00:05")
        assert result.interfaces[0].mac == link("net1", space=second.name)["mac"] == "02:aa:00:00:00:05"
        assert state(card).vlan == 9
        assert state(card).trust is False
        await sriov(Command.DEL, first.path, bdf, **SETTINGS)
        assert state(card).vlan == 9
        await sriov(Command.DEL, second.path, bdf, container="c2", vlan=9)
        assert (state(card), link(name)) == before


async def test_a_vf_for_dpdk(card: Card, space: Callable[[], Space], tmp_path: Path) -> None:
    bdf = card.vf(0)
    bind(bdf, "vfio-pci")
    before = state(card)
    pod = space()
    async with delegate(tmp_path) as sriov:
        result = await sriov.add(pod.path, bdf, **SETTINGS, ipam=sriov.ipam("10.9.0.1/24"))
        (interface,) = result.interfaces
        assert (interface.name, interface.mac, interface.pci_id) == ("net1", "02:aa:00:00:00:01", bdf)
        assert [ip.address for ip in result.ips] == ["10.9.0.1/24"]
        assert namespaces.interface_names(pod.path) == ("lo",)
        assert state(card).vlan == 100
        await sriov(Command.CHECK, pod.path, bdf, **SETTINGS)
    async with delegate(tmp_path) as sriov:
        await sriov(Command.DEL, pod.path, bdf, **SETTINGS, ipam=sriov.ipam("10.9.0.1/24"))
        assert state(card) == before
        assert await sriov.journal.records.all(KIND) == []

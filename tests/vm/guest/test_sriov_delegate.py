"""The SR-IOV delegate on real VFs: what it sets is there, traffic obeys it, and everything is as before afterwards."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.to_thread
import pytest

from devices.linux import netns as namespaces
from devices.linux.vfs import VFState
from multus.cni.request import Command
from multus.delegates.plugin import Call
from multus.delegates.sriov import AllocatedError, DriftError
from multus.errors import NodeError
from tests.vm.guest.attached import SETTINGS, Delegate, delegate, link, look, state
from tests.vm.guest.hardware import Card, Space, bind, run, until

pytestmark = pytest.mark.anyio

DRIFTS: Final = (
    # What is done, what undoes it, and what CHECK says in between. igb has neither link states nor least rates.
    (
        "ip link set {pf} vf 0 vlan 7 qos 3",
        "ip link set {pf} vf 0 vlan 100 qos 3",
        "vlan 7 qos 3 proto 802.1Q instead of",
    ),
    (
        "ip link set {pf} vf 0 vlan 100 qos 5",
        "ip link set {pf} vf 0 vlan 100 qos 3",
        "qos 5 proto 802.1Q instead of vlan",
    ),
    ("ip link set {pf} vf 0 vlan 0", "ip link set {pf} vf 0 vlan 100 qos 3", "vlan 0 qos 0 proto 802.1Q instead of"),
    (
        "ip link set {pf} vf 0 mac 02:aa:00:00:00:09",
        "ip link set {pf} vf 0 mac 02:aa:00:00:00:01",
        "it has mac 02:aa:00:00:00:09 instead of mac 02:aa:00:00:00:01",
    ),
    (
        "ip link set {pf} vf 0 max_tx_rate 300",
        "ip link set {pf} vf 0 max_tx_rate 200",
        "it has min_tx_rate 0 max_tx_rate 300 instead of min_tx_rate 0 max_tx_rate 200",
    ),
    (
        "ip link set {pf} vf 0 spoofchk on",
        "ip link set {pf} vf 0 spoofchk off",
        "it has spoofchk on instead of spoofchk off",
    ),
    ("ip link set {pf} vf 0 trust off", "ip link set {pf} vf 0 trust on", "it has trust off instead of trust on"),
    (
        "ip -n {pod} link set net1 address 02:aa:00:00:00:09",
        "ip -n {pod} link set net1 address 02:aa:00:00:00:01",
        "net1 has MAC 02:aa:00:00:00:09 instead of 02:aa:00:00:00:01",
    ),
    ("ip -n {pod} link set net1 mtu 1400", "ip -n {pod} link set net1 mtu 1500", "net1 has MTU 1400 instead of 1500"),
    ("ip -n {pod} link set net1 down", "ip -n {pod} link set net1 up", "net1 is down"),
    (
        "ip -n {pod} link set net1 down name renamed",
        "ip -n {pod} link set renamed name net1 up",
        "its interface is called renamed instead of net1",
    ),
    (
        "ip -n {pod} link set net1 netns {other}",
        "ip -n {other} link set net1 netns {pod}; ip -n {pod} link set net1 up",
        "its interface net1 is not in the pod",
    ),
)


@pytest.fixture
def listener(space: Callable[[], Space], card: Card) -> Iterator[Space]:
    """The other VF, in VLAN 100, at 10.9.0.2."""
    made = space()
    run(f"ip link set {card.netdev} vf 1 vlan 100")
    made.take(card.vf_netdev(1), "10.9.0.2/24")
    yield made
    run(f"ip link set {card.netdev} vf 1 vlan 0")


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
        assert await sriov.on_record() == []


async def drift(sriov: Delegate, *call: str) -> str:
    """What CHECK finds; "" when it is content."""
    try:
        await sriov(Command.CHECK, *call, **SETTINGS)
    except DriftError as error:
        return error.message
    return ""


async def test_check_names_each_thing_that_is_different(card: Card, space: Callable[[], Space], tmp_path: Path) -> None:
    """One attachment for all of them, as making one takes longer than a look at it."""
    bdf, name = card.vf(0), card.vf_netdev(0)
    before = state(card), link(name)
    pod, other = space(), space()
    names = {"pf": card.netdev, "pod": pod.name, "other": other.name}
    async with delegate(tmp_path) as sriov:
        await sriov.add(pod.path, bdf, **SETTINGS)
        assert await drift(sriov, pod.path, bdf) == ""
        for done, undone, sentence in DRIFTS:
            run(done.format_map(names))
            assert sentence in await drift(sriov, pod.path, bdf), done
            for command in undone.format_map(names).split("; "):
                run(command)
            assert await drift(sriov, pod.path, bdf) == "", undone
        await sriov(Command.DEL, pod.path, bdf, **SETTINGS)
    assert (state(card), link(name)) == before


async def test_gc_puts_back_what_is_not_valid(card: Card, space: Callable[[], Space], tmp_path: Path) -> None:
    before, pods = look(card), [space(), space()]
    async with delegate(tmp_path) as sriov:
        await sriov.add(pods[0].path, card.vf(0), **SETTINGS)
        await sriov.add(pods[1].path, card.vf(1), container="c2", vlan=6)
    namespaces.delete(pods[0].name)
    async with delegate(tmp_path) as sriov:  # the daemon was restarted meanwhile
        for _ in range(2):
            kept = {"cni.dev/valid-attachments": [{"containerID": "c2", "ifname": "net1"}]}
            await sriov(Command.GC, "", card.vf(0), container="", **kept)
            assert look(card) == {card.vf(0): before[card.vf(0)]}
            assert await sriov.on_record() == [card.vf(1)]
            await sriov(Command.CHECK, pods[1].path, card.vf(1), container="c2", vlan=6)
        await sriov(Command.GC, "", card.vf(0), container="", **{"cni.dev/valid-attachments": []})
        assert look(card) == before
        assert await sriov.on_record() == []


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
        assert await sriov.on_record() == []


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
        assert await drift(sriov, pod.path, bdf) == ""
        run(f"ip link set {card.netdev} vf 0 vlan 7 qos 3")
        assert "it has vlan 7 qos 3 proto 802.1Q instead of vlan 100" in await drift(sriov, pod.path, bdf)
        run(f"ip link set {card.netdev} vf 0 vlan 100 qos 3")
        bind(bdf, "")
        assert "its driver is igbvf instead of vfio-pci" in await drift(sriov, pod.path, bdf)
        bind(bdf, "vfio-pci")
        assert await drift(sriov, pod.path, bdf) == ""
    async with delegate(tmp_path) as sriov:
        await sriov(Command.DEL, pod.path, bdf, **SETTINGS, ipam=sriov.ipam("10.9.0.1/24"))
        assert state(card) == before
        assert await sriov.on_record() == []


async def test_of_two_that_want_one_vf_one_gets_it(card: Card, space: Callable[[], Space], tmp_path: Path) -> None:
    bdf, before = card.vf(0), look(card)
    pods = [space(), space()]
    won: list[int] = []
    lost: list[int] = []

    async with delegate(tmp_path) as sriov:

        async def want(number: int) -> None:
            try:
                await sriov.add(pods[number].path, bdf, container=f"c{number}", vlan=number + 1)
                won.append(number)
            except AllocatedError:
                lost.append(number)

        for _ in range(3):
            async with anyio.create_task_group() as group:
                for number in (0, 1):
                    group.start_soon(want, number)
            assert sorted(won + lost) == [0, 1]
            assert len(won) == 1
            assert state(card).vlan == won[0] + 1
            assert [sorted(namespaces.interface_names(pod.path)) for pod in pods] == [
                ["lo", "net1"] if number in won else ["lo"] for number in (0, 1)
            ]
            for number in (*lost, *won):  # the loser's DEL takes nothing from the winner
                await sriov(Command.DEL, pods[number].path, bdf, container=f"c{number}", vlan=number + 1)
                assert ("net1" in namespaces.interface_names(pods[won[0]].path)) is (number in lost)
            assert look(card) == before
            won.clear()
            lost.clear()


async def test_vfs_of_one_card_do_not_wait_for_one_another(
    card: Card, space: Callable[[], Space], tmp_path: Path
) -> None:
    """The address plugin of one hangs, between the kernel's changes; the other is attached and given back meanwhile."""
    before, pods = look(card), [space(), space()]
    hangs, go_on = anyio.Event(), anyio.Event()

    async def ipam(plugin: str, call: Call) -> bytes:
        if call.command is Command.ADD:
            hangs.set()
            await go_on.wait()
            return b'{"cniVersion": "1.0.0", "ips": [{"address": "10.9.0.1/24"}]}'
        return b""

    async with delegate(tmp_path, ipam=ipam) as sriov:
        async with anyio.create_task_group() as group:
            group.start_soon(partial(sriov.add, pods[0].path, card.vf(0), vlan=5, ipam={"type": "slow"}))
            await hangs.wait()
            await sriov.add(pods[1].path, card.vf(1), container="c2", vlan=6)
            assert (state(card, 0).vlan, state(card, 1).vlan) == (5, 6)
            await sriov(Command.DEL, pods[1].path, card.vf(1), container="c2", vlan=6)
            go_on.set()
        await sriov(Command.DEL, pods[0].path, card.vf(0), vlan=5, ipam={"type": "slow"})
    assert look(card) == before

"""The `sriov` delegate: what a pod gets, and that the VF is as before afterwards, whatever happens in between."""

import json
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from devices.errors import KernelError
from devices.linux.netdevs import Change
from devices.linux.vfs import SetLinkState, SetMac, SetRate, SetSpoofchk, SetTrust, SetVlan, VFState
from multus.cni.conf import parse_conf
from multus.cni.errors import CNIError, to_cni
from multus.cni.request import Command
from multus.cni.result import IP, Interface, Route
from multus.delegates.chain import Chain, Target
from multus.delegates.plugin import Call
from multus.delegates.sriov import AllocatedError, DriftError
from multus.errors import MultusError, NodeError
from tests.fake_vf_kernel import PF, FakeKernel, refuse, refuse_all, vf_bdf
from tests.sriov_node import POD, Node

pytestmark = pytest.mark.anyio

EVERYTHING: dict[str, Any] = {
    "vlan": 1234,
    "vlanQoS": 3,
    "vlanProto": "802.1ad",
    "mac": "02:AA:00:00:00:01",
    "min_tx_rate": 10,
    "max_tx_rate": 100,
    "spoofchk": "off",
    "trust": "on",
    "link_state": "enable",
}
STEPS = [
    SetVlan(vlan=1234, qos=3, proto=0x88A8),
    SetMac(mac="02:aa:00:00:00:01"),
    SetRate(min_tx=10, max_tx=100),
    SetSpoofchk(on=False),
    SetTrust(on=True),
    SetLinkState(state="enable"),
]
IPAM: dict[str, Any] = {"ipam": {"type": "host-local"}}


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path / "sriov")


def steps(kernel: FakeKernel) -> list[Any]:
    return [call[2] for call in kernel.calls if call[0] == "set_vf"]


async def test_a_kernel_vf_is_configured_moved_and_reported(node: Node) -> None:
    result = await node.add(**EVERYTHING)
    (interface,) = result.interfaces
    assert interface == Interface(name="net1", mac="02:aa:00:00:00:01", mtu=1500, sandbox=POD, pci_id=vf_bdf(0))
    assert steps(node.kernel) == STEPS
    assert node.kernel.vfs[0] == VFState(
        mac="02:aa:00:00:00:01",
        vlan=1234,
        qos=3,
        proto=0x88A8,
        spoofchk=False,
        trust=True,
        link_state="enable",
        min_tx=10,
        max_tx=100,
    )
    pod = {netdev.name: netdev for netdev in node.kernel.spaces[POD].values()}
    assert pod["net1"].mac == "02:aa:00:00:00:01"
    assert pod["net1"].up
    assert "ens1f0v0" not in {netdev.name for netdev in node.kernel.spaces[""].values()}


async def test_the_original_state_is_saved_before_the_first_change_and_forgotten_after_the_last(node: Node) -> None:
    await node.add(**EVERYTHING)
    assert node.kernel.calls[0] == ("save", vf_bdf(0))
    await node.delete(**EVERYTHING)
    assert node.kernel.calls[-1] == ("forget", vf_bdf(0))


async def test_del_puts_everything_back_and_can_be_repeated(node: Node) -> None:
    before = node.kernel.snapshot()
    await node.add(**EVERYTHING)
    await node.delete(**EVERYTHING)
    assert node.kernel.snapshot() == before
    assert node.on_record == []
    done = len(node.kernel.calls)
    await node.delete(**EVERYTHING)
    assert node.kernel.calls[done:] == []


async def test_the_original_values_are_put_back_not_zeros(node: Node) -> None:
    before = VFState(
        mac="02:00:00:00:00:77",
        vlan=7,
        qos=1,
        proto=0x8100,
        spoofchk=False,
        trust=True,
        link_state="disable",
        min_tx=1,
        max_tx=2,
    )
    node.kernel.vfs[0] = before
    await node.add(**EVERYTHING | {"spoofchk": "on", "trust": "off"})
    await node.delete()
    assert node.kernel.vfs[0] == before


async def test_what_is_not_asked_for_is_not_touched(node: Node) -> None:
    await node.add()
    assert steps(node.kernel) == []
    node.kernel.vfs[0] = msgspec.structs.replace(node.kernel.vfs[0], vlan=9)  # somebody else's business
    await node.delete()
    assert node.kernel.vfs[0].vlan == 9


async def test_what_the_pod_changed_is_put_back(node: Node) -> None:
    before = node.kernel.snapshot()
    await node.add(trust="on")
    (index,) = (netdev.index for netdev in node.kernel.spaces[POD].values() if netdev.parent)
    node.kernel.change(POD, index, Change(up=False))
    node.kernel.change(POD, index, Change(mtu=4444, name="renamed", mac="02:bb:00:00:00:09"))
    node.kernel.add_altname(POD, index, "ens1f0v0")
    node.kernel.vfs[0] = msgspec.structs.replace(node.kernel.vfs[0], mac="02:bb:00:00:00:09")
    await node.delete()
    assert node.kernel.snapshot() == before


@pytest.mark.parametrize(
    ("given", "args", "expected"),
    [
        ({"mac": "02:00:00:00:00:03"}, (), "02:00:00:00:00:03"),
        ({"mac": "02:00:00:00:00:03"}, (("MAC", "02:00:00:00:00:02"),), "02:00:00:00:00:02"),
        (
            {"mac": "02:00:00:00:00:03", "runtimeConfig": {"mac": "02:00:00:00:00:01"}},
            (("MAC", "02:00:00:00:00:02"),),
            "02:00:00:00:00:01",
        ),
        ({}, (), "02:00:00:00:00:10"),
    ],
    ids=["conf", "CNI_ARGS", "runtimeConfig", "none"],
)
async def test_which_mac_wins(node: Node, given: dict[str, Any], args: Any, expected: str) -> None:
    result = await node.add(**given, args=args)
    assert result.interfaces[0].mac == expected


async def test_addresses_come_from_the_address_plugin(node: Node) -> None:
    result = await node.add(**IPAM)
    assert result.ips == (IP(address="10.1.0.5/24", gateway="10.1.0.1", interface=0),)
    assert result.routes == (Route(dst="0.0.0.0/0"),)
    assert result.dns.nameservers == ("10.1.0.2",)
    (plugin, call) = node.ipam.calls[0]
    assert (plugin, call) == ("host-local", node.call(Command.ADD, **IPAM))
    configured = next(call for call in node.kernel.calls if call[0] == "configure")
    assert configured[1:4] == (POD, "net1", ("10.1.0.5/24",))
    assert configured[4][0].gateway == "10.1.0.1"
    announced = next(call for call in node.kernel.calls if call[0] == "announce")
    assert announced == ("announce", POD, "net1", "02:00:00:00:00:10", ("10.1.0.5/24",))
    await node.delete(**IPAM)
    assert node.ipam.commands == [Command.ADD, Command.DEL]
    assert [call[0] for call in node.kernel.calls].index("move") < len(node.kernel.calls)


async def test_addresses_that_the_runtime_wishes_are_for_the_address_plugin(node: Node) -> None:
    wished = {
        "runtimeConfig": {"ips": ["10.1.0.5/24"], "mac": "02:aa:00:00:00:01"},
        "dns": {"nameservers": ["10.9.9.9"]},
    }
    await node.add(**IPAM, **wished)
    ((_, call),) = node.ipam.calls
    assert json.loads(call.conf)["runtimeConfig"] == wished["runtimeConfig"]
    assert call.args == ()


@pytest.mark.parametrize("trouble", ["fails", "gives nothing", "prints rubbish"])
async def test_an_address_plugin_that_fails_leaves_nothing(node: Node, trouble: str) -> None:
    before = node.kernel.snapshot()
    if trouble == "fails":
        node.ipam.failing = {Command.ADD}
    else:
        node.ipam.answer = {"cniVersion": "1.0.0"} if trouble == "gives nothing" else {"ips": 3}
    with pytest.raises(CNIError):
        await node.add(**EVERYTHING, **IPAM)
    assert node.ipam.commands == [Command.ADD, Command.DEL]
    assert node.kernel.snapshot() == before
    assert node.on_record == []


async def test_every_fault_of_an_add_puts_everything_back(node: Node) -> None:
    """Before each call, and after it: a driver may have done what it says that it did not."""
    before = node.kernel.snapshot()
    await node.add(**EVERYTHING, **IPAM)
    count = sum(1 for call in node.kernel.calls if call[0] not in ("save", "forget"))
    assert count >= 11
    kinds = set()
    for when in ("before", "after"):
        for number in range(count + 1):
            fresh = Node(node.upstream)
            fresh.store.log = []
            setattr(fresh.kernel, when, refuse(at=number))
            fails = number < count and fresh_call(node, number)[0] != "announce"
            try:
                await fresh.add(**EVERYTHING, **IPAM)
            except (MultusError, AssertionError) as error:
                assert isinstance(error, MultusError), error
                assert fails or _retried(node, number)
                kinds.add(fresh.kernel.calls[number][0])
                assert fresh.kernel.snapshot() == before, (when, number, fresh.kernel.calls)
                assert fresh.on_record == []
                if Command.ADD in fresh.ipam.commands:
                    assert fresh.ipam.commands[-1] is Command.DEL
            else:
                assert not fails or _retried(node, number), (when, number)
                fresh.kernel.before = fresh.kernel.after = None
                await fresh.delete(**EVERYTHING, **IPAM)
                assert fresh.kernel.snapshot() == before
    assert kinds == {"set_vf", "move", "prepare", "change", "configure"}


def fresh_call(node: Node, number: int) -> Any:
    return [call for call in node.kernel.calls if call[0] not in ("save", "forget")][number]


def _retried(node: Node, number: int) -> bool:
    """The MAC is asked for again and again."""
    call = fresh_call(node, number)
    return bool(call[0] == "change" and call[3].mac)


async def test_every_fault_of_a_del_is_mended_by_the_next(node: Node) -> None:
    before = node.kernel.snapshot()
    await node.add(**EVERYTHING)
    begin = sum(1 for call in node.kernel.calls if call[0] not in ("save", "forget"))
    await node.delete(**EVERYTHING)
    count = sum(1 for call in node.kernel.calls if call[0] not in ("save", "forget"))
    assert count > begin
    failed = 0
    for number in range(begin, count):
        fresh = Node(node.upstream)
        fresh.store.log = []
        await fresh.add(**EVERYTHING)
        fresh.kernel.before = refuse(at=number)
        try:
            await fresh.delete(**EVERYTHING)
        except MultusError:
            failed += 1
            assert fresh.on_record == [vf_bdf(0)]
            await fresh.delete(**EVERYTHING)
        assert fresh.kernel.snapshot() == before, number
        assert fresh.on_record == []
    assert failed >= 6


async def test_a_rollback_that_fails_too_is_done_by_the_del_that_follows(node: Node) -> None:
    before = node.kernel.snapshot()

    def broken_from_the_move_on(number: int, call: tuple[Any, ...]) -> None:
        if call[0] in ("set_vf", "change") and any(each[0] == "move" for each in node.kernel.calls):
            raise KernelError("driver", 5, "Input/output error")

    node.kernel.before = broken_from_the_move_on
    with pytest.raises(NodeError):
        await node.add(**EVERYTHING)
    assert node.on_record == [vf_bdf(0)]
    with pytest.raises(NodeError):
        await node.delete(**EVERYTHING)
    assert node.on_record == [vf_bdf(0)]
    node.kernel.before = None
    await node.delete(**EVERYTHING)
    assert node.kernel.snapshot() == before
    assert node.on_record == []


async def test_an_add_that_is_cancelled_puts_everything_back(node: Node) -> None:
    before = node.kernel.snapshot()
    with anyio.CancelScope() as scope:

        async def hold(command: Command) -> None:
            if command is Command.ADD:
                scope.cancel()
                await anyio.sleep_forever()

        node.ipam.hook = hold
        await node.add(**EVERYTHING, **IPAM)
    assert scope.cancelled_caught
    assert node.ipam.commands == [Command.ADD, Command.DEL]
    assert node.kernel.snapshot() == before
    assert node.on_record == []


@pytest.mark.parametrize("driver", ["vfio-pci", "uio_pci_generic", "igb_uio"])
async def test_a_vf_for_a_program_is_configured_and_stays_where_it_is(node: Node, driver: str) -> None:
    """Defect a: upstream forgets that there is no interface, and its DEL looks for one."""
    node.kernel.userspace(0, driver)
    before = node.kernel.snapshot()
    result = await node.add(**EVERYTHING, **IPAM)
    (interface,) = result.interfaces
    assert interface == Interface(name="net1", mac="02:aa:00:00:00:01", mtu=9000, sandbox=POD, pci_id=vf_bdf(0))
    assert result.ips[0].interface == 0
    assert steps(node.kernel) == STEPS
    assert {call[0] for call in node.kernel.calls} == {"save", "set_vf"}
    await node.check(**EVERYTHING, **IPAM)
    node.sriov = node.made()  # what DEL needs is not only in memory
    await node.delete(**EVERYTHING, **IPAM)
    assert node.kernel.snapshot() == before
    assert node.on_record == []


@pytest.mark.parametrize(("admin", "told"), [("00:00:00:00:00:00", ""), ("02:00:00:00:00:55", "02:00:00:00:00:55")])
async def test_the_mac_of_a_programs_vf_is_the_one_that_the_pf_has(node: Node, admin: str, told: str) -> None:
    node.kernel.userspace(0)
    node.kernel.vfs[0] = msgspec.structs.replace(node.kernel.vfs[0], mac=admin)
    assert (await node.add()).interfaces[0].mac == told


async def test_a_setting_that_the_driver_refuses_is_rolled_back(node: Node) -> None:
    """Defect b, first half: upstream leaves what it had set before."""
    before = node.kernel.snapshot()
    unsupported = KernelError("setting link_state", 95, "Operation not supported")

    def only_link_state(number: int, call: tuple[Any, ...]) -> None:
        if call[0] == "set_vf" and isinstance(call[2], SetLinkState):
            raise unsupported

    node.kernel.before = only_link_state
    with pytest.raises(NodeError, match="does not set link_state enable for VF 0") as caught:
        await node.add(**EVERYTHING)
    assert "take it out of the network's configuration" in caught.value.hint
    assert to_cni(caught.value).code == 7
    assert node.kernel.snapshot() == before


async def test_a_del_that_fails_is_not_its_last(node: Node) -> None:
    """Defect b, second half: upstream removes its record all the same, and the next DEL does nothing."""
    before = node.kernel.snapshot()
    await node.add(**EVERYTHING)
    node.kernel.before = refuse_all(KernelError("driver", 5, "Input/output error"), "set_vf")
    for _ in range(2):
        with pytest.raises(NodeError, match="Input/output error"):
            await node.delete(**EVERYTHING)
        assert node.on_record == [vf_bdf(0)]
    node.kernel.before = None
    await node.delete(**EVERYTHING)
    assert node.kernel.snapshot() == before


async def test_vfs_are_told_apart_by_their_number(node: Node) -> None:
    """Defect c: the fake lists them in reverse."""
    node.kernel.vfs[1] = msgspec.structs.replace(node.kernel.vfs[1], vlan=50)
    await node.add(vlan=60)
    await node.delete()
    assert node.kernel.vfs[0].vlan == 0
    assert node.kernel.vfs[1].vlan == 50


async def test_check_says_what_is_different(node: Node) -> None:
    """Defect d."""
    with pytest.raises(DriftError, match="is not on record"):
        await node.check(**EVERYTHING)
    await node.add(**EVERYTHING)
    await node.check(**EVERYTHING)
    node.kernel.vfs[0] = msgspec.structs.replace(node.kernel.vfs[0], trust=False, vlan=1, max_tx=0, min_tx=0)
    (index,) = (netdev.index for netdev in node.kernel.spaces[POD].values() if netdev.parent)
    node.kernel.change(POD, index, Change(up=False))
    node.kernel.change(POD, index, Change(mac="02:00:00:00:00:99", name="x"))
    with pytest.raises(DriftError) as caught:
        await node.check(**EVERYTHING)
    for sentence in (
        "it has vlan 1 qos 3 proto 802.1ad instead of vlan 1234 qos 3 proto 802.1ad",
        "it has trust off instead of trust on",
        "it has min_tx_rate 0 max_tx_rate 0 instead of min_tx_rate 10 max_tx_rate 100",
        "its interface is called x instead of net1",
        "x has MAC 02:00:00:00:00:99 instead of 02:aa:00:00:00:01",
        "x is down",
    ):
        assert sentence in caught.value.message
    node.kernel.userspace(0)
    with pytest.raises(DriftError, match="its driver is vfio-pci instead of iavf"):
        await node.check(**EVERYTHING)
    del node.kernel.vfs[0]
    with pytest.raises(DriftError, match="the device is gone"):
        await node.check(**EVERYTHING)


async def test_a_namespace_at_the_same_path_is_not_the_same(node: Node) -> None:
    await node.add()
    node.kernel.identities[POD] = "4:999"
    with pytest.raises(DriftError, match="is not the namespace that it was given to"):
        await node.check()


async def test_a_driver_that_is_busy_is_asked_again(node: Node) -> None:
    """Defect e: upstream does so for the MAC alone."""
    left = {"set_vf": 5}

    def busy(number: int, call: tuple[Any, ...]) -> None:
        if left.get(call[0], 0):
            left[call[0]] -= 1
            raise KernelError("driver", 16, "Device or resource busy")

    node.kernel.before = busy
    await node.add(vlan=5)
    assert node.kernel.vfs[0].vlan == 5
    assert node.kernel.pauses == 5


async def test_a_driver_that_does_not_do_what_it_says_is_found_out(node: Node) -> None:
    before = node.kernel.snapshot()
    node.kernel._set = lambda vf, step: None  # type: ignore[method-assign]
    with pytest.raises(NodeError, match=r"took trust on for VF 0 .* but has trust off"):
        await node.add(trust="on")
    assert node.kernel.snapshot() == before


async def test_other_names_do_not_stop_the_way_there_nor_back(node: Node) -> None:
    """Defect f: an interface has more names than one, and udev gives it some meanwhile."""
    vf = node.kernel.spaces[""][10]
    node.kernel.spaces[""][10] = msgspec.structs.replace(vf, altnames=("enp3s0f0v0", "net1", "other"))
    node.kernel.spaces[POD][5] = msgspec.structs.replace(vf, index=5, name="other", altnames=(), parent="")
    before = node.kernel.snapshot()
    await node.add()
    node.kernel.add_altname(POD, 10, "ens1f0v0")  # what the host calls it
    node.kernel.add_altname(POD, 10, "ens1f0")  # and what another one there is called
    await node.delete()
    assert node.kernel.snapshot() == before


async def test_the_namespace_decides_who_holds_a_vf_not_its_path(node: Node) -> None:
    """Defect g: a path is used again."""
    before = node.kernel.snapshot()
    await node.add(**EVERYTHING)
    node.kernel.end_space(POD)
    node.kernel.space(POD, "4:200")
    await node.add(container_id="c2", vlan=7)
    assert node.kernel.vfs[0].vlan == 7
    assert node.kernel.vfs[0].trust is False
    await node.delete(container_id="c2")
    assert node.kernel.snapshot() == before


async def test_a_pf_that_tells_nothing_of_its_vfs(node: Node) -> None:
    """Defect h: in a virtual machine. What needs no PF works there; what does is refused in words."""
    node.kernel.tells_of_vfs = False
    before = node.kernel.snapshot()
    with pytest.raises(NodeError, match="vlan, trust cannot be set, for ens1f0 tells nothing of its VFs"):
        await node.add(vlan=5, trust="on")
    assert (await node.add(mac="02:00:00:00:00:42")).interfaces[0].mac == "02:00:00:00:00:42"
    await node.check(mac="02:00:00:00:00:42")
    await node.delete()
    assert node.kernel.snapshot() == before
    node.kernel.userspace(0)
    with pytest.raises(NodeError, match="mac cannot be set"):
        await node.add(mac="02:00:00:00:00:42")


async def test_addresses_that_are_slow_to_be_given_back_hold_up_nobody(node: Node) -> None:
    """Defect i: the ADD is answered at once, instead of waiting for a minute."""
    await node.add(**IPAM)
    node.kernel.space("/run/netns/other", "4:300")
    asked, go_on = anyio.Event(), anyio.Event()

    async def slow(command: Command) -> None:
        if command is Command.DEL:
            asked.set()
            await go_on.wait()

    node.ipam.hook = slow
    async with anyio.create_task_group() as group:
        group.start_soon(lambda: node.delete(**IPAM))
        await asked.wait()
        with pytest.raises(AllocatedError):
            await node.add(container_id="c2", netns="/run/netns/other")
        go_on.set()
    await node.add(container_id="c2", netns="/run/netns/other")


async def test_of_two_adds_one_wins(node: Node) -> None:
    node.kernel.space("/run/netns/other", "4:300")
    outcomes: list[str] = []

    async def one(container_id: str, netns: str) -> None:
        try:
            await node.add(container_id=container_id, netns=netns, vlan=5)
            outcomes.append(container_id)
        except AllocatedError as error:
            assert f"pci address {vf_bdf(0)} is already allocated" in error.message
            assert to_cni(error).code == 11
            outcomes.append("refused")

    async with anyio.create_task_group() as group:
        group.start_soon(one, "c1", POD)
        group.start_soon(one, "c2", "/run/netns/other")
    assert sorted(outcomes, key=len) == [next(each for each in outcomes if each != "refused"), "refused"]
    assert node.kernel.vfs[0].vlan == 5


async def test_a_late_del_does_not_touch_the_next_pods_vf(node: Node) -> None:
    await node.add(vlan=5)
    node.kernel.end_space(POD)
    node.kernel.space("/run/netns/new", "4:300")
    await node.add(container_id="c2", netns="/run/netns/new", vlan=6)
    await node.delete(vlan=5)
    assert node.kernel.vfs[0].vlan == 6
    assert node.on_record == [vf_bdf(0)]


@pytest.mark.parametrize("netns", [POD, ""])
async def test_del_when_the_namespace_is_gone(node: Node, netns: str) -> None:
    before = node.kernel.snapshot()
    await node.add(**EVERYTHING)
    node.kernel.spaces[""][99] = msgspec.structs.replace(node.kernel.spaces[""][2], index=99, name="net1")
    node.kernel.end_space(POD)
    assert node.kernel.spaces[""][10].name == "dev10"
    await node.delete(**EVERYTHING, netns=netns)
    del node.kernel.spaces[""][99]
    assert node.kernel.snapshot() == before


async def test_udev_may_give_the_name_as_an_alternative_one_meanwhile(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel brings the interface back from a namespace that is gone, and udev sees it come as we do."""
    before = node.kernel.snapshot()
    await node.add()
    node.kernel.end_space(POD)
    change = node.kernel.change

    def changed(netns: str, index: int, wanted: Change) -> None:
        if wanted.name and wanted.name not in node.kernel.spaces[""][10].altnames:
            monkeypatch.setattr(node.kernel, "change", change)
            node.kernel.add_altname("", 10, wanted.name)
        change(netns, index, wanted)

    monkeypatch.setattr(node.kernel, "change", changed)
    await node.delete()
    assert node.kernel.change == change
    assert node.kernel.snapshot() == before


async def test_del_waits_for_the_kernel_to_bring_the_interface_back(node: Node) -> None:
    before = node.kernel.snapshot()
    await node.add(**EVERYTHING)
    held = node.kernel.spaces[POD].pop(10)
    node.kernel.end_space(POD)

    def back() -> None:
        if node.kernel.pauses == 3:
            node.kernel.spaces[""][10] = msgspec.structs.replace(held, up=False)

    node.kernel.on_pause = back
    await node.delete(**EVERYTHING)
    assert node.kernel.snapshot() == before


async def test_an_interface_that_comes_back_after_the_del_is_put_back_by_the_next_add(node: Node) -> None:
    before = node.kernel.snapshot()
    await node.add(**EVERYTHING)
    held = node.kernel.spaces[POD].pop(10)
    node.kernel.end_space(POD)
    await node.delete(**EVERYTHING)
    assert node.kernel.vfs[0] == before[0][0]
    node.kernel.space("/run/netns/new", "4:300")
    with pytest.raises(AllocatedError, match="has not come back"):
        await node.add(container_id="c2", netns="/run/netns/new")
    node.kernel.spaces[""][10] = msgspec.structs.replace(held, name="dev10")
    assert (await node.add(container_id="c2", netns="/run/netns/new")).interfaces[0].mac == "02:00:00:00:00:10"
    await node.delete(container_id="c2", netns="/run/netns/new")
    assert node.kernel.snapshot() == before


async def test_a_name_that_the_host_gave_away_meanwhile_stays_with_its_new_owner(node: Node) -> None:
    await node.add()
    node.kernel.spaces[""][77] = msgspec.structs.replace(node.kernel.spaces[""][2], index=77, name="ens1f0v0")
    await node.delete()
    assert node.kernel.spaces[""][77].name == "ens1f0v0"
    assert node.kernel.spaces[""][10].name == "vf0"


async def test_after_a_reboot_nothing_is_put_back(node: Node) -> None:
    await node.add(vlan=5)
    fresh = Node(node.upstream)
    fresh.store.kept = node.store.kept
    fresh.sriov = fresh.made("boot-2")
    fresh.kernel.vfs[0] = msgspec.structs.replace(fresh.kernel.vfs[0], vlan=77)  # how this boot's admin wants it
    await fresh.delete(vlan=5)
    assert fresh.kernel.vfs[0].vlan == 77
    assert fresh.on_record == []


async def test_vfs_that_were_removed_need_nothing(node: Node) -> None:
    await node.add(**EVERYTHING)
    del node.kernel.vfs[0]
    await node.delete(**EVERYTHING)
    assert node.on_record == []


async def test_a_vf_that_was_bound_to_another_driver_meanwhile(node: Node) -> None:
    before = node.kernel.vfs[0]
    await node.add(**EVERYTHING)
    node.kernel.userspace(0)
    await node.delete(**EVERYTHING)
    assert node.kernel.vfs[0] == before
    assert node.on_record == []


async def test_del_with_a_configuration_that_cannot_be_read(node: Node) -> None:
    before = node.kernel.snapshot()
    await node.add(vlan=5)
    for conf in (b"", b"[]", b'{"deviceID": 3, "ipam": []}', b'{"ipam": {"type": "../sh"}}'):
        call = msgspec.structs.replace(node.call(Command.DEL), conf=conf)
        assert await node.sriov("sriov", call) == b""
    assert node.ipam.calls == []
    assert node.kernel.snapshot() == before


async def test_addresses_that_are_not_given_back_do_not_keep_the_vf(node: Node) -> None:
    before = node.kernel.snapshot()
    await node.add(**EVERYTHING, **IPAM)
    node.ipam.failing = {Command.DEL}
    with pytest.raises(CNIError, match="the address plugin fails"):
        await node.delete(**EVERYTHING, **IPAM)
    assert node.kernel.snapshot() == before
    node.ipam.failing = set()
    await node.delete(**EVERYTHING, **IPAM)
    assert node.ipam.commands[1:] == [Command.DEL, Command.DEL]


@pytest.mark.parametrize(
    ("arrange", "message"),
    [
        (lambda kernel: kernel.vfs.pop(0), "there is no network device"),
        (lambda kernel: kernel.drivers.update({0: ""}) or kernel.spaces[""].pop(10), "its driver is none"),
        (lambda kernel: kernel.identities.clear(), "there is no network namespace at"),
        (lambda kernel: kernel.spaces[POD].update({9: kernel.spaces[""][11]}), "already"),
    ],
    ids=["gone", "no driver", "no namespace", "name in use"],
)
async def test_what_cannot_be_given_is_refused_and_left_alone(node: Node, arrange: Any, message: str) -> None:
    arrange(node.kernel)
    before = node.kernel.snapshot()
    with pytest.raises(NodeError, match=message):
        await node.add(ifname="ens1f0v1")
    assert node.kernel.snapshot() == before
    assert node.on_record == []


async def test_a_vf_that_the_node_uses_in_a_bond_is_not_given_away(node: Node) -> None:
    node.kernel.spaces[""][10] = msgspec.structs.replace(node.kernel.spaces[""][10], master=2)
    with pytest.raises(NodeError, match="ens1f0v0 is part of ens1f0 on the host"):
        await node.add()


async def test_a_pf_is_no_vf(node: Node) -> None:
    with pytest.raises(NodeError, match=f"{PF} is no VF"):
        await node.add(deviceID=PF)


async def test_status_and_gc_ask_the_address_plugin_alone(node: Node) -> None:
    before = node.kernel.snapshot()
    for command in (Command.STATUS, Command.GC):
        assert await node.run(command) == b""
        assert await node.run(command, **IPAM) == b""
    assert node.ipam.commands == [Command.STATUS, Command.GC]
    assert node.kernel.snapshot() == before
    assert node.kernel.calls == []


@pytest.mark.parametrize(("code", "passes"), [(4, True), (50, False), (999, False)])
async def test_an_address_plugin_that_is_older_than_status(node: Node, code: int, passes: bool) -> None:
    async def fail(command: Command) -> None:
        raise CNIError(code, "unknown CNI_COMMAND: STATUS")

    node.ipam.hook = fail
    if passes:
        await node.run(Command.STATUS, **IPAM)
    else:
        with pytest.raises(CNIError):
            await node.run(Command.STATUS, **IPAM)


async def test_a_record_that_is_damaged_does_not_hold_a_vf_for_ever(node: Node) -> None:
    for data in (b"", b"{}", b"\xff", b'{"bdf":"\xff"}', json.dumps({"bdf": 3}).encode()):
        node.store.kept["sriov", vf_bdf(0)] = data
        await node.add()
        await node.delete()


async def test_a_store_that_fails_changes_nothing(node: Node) -> None:
    before = node.kernel.snapshot()

    async def full(key: str, kind: str, data: bytes) -> None:
        raise MultusError("the disk is full")

    node.store.save = full  # type: ignore[method-assign]
    with pytest.raises(MultusError, match="the disk is full"):
        await node.add(**EVERYTHING)
    assert node.kernel.calls == []
    assert node.kernel.snapshot() == before


async def test_a_driver_that_gives_the_mac_only_when_the_link_goes_down(node: Node) -> None:
    node.kernel.like_igb = True
    # It tells the VF's own MAC as if somebody had set it.
    node.kernel.vfs[0] = msgspec.structs.replace(node.kernel.vfs[0], mac="02:00:00:00:00:10")
    before = node.kernel.snapshot()
    result = await node.add(mac="02:aa:00:00:00:01")
    assert result.interfaces[0].mac == "02:aa:00:00:00:01"
    await node.delete()
    assert node.kernel.snapshot() == before
    assert node.kernel.pauses == 0


async def test_it_heads_a_chain(node: Node) -> None:
    given: list[dict[str, Any]] = []

    async def tuning(plugin: str, call: Call) -> bytes:
        given.append(json.loads(call.conf))
        return json.dumps(given[-1].get("prevResult", {})).encode()

    chain = Chain(tuning, in_process={"sriov": node.sriov}, bin_dirs=lambda: ("/opt/cni/bin",))
    plugins = [{"type": "sriov", "deviceID": vf_bdf(0), "capabilities": {"mac": True}}, {"type": "tuning"}]
    text = json.dumps({"cniVersion": "1.1.0", "name": "net", "plugins": plugins}).encode()
    conf = parse_conf(text, where="test")
    target = Target(container_id="c1", netns=POD, ifname="net1", runtime={"mac": "02:aa:00:00:00:07"})
    before = node.kernel.snapshot()
    result = await chain.add(conf, target)
    assert result.interfaces[0].mac == "02:aa:00:00:00:07"
    assert result.interfaces[0].pci_id == vf_bdf(0)
    assert given[0]["prevResult"]["interfaces"][0]["pciID"] == vf_bdf(0)
    await chain.check(conf, target, result)
    await chain.status(conf, ())
    await chain.gc(conf, (), ())
    await chain.delete(conf, target, result)
    assert node.kernel.snapshot() == before


async def test_a_version_that_nobody_knows_leaves_nothing(node: Node) -> None:
    before = node.kernel.snapshot()
    with pytest.raises(CNIError, match=r"9\.9\.9"):
        await node.add(**EVERYTHING, cniVersion="9.9.9")
    assert node.kernel.snapshot() == before
    assert node.on_record == []

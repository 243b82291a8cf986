"""CHECK of `sriov`: each thing that ADD made is said when it is different, alone, and no more once it is put back."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from devices.linux.netdevs import Netdev
from devices.linux.vfs import DOT1Q, VFState
from multus.cni.errors import CNIError
from multus.delegates.sriov import DriftError
from multus.delegates.sriov_conf import SriovConfError
from tests.fake_vf_kernel import FakeKernel, vf_bdf
from tests.sriov_node import POD, Node

pytestmark = pytest.mark.anyio

MAC = "02:aa:00:00:00:01"
EVERYTHING: dict[str, Any] = {
    "vlan": 1234,
    "vlanQoS": 3,
    "vlanProto": "802.1ad",
    "mac": MAC,
    "min_tx_rate": 10,
    "max_tx_rate": 100,
    "spoofchk": "off",
    "trust": "on",
    "link_state": "enable",
}
Change = Callable[[FakeKernel], None]


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path / "sriov")


def at_pf(**settings: Any) -> Change:
    """Somebody sets something of the VF through its PF."""

    def change(kernel: FakeKernel) -> None:
        kernel.vfs[0] = msgspec.structs.replace(kernel.vfs[0], **settings)

    return change


def in_pod(**settings: Any) -> Change:
    """Somebody changes the interface."""

    def change(kernel: FakeKernel) -> None:
        kernel.spaces[POD][10] = msgspec.structs.replace(kernel.spaces[POD][10], **settings)

    return change


def on_driver(name: str) -> Change:
    return lambda kernel: kernel.drivers.update({0: name})


def back_on_the_host(kernel: FakeKernel) -> None:
    kernel.spaces[""][10] = kernel.spaces[POD].pop(10)


def another_namespace(kernel: FakeKernel) -> None:
    kernel.identities[POD] = "4:999"


def pf_without_driver(kernel: FakeKernel) -> None:
    kernel.tells_of_vfs = False


def removed(kernel: FakeKernel) -> None:
    del kernel.vfs[0]


WIRE: list[tuple[str, Change, str]] = [
    ("vlan", at_pf(vlan=7), "it has vlan 7 qos 3 proto 802.1ad instead of vlan 1234 qos 3 proto 802.1ad"),
    ("no vlan", at_pf(vlan=0), "it has vlan 0 qos 3 proto 802.1ad instead of vlan 1234 qos 3 proto 802.1ad"),
    ("vlan qos", at_pf(qos=4), "it has vlan 1234 qos 4 proto 802.1ad instead of vlan 1234 qos 3 proto 802.1ad"),
    ("vlan proto", at_pf(proto=DOT1Q), "it has vlan 1234 qos 3 proto 802.1Q instead of vlan 1234 qos 3 proto 802.1ad"),
    ("admin mac", at_pf(mac="02:00:00:00:00:99"), f"it has mac 02:00:00:00:00:99 instead of mac {MAC}"),
    (
        "min rate",
        at_pf(min_tx=20),
        "it has min_tx_rate 20 max_tx_rate 100 instead of min_tx_rate 10 max_tx_rate 100",
    ),
    (
        "max rate",
        at_pf(max_tx=200),
        "it has min_tx_rate 10 max_tx_rate 200 instead of min_tx_rate 10 max_tx_rate 100",
    ),
    (
        "no rate",
        at_pf(min_tx=0, max_tx=0),
        "it has min_tx_rate 0 max_tx_rate 0 instead of min_tx_rate 10 max_tx_rate 100",
    ),
    ("spoofchk", at_pf(spoofchk=True), "it has spoofchk on instead of spoofchk off"),
    ("trust", at_pf(trust=False), "it has trust off instead of trust on"),
    ("link state", at_pf(link_state="auto"), "it has link_state auto instead of link_state enable"),
    ("silent pf", pf_without_driver, "its PF does not tell its settings any more"),
    ("namespace", another_namespace, f"{POD} is not the namespace that it was given to"),
    ("gone", removed, "the device is gone"),
]
INTERFACE: list[tuple[str, Change, str]] = [
    ("effective mac", in_pod(mac="02:00:00:00:00:99"), f"net1 has MAC 02:00:00:00:00:99 instead of {MAC}"),
    ("mtu", in_pod(mtu=1400), "net1 has MTU 1400 instead of 1500"),
    ("name", in_pod(name="eth7"), "its interface is called eth7 instead of net1"),
    ("down", in_pod(up=False), "net1 is down"),
    ("on the host", back_on_the_host, "its interface net1 is not in the pod"),
    ("other driver", on_driver("vfio-pci"), "its driver is vfio-pci instead of iavf"),
    ("no driver", on_driver(""), "its driver is none instead of iavf"),
]
PROGRAM: list[tuple[str, Change, str]] = [
    ("kernel driver", on_driver("iavf"), "its driver is iavf instead of vfio-pci"),
    ("other program's driver", on_driver("igb_uio"), "its driver is igb_uio instead of vfio-pci"),
]


async def _found_and_mended(node: Node, change: Change, sentence: str, **conf: Any) -> None:
    await node.check(**conf)
    kernel = node.kernel
    kept = dict(kernel.vfs), {key: dict(links) for key, links in kernel.spaces.items()}
    others = dict(kernel.identities), dict(kernel.drivers), kernel.tells_of_vfs
    change(kernel)
    with pytest.raises(DriftError) as caught:
        await node.check(**conf)
    assert caught.value.message == f"VF {vf_bdf(0)}: {sentence}"
    kernel.vfs, kernel.spaces = kept
    kernel.identities, kernel.drivers, kernel.tells_of_vfs = others
    await node.check(**conf)


@pytest.mark.parametrize(
    ("change", "sentence"), [row[1:] for row in WIRE + INTERFACE], ids=[r[0] for r in WIRE + INTERFACE]
)
async def test_each_difference_of_an_interface_alone(node: Node, change: Change, sentence: str) -> None:
    await node.add(**EVERYTHING)
    await _found_and_mended(node, change, sentence, **EVERYTHING)


@pytest.mark.parametrize(
    ("change", "sentence"), [row[1:] for row in WIRE + PROGRAM], ids=[r[0] for r in WIRE + PROGRAM]
)
async def test_each_difference_of_a_programs_vf_alone(node: Node, change: Change, sentence: str) -> None:
    node.kernel.userspace(0)
    await node.add(**EVERYTHING)
    await _found_and_mended(node, change, sentence, **EVERYTHING)


@pytest.mark.parametrize("name", [row[0] for row in WIRE if row[0] not in ("namespace", "gone")] + ["effective mac"])
async def test_what_was_not_asked_for_is_nobodys_to_check(node: Node, name: str) -> None:
    await node.add()
    next(change for each, change, _ in WIRE + INTERFACE if each == name)(node.kernel)
    await node.check()


async def test_what_the_vf_had_already_is_checked_too(node: Node) -> None:
    """ADD changed nothing of it, but promised it."""
    node.kernel.vfs[0] = msgspec.structs.replace(node.kernel.vfs[0], vlan=5, trust=True, max_tx=100)
    asked = {"vlan": 5, "trust": "on", "max_tx_rate": 100}
    await node.add(**asked)
    assert [call for call in node.kernel.calls if call[0] == "set_vf"] == []
    for settings in ({"vlan": 6}, {"trust": False}, {"max_tx": 99}):
        before = node.kernel.vfs[0]
        at_pf(**settings)(node.kernel)
        with pytest.raises(DriftError):
            await node.check(**asked)
        node.kernel.vfs[0] = before
    await node.check(**asked)


async def test_of_two_rates_the_one_that_is_not_given_stays_as_it_was(node: Node) -> None:
    """Also when what it is now would contradict the other."""
    node.kernel.vfs[0] = msgspec.structs.replace(node.kernel.vfs[0], min_tx=50)
    await node.add(max_tx_rate=100)
    await node.check(max_tx_rate=100)
    at_pf(min_tx=300, max_tx=400)(node.kernel)
    with pytest.raises(DriftError, match="min_tx_rate 300 max_tx_rate 400 instead of min_tx_rate 50 max_tx_rate 100"):
        await node.check(max_tx_rate=100)


async def test_a_rate_that_the_driver_rounds_is_no_difference_until_it_changes(node: Node) -> None:
    def rounding(vf: int, step: Any) -> None:
        at_pf(max_tx=step.max_tx // 50 * 50)(node.kernel)

    node.kernel._set = rounding  # type: ignore[method-assign]
    await node.add(max_tx_rate=120)
    node.sriov = node.made()  # what it became is not only in memory
    await node.check(max_tx_rate=120)
    at_pf(max_tx=120)(node.kernel)
    with pytest.raises(DriftError, match="max_tx_rate 120 instead of min_tx_rate 0 max_tx_rate 100"):
        await node.check(max_tx_rate=120)


async def test_an_attachment_is_written_once_unless_the_driver_rounds(node: Node) -> None:
    await node.add(**EVERYTHING)
    assert [call for call in node.kernel.calls if call[0] == "save"] == [("save", vf_bdf(0))]


async def test_what_a_driver_does_not_tell_is_not_missed(node: Node) -> None:
    node.kernel.vfs[0] = VFState(mac="00:00:00:00:00:00", vlan=0, qos=0, proto=DOT1Q)
    await node.add(vlan=5, trust="on", spoofchk="off", max_tx_rate=10)
    node.kernel.vfs[0] = VFState(mac="00:00:00:00:00:00", vlan=5, qos=0, proto=DOT1Q)
    await node.check(vlan=5, trust="on", spoofchk="off", max_tx_rate=10)


def result(**interface: Any) -> dict[str, Any]:
    """The network's result, as the core gives it to CHECK."""
    return {"prevResult": {"cniVersion": "1.1.0", "interfaces": [{"name": "net1", "sandbox": POD, **interface}]}}


async def test_a_plugin_that_follows_may_have_changed_mac_and_mtu(node: Node) -> None:
    await node.add(mac=MAC)
    in_pod(mac="02:bb:00:00:00:02", mtu=1400)(node.kernel)
    with pytest.raises(DriftError, match=f"MAC 02:bb:00:00:00:02 instead of {MAC}; net1 has MTU 1400 instead of 1500"):
        await node.check(mac=MAC, **result(mac=MAC))
    await node.check(mac=MAC, **result(mac="02:BB:00:00:00:02", mtu=1400))
    in_pod(mtu=1500)(node.kernel)
    with pytest.raises(DriftError, match="MTU 1500 instead of 1400"):
        await node.check(mac=MAC, **result(mac="02:BB:00:00:00:02", mtu=1400))


async def test_tuning_after_it_gives_another_mtu_and_does_not_say_so(node: Node) -> None:
    await node.add(mac=MAC)
    in_pod(mtu=1400)(node.kernel)
    await node.check(mac=MAC, followed_by=("tuning",), **result(mac=MAC))
    with pytest.raises(DriftError, match="MTU 1400 instead of 1500"):
        await node.check(mac=MAC, followed_by=("sbr",), **result(mac=MAC))
    in_pod(mac="02:bb:00:00:00:02")(node.kernel)
    with pytest.raises(DriftError, match="MAC 02:bb:00:00:00:02"):
        await node.check(mac=MAC, followed_by=("tuning",), **result(mac=MAC))


async def test_a_bond_in_the_pod_says_what_its_members_have(node: Node) -> None:
    await node.add(mac=MAC)
    node.kernel.spaces[POD][5] = Netdev(index=5, name="bond0", up=True)
    in_pod(mac="02:bb:00:00:00:02", mtu=1400, master=5)(node.kernel)
    await node.check(mac=MAC)
    in_pod(up=False)(node.kernel)
    with pytest.raises(DriftError, match=r": net1 is down$"):
        await node.check(mac=MAC)


async def test_a_result_that_cannot_be_read_is_an_error_and_no_difference(node: Node) -> None:
    await node.add()
    for rubbish, error in ((3, CNIError), ({"interfaces": 3}, CNIError)):
        with pytest.raises(error):
            await node.check(prevResult=rubbish)
    assert not issubclass(SriovConfError, DriftError)
    await node.check(prevResult=None)

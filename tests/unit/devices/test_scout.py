"""What is seen event by event is what one look at everything shows, and an event reads what it is about."""

import random
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import pytest

from devices import guard
from devices.errors import KernelError
from devices.inventory import PF, VF, Inventory
from devices.linux.sysfs import PciRecord, Sysfs
from devices.linux.uevents import NODE, RESCAN, Change
from devices.scout import Scout
from tests.fake_sysfs import FakeSysfs

pytestmark = pytest.mark.anyio

FIRST, SECOND, NIC = "0000:03:00.0", "0000:83:00.0", "0000:01:00.0"


class Node:
    """Two PFs with four VFs each, a NIC without, and a scout that has seen them."""

    def __init__(self, root: Path) -> None:
        self.fake = FakeSysfs(root)
        self.fake.pf(FIRST, netdev="ens1", total=8, num=4)
        self.fake.pf(SECOND, netdev="ens2", total=8, num=4)
        self.fake.pf(NIC, netdev="eno1", driver="igb")
        self.read: list[str] = []
        self.sysfs = Counted(self.fake.sys, self.fake.dev, self.read)
        self.reasons: Mapping[str, str] = {"eno1": "the node's address"}
        self.asked = 0
        self.scout = Scout(self.sysfs, self.read_reasons)
        self.known = Inventory()

    def read_reasons(self) -> Mapping[str, str]:
        self.asked += 1
        return dict(self.reasons)

    async def look(self, *changes: Change) -> None:
        self.read.clear()
        self.known = await self.scout.look(self.known, changes)

    async def tell(self, *addresses: str, subsystem: str = "pci") -> None:
        await self.look(*(Change(subsystem=subsystem, bdf=bdf) for bdf in addresses))

    async def afresh(self) -> Inventory:
        """What somebody sees who looks for the first time."""
        return await Scout(self.sysfs, self.read_reasons).look(Inventory(), [RESCAN])

    def vf(self, index: int, pf: str = FIRST) -> str:
        return self.fake.vf_bdf(pf, index)


class Counted(Sysfs):
    """Notes which devices are read in full."""

    def __init__(self, root: Path, dev: Path, read: list[str]) -> None:
        super().__init__(root, dev)
        self._noted = read

    def read_one(self, bdf: str) -> PciRecord | None:
        self._noted.append(bdf)
        return super().read_one(bdf)


@pytest.fixture
async def node(tmp_path: Path) -> Node:
    made = Node(tmp_path)
    await made.look(RESCAN)
    return made


def _change(*, driver: str | None = None, count: int | None = None) -> Callable[[Node], None]:
    """Remove or bind VF 1, and have its PF say how many VFs it has."""

    def change(node: Node) -> None:
        if driver is not None:
            node.fake.bind(node.vf(1), driver)
        else:
            node.fake.remove(node.vf(1))
        if count is not None:
            node.fake.set(FIRST, "sriov_numvfs", str(count))

    return change


@pytest.mark.parametrize(
    ("change", "pfs"),
    [
        (_change(driver="vfio-pci"), []),
        (lambda node: node.fake.carrier("ens1v1", False), []),
        (lambda node: node.fake.remove_netdev("ens1v1"), []),
        (_change(), []),  # its PF's list is looked at where the VF was
        (_change(count=3), []),
        (_change(driver="", count=3), [FIRST]),  # others are about to go
        (_change(count=2), [FIRST]),
    ],
)
async def test_what_an_event_of_a_vf_reads(node: Node, change: Callable[[Node], object], pfs: list[str]) -> None:
    vf = node.vf(1)
    change(node)
    await node.tell(vf)
    assert node.read == [vf, *pfs]
    assert node.known == await node.afresh()


async def test_a_vf_that_comes_is_on_its_pf_s_list(node: Node) -> None:
    vf = node.fake.vf(FIRST, 4, netdev="ens1v4")
    await node.tell(vf)
    assert node.read == [vf]
    assert node.known == await node.afresh()
    pf = node.known.by_bdf[FIRST]
    assert isinstance(pf, PF)
    assert (pf.num_vfs, pf.vfs[-1].bdf) == (5, vf)
    assert node.known.records[FIRST].virtfns[-1] == (4, vf)


async def test_a_vf_whose_links_come_later(node: Node) -> None:
    vf = node.fake.vf(FIRST, 4, netdev="ens1v4", linked=False)
    await node.tell(vf)
    assert isinstance(node.known.by_bdf[vf], VF)
    node.fake.link_vf(FIRST, 4)
    await node.tell(vf)
    assert node.known == await node.afresh()


async def test_many_vfs_at_once(node: Node) -> None:
    for pf in (FIRST, SECOND):
        node.fake.grow(pf, 0)
    await node.tell(*(node.vf(index, pf) for pf in (FIRST, SECOND) for index in range(4)))
    assert node.known == await node.afresh()
    assert node.known.vfs == ()


@pytest.mark.parametrize("seed", range(6))
async def test_any_events_show_what_one_look_shows(node: Node, seed: int) -> None:
    """A PF is never told of, unless it is what changed."""
    dice = random.Random(seed)
    for _ in range(40):
        pf = dice.choice((FIRST, SECOND))
        index = dice.randrange(8)
        vf, netdev = node.vf(index, pf), f"{'ens1' if pf == FIRST else 'ens2'}v{index}"
        there = node.fake.path(vf).exists()
        what = dice.choice(("driver", "presence", "link", "pf", "node", "grow"))
        subsystem, told = "pci", [vf]
        if what == "driver" and there:
            node.fake.bind(vf, dice.choice(("iavf", "vfio-pci", "")))
        elif what == "presence" and there:
            node.fake.remove(vf)
        elif what == "presence":
            node.fake.vf(pf, index, netdev=netdev)
        elif what == "link" and (node.fake.sys / "class/net" / netdev).exists():
            node.fake.carrier(netdev, dice.random() < 0.5)
            subsystem = "net"
        elif what == "pf":
            node.fake.carrier("ens1" if pf == FIRST else "ens2", dice.random() < 0.5)
            subsystem, told = "net", [pf]
        elif what == "grow":
            node.fake.grow(pf, dice.randrange(9))
            told = [node.vf(each, pf) for each in range(8)]
        elif what == "node":
            some = dice.sample(("eno1", "ens1", "ens2", "ens1v0", "ens2v1"), dice.randrange(3))
            node.reasons = dict.fromkeys(some, "the node's address")
            await node.look(NODE)
            told = []
        await node.tell(*told, subsystem=subsystem)
        assert node.known == await node.afresh(), what


# what the node needs


@pytest.mark.parametrize(
    ("reasons", "guarded"),
    [
        ({"eno1": "x"}, {NIC}),
        ({"ens1v0": "x"}, {FIRST, "vf"}),
        ({"ens1": "x", "ens1v0": "y"}, {FIRST, "vf"}),
        ({"br0": "x"}, set()),
    ],
)
async def test_reasons_that_change(node: Node, reasons: Mapping[str, str], guarded: Collection[str]) -> None:
    node.reasons = reasons
    await node.look(NODE)
    assert node.known.guarded.keys() == {node.vf(0) if each == "vf" else each for each in guarded}
    assert node.known.guarded == guard.devices(node.known.records.values(), reasons)
    assert node.known == await node.afresh()


def _rename(node: Node, was: str, name: str, bdf: str) -> None:
    node.fake.remove_netdev(was)
    node.fake.netdev(bdf, name)


@pytest.mark.parametrize(
    ("change", "told", "asks"),
    [
        (lambda node: node.fake.carrier("ens1v0", False), "ens1v0", False),
        (lambda node: node.fake.carrier("ens1", None), "ens1", False),
        (lambda node: node.fake.remove_netdev("ens1v0"), "ens1v0", False),  # into a pod
        (lambda node: _rename(node, "ens1v0", "new0", node.vf(0)), "ens1v0", True),
        (lambda node: (node.fake.sys / "class/net/ens1v0/upper_br0").mkdir(), "ens1v0", True),
        (lambda node: node.fake.carrier("eno1", False), "eno1", True),  # its routes may go with that
        (lambda node: node.fake.remove_netdev("eno1"), "eno1", True),
    ],
)
async def test_what_the_node_needs_is_asked_when_it_may_be_something_else(
    node: Node, change: Callable[[Node], object], told: str, asks: bool
) -> None:
    bdf = {"ens1": FIRST, "eno1": NIC, "ens1v0": node.vf(0)}[told]
    before = node.asked
    change(node)
    await node.tell(bdf, subsystem="net")
    assert (node.asked > before) is asks
    assert node.known == await node.afresh()


async def test_what_stands_on_an_interface_is_asked_for_once_and_when_it_goes(node: Node) -> None:
    bridge = node.fake.sys / "class/net/ens2v1/upper_br0"
    bridge.mkdir()
    node.reasons = {"br0": "x", "ens2v1": "x"}
    counts = []
    for present in (True, True, False, False):
        if not present and bridge.exists():
            bridge.rmdir()
            node.reasons = {"eno1": "x"}
        before = node.asked
        await node.tell(node.vf(1, SECOND), subsystem="net")
        counts.append(node.asked - before)
        assert (node.vf(1, SECOND) in node.known.guarded) is present
    assert counts == [1, 1, 1, 0]  # the second time as the node needs it


async def test_the_only_nic_with_a_link_is_the_way_out(node: Node) -> None:
    node.reasons = {}
    for name in ("ens1", "eno1"):
        node.fake.carrier(name, False)
    await node.look(NODE, *(Change(subsystem="net", bdf=bdf) for bdf in (FIRST, NIC)))
    assert node.known.guarded == {SECOND: "it is the only NIC with a link"}
    node.fake.carrier("ens1", True)
    await node.tell(FIRST, subsystem="net")
    assert node.known.guarded == {}


async def test_an_interface_that_takes_the_name(node: Node) -> None:
    node.fake.remove_netdev("eno1")
    node.fake.remove_netdev("ens1v2")
    node.fake.netdev(node.vf(2), "eno1")
    await node.tell(node.vf(2), NIC, subsystem="net")
    assert node.known.guarded.keys() == {node.vf(2), FIRST}
    assert node.known == await node.afresh()


async def test_nothing_is_guarded_anew_when_the_reasons_cannot_be_told(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> Mapping[str, str]:
        raise KernelError("listing routes", 1, "not permitted")

    monkeypatch.setattr(node.scout, "_read_reasons", fail)
    before = node.known
    await node.look(NODE)
    assert node.known is before
    blind = Scout(node.sysfs, fail)
    found = await blind.look(Inventory(), [RESCAN])
    assert found.guarded.keys() == found.records.keys()

"""The inventory of records, and that what events make of it step by step is what one look would."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices import inventory
from devices.inventory import PF, VF, Inventory
from devices.linux.sysfs import NetRecord, PciRecord, Sysfs, vf_address
from tests.fake_sysfs import FakeSysfs

FIRST, SECOND = "0000:03:00.0", "0000:03:00.1"


def _fake(root: Path) -> tuple[FakeSysfs, Sysfs]:
    fake = FakeSysfs(root)
    return fake, Sysfs(fake.sys, fake.dev)


def _pf(found: Inventory, bdf: str = FIRST) -> PF:
    pf = found.by_bdf[bdf]
    assert isinstance(pf, PF)
    return pf


def _vf(found: Inventory, bdf: str) -> VF:
    vf = found.by_bdf[bdf]
    assert isinstance(vf, VF)
    return vf


def test_pfs_with_their_vfs(tmp_path: Path) -> None:
    fake, sysfs = _fake(tmp_path)
    fake.pf(SECOND, netdev="ens1f1", total=4, num=1)
    fake.pf(FIRST, netdev="ens1f0", total=4, num=2, group=7, carrier=False)
    fake.pf("0000:00:04.0", netdev="eth0", driver="e1000")
    found = inventory.build(sysfs.read(), guarded={"0000:00:04.0": "it is needed"})
    assert [pf.bdf for pf in found.pfs] == ["0000:00:04.0", FIRST, SECOND]
    assert [len(pf.vfs) for pf in found.pfs] == [0, 2, 1]
    assert [pf.guarded for pf in found.pfs] == ["it is needed", "", ""]
    pf, vf = _pf(found), found.vfs[1]
    assert (pf.netdev, pf.link, pf.link_type, pf.total_vfs, pf.num_vfs) == ("ens1f0", "down", "ether", 4, 2)
    assert (vf.pf, vf.pf_netdev, vf.index, vf.netdev, vf.iommu_group) == (FIRST, "ens1f0", 1, "ens1f0v1", "9")
    assert found.pf_of(vf) is pf
    assert found.by_netdev("ens1f0v1") is vf
    assert found.by_netdev("") is None


def test_vfs_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    fake, sysfs = _fake(tmp_path)
    fake.pf("0000:03:1f.0", netdev="e", total=64, num=20, offset=4)
    assert [vf.index for vf in inventory.build(sysfs.read(), guarded={}).vfs] == list(range(20))


def test_a_vf_without_an_interface_has_its_pf_s_kind_of_link(tmp_path: Path) -> None:
    fake, sysfs = _fake(tmp_path)
    fake.pf(FIRST, netdev="ib0", total=4, num=1, arp_type=32, vf_driver="vfio-pci", vf_netdevs=False)
    (vf,) = inventory.build(sysfs.read(), guarded={}).vfs
    assert (vf.link_type, vf.link, vf.netdev, vf.driver) == ("infiniband", "", "", "vfio-pci")


# 42
@pytest.mark.parametrize("count", [0, 32])
def test_a_pf_tells_how_many_vfs_it_has_made(tmp_path: Path, count: int) -> None:
    fake, sysfs = _fake(tmp_path)
    fake.pf(FIRST, netdev="e", total=63, num=count)
    pf = _pf(inventory.build(sysfs.read(), guarded={}))
    assert (pf.num_vfs, len(pf.vfs)) == (count, count)


@pytest.mark.parametrize("foretold", [True, False])
def test_a_vf_whose_links_are_not_there_yet_is_no_nic(tmp_path: Path, foretold: bool) -> None:
    fake, sysfs = _fake(tmp_path)
    fake.pf(FIRST, netdev="e", total=4)
    found = inventory.build(sysfs.read(), guarded={})
    bdf = fake.vf(FIRST, 2, netdev="ev2", linked=False)
    if not foretold:  # an older kernel: the PF's list is the first to tell
        for file in ("sriov_offset", "sriov_stride"):
            fake.set(FIRST, file, "0")
        (fake.path(FIRST) / "virtfn2").symlink_to(f"../{bdf}")
        found = inventory.update(found, FIRST, sysfs.read_one(FIRST))
    early = inventory.update(found, bdf, sysfs.read_one(bdf))
    assert [pf.bdf for pf in early.pfs] == [FIRST]
    assert (_vf(early, bdf).pf, _vf(early, bdf).index) == (FIRST, 2)
    assert early == inventory.build(sysfs.read(), guarded={})


def test_a_nic_beside_a_pf_is_not_taken_for_its_vf(tmp_path: Path) -> None:
    fake, sysfs = _fake(tmp_path)
    fake.pf(FIRST, netdev="a", total=4, offset=1)
    fake.pf("0000:03:00.6", netdev="b")  # past the last that the first could have
    fake.pf("0000:03:00.2", netdev="c", total=4)  # where a VF could be, but with VFs of its own
    assert [pf.bdf for pf in inventory.build(sysfs.read(), guarded={}).pfs] == [FIRST, "0000:03:00.2", "0000:03:00.6"]


def test_a_nic_that_turns_out_to_have_vfs(tmp_path: Path) -> None:
    """Its driver may say so late; what was taken for NICs beside it are its VFs then."""
    fake, sysfs = _fake(tmp_path)
    fake.pf(FIRST, netdev="e", total=4, num=2)
    for index in range(2):
        (fake.path(fake.vf_bdf(FIRST, index)) / "physfn").unlink()
        (fake.path(FIRST) / f"virtfn{index}").unlink()
    fake.set(FIRST, "sriov_totalvfs", "0")
    found = inventory.build(sysfs.read(), guarded={})
    assert len(found.pfs) == 3
    fake.set(FIRST, "sriov_totalvfs", "4")
    found = inventory.update(found, FIRST, sysfs.read_one(FIRST))
    assert found == inventory.build(sysfs.read(), guarded={})
    assert [vf.index for vf in _pf(found).vfs] == [0, 1]


def test_a_vf_that_was_passed_in_without_its_pf_is_nobody_s(tmp_path: Path) -> None:
    fake, sysfs = _fake(tmp_path)
    fake.pf(FIRST, netdev="e", total=4, num=1)
    records = [record for record in sysfs.read() if record.bdf != FIRST]
    found = inventory.build(records, guarded={})
    assert (found.pfs, found.by_bdf, len(found.records)) == ((), {}, 1)


def test_vfs_come_change_and_go(tmp_path: Path) -> None:
    fake, sysfs = _fake(tmp_path)
    fake.pf(FIRST, netdev="ens1f0", total=4)
    fake.pf(SECOND, netdev="ens1f1", total=4, num=2)
    found = inventory.build(sysfs.read(), guarded={})

    def look(*addresses: str) -> None:
        nonlocal found
        for bdf in addresses:
            found = inventory.update(found, bdf, sysfs.read_one(bdf))
        assert found == inventory.build(sysfs.read(), guarded={})

    fake.grow(FIRST, 3)
    vfs = [fake.vf_bdf(FIRST, index) for index in range(3)]
    look(*vfs, FIRST)
    fake.bind(vfs[1], "vfio-pci")
    fake.remove_netdev("ens1f0v1")
    look(vfs[1])
    assert (_vf(found, vfs[1]).driver, _vf(found, vfs[1]).netdev) == ("vfio-pci", "")
    untouched = _pf(found, SECOND)
    fake.carrier("ens1f0", False)
    look(FIRST)
    assert _pf(found).link == "down"
    assert _pf(found, SECOND) is untouched
    fake.grow(FIRST, 0)
    look(*vfs, FIRST)
    assert _pf(found).vfs == ()
    for index in (1, 0):
        fake.remove(fake.vf_bdf(SECOND, index))
    fake.remove(SECOND)
    look(SECOND, fake.vf_bdf(FIRST, 0), *(record for record in list(found.records) if record != FIRST))
    assert [pf.bdf for pf in found.pfs] == [FIRST]


def test_a_renamed_pf_renames_it_in_its_vfs(tmp_path: Path) -> None:
    fake, sysfs = _fake(tmp_path)
    fake.pf(FIRST, netdev="eth5", total=4, num=2)
    found = inventory.build(sysfs.read(), guarded={})
    fake.remove_netdev("eth5")
    fake.netdev(FIRST, "ens1f0")
    found = inventory.update(found, FIRST, sysfs.read_one(FIRST))
    assert {vf.pf_netdev for vf in found.vfs} == {"ens1f0"}
    assert all(_vf(found, vf.bdf) is vf for vf in found.vfs)


def test_what_did_not_change_is_the_same_object(tmp_path: Path) -> None:
    fake, sysfs = _fake(tmp_path)
    fake.pf(FIRST, netdev="e", total=4, num=2)
    found = inventory.build(sysfs.read(), guarded={})
    assert inventory.update(found, FIRST, sysfs.read_one(FIRST)) is found
    assert inventory.update(found, "0000:09:00.0", None) is found
    assert inventory.guard(found, {}) is found


def test_other_guarded_devices(tmp_path: Path) -> None:
    fake, sysfs = _fake(tmp_path)
    fake.pf(FIRST, netdev="e", total=4, num=2)
    found = inventory.guard(inventory.build(sysfs.read(), guarded={}), {FIRST: "a", fake.vf_bdf(FIRST, 1): "b"})
    assert [_pf(found).guarded, *(vf.guarded for vf in found.vfs)] == ["a", "", "b"]


def test_what_changed_between_two(tmp_path: Path) -> None:
    fake, sysfs = _fake(tmp_path)
    fake.pf(FIRST, netdev="e", total=4, num=3)
    fake.pf(SECOND, netdev="f", total=4, num=1)
    before = inventory.build(sysfs.read(), guarded={})
    vfs = [fake.vf_bdf(FIRST, index) for index in range(4)]
    assert inventory.changed(before, before) == set()
    assert inventory.changed(Inventory(), before) == before.by_bdf.keys() == inventory.changed(before, Inventory())
    assert inventory.changed(before, inventory.update(before, vfs[1], None)) == {FIRST, vfs[1]}
    fake.bind(vfs[2], "vfio-pci")
    assert inventory.changed(before, inventory.update(before, vfs[2], sysfs.read_one(vfs[2]))) == {FIRST, vfs[2]}
    fake.vf(FIRST, 3)
    assert inventory.changed(before, inventory.update(before, vfs[3], sysfs.read_one(vfs[3]))) == {FIRST, vfs[3]}
    assert inventory.changed(before, inventory.guard(before, {SECOND: "x"})) == {SECOND}
    assert inventory.changed(before, inventory.guard(before, {vfs[0]: "x", "0000:09:00.0": "y"})) == {FIRST, vfs[0]}


def _record(pf: int, index: int | None, *, linked: bool, driver: str, listed: tuple[int, ...]) -> PciRecord:
    parent = f"0000:0{pf + 1}:00.0"
    if index is None:
        return PciRecord(
            bdf=parent,
            class_=0x020000,
            driver=driver,
            total_vfs=4,
            num_vfs=len(listed),
            vf_offset=8,
            vf_stride=1,
            virtfns=tuple((each, vf_address(parent, each, 8, 1)) for each in listed),
            netdevs=(NetRecord(name=f"{driver}{pf}", ifindex=pf + 1),),
        )
    return PciRecord(
        bdf=vf_address(parent, index, 8, 1),
        class_=0x020000,
        driver=driver,
        physfn=parent if linked else None,
        vf_index=index if linked else -1,
    )


_EVENTS = st.lists(
    st.tuples(
        st.integers(0, 1),
        st.none() | st.integers(0, 3),
        st.booleans(),
        st.sampled_from(["ice", "vfio-pci", ""]),
        st.lists(st.integers(0, 3), unique=True, max_size=4).map(lambda found: tuple(sorted(found))),
        st.integers(0, 3).map(lambda number: number == 0),
    ),
    max_size=30,
)


@settings(deadline=None)
@given(_EVENTS)
def test_events_in_any_order_give_what_one_look_gives(
    events: list[tuple[int, int | None, bool, str, tuple[int, ...], bool]],
) -> None:
    found = inventory.build((), guarded={})
    known: dict[str, PciRecord] = {}
    for pf, index, linked, driver, listed, gone in events:
        record = _record(pf, index, linked=linked, driver=driver, listed=listed)
        found = inventory.update(found, record.bdf, None if gone else record)
        if gone:
            known.pop(record.bdf, None)
        else:
            known[record.bdf] = record
        assert found == inventory.build(known.values(), guarded={})
        assert set(found.by_bdf.values()) == {*found.pfs, *found.vfs}

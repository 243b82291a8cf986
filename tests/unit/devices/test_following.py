"""Pools that follow event by event are what one look at everything makes, and an event costs what it touches."""

import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices import inventory, pools
from devices.inventory import Device, Inventory
from devices.linux.sysfs import NetRecord, PciRecord, vf_address
from devices.pool_config import PoolConfig, parse_config
from devices.pools import Pools, assign, reassign
from devices.selectors import Candidate

PFS = ("0000:01:00.0", "0000:02:00.0")
VFS = {pf: tuple(vf_address(pf, index, 8, 1) for index in range(4)) for pf in PFS}
EVERY = (*PFS, *(vf for pf in PFS for vf in VFS[pf]))


def config(*resources: dict[str, Any]) -> PoolConfig:
    data = [{"resourceName": f"r{number}", **each} for number, each in enumerate(resources)]
    return parse_config(json.dumps({"resourceList": data}).encode())


def pf_record(pf: int, **values: Any) -> PciRecord:
    net: dict[str, Any] = {"name": f"p{pf}", "carrier": True} | {
        key: values.pop(key) for key in ("name", "carrier") if key in values
    }
    listed = tuple(enumerate(VFS[PFS[pf]]))[: values.pop("listed", 4)]
    known: dict[str, Any] = {
        "driver": "ice",
        "total_vfs": 4,
        "num_vfs": len(listed),
        "vf_offset": 8,
        "vf_stride": 1,
    } | values
    nets = (NetRecord(ifindex=pf + 1, **net),)
    return PciRecord(bdf=PFS[pf], class_=0x020000, vendor="8086", virtfns=listed, netdevs=nets, **known)


def vf_record(pf: int, index: int, *, linked: bool = True, **values: Any) -> PciRecord:
    known: dict[str, Any] = {"class_": 0x020000, "driver": "iavf"} | values
    linkage: dict[str, Any] = {"physfn": PFS[pf], "vf_index": index} if linked else {}
    return PciRecord(bdf=VFS[PFS[pf]][index], vendor="8086", **known, **linkage)


def node() -> Inventory:
    """Two PFs with four VFs each."""
    return inventory.build(
        [*map(pf_record, range(2)), *(vf_record(pf, index) for pf in range(2) for index in range(4))], guarded={}
    )


# what is touched

KERNEL, DPDK = {"selectors": {"drivers": ["iavf"]}}, {"selectors": {"drivers": ["vfio-pci"]}}
FIRST, SECOND = VFS[PFS[0]], VFS[PFS[1]]


@pytest.mark.parametrize(
    ("record", "moved"),
    [
        (vf_record(0, 1, driver="vfio-pci"), {FIRST[1]}),
        (vf_record(0, 1, driver=""), {FIRST[1]}),
        (pf_record(0, carrier=False), set(FIRST)),
        (pf_record(0, carrier=False, listed=2), set(FIRST)),
        (pf_record(0, name="q0"), set(FIRST)),
        (pf_record(0, driver="other"), set()),
        (pf_record(0), set()),
    ],
)
def test_who_is_moved_by_a_change_of_hardware(record: PciRecord, moved: set[str]) -> None:
    found, wanted = node(), config(DPDK, KERNEL)
    before = assign(found, wanted)
    after, told = reassign(before, inventory.update(found, record.bdf, record), wanted)
    assert told == moved
    assert all(after.by_bdf[bdf] is before.by_bdf[bdf] for bdf in EVERY if bdf not in moved and bdf in before.by_bdf)
    if not moved:
        assert after.members == before.members
        assert all(after.members[name] is before.members[name] for name in before.members)


def test_a_vf_that_goes_and_comes_moves_no_other() -> None:
    found, wanted = node(), config(KERNEL)
    before = assign(found, wanted)
    gone, told = reassign(before, inventory.update(found, FIRST[2], None), wanted)
    assert told == {FIRST[2]}
    assert gone.by_bdf[FIRST[2]].reason == "it is not there"
    back, told = reassign(gone, inventory.update(gone.inventory, FIRST[2], found.records[FIRST[2]]), wanted)
    assert (set(told), back.by_bdf[FIRST[2]].reason) == ({FIRST[2]}, "")


@pytest.mark.parametrize(("count", "stays"), [(4, {FIRST[3]}), (3, set())])
def test_a_pf_s_number_of_vfs_decides_on_those_that_went(count: int, stays: set[str]) -> None:
    """Told of after the VF: it is missed until its PF says that it has fewer."""
    found, wanted = node(), config(KERNEL)
    missed = assign(inventory.update(found, FIRST[3], None), wanted, before=assign(found, wanted))
    assert FIRST[3] in missed.by_bdf
    fewer = inventory.update(missed.inventory, PFS[0], pf_record(0, listed=3, num_vfs=count))
    after, told = reassign(missed, fewer, wanted)
    assert after.by_bdf.keys() & {FIRST[3]} == stays
    assert told == {FIRST[3]} - stays


@pytest.mark.parametrize(
    ("held", "driver", "moved", "place"),
    [
        ({}, "vfio-pci", {FIRST[0]}, "intel.com/r0"),
        ({FIRST[0]: "intel.com/r1"}, "vfio-pci", set(), "intel.com/r1"),
        ({FIRST[0]: ""}, "", {FIRST[0]}, "intel.com/r1"),
    ],
)
def test_a_holder_keeps_a_device_where_it_is_for_as_long_as_he_has_it(
    held: Mapping[str, str], driver: str, moved: set[str], place: str
) -> None:
    found, wanted = node(), config(DPDK, KERNEL)
    taken = assign(found, wanted, before=assign(found, wanted), held=held)
    bound = inventory.update(found, FIRST[0], vf_record(0, 0, driver=driver))
    during, told = reassign(taken, bound, wanted, held=held)
    assert (set(told), during.by_bdf[FIRST[0]].resource) == (moved, place)
    after, told = reassign(during, bound, wanted)  # given back: nothing of the hardware is new
    assert told == ({FIRST[0]} if held and driver else set())
    assert after.by_bdf == assign(bound, wanted, before=Pools(by_bdf=during.by_bdf)).by_bdf


def test_a_device_in_use_that_waits_for_its_pf_is_well_with_it() -> None:
    """It is in the inventory with another driver than in its pool, so its PF's list does not lead to the member."""
    wanted, held = config(DPDK, KERNEL), {FIRST[0]: "intel.com/r1"}
    bound = inventory.update(node(), FIRST[0], vf_record(0, 0, driver="vfio-pci"))
    during = assign(bound, wanted, before=assign(node(), wanted), held=held)
    down, told = reassign(during, inventory.update(bound, PFS[0], pf_record(0, carrier=False)), wanted, held=held)
    assert told == set(FIRST)
    assert down.by_bdf[FIRST[0]].reason == "the link of its PF p0 is down"


def test_a_pf_that_goes_takes_those_along_that_are_missed() -> None:
    wanted = config(KERNEL)
    missed = assign(inventory.update(node(), FIRST[0], None), wanted, before=assign(node(), wanted))
    assert missed.by_bdf[FIRST[0]].reason == "it is not there"
    left = inventory.build([vf_record(1, 0), pf_record(1)], guarded={})
    after, told = reassign(missed, left, wanted)
    assert {FIRST[0], *FIRST} <= told
    assert {after.by_bdf[vf].reason for vf in FIRST} == {"it and its PF are not there"}


@pytest.mark.parametrize(
    ("guarded", "moved"), [({FIRST[1]: "x"}, {FIRST[1]}), ({PFS[0]: "x"}, set()), ({"0000:09:00.0": "x"}, set())]
)
def test_what_the_node_needs_goes_out_and_comes_back(guarded: Mapping[str, str], moved: set[str]) -> None:
    found, wanted = node(), config(KERNEL)
    before = assign(found, wanted)
    after, told = reassign(before, inventory.guard(found, guarded), wanted)
    assert (set(told), before.by_bdf.keys() - after.by_bdf.keys()) == (moved, moved)
    back, told = reassign(after, inventory.guard(after.inventory, {}), wanted)
    assert (set(told), back.by_bdf) == (moved, before.by_bdf)


def test_another_configuration_asks_for_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    plain = pools.candidate

    def counted(device: Device) -> Candidate:
        asked.append(device.bdf)
        return plain(device)

    monkeypatch.setattr(pools, "candidate", counted)
    found, wanted = node(), config(KERNEL)
    before = assign(found, wanted)
    assert sorted(asked) == sorted((*FIRST, *SECOND))
    asked.clear()
    changed = inventory.update(found, FIRST[0], vf_record(0, 0, driver="vfio-pci"))
    after, _ = reassign(before, changed, wanted)
    assert asked == [FIRST[0]]
    asked.clear()
    other = config(DPDK, KERNEL)
    moved = reassign(after, changed, other)[1]
    assert sorted(asked) == sorted((*FIRST, *SECOND))
    assert moved == {*FIRST, *SECOND}  # other names: r0 is r1 now


def test_what_two_pools_want_is_counted_as_it_comes_and_goes() -> None:
    found, wanted = node(), config(KERNEL, {"selectors": {"vendors": ["8086"]}})
    before = assign(found, wanted)
    assert before.overlaps[0].startswith("intel.com/r1 does not get 8 devices that it selects")
    less, _ = reassign(before, inventory.update(found, FIRST[0], vf_record(0, 0, driver="vfio-pci")), wanted)
    assert less.overlaps[0].startswith("intel.com/r1 does not get 7 devices")
    held, _ = reassign(less, less.inventory, wanted, held={SECOND[0]: ""})
    assert held.overlaps[0].startswith("intel.com/r1 does not get 6 devices")
    assert reassign(held, less.inventory, wanted)[0].overlaps == less.overlaps


def test_what_is_in_use_is_contested_by_nobody() -> None:
    """Also when it was in no pool before: then, too, it is where it is, however many want it."""
    wanted, held = config(KERNEL, {"selectors": {"vendors": ["8086"]}}), dict.fromkeys(FIRST, "")
    begun = assign(node(), wanted, held=held)
    assert begun.by_bdf[FIRST[0]].resource == "intel.com/r0"
    assert [pair for pair in begun.contested.items() if set(pair[1]) & set(FIRST)] == []
    assert assign(node(), wanted, before=begun, held=held).overlaps == begun.overlaps


# the same as one look

CONFIGS = [
    config(DPDK, KERNEL),
    config({"selectors": {"pfNames": ["p0#0-1", "q1"]}}, {"selectors": {"vendors": ["8086"]}}, KERNEL),
    config({**KERNEL, "health": ["presence"]}, {**DPDK, "health": []}, {"selectors": {"rootDevices": [PFS[1]]}}),
    config({"selectors": {"vendors": ["8086"]}, "deviceType": "accelerator"}, {**KERNEL, "health": ["driver"]}),
    config(),
]

pf_records = st.builds(
    pf_record,
    st.integers(0, 1),
    name=st.sampled_from(["p0", "p1", "q1"]),
    carrier=st.sampled_from([True, False, None]),
    driver=st.sampled_from(["ice", ""]),
    listed=st.integers(0, 4),
    num_vfs=st.integers(0, 4),
    total_vfs=st.sampled_from([4, 4, 4, 0]),
)
vf_records = st.builds(
    vf_record,
    st.integers(0, 1),
    st.integers(0, 3),
    linked=st.sampled_from([True, True, True, False]),
    driver=st.sampled_from(["iavf", "vfio-pci", ""]),
    class_=st.sampled_from([0x020000, 0x020000, 0x120000, 0x010000]),
)
steps = st.one_of(
    st.tuples(st.just("look"), pf_records | vf_records),
    st.tuples(st.just("look"), vf_records),
    st.tuples(st.just("gone"), st.sampled_from(EVERY)),
    st.tuples(
        st.just("held"),
        st.dictionaries(st.sampled_from(EVERY), st.sampled_from(["", "intel.com/r0", "intel.com/r1", "x/y"])),
    ),
    st.tuples(st.just("guard"), st.dictionaries(st.sampled_from(EVERY), st.just("it is needed"), max_size=3)),
    st.tuples(st.just("config"), st.sampled_from(CONFIGS)),
    st.tuples(st.just("rescan"), st.none()),
)


@settings(deadline=None)
@given(st.lists(steps, max_size=30))
def test_any_events_give_what_one_look_at_everything_gives(events: list[tuple[str, Any]]) -> None:
    found, wanted, held = node(), CONFIGS[0], dict[str, str]()
    now = whole = Pools()
    for kind, value in events:
        if kind == "look":
            found = inventory.update(found, value.bdf, value)
        elif kind == "gone":
            found = inventory.update(found, value, None)
        elif kind == "guard":
            found = inventory.guard(found, value)
        elif kind == "rescan":
            found = inventory.build(found.records.values(), guarded=found.guarded)
        held = value if kind == "held" else held
        wanted = value if kind == "config" else wanted
        before = now
        now, moved = reassign(before, found, wanted, held=held)
        whole = assign(found, wanted, before=Pools(by_bdf=whole.by_bdf), held=held)  # of the members alone
        assert now == whole
        assert found == inventory.build(found.records.values(), guarded=found.guarded)
        either = before.by_bdf.keys() | now.by_bdf.keys()
        assert moved == {bdf for bdf in either if before.by_bdf.get(bdf) != now.by_bdf.get(bdf)}
        assert now.members.keys() == {pool.resource for pool in wanted.pools}
        assert {bdf: member for each in now.members.values() for member in each for bdf in [member.device.bdf]} == (
            now.by_bdf
        )

"""Discovery: sysfs records and the inventory made of them, against what the machine is built of."""

import errno
from collections.abc import Callable
from functools import partial

import anyio
import anyio.to_thread
import pytest

from devices import guard, inventory
from devices.errors import KernelError
from devices.inventory import PF, VF, Inventory
from devices.linux.sysfs import Sysfs
from devices.linux.uevents import RESCAN, Uevents
from tests.vm.guest.hardware import Card, Emulator, Hardware, Space, bind, run, until

SYSFS = Sysfs()


def now() -> Inventory:
    return inventory.build(SYSFS.read(), guarded={})


def test_the_cards_as_they_were_plugged_in(hardware: Hardware) -> None:
    hardware.wait_for_carriers()
    found = now()
    assert {pf.bdf for pf in found.pfs} >= {card.bdf for card in (*hardware.cards, hardware.shared)}
    for card in hardware.cards:
        pf = found.by_bdf[card.bdf]
        assert isinstance(pf, PF)
        assert (pf.netdev, pf.mac, pf.ifindex) == (card.netdev, card.mac, card.ifindex)
        assert (pf.vendor, pf.device, pf.driver) == ("8086", "10c9", "igb")
        assert (pf.total_vfs, pf.num_vfs, pf.vfs) == (7, 0, ())
        assert (pf.link, pf.link_type) == ("up", "ether")
        assert pf.iommu_group is not None


def test_vfs_are_found_with_number_driver_interface_and_group_and_stay_as_many(hardware: Hardware) -> None:
    card = hardware.cards[0]
    SYSFS.set_numvfs(card.bdf, 7)
    run("udevadm settle --timeout=20")  # else an interface may be renamed between two looks
    until(lambda: sum(bool(vf.netdev and vf.driver) for vf in now().vfs) == 7, "the VFs' interfaces")
    pf = now().by_bdf[card.bdf]
    assert isinstance(pf, PF)
    assert pf.num_vfs == 7
    assert [vf.index for vf in pf.vfs] == list(range(7))
    assert [vf.bdf for vf in pf.vfs] == [card.vf(index) for index in range(7)]
    assert [vf.netdev for vf in pf.vfs] == [card.vf_netdev(index) for index in range(7)]
    assert {(vf.driver, vf.pf_netdev, vf.vendor, vf.device) for vf in pf.vfs} == {
        ("igbvf", card.netdev, "8086", "10ca")
    }
    assert len({vf.iommu_group for vf in pf.vfs}) == 7
    refused(card, 3, errno.EBUSY)
    SYSFS.set_numvfs(card.bdf, 0)
    until(lambda: now().vfs == (), "the VFs to be gone")
    refused(card, 8, errno.ERANGE)


def refused(card: Card, count: int, code: int) -> None:
    """The kernel does not set that number, and it is said what that means."""
    with pytest.raises(KernelError) as caught:
        SYSFS.set_numvfs(card.bdf, count)
    assert caught.value.code == code
    assert caught.value.hint


def link_of(known: Inventory, bdf: str) -> str:
    return known.by_bdf[bdf].link


async def follow(events: Uevents, known: Inventory, done: Callable[[Inventory], bool]) -> Inventory:
    """The inventory, with each event's device read alone at whatever moment of its making, until it is as wanted.

    Looks at everything are left out: the events alone have to lead there.
    """
    with anyio.fail_after(20):
        while not done(known):
            change = await anext(events)
            if change.bdf:
                known = inventory.update(known, change.bdf, SYSFS.read_one(change.bdf))
            assert all(pf.device != "10ca" for pf in known.pfs), "a VF passed for a NIC"
    return known


@pytest.mark.anyio
async def test_events_one_by_one_lead_to_what_a_full_pass_sees(hardware: Hardware) -> None:
    card = hardware.cards[1]
    async with Uevents() as events:
        known = now()
        await anyio.to_thread.run_sync(SYSFS.set_numvfs, card.bdf, 3)
        known = await follow(
            events,
            known,
            lambda each: len(each.vfs) == 3 and all(vf.netdev for vf in each.vfs) and each.pfs == now().pfs,
        )
        await anyio.to_thread.run_sync(bind, card.vf(1), "vfio-pci")
        known = await follow(events, known, lambda each: each.vfs[1].driver == "vfio-pci" and each.pfs == now().pfs)
        assert known.vfs[1].netdev == ""
        await anyio.to_thread.run_sync(SYSFS.set_numvfs, card.bdf, 0)
        await follow(events, known, lambda each: each.vfs == () and each.pfs == now().pfs)


@pytest.mark.anyio
async def test_a_pulled_cable_is_heard_of(hardware: Hardware, qemu: Emulator) -> None:
    card = hardware.cards[0]
    hardware.wait_for_carriers()
    async with Uevents() as events:
        await anyio.to_thread.run_sync(partial(qemu, "set_link", name=card.plug, up=False))
        known = await follow(events, now(), lambda each: link_of(each, card.bdf) == "down")
        await anyio.to_thread.run_sync(partial(qemu, "set_link", name=card.plug, up=True))
        await follow(events, known, lambda each: link_of(each, card.bdf) == "up")


@pytest.mark.anyio
async def test_changes_are_seen_without_any_event(hardware: Hardware) -> None:
    async with Uevents(sources=(), check_every=0.2, check_when_silent=0.2) as events:
        await anyio.to_thread.run_sync(SYSFS.set_numvfs, hardware.cards[0].bdf, 1)
        with anyio.fail_after(20):
            assert (await anext(events)) == RESCAN
        assert events.silent


def test_a_vf_in_a_pod_is_known_and_has_no_interface_here(hardware: Hardware, space: Callable[[], Space]) -> None:
    card = hardware.cards[0]
    bdf = card.create(1)[0]
    space().take(card.vf_netdev(0), "10.9.0.1/24")
    vf = now().by_bdf[bdf]
    assert isinstance(vf, VF)
    assert (vf.netdev, vf.driver, vf.index) == ("", "igbvf", 0)


def test_the_card_with_the_way_out_is_guarded(hardware: Hardware) -> None:
    card, other = hardware.cards[:2]
    run(f"ip link add link {card.netdev} name way.5 type vlan id 5")
    try:
        run("ip addr add 192.0.2.2/24 dev way.5")
        run("ip link set way.5 up")
        run("ip route add default via 192.0.2.1")
        reasons = guard.devices(SYSFS.read(), guard.read())
    finally:
        run("ip link del way.5")
    assert "default route" in reasons[card.bdf]
    assert other.bdf not in reasons

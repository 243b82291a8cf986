"""Hardware that comes and goes: VFs, carriers, whole cards."""

from typing import TYPE_CHECKING

from tests.vm.guest.hardware import Hardware, driver, plugged, until

if TYPE_CHECKING:
    from tests.vm.guest.hardware import Emulator, Heard


def test_vfs_appear_each_in_a_group_of_its_own(hardware: Hardware, heard: "Heard") -> None:
    card = hardware.cards[0]
    vfs = card.create(7)
    for bdf in vfs:
        heard.wait("add", "pci", bdf)
        heard.wait("bind", "pci", bdf, "igbvf")
    assert all((card.path / f"virtfn{index}/physfn").readlink().name == card.bdf for index in range(7))
    groups = {(card.path / f"virtfn{index}/iommu_group").readlink().name for index in range(7)}
    assert len(groups) == 7


def test_a_card_is_pulled_with_vfs_on_it_and_comes_back(hardware: Hardware, heard: "Heard", qemu: "Emulator") -> None:
    card = hardware.cards[3]
    vfs = card.create(2)
    number = card.plug.removeprefix("pf")
    qemu("device_del", id=card.plug)
    for bdf in (*vfs, card.bdf):
        heard.wait("remove", "pci", bdf)
    removed = [name for action, subsystem, name, _ in heard.events if (action, subsystem) == ("remove", "pci")]
    assert removed[-1] == card.bdf
    assert not card.path.exists()

    qemu("device_add", driver="igb", id=card.plug, bus=f"rp{number}", netdev=f"h{number}", mac=card.mac)
    heard.wait("add", "pci", card.bdf)
    until(lambda: card.bdf in {each.bdf for each in plugged()}, "the card to be back")
    assert driver(card.bdf) == "igb"
    assert [each.mac for each in plugged() if each.bdf == card.bdf] == [card.mac]

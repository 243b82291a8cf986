"""VFs that appear: the kernel's own order of things."""

from typing import TYPE_CHECKING

from tests.vm.guest.hardware import Hardware

if TYPE_CHECKING:
    from tests.vm.guest.hardware import Heard


def test_vfs_appear_each_in_a_group_of_its_own(hardware: Hardware, heard: "Heard") -> None:
    card = hardware.cards[0]
    vfs = card.create(7)
    for bdf in vfs:
        heard.wait("add", "pci", bdf)
        heard.wait("bind", "pci", bdf, "igbvf")
    assert all((card.path / f"virtfn{index}/physfn").readlink().name == card.bdf for index in range(7))
    groups = {(card.path / f"virtfn{index}/iommu_group").readlink().name for index in range(7)}
    assert len(groups) == 7

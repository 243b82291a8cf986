"""How long binding takes, beside DPDK's own program on the same VFs in the same run."""

from pathlib import Path

import msgspec

from benchmarks.binding import DEVBIND, measure, show
from tests.vm.guest.hardware import Hardware, driver, run


def test_fourteen_vfs_go_to_vfio_and_back(hardware: Hardware) -> None:
    vfs = [bdf for card in hardware.cards[:2] for bdf in card.create(7)]
    run("modprobe vfio-pci")
    rows = measure(vfs, "igbvf")
    show(rows)
    Path("/out/binding.json").write_bytes(msgspec.json.format(msgspec.json.encode(rows), indent=2))
    assert [row.who for row in rows] == ["multus", DEVBIND]
    assert [driver(bdf) for bdf in vfs] == ["igbvf"] * 14

"""VFs to vfio-pci and back by `dpdk.drivers`, and packets through DPDK's own testpmd on them."""

import os
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from dpdk.drivers import Binder
from dpdk.errors import HeldError, RefusedError
from dpdk.kernel import Kernel
from tests.vm.guest.hardware import PCI, Hardware, Records, driver, run, until

pytestmark = pytest.mark.anyio

VFIO = "vfio-pci"


def binder(records: Records) -> Binder:
    return Binder(Kernel(), records)


async def test_bound_and_put_back_as_it_was(hardware: Hardware, records: Records) -> None:
    card = hardware.cards[0]
    bdf = card.create(2)[0]
    name = card.vf_netdev(0)
    mac = run(f"cat /sys/class/net/{name}/address")
    made = binder(records)
    await made.apply_bind(await made.plan(bdf, VFIO, mac="02:d0:00:00:00:01"))
    assert driver(bdf) == VFIO
    assert (Path("/dev/vfio") / (PCI / "devices" / bdf / "iommu_group").readlink().name).exists()
    assert "02:d0:00:00:00:01" in run(f"ip link show {card.netdev}")
    assert list(await made.records()) == [bdf]
    await made.restore(bdf)
    assert driver(bdf) == "igbvf"
    await anyio.to_thread.run_sync(until, lambda: card.vf_netdev(0) == name, "its interface, under its name")
    assert run(f"cat /sys/class/net/{name}/address") == mac
    assert (PCI / "devices" / bdf / "driver_override").read_text().strip() in ("", "(null)")
    assert records.kept == {}


async def test_a_vf_whose_group_has_others_is_refused(hardware: Hardware, records: Records) -> None:
    bdf = hardware.shared.create(2)[0]
    made = binder(records)
    plan = await made.plan(bdf, VFIO)
    assert plan.refusals
    with pytest.raises(RefusedError):
        await made.apply_bind(plan)
    assert driver(bdf) == "igbvf"
    assert records.kept == {}


async def test_a_held_vf_is_not_taken_from_its_holder(hardware: Hardware, records: Records) -> None:
    bdf = hardware.cards[0].create(1)[0]
    made = binder(records)
    await made.apply_bind(await made.plan(bdf, VFIO))
    node = Path("/dev/vfio") / (PCI / "devices" / bdf / "iommu_group").readlink().name
    held = os.open(node, os.O_RDWR)
    try:
        with pytest.raises(HeldError, match=str(os.getpid())):
            await made.restore(bdf, hold=0.2)
        assert driver(bdf) == VFIO
    finally:
        os.close(held)
    await made.restore(bdf)
    assert driver(bdf) == "igbvf"

"""VFs to vfio-pci and back, by `dpdk.drivers` and by `multusctl dpdk` beside DPDK's own program."""

import os
import re
import subprocess
import time
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from dpdk.drivers import Binder
from dpdk.errors import HeldError, RefusedError
from dpdk.iommu import is_viable
from dpdk.kernel import Kernel
from tests.vm.guest.commands import multusctl
from tests.vm.guest.hardware import PCI, Hardware, Records, bind, driver, run, until

VFIO = "vfio-pci"


def node_of(bdf: str) -> Path:
    """The node of its group."""
    return Path("/dev/vfio") / (PCI / "devices" / bdf / "iommu_group").readlink().name


def binder(records: Records) -> Binder:
    return Binder(Kernel(), records)


@pytest.mark.anyio
async def test_bound_and_put_back_as_it_was(kept: Hardware, records: Records) -> None:
    card = kept.cards[0]
    bdf = card.have(2)[0]
    name = card.vf_netdev(0)
    mac = run(f"cat /sys/class/net/{name}/address")
    made = binder(records)
    await made.apply_bind(await made.plan(bdf, VFIO, mac="02:d0:00:00:00:01"))
    assert driver(bdf) == VFIO
    assert node_of(bdf).exists()
    assert "02:d0:00:00:00:01" in run(f"ip link show {card.netdev}")
    assert list(await made.records()) == [bdf]
    await made.restore(bdf)
    assert driver(bdf) == "igbvf"
    await anyio.to_thread.run_sync(until, lambda: card.vf_netdev(0) == name, "its interface, under its name")
    assert run(f"cat /sys/class/net/{name}/address") == mac
    assert (PCI / "devices" / bdf / "driver_override").read_text().strip() in ("", "(null)")
    assert records.kept == {}


@pytest.mark.anyio
async def test_a_vf_whose_group_has_others_is_refused(kept: Hardware, records: Records) -> None:
    first, second = kept.shared.have(2)
    made = binder(records)
    plan = await made.plan(first, VFIO)
    (reason,) = plan.refusals
    assert re.search(rf"its IOMMU group \d+ is not viable: it also has .*{re.escape(second)} \(igbvf\)", reason)
    with pytest.raises(RefusedError, match="is not viable"):
        await made.apply_bind(plan)
    assert driver(first) == "igbvf"
    assert records.kept == {}
    # The kernel is of the same opinion.
    bind(first, VFIO)
    assert is_viable(node_of(first)) is False
    bind(first, "")


@pytest.mark.anyio
async def test_a_held_vf_is_not_taken_from_its_holder(kept: Hardware, records: Records) -> None:
    bdf = kept.cards[0].have(2)[0]
    made = binder(records)
    await made.apply_bind(await made.plan(bdf, VFIO))
    held = os.open(node_of(bdf), os.O_RDWR)
    try:
        with pytest.raises(HeldError, match=str(os.getpid())):
            await made.restore(bdf, hold=0.2)
        assert driver(bdf) == VFIO
        async with anyio.create_task_group() as group:
            group.start_soon(made.restore, bdf)  # which waits for it
            await anyio.sleep(0.5)
            assert driver(bdf) == VFIO
            os.close(held)
            held = -1
    finally:
        if held >= 0:
            os.close(held)
    assert driver(bdf) == "igbvf"


def devbind() -> dict[str, str]:
    """The driver of each network device, as DPDK's program tells it."""
    said = run("dpdk-devbind.py --status-dev net", seconds=60)
    return {match[1]: match[2] for match in re.finditer(r"^(\S+:\S+) '.* drv=(\S+)", said, re.MULTILINE)}


def row(text: str, bdf: str) -> str:
    return next(" ".join(line.split()) for line in text.splitlines() if line.startswith(bdf))


def test_by_hand(kept: Hardware, tmp_path: Path) -> None:
    """What an admin does, and what he is told."""
    card = kept.cards[0]
    bdfs = card.have(2)
    first, second = bdfs
    names, groups = [card.vf_netdev(index) for index in range(2)], [node_of(bdf).name for bdf in bdfs]
    numa = (PCI / "devices" / first / "numa_node").read_text().strip().replace("-1", "-")
    journal = ("--cni-dir", str(tmp_path))
    shown = multusctl("dpdk", "status", *journal, apart=True).text
    for index, bdf in enumerate(bdfs):
        assert row(shown, bdf) == f"{bdf} {card.bdf} vf {index} igbvf {names[index]} {groups[index]} {numa} - -"

    bound = multusctl("dpdk", "bind", *bdfs, *journal)
    assert (bound.code, bound.text) == (0, "".join(f"  ok  {bdf} is on vfio-pci\n" for bdf in bdfs))
    theirs = devbind()
    assert {bdf: theirs[bdf] for bdf in (card.bdf, *bdfs)} == {card.bdf: "igb", first: VFIO, second: VFIO}

    held = os.open(node_of(first), os.O_RDWR)
    try:
        holder = f"process {os.getpid()} ({Path('/proc/self/comm').read_text().strip()})"
        shown = multusctl("dpdk", "status", *journal).text
        assert row(shown, first) == f"{first} {card.bdf} vf 0 vfio-pci - {groups[0]} {numa} {holder} -"
        begin = time.monotonic()
        back = multusctl("dpdk", "unbind", *bdfs, "--wait", "0.5", *journal)
        assert time.monotonic() - begin < 20
        assert back.code == 1
        assert f"  no  {first} is in use by {holder}" in back.text
        assert f"  ok  {second} is on igbvf again" in back.text
    finally:
        os.close(held)
    back = multusctl("dpdk", "unbind", first, *journal)
    assert (back.code, back.text) == (0, f"  ok  {first} is on igbvf again\n")
    assert [driver(bdf) for bdf in bdfs] == ["igbvf", "igbvf"]
    until(lambda: [card.vf_netdev(index) for index in range(2)] == names, "their interfaces, under their names")


def test_hugepages(tmp_path: Path) -> None:
    """Set, read back and mounted."""
    mount = tmp_path / "huge"
    mount.mkdir()
    try:
        made = multusctl("dpdk", "hugepages", "--size", "2M", "--count", "8", "--mount", str(mount))
        assert made.code == 0, made.text
        assert re.search(r"^-?\d+ +2M +8 +8 +0$", made.text, re.MULTILINE), made.text
        assert f"{mount} is mounted, pages of 2M" in made.text
        assert "HugePages_Total:       8\n" in Path("/proc/meminfo").read_text()
    finally:
        subprocess.run(["umount", str(mount)], check=False)
        assert multusctl("dpdk", "hugepages", "--size", "2M", "--count", "0").code == 0

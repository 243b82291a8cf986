"""Uevents for real: the kernel is asked to tell of a PCI device again, as `udevadm trigger` does."""

from pathlib import Path

import anyio
import pytest

from devices.linux.uevents import Change, KernelSource, Uevents

pytestmark = pytest.mark.anyio


@pytest.fixture
def device() -> Path:
    found = sorted(Path("/sys/bus/pci/devices").glob("*"))
    if not found:
        pytest.skip("this machine has no PCI devices")
    try:
        with (found[0] / "uevent").open("r+b"):
            pass
    except OSError as error:
        pytest.skip(f"sysfs cannot be written: {error}")
    return found[0]


async def test_the_kernel_tells_and_is_heard(device: Path) -> None:
    async with Uevents(sources=[KernelSource], check_every=1000) as changes:
        (device / "uevent").write_text("change")
        with anyio.fail_after(10):
            async for change in changes:
                if change.bdf == device.name:  # and not of something else that happens to change now
                    break
    assert change == Change(subsystem="pci", action="change", bdf=device.name)
    assert not changes.silent

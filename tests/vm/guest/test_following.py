"""The device manager on real hardware, and a kubelet that speaks the real protocol: what comes and goes is followed."""

import json
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from devices.kubelet.registration import Kubelet
from devices.linux.uevents import CHECK_EVERY, Uevents
from devices.manager import Manager
from tests.fake_kubelet import FakeKubelet, Follower
from tests.vm.guest.hardware import Card, Emulator, Hardware, bind, driver, plugged, run, until

pytestmark = pytest.mark.anyio

RESOURCE = "vm.example/left"
SOON = 1.0
"""Seconds within which the kubelet hears of a change."""


@asynccontextmanager
async def following(
    card: Card, directory: Path, **options: Any
) -> AsyncIterator[tuple[FakeKubelet, Follower, Manager]]:
    """A pool of all the VFs of a card, and a kubelet that has heard of it."""
    config = directory / "pools.json"
    pool = {"resourceName": "left", "resourcePrefix": "vm.example", "selectors": {"rootDevices": [card.bdf]}}
    config.write_text(json.dumps({"resourceList": [pool]}))
    kubelet_dir = directory / "kubelet"
    async with FakeKubelet(kubelet_dir) as kubelet:
        manager = Manager(config=config, info=directory / "devinfo", kubelet=Kubelet(kubelet_dir), **options)
        async with anyio.create_task_group() as group:
            await group.start(manager.run)
            with anyio.fail_after(30):
                request = await kubelet.wait_registered(RESOURCE)
            async with kubelet.follow(request) as follower:
                await follower.until(lambda known: known.lists > 0)
                yield kubelet, follower, manager
            group.cancel_scope.cancel()


def healthy(*vfs: str) -> Callable[[Follower], bool]:
    return lambda known: known.health == dict.fromkeys(vfs, "Healthy")


async def settled(card: Card, count: int) -> list[str]:
    """VFs whose PF has its carrier again."""
    vfs = await anyio.to_thread.run_sync(card.create, count)
    await anyio.to_thread.run_sync(until, lambda: card.carrier, "the carrier")
    return vfs


async def test_a_link_a_driver_and_vfs_that_change(hardware: Hardware, qemu: Emulator, tmp_path: Path) -> None:
    """Cable out: not healthy within a second; in again: healthy. So for a driver that is taken off, and VFs gone."""
    card = hardware.cards[0]
    async with following(card, tmp_path) as (_, known, _):
        assert known.health == {}
        vfs = await settled(card, 2)
        await known.until(healthy(*vfs), limit=20)

        await anyio.to_thread.run_sync(partial(qemu, "set_link", name=card.plug, up=False))
        await anyio.to_thread.run_sync(until, lambda: not card.carrier, "the carrier to go")
        begin = time.monotonic()
        await known.until(lambda each: set(each.health.values()) == {"Unhealthy"}, limit=20)
        assert time.monotonic() - begin < SOON
        await anyio.to_thread.run_sync(partial(qemu, "set_link", name=card.plug, up=True))
        await known.until(healthy(*vfs), limit=20)

        (Path("/sys/bus/pci/devices") / vfs[0] / "driver/unbind").write_text(vfs[0])
        await known.until(lambda each: each.health.get(vfs[0]) != "Healthy" and each.health[vfs[1]] == "Healthy")
        await anyio.to_thread.run_sync(bind, vfs[0], "")
        await known.until(healthy(*vfs), limit=20)

        await anyio.to_thread.run_sync(card.write, "sriov_numvfs", 0)
        await known.until(lambda each: "Healthy" not in each.health.values(), limit=20)


async def test_a_card_is_unplugged_and_comes_back(hardware: Hardware, qemu: Emulator, tmp_path: Path) -> None:
    card = hardware.cards[1]
    number, mac = card.plug.removeprefix("pf"), card.mac
    await settled(card, 2)
    async with following(card, tmp_path) as (_, known, manager):
        await known.until(lambda each: len(each.health) == 2)
        await anyio.to_thread.run_sync(partial(qemu, "device_del", id=card.plug))
        await known.until(lambda each: "Healthy" not in each.health.values(), limit=30)
        await anyio.to_thread.run_sync(until, lambda: not card.path.exists(), "the card to go")
        with anyio.fail_after(20):
            while card.bdf in manager.inventory.by_bdf:
                await manager.changed.wait(manager.changed.rung)

        await anyio.to_thread.run_sync(
            partial(qemu, "device_add", driver="igb", id=card.plug, bus=f"rp{number}", netdev=f"h{number}", mac=mac)
        )
        await anyio.to_thread.run_sync(until, lambda: card.bdf in {each.bdf for each in plugged()}, "the card")
        run("udevadm settle --timeout=30")
        run(f"ip link set {card.netdev} up")
        vfs = await settled(card, 3)
        await known.until(healthy(*vfs), limit=20)


async def test_the_kubelets_directory_and_the_plugins_socket(hardware: Hardware, tmp_path: Path) -> None:
    """The socket is deleted; the kubelet is restarted. Each time the pool is registered again, with its VFs."""
    card = hardware.cards[0]
    vfs = await settled(card, 1)
    async with following(card, tmp_path) as (kubelet, known, _):
        await known.until(healthy(*vfs), limit=20)
        endpoint = kubelet.directory / "device-plugins" / kubelet.registered[-1].endpoint
        kubelet.registered.clear()
        endpoint.unlink()
        await again(kubelet, vfs)
        await kubelet.stop()
        await kubelet.start()
        await again(kubelet, vfs)


async def again(kubelet: FakeKubelet, vfs: list[str]) -> None:
    """It is registered once more, and says the same."""
    with anyio.fail_after(30):
        request = await kubelet.wait_registered(RESOURCE)
    async with kubelet.follow(request) as anew:
        await anew.until(healthy(*vfs), limit=20)


async def test_udev_is_stopped(hardware: Hardware, tmp_path: Path) -> None:
    """udev says nothing, and later nobody does: what changes is seen all the same."""
    card = hardware.cards[0]
    udevd = int(run("pgrep -o -x systemd-udevd"))
    os.kill(udevd, signal.SIGSTOP)
    try:
        async with following(card, tmp_path) as (_, known, _):
            card.write("sriov_numvfs", 2)
            vfs = [card.vf(index) for index in range(2)]
            await known.until(healthy(*vfs), limit=20)
    finally:
        os.kill(udevd, signal.SIGCONT)
        run("udevadm settle --timeout=20")
    async with following(card, tmp_path, events=lambda: Uevents(sources=())) as (_, known, _):
        await known.until(healthy(*vfs), limit=20)
        begin = time.monotonic()
        await anyio.to_thread.run_sync(card.write, "sriov_numvfs", 0)
        await known.until(lambda each: "Healthy" not in each.health.values(), limit=20)
        assert time.monotonic() - begin < CHECK_EVERY + 2
        begin = time.monotonic()
        await anyio.to_thread.run_sync(card.create, 1)  # from now on it looks twice a second
        await known.until(lambda each: card.vf(0) in each.health, limit=20)
        assert driver(card.vf(0)) == "igbvf"

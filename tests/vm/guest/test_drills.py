"""What can happen to a VF while pods have it, get it or give it back: then no VF is lost, and no value wrong."""

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import msgspec
import pytest

from devices.linux import netns as namespaces
from multus.cni.request import Command
from multus.delegates.plugin import Call
from multus.delegates.sriov import DriftError
from tests.vm.guest.attached import (
    SETTINGS,
    Delegate,
    Doom,
    delegate,
    look,
    states,
    with_carrier_meanwhile,
)
from tests.vm.guest.hardware import Card, Hardware, Space

SEED = 20261128
IPAM = {"type": "quick"}


async def addresses(plugin: str, call: Call) -> bytes:
    """An address plugin that costs nothing."""
    given = {"cniVersion": "1.0.0", "ips": [{"address": "10.9.0.1/24"}]}
    return json.dumps(given).encode() if call.command is Command.ADD else b""


async def carry_out(command: Command, directory: Path, bdf: str, space: str, doom: Doom | None = None) -> None:
    async with delegate(directory, ipam=addresses, doom=doom) as sriov:
        await sriov(command, space, bdf, **SETTINGS, ipam=IPAM)
    if doom is not None:
        doom()  # all is done, and nobody was told


def survives(command: Command, directory: Path, bdf: str, space: str, step: int) -> bool:
    """Carry it out in a process that is killed before that step; False when it was."""
    child = os.fork()
    if child == 0:
        try:
            anyio.run(carry_out, command, directory, bdf, space, Doom(step))
            os._exit(0)
        except BaseException:
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -9), f"before step {step}: {status}"
    return status == 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # fork, from Python 3.12 on
@pytest.mark.parametrize("command", [Command.ADD, Command.DEL], ids=["add", "del"])
def test_killed_before_any_step(card: Card, space: Callable[[], Space], tmp_path: Path, command: Command) -> None:
    """Each change of the kernel and of the records is a step; the next process carries out the DEL."""
    bdf = card.vf(0)
    before, pod, steps = look(card), space(), 0
    over = False
    while not over:
        if command is Command.DEL:
            anyio.run(carry_out, Command.ADD, tmp_path, bdf, pod.path)
        over = survives(command, tmp_path, bdf, pod.path, steps)
        anyio.run(carry_out, Command.DEL, tmp_path, bdf, pod.path)
        assert look(card) == before, f"killed before step {steps} of {command}"
        assert namespaces.interface_names(pod.path) == ("lo",)
        steps += 1
    assert steps > len(SETTINGS) + 2, "settings, the record, and the move are steps"


@pytest.mark.anyio
async def test_vfs_are_taken_away_while_pods_have_them(
    kept: Hardware, space: Callable[[], Space], tmp_path: Path
) -> None:
    card = kept.cards[0]
    vfs = card.have(2)
    first = shape(card)
    pods = [space(), space()]
    async with delegate(tmp_path) as sriov:
        for number, (bdf, pod) in enumerate(zip(vfs, pods, strict=True)):
            await sriov.add(pod.path, bdf, container=f"c{number}", vlan=100, trust="on")
        await anyio.to_thread.run_sync(card.write, "sriov_numvfs", 0)
        assert [namespaces.interface_names(pod.path) for pod in pods] == [("lo",), ("lo",)]
        with pytest.raises(DriftError, match="the device is gone"):
            await sriov(Command.CHECK, pods[0].path, vfs[0], container="c0", vlan=100, trust="on")
        # One is given back while there is no VF, the other when there are new ones in their places.
        await sriov(Command.DEL, pods[0].path, vfs[0], container="c0", vlan=100, trust="on")
        await with_carrier_meanwhile(card, 2)
        await sriov(Command.DEL, pods[1].path, vfs[1], container="c1", vlan=100, trust="on")
        assert await sriov.on_record() == []
        assert shape(card) == first
        for number, (bdf, pod) in enumerate(zip(vfs, pods, strict=True)):
            await sriov.add(pod.path, bdf, container=f"c{number}", vlan=100)
            assert states(card)[number].vlan == 100
            await sriov(Command.DEL, pod.path, bdf, container=f"c{number}", vlan=100)
    assert shape(card) == first


def shape(card: Card) -> dict[str, Any]:
    """A card's VFs without their MACs, which are chance."""
    return {
        bdf: (msgspec.structs.replace(settings, mac=None), driver, netdev["ifname"], netdev["up"], netdev["mtu"])
        for bdf, (settings, driver, netdev) in look(card).items()
    }


@pytest.mark.anyio
async def test_fourteen_vfs_in_random_order_at_once(
    hardware: Hardware, space: Callable[[], Space], tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    """Each is attached and detached --rounds times, six at a time."""
    rounds: int = pytestconfig.getoption("rounds")
    cards = hardware.cards[:2]
    vfs = [bdf for each in hardware.create(7, 7) for bdf in each]
    before = [look(card) for card in cards]
    pods = {bdf: space() for bdf in vfs}
    chance = random.Random(SEED)
    left = vfs * (2 * rounds)
    chance.shuffle(left)
    turns = {bdf: anyio.Lock() for bdf in vfs}
    attached: dict[str, dict[str, Any]] = {}
    done = {Command.ADD: 0, Command.DEL: 0}
    async with delegate(tmp_path) as sriov, anyio.create_task_group() as group:

        async def work() -> None:
            while left:
                bdf = left.pop()
                async with turns[bdf]:
                    command = Command.DEL if bdf in attached else Command.ADD
                    if command is Command.ADD:
                        attached[bdf] = {"vlan": chance.randint(1, 4000), "trust": chance.choice(("on", "off"))}
                    await turn(sriov, command, bdf, pods[bdf], attached[bdf])
                    if command is Command.DEL:
                        del attached[bdf]
                    done[command] += 1

        for _ in range(6):
            group.start_soon(work)
    assert done == {Command.ADD: 14 * rounds, Command.DEL: 14 * rounds}
    assert [look(card) for card in cards] == before
    async with delegate(tmp_path) as sriov:
        assert await sriov.on_record() == []


async def turn(sriov: Delegate, command: Command, bdf: str, pod: Space, conf: dict[str, Any]) -> None:
    await sriov(command, pod.path, bdf, container=pod.name, **conf)
    inside = await anyio.to_thread.run_sync(namespaces.interface_names, pod.path)
    assert sorted(inside) == (["lo", "net1"] if command is Command.ADD else ["lo"])

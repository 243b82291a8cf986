"""Frames between VFs, inside a card and over the wire: what a VLAN and a MAC set on a VF do to them."""

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import pytest

from multus.cni.request import Command
from tests.vm.guest.attached import delegate, with_carrier_meanwhile
from tests.vm.guest.hardware import Card, run, until

if TYPE_CHECKING:
    from tests.vm.guest.hardware import Hardware, Space


def frame(card: Card, source: str, send: Callable[[], object]) -> str:
    """The headers of the first frame from that MAC that comes in at a card; `send` is done until there is one."""
    command = ["tcpdump", "-e", "-n", "-c", "1", "-Q", "in", "-i", card.netdev, "ether", "src", source]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as tcpdump:
        try:
            assert tcpdump.stderr is not None
            assert any(line.startswith("listening") for line in tcpdump.stderr)
            until(lambda: (send(), tcpdump.poll())[1] is not None, f"a frame from {source}", seconds=30)
            assert tcpdump.stdout is not None
            return tcpdump.stdout.read()
        finally:
            tcpdump.kill()


def test_frames_pass_inside_a_card_and_over_the_wire(hardware: "Hardware", space: "Callable[[], Space]") -> None:
    near, far = hardware.cards[:2]
    hardware.create(2, 1)
    first, second, third = space(), space(), space()
    first.take(near.vf_netdev(0), "10.9.0.1/24")
    second.take(near.vf_netdev(1), "10.9.0.2/24")
    third.take(far.vf_netdev(0), "10.9.0.3/24")
    until(lambda: first.reaches("10.9.0.2"), "the VF beside it")
    until(lambda: first.reaches("10.9.0.3"), "the VF at the other end of the wire")

    run(f"ip link set {near.netdev} vf 0 vlan 100")
    until(lambda: not first.reaches("10.9.0.2"), "the VLAN to cut it off")
    assert not first.reaches("10.9.0.3")
    assert second.reaches("10.9.0.3")

    run(f"ip link set {near.netdev} vf 1 vlan 100")
    run(f"ip link set {far.netdev} vf 0 vlan 100")
    until(lambda: first.reaches("10.9.0.2"), "the VF beside it, both in the VLAN")
    until(lambda: first.reaches("10.9.0.3"), "the other end of the wire, both in the VLAN")


@pytest.mark.anyio
async def test_what_a_pod_was_given_is_on_the_wire(
    hardware: "Hardware", space: "Callable[[], Space]", tmp_path: Path
) -> None:
    """MAC, VLAN and priority, as the other card gets them; and after DEL no such frame."""
    near, far = hardware.cards[:2]
    (bdf,) = await with_carrier_meanwhile(near, 1)
    pod, mac = space(), "02:aa:bb:cc:dd:01"
    async with delegate(tmp_path) as sriov:
        wanted: dict[str, Any] = {"mac": mac, "vlan": 7, "vlanQoS": 3, "ipam": sriov.ipam("10.9.0.1/24")}
        await sriov.add(pod.path, bdf, **wanted)
        seen = await anyio.to_thread.run_sync(frame, far, mac, lambda: pod.reaches("10.9.0.2"))
        assert re.search(rf"{mac} > .*vlan 7, p 3", seen), seen
        await sriov(Command.DEL, pod.path, bdf, **wanted)
    pod.take(near.vf_netdev(0), "10.9.0.1/24")
    own = str(json.loads(run(f"ip -n {pod.name} -j link show net1"))[0]["address"])
    seen = await anyio.to_thread.run_sync(frame, far, own, lambda: pod.reaches("10.9.0.2"))
    assert own != mac
    assert "vlan" not in seen

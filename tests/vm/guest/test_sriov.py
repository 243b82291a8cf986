"""The SR-IOV delegate on real VFs: what the NAD asks for is on the wire, and everything is given back."""

import json
from collections.abc import Callable
from typing import Any

import anyio
import anyio.to_thread
import msgspec
import pytest

from devices.linux import vfs
from devices.linux.vf_kernel import LinuxKernel
from multus.cni.request import Command
from multus.delegates.plugin import Call, Runner
from multus.delegates.sriov import DriftError, Sriov
from tests.vm.guest.hardware import Card, Hardware, Records, Space, run, until

pytestmark = pytest.mark.anyio

KERNEL = LinuxKernel()


def delegate(records: Records) -> Sriov:
    return Sriov(Runner(timeout=lambda: 30.0), records, KERNEL, boot_id="boot")


def call(command: Command, bdf: str, space: Space, address: str = "", **keys: Any) -> Call:
    """A call for net1 of the pod; with an address from the `static` plugin."""
    conf: dict[str, Any] = {"cniVersion": "1.0.0", "name": "net", "type": "sriov", "deviceID": bdf, **keys}
    if address:
        conf["ipam"] = {"type": "static", "addresses": [{"address": address}]}
    return Call(
        command=command,
        conf=json.dumps(conf).encode(),
        container_id=space.name,
        netns=space.path,
        ifname="net1",
        path=("/usr/lib/cni",),
    )


def states(card: Card) -> dict[int, vfs.VFState]:
    return dict(KERNEL.states(card.ifindex))


def link(space: Space) -> Any:
    """The pod's net1, None when it has none."""
    found = json.loads(run(f"ip -n {space.name} -j link"))
    return next((each for each in found if each["ifname"] == "net1"), None)


async def test_what_was_asked_for_is_there_and_goes_again(
    hardware: Hardware, space: Callable[[], Space], records: Records
) -> None:
    near, far = hardware.cards[:2]
    (one, _), (two,) = hardware.create(2, 1)
    before = states(near), states(far)
    names = near.vf_netdev(0), far.vf_netdev(0)
    macs = [run(f"cat /sys/class/net/{name}/address") for name in names]
    sriov, first, second = delegate(records), space(), space()
    keys = {"vlan": 100, "spoofchk": "off", "trust": "on", "max_tx_rate": 500}
    add = call(Command.ADD, one, first, "10.9.0.1/24", mac="02:aa:00:00:00:01", vlanQoS=3, **keys)
    result = msgspec.json.decode(await sriov("sriov", add))
    other = call(Command.ADD, two, second, "10.9.0.2/24", vlan=100)
    await sriov("sriov", other)

    assert result["ips"][0]["address"] == "10.9.0.1/24"
    assert result["interfaces"][0]["mac"] == "02:aa:00:00:00:01"
    assert result["interfaces"][0]["sandbox"] == first.path
    assert link(first)["address"] == "02:aa:00:00:00:01"
    now = states(near)
    assert now[1] == before[0][1]
    assert (now[0].mac, now[0].vlan, now[0].qos) == ("02:aa:00:00:00:01", 100, 3)
    assert (now[0].spoofchk, now[0].trust, now[0].max_tx) == (False, True, 500)
    await anyio.to_thread.run_sync(until, lambda: first.reaches("10.9.0.2"), "the other pod, in the VLAN")

    conf = json.dumps({**json.loads(add.conf), "prevResult": result}).encode()
    check = msgspec.structs.replace(add, command=Command.CHECK, conf=conf)
    await sriov("sriov", check)
    run(f"ip link set {near.netdev} vf 0 vlan 7")
    with pytest.raises(DriftError, match="vlan"):
        await sriov("sriov", check)

    for _ in range(2):
        await sriov("sriov", msgspec.structs.replace(add, command=Command.DEL))
    await sriov("sriov", msgspec.structs.replace(other, command=Command.DEL))
    assert link(first) is None
    assert (states(near), states(far)) == before
    assert (near.vf_netdev(0), far.vf_netdev(0)) == names
    assert [run(f"cat /sys/class/net/{name}/address") for name in names] == macs
    assert records.kept == {}

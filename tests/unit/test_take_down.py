"""The order in which a pod's networks are taken down."""

import json
from pathlib import Path
from typing import Any

import anyio
import pytest

from multus.attach import Attacher
from multus.cni.conf import NetworkConf
from multus.delegates.chain import Chain, Target
from multus.delegates.native.registry import NATIVE, ORDERLESS
from multus.sandbox import Attachment, Sandbox, State
from multus.slots import Slots

pytestmark = pytest.mark.anyio


class Recorder(Chain):
    """Notes which networks are under way at the same time."""

    def __init__(self, orderless: frozenset[str] = ORDERLESS) -> None:
        nobody: Any = None
        super().__init__(nobody, in_process={}, bin_dirs=lambda: (), orderless=orderless)
        self.begun: list[str] = []
        self.ended: list[str] = []

    async def delete(self, conf: NetworkConf, target: Target, previous: object) -> None:
        self.begun.append(target.ifname)
        await anyio.sleep(0.02)
        self.ended.append(target.ifname)


def conf(plugin: str, ipam: str = "host-local", chained: str = "") -> bytes:
    plugins = [{"type": plugin, "ipam": {"type": ipam} if ipam else {}}, *([{"type": chained}] if chained else [])]
    return json.dumps({"cniVersion": "1.0.0", "name": "n", "plugins": plugins}).encode()


async def take_down(chain: Recorder, *confs: bytes) -> None:
    items = [
        Attachment(position=number, network="n", ifname=f"i{number}", conf=data, after=(0,) if number else ())
        for number, data in enumerate(confs)
    ]
    sandbox = Sandbox(
        container_id="c",
        ifname="i0",
        state=State.DELETING,
        netns="",
        netns_id="",
        boot_id="b",
        pod_namespace="ns",
        pod_name="n",
        pod_uid="u",
        attachments=tuple(items),
    )
    attacher = Attacher(chain, Slots(8), devinfo_dir=Path("/nowhere"), deadline=10, step=lambda name: None)
    await attacher.take_down(sandbox)


@pytest.mark.parametrize("first", [conf("bridge", chained="portmap"), conf("ipvlan", "static"), conf("macvlan", "")])
async def test_interfaces_that_only_have_to_go_go_together(first: bytes) -> None:
    chain = Recorder()
    await take_down(chain, first, conf("macvlan"), conf("vlan"))
    assert sorted(chain.begun) == ["i0", "i1", "i2"] and chain.begun.index("i0") == 0


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (conf("bridge"), conf("sriov")),
        (conf("flannel", ""), conf("macvlan")),
        (conf("bridge"), conf("macvlan", "dhcp")),
        (conf("bridge", chained="firewall"), conf("macvlan")),
        (conf("bridge"), conf("host-device")),
    ],
)
async def test_what_others_may_stand_on_goes_last(first: bytes, second: bytes) -> None:
    chain = Recorder()
    await take_down(chain, first, second)
    assert chain.begun == chain.ended == ["i1", "i0"]


async def test_what_is_executed_has_an_order() -> None:
    chain = Recorder(frozenset())
    await take_down(chain, conf("bridge"), conf("macvlan"))
    assert chain.ended == ["i1", "i0"]


def test_every_type_is_judged() -> None:
    assert frozenset(NATIVE) - ORDERLESS == {"host-device"}

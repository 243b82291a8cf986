"""Garbage collection: what is nobody's goes, what came meanwhile stays."""

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from multus.attach import TakeDownError
from multus.cni.conf import NetworkConf, parse_conf
from multus.cni.request import ValidAttachment
from multus.journal import Journal
from multus.sandbox import Attachment, Sandbox, State
from multus.slots import Lanes
from multus.upkeep import CollectError, Upkeep

pytestmark = pytest.mark.anyio

CONF = b'{"cniVersion": "1.1.0", "name": "default", "plugins": [{"type": "bridge"}]}'


def sandbox(container: str) -> Sandbox:
    attachment = Attachment(position=0, network="default", ifname="eth0", conf=CONF, default=True)
    return Sandbox(
        container_id=container,
        ifname="eth0",
        state=State.ATTACHED,
        netns="/run/netns/none",
        netns_id="1:2",
        boot_id="b",
        pod_namespace="ns",
        pod_name=container,
        pod_uid="u",
        attachments=(attachment,),
    )


class Edges:
    """The delegates: `comes` is attached while another is taken down, which fails for those in `stuck`."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.comes: list[Sandbox] = []
        self.stuck: set[str] = set()
        self.valid: list[set[str]] = []

    async def take_down(self, gone: Sandbox) -> None:
        for each in self.comes:
            await self.journal.begin(each)
        self.comes = []
        if gone.container_id in self.stuck:
            raise TakeDownError([(gone.attachments[0], OSError("it is stuck"))])

    async def gc(self, conf: NetworkConf, valid: Sequence[ValidAttachment], path: tuple[str, ...]) -> None:
        assert conf.name == "default"
        self.valid.append({each.container_id for each in valid})


@pytest.fixture
async def edges(tmp_path: Path) -> AsyncIterator[Edges]:
    """With three containers in the journal, c0 the oldest."""
    async with Journal.open(tmp_path / "journal.db") as journal:
        for number in range(3):
            await journal.begin(msgspec.structs.replace(sandbox(f"c{number}"), created=float(number + 1)))
        yield Edges(journal)


async def collect(edges: Edges, known: Sequence[str]) -> None:
    doubles: Any = edges
    upkeep = Upkeep(journal=edges.journal, attacher=doubles, chain=doubles, lanes=Lanes(), cluster=doubles, boot_id="b")
    valid = [ValidAttachment(container_id=each, ifname="eth0") for each in known]
    await upkeep.collect(valid, parse_conf(CONF, where="test"), (), ())


async def test_what_is_attached_while_garbage_is_removed_is_no_garbage(edges: Edges) -> None:
    edges.comes = [sandbox("new")]
    await collect(edges, ["c1"])
    assert edges.valid == [{"c1", "new"}]
    assert {each.container_id for each in await edges.journal.all()} == {"c1", "new"}


async def test_what_cannot_be_removed_is_told_and_its_addresses_go(edges: Edges) -> None:
    edges.stuck = {"c0"}
    with pytest.raises(CollectError, match="c0 of pod ns/c0 could not be removed"):
        await collect(edges, ["c1"])
    assert edges.valid == [{"c1"}]
    assert {each.container_id for each in await edges.journal.all()} == {"c0", "c1"}


async def test_what_only_the_runtime_knows_keeps_its_addresses(edges: Edges) -> None:
    await collect(edges, ["c0", "c1", "c2", "elsewhere"])
    assert edges.valid == [{"c0", "c1", "c2", "elsewhere"}]

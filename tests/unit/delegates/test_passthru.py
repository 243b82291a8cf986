"""The `passthru` plugin."""

import json

import pytest

from multus.cni.conf import parse_conf
from multus.cni.request import Command
from multus.cni.result import Interface
from multus.delegates.chain import Chain, Target
from multus.delegates.passthru import passthru
from multus.delegates.plugin import Call

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("conf", "printed"),
    [
        (b'{"cniVersion":"1.0.0","prevResult":{"cniVersion":"1.0.0","x":1e400}}', b'{"cniVersion":"1.0.0","x":1e400}'),
        (b'{"cniVersion":"0.4.0","name":"n"}', b'{"cniVersion":"0.4.0"}'),
        (b'{"name":"n"}', b'{"cniVersion":"0.1.0"}'),
    ],
)
async def test_add_hands_on_what_it_was_given(conf: bytes, printed: bytes) -> None:
    assert await passthru("passthru", Call(command=Command.ADD, conf=conf)) == printed


@pytest.mark.parametrize("command", [each for each in Command if each is not Command.ADD])
async def test_every_other_command_does_nothing(command: Command) -> None:
    assert await passthru("passthru", Call(command=command, conf=b"not even read")) == b""


async def test_it_heads_a_chain_of_others() -> None:
    given: list[dict[str, object]] = []

    async def other(plugin: str, call: Call) -> bytes:
        given.append(json.loads(call.conf))
        return b'{"cniVersion": "1.0.0", "interfaces": [{"name": "net1"}]}'

    conf = parse_conf(b'{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"passthru"},{"type":"o"}]}', where="test")
    chain = Chain(other, in_process={"passthru": passthru}, bin_dirs=lambda: ())
    result = await chain.add(conf, Target(container_id="c", netns="/n", ifname="net1"))
    assert given[0]["prevResult"] == {"cniVersion": "1.0.0"}
    assert result.interfaces == (Interface(name="net1"),)

"""What the commands answer a runtime: in its own version, whatever the daemon's settings say."""

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from multus.cni.errors import CNIError, Code
from multus.cni.request import ValidAttachment
from multus.cni.result import IP, SUPPORTED, Result, Route, encode_result
from multus.commands import Commands
from multus.resolve import PodGoneError
from multus.sandbox import Sandbox, State
from multus.settings import SettingsError, parse_daemon
from multus.slots import Lanes

pytestmark = pytest.mark.anyio

RESULT = Result(ips=(IP(address="10.0.0.2/24"),), routes=(Route(dst="0.0.0.0/0", gw="10.0.0.1"),))
ENV = {
    "CNI_CONTAINERID": "c1",
    "CNI_NETNS": "/run/netns/none",
    "CNI_IFNAME": "eth0",
    "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=gone",
    "MULTUS_NONCE": "once",
}
ATTACHED = Sandbox(
    container_id="c1",
    ifname="eth0",
    state=State.ATTACHED,
    netns="/run/netns/none",
    netns_id="1:2",
    boot_id="b",
    pod_namespace="ns",
    pod_name="n",
    pod_uid="u",
    nonce="once",
    result=encode_result(RESULT, "1.1.0"),
)


class World:
    """Stands for whatever is behind the commands, and records what was asked of it."""

    def __init__(self, attached: Sandbox | None = None) -> None:
        self.attached = attached
        self.others: list[Sandbox] = []
        self.asked: list[str] = []

    def __contains__(self, key: tuple[str, str]) -> bool:
        return self.attached is not None

    async def taken(self, key: tuple[str, str]) -> Sandbox | None:
        return self.attached

    async def get(self, key: tuple[str, str]) -> Sandbox | None:
        return self.attached

    async def container(self, container_id: str) -> list[Sandbox]:
        return self.others

    async def remove(self, sandbox: Sandbox) -> None:
        self.asked.append(f"remove {sandbox.container_id}")

    async def all(self) -> list[Sandbox]:
        return [self.attached] if self.attached else []

    async def collect(self, valid: Iterable[ValidAttachment], *rest: object) -> None:
        self.asked.append(f"collect all but {[(item.container_id, item.ifname) for item in valid]}")

    async def plan(self, request: object, net: object) -> Any:
        self.asked.append("plan")
        raise PodGoneError("pod ns/gone is gone")

    async def rebuild(self, request: object, net: object, boot_id: str) -> None:
        self.asked.append("rebuild")

    async def default_network(self, net: object) -> str:
        return "the default network"

    async def status(self, conf: object, path: object) -> None:
        self.asked.append(f"status of {conf}")


def commands(world: World, daemon: str, state: Path) -> Commands:
    given: dict[str, Any] = json.loads(daemon)
    data = json.dumps({"clusterNetwork": "x", "cniDir": str(state), **given}).encode()
    edges: Any = world
    return Commands(
        settings=lambda: parse_daemon(data, where="test", cores=1),
        resolver=edges,
        journal=edges,
        attacher=edges,
        chain=edges,
        lanes=Lanes(),
        upkeep=edges,
        cluster=edges,
        devinfo_dir=state,
        boot_id="b",
        step=lambda name: None,
    )


async def call(world: World, state: Path, command: str, version: str, daemon: str = '{"cniVersion":"0.3.1"}') -> bytes:
    conf = json.dumps({"name": "n", **({"cniVersion": version} if version else {})}).encode()
    return await commands(world, daemon, state).cni({**ENV, "CNI_COMMAND": command}, conf)


@pytest.mark.parametrize("over", ["{}", '{"cniVersion":"0.3.1"}', '{"cniVersion":"1.1.0"}', '{"cniVersion":"9.9.9"}'])
@pytest.mark.parametrize("version", ["", *SUPPORTED])
async def test_a_gone_pod_s_answer_is_in_the_runtime_s_version(tmp_path: Path, version: str, over: str) -> None:
    world = World()
    answer = json.loads(await call(world, tmp_path, "ADD", version, over))
    spoken = version or "0.1.0"
    ip = {"address": "0.0.0.0/32", "gateway": "0.0.0.0"}
    lists = {"cniVersion": spoken, "interfaces": [{"name": "eth0", "sandbox": "/run/netns/none"}], "ips": [ip]}
    if spoken in ("0.1.0", "0.2.0"):
        assert answer == {"cniVersion": spoken, "ip4": {"ip": "0.0.0.0/32", "gateway": "0.0.0.0"}, "dns": {}}
    elif spoken in ("1.0.0", "1.1.0"):
        assert answer == lists
    else:
        assert answer == {**lists, "ips": [{"version": "4", **ip}], "dns": {}}
    assert world.asked == ["plan"]


@pytest.mark.parametrize("version", ["", *SUPPORTED])
async def test_a_repeated_answer_is_in_the_runtime_s_version(tmp_path: Path, version: str) -> None:
    assert await call(World(ATTACHED), tmp_path, "ADD", version) == encode_result(RESULT, version)


@pytest.mark.parametrize("command", ["ADD", "CHECK", "STATUS", "GC"])
@pytest.mark.parametrize("over", ["{}", '{"cniVersion":"1.0.0"}'])
async def test_an_unknown_version_is_refused_before_anything_is_done(tmp_path: Path, command: str, over: str) -> None:
    world = World()
    with pytest.raises(CNIError) as caught:
        await call(world, tmp_path, command, "1.9.0", over)
    assert caught.value.code == Code.INCOMPATIBLE_VERSION
    assert caught.value.message == "the CNI configuration is in CNI version '1.9.0'"
    assert world.asked == []


async def test_a_del_passes_in_any_version(tmp_path: Path) -> None:
    """The ADD was refused, and the runtime repeats its DEL until it succeeds."""
    world = World()
    assert await call(world, tmp_path, "DEL", "1.9.0") == b""
    assert world.asked == ["rebuild"]


@pytest.mark.parametrize("over", ["{}", '{"cniVersion":"1.1.0"}'])
@pytest.mark.parametrize("version", ["", "0.1.0", "0.2.0", "0.3.0", "0.3.1"])
async def test_there_is_no_check_in_old_versions(tmp_path: Path, version: str, over: str) -> None:
    with pytest.raises(CNIError) as caught:
        await call(World(), tmp_path, "CHECK", version, over)
    assert caught.value.message == f'configuration version "{version}" does not support the CHECK command'


@pytest.mark.parametrize("version", ["0.4.0", "1.0.0", "1.1.0"])
async def test_a_check_of_what_nobody_attached(tmp_path: Path, version: str) -> None:
    with pytest.raises(CNIError) as caught:
        await call(World(), tmp_path, "CHECK", version, '{"cniVersion":"0.3.1"}')
    assert caught.value.code == Code.UNKNOWN_CONTAINER


@pytest.mark.parametrize(
    ("version", "over", "asked"),
    [
        ("1.1.0", "{}", ["status of the default network"]),
        ("1.1.0", '{"cniVersion":"0.3.1"}', ["status of the default network"]),
        ("1.0.0", '{"cniVersion":"1.1.0"}', []),
        ("", '{"cniVersion":"1.1.0"}', []),
    ],
)
async def test_a_status_is_asked_in_versions_that_have_it(
    tmp_path: Path, version: str, over: str, asked: list[str]
) -> None:
    world = World()
    assert await call(world, tmp_path, "STATUS", version, over) == b""
    assert world.asked == asked


async def test_a_status_says_at_once_that_the_default_network_is_not_ready(tmp_path: Path) -> None:
    """Runtimes repeat it every few seconds: to wait for the file, as upstream does, keeps ever more of them."""
    world = World()
    conf = json.dumps({"name": "n", "cniVersion": "1.1.0", "readinessindicatorfile": str(tmp_path / "ready")}).encode()
    made = commands(world, '{"multusConfigFile":"none"}', tmp_path)
    with pytest.raises(CNIError, match="ready") as caught, anyio.fail_after(10):
        await made.cni({**ENV, "CNI_COMMAND": "STATUS"}, conf)
    assert caught.value.code == Code.NOT_AVAILABLE
    assert world.asked == []
    (tmp_path / "ready").touch()
    assert await made.cni({**ENV, "CNI_COMMAND": "STATUS"}, conf) == b""
    assert world.asked == ["status of the default network"]


@pytest.mark.parametrize(("age", "spared"), [(-60.0, [("c1", "eth0")]), (60.0, [])])
async def test_gc_spares_what_was_attached_after_the_runtime_s_list(
    tmp_path: Path, age: float, spared: list[tuple[str, str]]
) -> None:
    """The GC may have waited: its list does not have what the runtime, or another one, has added since."""
    attached = msgspec.structs.replace(ATTACHED, created=time.time() - age)
    world = World(attached)
    conf = json.dumps({"name": "n", "cniVersion": "1.1.0", "cni.dev/valid-attachments": []}).encode()
    await commands(world, "{}", tmp_path).cni({**ENV, "CNI_COMMAND": "GC"}, conf)
    assert world.asked == [f"collect all but {spared}"]


@pytest.mark.parametrize("known", [True, False])
async def test_a_del_needs_no_usable_conf_for_what_the_journal_knows(tmp_path: Path, known: bool) -> None:
    """The operator has broken it meanwhile, and a runtime repeats a DEL that fails for ever."""
    world = World(ATTACHED if known else None)
    made = commands(world, '{"clusterNetwork":""}', tmp_path)
    env = {**ENV, "CNI_COMMAND": "DEL"}
    if not known:
        with pytest.raises(SettingsError, match="clusterNetwork"):
            await made.cni(env, b'{"name":"n"}')
        return
    assert await made.cni(env, b'{"name":"n"}') == b""
    world.attached = None
    assert await made.cni(env, b'{"name":"n"}') == b""  # runtimes repeat it
    assert world.asked == ["remove c1"]


async def test_a_container_that_is_known_by_another_interface_name_is_not_made_up(tmp_path: Path) -> None:
    """What its pod's annotation says is on the other one, and its addresses are in use."""
    world = World()
    world.others = [ATTACHED]
    assert await call(world, tmp_path, "DEL", "1.0.0") == b""
    assert world.asked == []


async def test_version_tells_all_that_are_known(tmp_path: Path) -> None:
    assert json.loads(await call(World(), tmp_path, "VERSION", "")) == {
        "cniVersion": "1.1.0",
        "supportedVersions": list(SUPPORTED),
    }


async def test_a_stored_del_with_a_conf_that_no_longer_works_ends(tmp_path: Path) -> None:
    """A runtime's own DEL is refused, for it can be sent again; nobody sends a stored one again."""
    world = World()
    made = commands(world, "{}", tmp_path)
    env, conf = {**ENV, "CNI_COMMAND": "DEL"}, b'{"name": "n", "delegates": "none"}'
    with pytest.raises(SettingsError):
        await made.cni(env, conf)
    assert world.asked == []
    await made.spooled(env, conf)
    assert world.asked == ["rebuild"]

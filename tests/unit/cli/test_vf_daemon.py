"""`multusctl vf` and `devices` beside a daemon: its pools, asked on its real socket."""

import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import anyio.to_thread
import pytest

from devices import guard
from devices.linux.sysfs import Sysfs
from devices.linux.uevents import RESCAN
from devices.manager import Manager
from multus import uses
from multus.byhand import ByHand
from multus.byhand_asks import Ask, ByHandError
from multus.cli import main
from multus.hardware import InUse, run_manager
from multus.journal import Journal
from multus.sandbox import Attachment, Sandbox, State
from multus.server import Server
from tests.fake_kubelet import FakeKubelet
from tests.fake_sysfs import FakeSysfs

pytestmark = pytest.mark.anyio

PF, NET = "0000:03:00.0", "intel.com/net"


def reasons() -> dict[str, str]:
    return {"eth0": "the node's IPv4 default route"}


class Node:
    """A daemon as far as devices go: journal, manager, and the socket; its files are below `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.fake = FakeSysfs(root)
        self.fake.pf(PF, netdev="ens1", total=8, num=4)
        self.fake.pf("0000:00:04.0", netdev="eth0", driver="e1000")
        self.pools({"resourceName": "net", "selectors": {"pfNames": ["ens1"]}})
        places = {"cniDir": str(root), "socketDir": str(root), "deviceInfoDir": str(root / "info")}
        (root / "s.json").write_text(
            json.dumps({**places, "deviceConfig": str(root / "p.json"), "kubeletDir": str(root / "kubelet")})
        )

    def pools(self, *pools: dict[str, Any]) -> None:
        (self.root / "p.json").write_text(json.dumps({"resourceList": pools}))

    def vf(self, index: int) -> str:
        return self.fake.vf_bdf(PF, index)

    @asynccontextmanager
    async def daemon(self, *, pools: bool = True) -> AsyncIterator[tuple[Manager, Journal]]:
        async with Journal.open(self.root / "journal.db") as journal, anyio.create_task_group() as group:
            manager = Manager(
                config=self.root / "p.json",
                info=self.root / "info",
                sysfs=Sysfs(self.fake.sys, self.fake.dev),
                store=journal.records,
                held=InUse(journal, None),
                reasons=reasons,
            )
            await group.start(run_manager, manager)
            hand = ByHand(
                manager if pools else None, journal.all, kubelet_dir=self.root / "kubelet", sysfs=self.fake.sys
            )
            handler: Any = SimpleNamespace(ready=lambda: (True, ""))
            await group.start(Server(self.root / "multus.sock", handler, devices=hand.answer).serve)
            yield manager, journal
            group.cancel_scope.cancel()


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    monkeypatch.setattr(guard, "read", reasons)
    return Node(tmp_path)


Run = Callable[..., Awaitable[tuple[int, str, str]]]


@pytest.fixture
def run(node: Node, capsys: pytest.CaptureFixture[str]) -> Run:
    async def call(*arguments: str) -> tuple[int, str, str]:
        options = ["--settings", str(node.root / "s.json"), "--sysfs", str(node.fake.sys)]
        if arguments[0] != "devices":
            arguments = ("vf", *arguments)
        options += ["--socket-dir", str(node.root)]  # of a fake tree, the daemon is asked only when it is named
        code = await anyio.to_thread.run_sync(main, [*arguments, *options])
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


async def attach(journal: Journal, bdf: str) -> None:
    item = Attachment(position=1, network="n", ifname="net1", conf=f'{{"type": "sriov", "deviceID": "{bdf}"}}'.encode())
    await journal.begin(
        Sandbox(
            container_id="c",
            ifname="eth0",
            state=State.ATTACHED,
            netns="",
            netns_id="",
            boot_id="b",
            pod_namespace="ns",
            pod_name="pod",
            pod_uid="u",
            attachments=(item,),
        )
    )


async def test_taken_and_given_back(node: Node, run: Run) -> None:
    """The daemon's own count has it at once, and it is there after a restart."""
    async with node.daemon() as (manager, _):
        assert await run("allocate", "net", "--count", "2") == (0, f"{node.vf(0)}\n{node.vf(1)}\n", "")
        assert (await run("allocate", NET, "--owner", "me"))[1].split() == [node.vf(2)]
        assert [(each.owner, each.devices) for each in manager.allocations] == [
            ("by hand: operator", (node.vf(0), node.vf(1))),
            ("by hand: me", (node.vf(2),)),
        ]
        assert await manager.allocate(NET, 1, owner="pod ns/x") == (node.vf(3),)
        assert (node.root / f"info/dp/intel.com-net-{node.vf(2)}-device.json").exists()
        assert (await run("release", "ens1v0"))[0] == 0
    async with node.daemon() as (manager, _):
        assert sorted(device for each in manager.allocations for device in each.devices) == [
            node.vf(index) for index in (1, 2, 3)
        ]
        assert (await run("release", node.vf(1)))[0] == 0
    # And without it, on the journal that it left.
    assert (await run("allocate", "net", "--count", "2"))[1].split() == [node.vf(0), node.vf(1)]
    async with node.daemon():
        code, _, err = await run("allocate", "net")
        assert code == 1
        assert f"needs 3 devices of {NET}: 0 of 4 are free" in err
        assert f"{node.vf(3)}: pod ns/x has it" in err


async def test_a_dry_run(node: Node, run: Run) -> None:
    async with node.daemon() as (manager, _):
        assert (await run("allocate", "net", "--dry-run"))[1] == f"would allocate {node.vf(0)} of {NET} to operator\n"
        assert manager.allocations == ()
        await run("allocate", "net")
        said = (await run("release", node.vf(0), "--dry-run"))[1]
        assert said == f"would release {node.vf(0)}, allocated by hand: operator\n"
        assert len(manager.allocations) == 1


async def test_refusals_say_why(node: Node, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async with node.daemon() as (manager, journal):
        await attach(journal, node.vf(0))  # a network that names its device itself, without a resource
        await manager.allocate(NET, 1, owner="pod ns/other", wanted=[node.vf(1)])
        assert (await run("allocate", "net"))[1].split() == [node.vf(2)]
        monkeypatch.setattr(uses, "programs", lambda bdf, sysfs: ["testpmd (12)"] if bdf == node.vf(2) else [])
        for arguments, said in (
            (("allocate", "nett"), f'did you mean "{NET}"?'),
            (("allocate", "net", "--count", "0"), "--count is at least 1"),
            (("allocate", "net", "--count", "2"), f"{node.vf(0)}: pod ns/pod (net1)"),
            (("release", node.vf(0)), f"{node.vf(0)} is in use by pod ns/pod (net1)"),
            (("release", node.vf(1)), f"{node.vf(1)} was given by the daemon: pod ns/other"),
            (("release", node.vf(2)), f"{node.vf(2)} is in use by testpmd (12)"),
            (("release", node.vf(3)), f"{node.vf(3)} is not allocated"),
            (("release", "ens9"), "no NIC or VF 'ens9' here"),
        ):
            code, out, err = await run(*arguments)
            assert (code, out) == (1, ""), arguments
            assert said in err, arguments
        assert len(manager.allocations) == 2


async def test_what_nothing_records_is_not_given(node: Node, run: Run) -> None:
    """Interfaces that are in another namespace, and what the kubelet gave to containers without a network."""
    (node.root / "kubelet").mkdir()
    node.fake.remove_netdev("ens1v0")
    async with node.daemon(), FakeKubelet(node.root / "kubelet") as kubelet:
        kubelet.pods["ns", "dpdk"] = [("app", [("other.com/name", [node.vf(1)])])]
        assert (await run("allocate", "net", "--count", "2"))[1].split() == [node.vf(2), node.vf(3)]
        err = (await run("allocate", "net"))[2]
        assert f"{node.vf(1)}: container app of pod ns/dpdk has it" in err
        assert f"{node.vf(0)}: whoever has its interface" in err
        assert (await run("release", node.vf(3)))[0] == 0
        kubelet.limited = 1000
        code, out, err = await run("allocate", "net")
        assert (code, out) == (1, "")
        assert "it cannot be told what the kubelet's containers have" in err


async def test_a_daemon_without_pools(node: Node, run: Run) -> None:
    async with node.daemon(pools=False):
        code, _, err = await run("allocate", "net")
        assert code == 1
        assert "this multusd has no pools" in err
        assert "deviceConfig" in err


async def test_many_at_once_get_one_each(node: Node, run: Run) -> None:
    """Two for each of two owners, side by side."""
    given: list[str] = []

    async def take(owner: str) -> None:
        given.extend((await hand.allocate(Ask(pool="net", owner=owner))).devices)

    async with node.daemon() as (manager, journal):
        hand = ByHand(manager, journal.all, sysfs=node.fake.sys)
        async with anyio.create_task_group() as group:
            for owner in ("a", "b", "a", "b"):
                group.start_soon(take, owner)
        assert sorted(given) == [node.vf(index) for index in range(4)]
        with pytest.raises(ByHandError, match="cannot be understood"):
            await hand.answer("allocate", b"[]")


async def test_vfs_are_made_by_the_daemon(node: Node, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of that PF is given out meanwhile, and what somebody has is not removed."""
    withheld: list[str] = []

    def set_numvfs(self: Sysfs, bdf: str, count: int) -> None:
        withheld.extend(each.reason for each in manager._giver.devices(manager.config.pools[0]))
        node.fake.grow(bdf, count)

    monkeypatch.setattr(Sysfs, "set_numvfs", set_numvfs)
    async with node.daemon() as (manager, journal):
        code, out, _ = await run("create", "ens1", "6", "--dry-run")
        assert (code, withheld) == (0, [])
        assert "make 6 VFs" in out
        code, out, _ = await run("create", "ens1", "6")
        assert code == 0
        assert "ens1 has 6 VFs" in out
        assert set(withheld) == {"its PF is changed by hand"}
        assert len(manager.pools.by_bdf) == 6  # it has looked when it answers
        assert len((await run("allocate", "net", "--count", "6"))[1].split()) == 6
        assert "by hand: operator" in (await run("create", "ens1", "0"))[2]
        for index in range(6):
            assert (await run("release", node.vf(index)))[0] == 0
        await attach(journal, node.vf(2))
        assert f"{node.vf(2)} by pod ns/pod (net1)" in (await run("create", "ens1", "0"))[2]


async def test_what_containers_have_is_not_removed(node: Node, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sysfs, "set_numvfs", lambda self, bdf, count: node.fake.grow(bdf, count))
    (node.root / "kubelet").mkdir()
    async with node.daemon(pools=False), FakeKubelet(node.root / "kubelet") as kubelet:
        kubelet.pods["ns", "dpdk"] = [("app", [("other.com/name", [node.vf(1)])])]
        assert "container app of pod ns/dpdk has it" in (await run("create", "ens1", "0"))[2]
        kubelet.limited = 1000
        assert "it cannot be told what the kubelet's containers have" in (await run("create", "ens1", "0"))[2]
        node.fake.grow(PF, 0)
        assert (await run("create", "ens1", "2"))[0] == 0  # there were none that a container could have


async def test_what_is_shown_is_the_daemons(node: Node, run: Run) -> None:
    """A VF that somebody has stays in its pool whatever the files say; why one is not healthy is told."""
    async with node.daemon() as (manager, _):
        await run("allocate", "net", "--owner", "me")
        node.fake.bind(node.vf(0), "vfio-pci")
        node.fake.bind(node.vf(1), "")
        node.pools({"resourceName": "net", "selectors": {"drivers": ["iavf"]}})
        with anyio.fail_after(10):
            while not manager.pools.by_bdf[node.vf(1)].reason:
                await manager.repool()
                await manager._refresh({RESCAN})
        for command in (("show",), ("devices",)):
            code, out, err = await run(*command)
            assert (code, err) == (0, "")
            lines = {line.split()[1]: line for line in out.splitlines() if node.vf(0)[:8] in line}
            assert re.search(f" {NET} +by hand: me$", lines[node.vf(0)])
            assert f" {NET} [" in lines[node.vf(1)]
        document = json.loads((await run("devices", "--json"))[1])
        first, second, *_ = document["devices"][1]["vfs"]
        assert (first["pool"], first["owner"], first["unhealthy"]) == (NET, "by hand: me", None)
        assert (second["pool"], second["owner"]) == (NET, None)
        assert "driver" in second["unhealthy"]

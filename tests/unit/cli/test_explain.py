"""`multusctl explain` on a node with pools of its own: the devices that a pod would get, and why it would not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from devices import guard
from devices.ledger import KIND, Ledger
from multus.assignments import pod_owner
from multus.cli import main, places
from multus.journal import Journal
from multus.kube.manifests import made_up_uid
from tests.fake_sysfs import FakeSysfs

PF, NET = "0000:03:00.0", "intel.com/net"


class Node:
    """Hardware, a folder of manifests, and a daemon's configuration; no daemon."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.fake = FakeSysfs(root)
        self.fake.pf(PF, netdev="ens1", total=8, num=4)
        self.manifests = root / "m"
        self.manifests.mkdir()
        for name, resource in (("vf", NET), ("plain", "")):
            self.nad(name, resource)
        self.write("p.json", {"resourceList": [{"resourceName": "net", "selectors": {"drivers": ["iavf"]}}]})
        self.write("conf", {"cniVersion": "1.0.0", "delegates": [{"name": "eth", "type": "ptp"}]})
        self.settings()

    def settings(self, **keys: object) -> None:
        given = {"manifests": str(self.manifests), "cniDir": str(self.root), "deviceConfig": str(self.root / "p.json")}
        self.write("s.json", {**given, **keys})

    def write(self, name: str, content: object) -> None:
        (self.root / name).write_text(json.dumps(content))

    def nad(self, name: str, resource: str) -> None:
        annotations = {"k8s.v1.cni.cncf.io/resourceName": resource} if resource else {}
        self.write(
            f"m/{name}.json",
            {
                "apiVersion": "k8s.cni.cncf.io/v1",
                "kind": "NetworkAttachmentDefinition",
                "metadata": {"name": name, "annotations": annotations},
                "spec": {"config": json.dumps({"cniVersion": "1.0.0", "name": name, "type": "sriov"})},
            },
        )

    def pod(self, name: str, networks: object) -> None:
        self.write(
            f"m/pod-{name}.json",
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": name, "annotations": {"k8s.v1.cni.cncf.io/networks": json.dumps(networks)}},
                "spec": {"containers": [{"name": "a"}, {"name": "b"}]},
            },
        )

    def vf(self, index: int) -> str:
        return self.fake.vf_bdf(PF, index)

    def give(self, owner: str, *devices: str) -> None:
        async def write() -> None:
            async with Journal.open(self.root / "journal.db") as journal:
                ledger = Ledger(journal.records)
                await ledger.load()
                await ledger.give(owner, NET, devices, now=1.0)

        anyio.run(write)

    async def records(self) -> list[tuple[str, bytes]]:
        async with Journal.open(self.root / "journal.db") as journal:
            return list(await journal.records.all(KIND))


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    made = Node(tmp_path)
    monkeypatch.setattr(guard, "read", dict)
    monkeypatch.setattr(places, "SYSFS", made.fake.sys)
    return made


Explain = Callable[..., tuple[int, Any]]


@pytest.fixture
def explain(node: Node, capsys: pytest.CaptureFixture[str]) -> Explain:
    def call(*arguments: str) -> tuple[int, Any]:
        options = ["--config", str(node.root / "s.json"), "--conf", str(node.root / "conf"), "--json"]
        code = main(["explain", *arguments, *options])
        return code, json.loads(capsys.readouterr().out)

    return call


def devices(plan: Any) -> list[str]:
    return [each["deviceID"] for each in plan["attachments"]]


def test_the_devices_that_a_pod_would_get(node: Node, explain: Explain) -> None:
    node.pod("one", [{"name": "vf"}, {"name": "plain"}, {"name": "vf"}])
    node.give("by hand: me", node.vf(0))
    before = anyio.run(node.records)
    code, (plan,) = explain("default/one")
    assert (code, plan["refusals"]) == (0, [])
    assert devices(plan) == ["", node.vf(1), "", node.vf(2)]
    conf = json.loads(json.dumps(plan["attachments"][1]["conf"]))
    assert conf["deviceID"] == node.vf(1)
    assert anyio.run(node.records) == before
    assert not (node.root / "info").exists()


def test_a_pod_that_has_its_devices_keeps_them(node: Node, explain: Explain) -> None:
    node.pod("one", [{"name": "vf"}])
    node.give(pod_owner("default", "one", made_up_uid("default", "one")), node.vf(3))
    assert devices(explain("default/one")[1][0]) == ["", node.vf(3)]


def test_wishes_count(node: Node, explain: Explain) -> None:
    wanted = [{"name": "vf"}, {"name": "vf", "cni-args": {}, "deviceID": node.vf(2)}]
    node.pod("one", wanted)
    assert devices(explain("default/one")[1][0]) == ["", node.vf(0), node.vf(2)]


def test_what_there_is_not(node: Node, explain: Explain) -> None:
    """Every refusal is told, those of the pools beside those of the networks."""
    node.pod("many", [{"name": "vf"}] * 5)
    node.pod("one", [{"name": "vf"}, {"name": "gone"}])
    node.nad("vf", "intel.com/nett")
    code, (plan,) = explain("default/one")
    assert code == 1
    assert any("gone" in each for each in plan["refusals"])
    assert plan["refusals"][-1] == f'no pool "intel.com/nett" (did you mean "{NET}"?)'
    node.nad("vf", NET)
    code, (plan,) = explain("default/many")
    assert code == 1
    assert f"needs 5 devices of {NET}: 4 of 4 are free" in plan["refusals"][-1]


def test_pods_of_a_file_get_different_ones(node: Node, explain: Explain) -> None:
    documents = []
    for name in ("one", "two"):
        node.pod(name, [{"name": "vf"}])
        documents.append((node.manifests / f"pod-{name}.json").read_text())
    (node.root / "pods.yaml").write_text("\n---\n".join(documents))
    code, plans = explain("-f", str(node.root / "pods.yaml"))
    assert code == 0
    assert [devices(plan)[1] for plan in plans] == [node.vf(0), node.vf(1)]


def test_a_node_without_pools(node: Node, explain: Explain) -> None:
    node.pod("one", [{"name": "vf"}])
    node.settings(deviceConfig="")
    code, (plan,) = explain("default/one")
    assert code == 1
    assert f"needs a device of resource '{NET}'" in plan["refusals"][0]

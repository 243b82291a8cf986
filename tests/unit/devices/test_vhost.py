"""needVhostNet: a pod gets both nodes where the host has them, else neither; and the node says why."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from devices import inventory, pools, vhost
from devices.giving import Giver
from devices.kubelet.allocate import device_specs, environment
from devices.ledger import Ledger, Memory
from devices.linux.sysfs import Sysfs
from devices.pool_config import parse_config
from multus.cli import examine_devices
from multus.settings import load_daemon
from tests.fake_sysfs import FakeSysfs

PF, RESOURCE = "0000:03:00.0", "intel.com/vfw"
POOL: dict[str, object] = {"resourceName": "vfw", "selectors": {"pfNames": ["ens1"], "needVhostNet": True}}
BOTH = ["/dev/vhost-net", "/dev/net/tun"]
Has = Callable[[FakeSysfs], None]


def node(name: str) -> Has:
    """Below /dev."""

    def make(tree: FakeSysfs) -> None:
        (tree.dev / name).parent.mkdir(exist_ok=True)
        (tree.dev / name).touch()

    return make


def driver(name: str) -> Has:
    """Loaded after the daemon's container was made, whose /dev does not show it."""
    return lambda tree: (tree.sys / "class/misc" / name).mkdir()


class Node:
    """A giver on a PF with two VFs."""

    def __init__(self, root: Path, *has: Has) -> None:
        self.tree = FakeSysfs(root)
        self.tree.pf(PF, netdev="ens1", total=8, num=2)
        for each in has:
            each(self.tree)
        self.sysfs = Sysfs(self.tree.sys, self.tree.dev)
        self.info = root / "info"
        self.giver = Giver(sysfs=self.sysfs, info=self.info, ledger=Ledger(Memory()))
        self.use(POOL)

    def use(self, pool: dict[str, object]) -> None:
        self.giver.config = parse_config(json.dumps({"resourceList": [pool]}).encode())
        self.giver.inventory = inventory.build(self.sysfs.read(), guarded={})
        self.giver.pools = pools.assign(self.giver.inventory, self.giver.config)

    async def given(self, index: int = 0) -> tuple[list[str], dict[str, str], str]:
        """Nodes, what the variable says of them, and what the device-info document does."""
        bdf = self.tree.vf_bdf(PF, index)
        grants = await self.giver.grant(RESOURCE, [bdf])
        told = json.loads(environment(RESOURCE, grants)["PCIDEVICE_INTEL_COM_VFW_INFO"])[bdf]
        document = json.loads((self.info / "dp" / f"intel.com-vfw-{bdf}-device.json").read_text())
        return [spec.host for spec in device_specs(grants)], told.get("vhost", {}), document["pci"].get("vhost-net", "")


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("has", "absent"),
    [
        ((node("vhost-net"), node("net/tun")), []),
        ((driver("vhost-net"), driver("tun")), []),
        ((node("vhost-net"), driver("tun")), []),
        ((), BOTH),
        ((node("vhost-net"),), ["/dev/net/tun"]),
        ((driver("tun"),), ["/dev/vhost-net"]),
    ],
)
async def test_both_or_neither(tmp_path: Path, has: tuple[Has, ...], absent: list[str]) -> None:
    made = Node(tmp_path, *has)
    assert list(vhost.missing(made.sysfs)) == absent
    nodes, told, information = await made.given()
    if absent:
        assert (nodes, told, information) == ([], {}, "")
    else:
        assert nodes == BOTH
        assert told == {"net-mount": "/dev/vhost-net", "tun-mount": "/dev/net/tun"}
        assert information == "/dev/vhost-net"


@pytest.mark.anyio
async def test_it_is_said_once_until_it_changes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = Node(tmp_path)
    for index in (0, 1, 0):
        await made.given(index)
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith(f"{RESOURCE}: needVhostNet, but this host has no /dev/vhost-net and no /dev/net/tun")
    assert "modprobe -a vhost_net tun" in said
    caplog.clear()
    node("net/tun")(made.tree)
    await made.given()
    (said,) = [record.getMessage() for record in caplog.records]
    assert "has no /dev/vhost-net, so" in said
    caplog.clear()
    driver("vhost-net")(made.tree)
    assert (await made.given())[0] == BOTH
    assert caplog.records == []
    (made.tree.dev / "net/tun").unlink()
    assert (await made.given())[0] == []
    assert "no /dev/net/tun" in caplog.text


@pytest.mark.anyio
async def test_who_does_not_ask_for_them_hears_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = Node(tmp_path)
    made.use({"resourceName": "vfw", "selectors": {"pfNames": ["ens1"]}})
    assert await made.given() == ([], {}, "")
    assert caplog.records == []


POLICY: dict[str, object] = {
    "metadata": {"name": "p"},
    "spec": {
        "resourceName": "vfw",
        "numVfs": 2,
        "needVhostNet": True,
        "nicSelector": {"pfNames": ["ens1"]},
        "nodeSelector": {"feature.node.kubernetes.io/network-sriov.capable": "true"},
    },
}


@pytest.mark.parametrize(
    ("policy", "pool", "has", "says"),
    [
        ({}, POOL, (), f"needVhostNet of {RESOURCE}: this host has no /dev/vhost-net and no /dev/net/tun"),
        (POLICY, {}, (), f"needVhostNet of {RESOURCE}: this host has no /dev/vhost-net and no /dev/net/tun"),
        ({}, POOL, (driver("tun"),), f"needVhostNet of {RESOURCE}: this host has no /dev/vhost-net, pods start"),
        ({}, POOL, (node("vhost-net"), node("net/tun")), ""),
        ({}, {"resourceName": "vfw", "selectors": {"pfNames": ["ens1"]}}, (), ""),
    ],
)
def test_the_doctor_says_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    policy: dict[str, object],
    pool: dict[str, object],
    has: tuple[Has, ...],
    says: str,
) -> None:
    made = Node(tmp_path, *has)
    monkeypatch.setattr(examine_devices, "Sysfs", lambda root: made.sysfs)
    (tmp_path / "pools.json").write_text(json.dumps({"resourceList": [pool] if pool else []}))
    places = {"deviceConfig": str(tmp_path / "pools.json"), "kubeletDir": str(tmp_path), "socketDir": str(tmp_path)}
    (tmp_path / "daemon.json").write_text(json.dumps({**places, "sriovPolicies": [policy] if policy else []}))
    found = [
        each for each in examine_devices.device_plugins(load_daemon(tmp_path / "daemon.json")) if each.level == "wrong"
    ]
    if says:
        (finding,) = found
        assert finding.what.startswith(says)
        assert "modprobe" in finding.advice
    else:
        assert found == []

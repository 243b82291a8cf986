"""`multusctl vf` on real hardware, beside a daemon and without one: the same VFs are never given twice."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from multus.cli import main
from multus.cni.errors import CNIError
from tests.vm.guest.hardware import Hardware, bind, until
from tests.vm.guest.node import Node

pytestmark = pytest.mark.timeout(200)
NETWORKS = "k8s.v1.cni.cncf.io/networks"
NET = "intel.com/net"

Ctl = Callable[..., tuple[int, str, str]]


@pytest.fixture
def node(tmp_path: Path, hardware: Hardware) -> Iterator[Node]:
    pool = {"resourceName": "net", "selectors": {"pfNames": [hardware.cards[0].netdev], "drivers": ["igbvf"]}}
    (tmp_path / "pools.json").write_text(json.dumps({"resourceList": [pool]}))
    with Node(tmp_path / "node") as made:
        made.configure(deviceConfig=str(tmp_path / "pools.json"))
        yield made


@pytest.fixture
def ctl(node: Node, capsys: pytest.CaptureFixture[str]) -> Ctl:
    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        option = "--config" if arguments[0] == "explain" else "--settings"
        code = main([*arguments, option, str(node.config)])
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


def _shown(ctl: Ctl, pf: str) -> list[dict[str, Any]]:
    document = json.loads(ctl("devices", "--json")[1])
    assert document["notes"] == []
    return next(list(each["vfs"]) for each in document["devices"] if each["netdev"] == pf)


def test_by_hand_and_pods_share_one_count(node: Node, hardware: Hardware, ctl: Ctl) -> None:
    card = hardware.cards[0]
    code, out, err = ctl("vf", "create", card.netdev, "4")
    assert (code, err) == (0, ""), out
    vfs = [card.vf(index) for index in range(4)]
    until(lambda: ctl("vf", "allocate", "net", "--count", "4", "--dry-run")[0] == 0, "four healthy VFs", seconds=60)
    assert ctl("vf", "allocate", "net", "--owner", "before")[1].split() == [vfs[0]]  # nobody serves yet

    node.start()
    assert ctl("vf", "allocate", "net", "--owner", "beside")[1].split() == [vfs[1]]
    node.nad("vf", {"cniVersion": "1.0.0", "type": "sriov"}, annotations={"k8s.v1.cni.cncf.io/resourceName": NET})
    pod = node.pod("pod", annotations={NETWORKS: json.dumps([{"name": "vf", "deviceID": vfs[3]}])})
    (plan,) = json.loads(ctl("explain", "default/pod", "--json")[1])
    assert [each["deviceID"] for each in plan["attachments"]] == ["", vfs[3]]
    until(lambda: _attach(node, pod), "the pod's VF", seconds=60)
    shown = _shown(ctl, card.netdev)
    assert [each["pool"] for each in shown] == [NET] * 4
    assert [each["owner"] for each in shown[:3]] == ["by hand: before", "by hand: beside", None]
    assert [each["pod"] for each in shown[3]["holders"]] == ["default/pod"]

    code, out, err = ctl("vf", "allocate", "net", "--count", "2")
    assert (code, out) == (1, "")
    assert f"needs 2 devices of {NET}: 1 of 4 are free" in err
    assert "pod default/pod (net1)" in err
    assert f"{vfs[3]} is in use by pod default/pod (net1)" in ctl("vf", "release", vfs[3])[2]
    code, _, err = ctl("vf", "create", card.netdev, "0")
    assert code == 1
    assert "in use" in err
    assert card.count == 4

    bind(vfs[0], "vfio-pci")  # as its owner would: it stays in the pool that it was given of
    until(lambda: _shown(ctl, card.netdev)[0]["driver"] == "vfio-pci", "the driver")
    assert _shown(ctl, card.netdev)[0]["pool"] == NET
    group = Path("/dev/vfio") / (card.path / "virtfn0/iommu_group").readlink().name
    with group.open("r+b", buffering=0):
        assert f"{vfs[0]} is in use by" in ctl("vf", "release", vfs[0])[2]
    assert ctl("vf", "release", vfs[0])[0] == 0
    node.cni("DEL", pod)
    node.stop()
    assert ctl("vf", "release", vfs[1])[0] == 0
    assert [each["owner"] for each in _shown(ctl, card.netdev)] == [None] * 4
    assert sorted(ctl("vf", "allocate", "net", "--count", "3")[1].split()) == vfs[1:]
    code, out, err = ctl("vf", "create", card.netdev, "0")
    assert code == 1
    for vf in vfs[1:]:
        assert ctl("vf", "release", vf)[0] == 0
    bind(vfs[0], "")
    assert ctl("vf", "create", card.netdev, "0")[0] == 0
    assert card.count == 0


def _attach(node: Node, pod: Any) -> bool:
    try:
        node.cni("ADD", pod)
    except CNIError as error:
        assert "is not free" in str(error), error
        return False
    return True

"""`multusctl devices`: the tree, the document, the map, and what it says when it knows less."""

import argparse
import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from devices.linux.vfs import DOT1Q, NO_MAC, QINQ, VFState
from multus.cli import device_map, device_view, devices
from multus.cli.device_view import Holder, View
from multus.cli.places import places
from multus.errors import MultusError
from multus.journal import Journal
from multus.sandbox import Attachment, Sandbox, State
from tests.fake_sysfs import FakeSysfs

FIRST, SECOND = "0000:03:00.0", "0000:03:00.1"
_SVG = "{http://www.w3.org/2000/svg}"

Run = Callable[..., int]


@pytest.fixture
def fake(tmp_path: Path) -> FakeSysfs:
    return FakeSysfs(tmp_path)


@pytest.fixture
def filled(fake: FakeSysfs) -> FakeSysfs:
    fake.pf(FIRST, netdev="ens1f0", total=8, num=2, group=10)
    fake.pf(SECOND, netdev="ens1f1", total=8, num=1, vf_driver="vfio-pci", vf_netdevs=False, carrier=False)
    fake.pf("0000:00:04.0", netdev="eth0", driver="e1000", carrier=False)
    return fake


def _arguments(tmp_path: Path, *given: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    devices.add_parser(parser.add_subparsers())
    config, file = tmp_path / "config.json", tmp_path / "daemon-config.json"
    if not file.exists():
        named = {"deviceConfig": str(config)} if config.exists() else {}
        file.write_text(json.dumps({"cniDir": str(tmp_path / "cni"), "socketDir": str(tmp_path / "run"), **named}))
    return parser.parse_args(["devices", "--sysfs", str(tmp_path / "sys"), "--settings", str(file), *given])


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return lambda *given: devices.run(_arguments(tmp_path, *given))


def _configure(tmp_path: Path) -> None:
    pool = {"resourceName": "fast", "resourcePrefix": "example.com", "selectors": {"pfNames": ["ens1f0"]}}
    (tmp_path / "config.json").write_text(json.dumps({"resourceList": [pool]}))


def _sandbox(*attachments: Attachment, state: State) -> Sandbox:
    return Sandbox(
        container_id="c1",
        ifname="eth0",
        state=state,
        netns="/run/netns/x",
        netns_id="4:1",
        boot_id="b",
        pod_namespace="telco",
        pod_name="vfw",
        pod_uid="u",
        attachments=attachments,
    )


def _hold(tmp_path: Path, *attachments: Attachment, state: State = State.ADDING) -> None:
    (tmp_path / "cni").mkdir()

    async def write() -> None:
        async with Journal.open(tmp_path / "cni/journal.db") as journal:
            await journal.begin(_sandbox(*attachments, state=state))

    anyio.run(write)


def _attachment(device: str, *, position: int = 1, result: dict[str, Any] | None = None) -> Attachment:
    return Attachment(
        position=position,
        network=f"telco/fast{position}",
        ifname=f"net{position}",
        conf=b"{}",
        device_id=device,
        result=None if result is None else json.dumps(result).encode(),
    )


def test_an_empty_machine_says_so(run: Run, fake: FakeSysfs, capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    assert capsys.readouterr().out == "no network devices on this machine's PCI buses\n"
    assert run("--json") == 0
    assert json.loads(capsys.readouterr().out) == {"devices": [], "notes": []}
    assert fake.sys.exists()


def test_the_tree(run: Run, filled: FakeSysfs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _configure(tmp_path)
    _hold(tmp_path, _attachment(filled.vf_bdf(FIRST, 1)), _attachment(filled.vf_bdf(SECOND, 0), position=2))
    assert run() == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    assert lines[0].startswith("0000:00:04.0  eth0  driver e1000, link down, NUMA 0, MAC ")
    assert lines[0].endswith("no SR-IOV")
    (first,) = [line for line in lines if line.startswith(FIRST)]
    assert "link up, NUMA 0, group 10" in first
    assert first.endswith("2 of 8 VFs")
    free, held = (line.split() for line in lines if "example.com/fast" in line)
    assert free[:7] == ["0", filled.vf_bdf(FIRST, 0), "ens1f0v0", "iavf", "up", "0", "11"]
    assert free[-2:] == ["example.com/fast", "-"]
    assert " ".join(held).endswith("example.com/fast telco/vfw net1 (telco/fast1) [adding]")
    (dpdk,) = [line.split() for line in lines if filled.vf_bdf(SECOND, 0) in line]
    assert dpdk[:5] == ["0", filled.vf_bdf(SECOND, 0), "-", "vfio-pci", "-"]


def test_an_interface_that_is_in_its_pod(run: Run, filled: FakeSysfs, tmp_path: Path, capsys: Any) -> None:
    filled.remove_netdev("ens1f0v1")
    _hold(tmp_path, _attachment(filled.vf_bdf(FIRST, 1)))
    run()
    assert "(in the pod)" in capsys.readouterr().out


def test_the_document(run: Run, filled: FakeSysfs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _configure(tmp_path)
    vf = filled.vf_bdf(FIRST, 0)
    result = {"cniVersion": "1.1.0", "interfaces": [{"name": "net1", "sandbox": "/run/netns/x", "pciID": vf}]}
    _hold(tmp_path, _attachment("", result=result))  # the network named the device, not a resource
    assert run("--json") == 0
    document = json.loads(capsys.readouterr().out)
    by_address = {each["address"]: each for each in document["devices"]}
    assert set(by_address) == {FIRST, SECOND, "0000:00:04.0"}
    first = by_address[FIRST]
    assert (first["netdev"], first["totalVFs"], first["numVFs"], first["pool"]) == ("ens1f0", 8, 2, None)
    assert [each["index"] for each in first["vfs"]] == [0, 1]
    assert (first["vfs"][0]["pool"], first["vfs"][0]["iommuGroup"]) == ("example.com/fast", "11")
    assert first["vfs"][0]["holders"] == [
        {"pod": "telco/vfw", "interface": "net1", "network": "telco/fast1", "containerID": "c1", "state": "adding"}
    ]
    assert first["vfs"][1]["holders"] == []


def _view(fake: FakeSysfs, tmp_path: Path, **more: Any) -> View:
    assert fake.sys == tmp_path / "sys"
    view = device_view.collect(places(_arguments(tmp_path)))
    return msgspec.structs.replace(view, **more)


@pytest.mark.parametrize(
    ("state", "cells"),
    [
        (VFState(), ["-", "-", "-", "-"]),
        (VFState(vlan=0, trust=False, spoofchk=True, min_tx=0, max_tx=0), ["none", "off", "on", "any"]),
        (VFState(vlan=7, proto=DOT1Q, qos=0, trust=True, max_tx=100, min_tx=0), ["7", "on", "-", "100"]),
        (VFState(vlan=7, proto=QINQ, qos=3, min_tx=10, max_tx=100), ["7 qos 3 802.1ad", "-", "-", "10-100"]),
    ],
)
def test_what_the_pf_says_of_a_vf(
    filled: FakeSysfs, tmp_path: Path, capsys: pytest.CaptureFixture[str], state: VFState, cells: list[str]
) -> None:
    vf = filled.vf_bdf(FIRST, 0)
    devices.tree(_view(filled, tmp_path, states={vf: state}))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if vf in line]
    assert re.split(r" {2,}", line)[-6:-2] == cells


@pytest.mark.parametrize(
    ("administrative", "shown"), [("aa:00:00:00:00:01", "aa:00:00:00:00:01"), (NO_MAC, "own"), (None, "own")]
)
def test_the_mac_on_the_wire(filled: FakeSysfs, tmp_path: Path, administrative: str | None, shown: str) -> None:
    vf = filled.vf_bdf(FIRST, 0)
    view = _view(filled, tmp_path, states={vf: VFState(mac=administrative)})
    device = view.inventory.by_bdf[vf]
    assert view.mac(device) == (device.mac if shown == "own" else shown)


def test_what_cannot_be_read_is_a_note(
    run: Run, filled: FakeSysfs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text('{"resourceList": 7}')
    (tmp_path / "cni").mkdir()
    (tmp_path / "cni/journal.db").write_bytes(b"this is no database, but longer than its header" * 10)
    assert run() == 0
    out, err = capsys.readouterr()
    assert FIRST in out
    assert "note: no pools: " in err
    assert "note: who holds a device is not known: " in err
    assert filled.sys.exists()


def test_names_do_not_move_the_cursor(filled: FakeSysfs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    holder = Holder(pod="a/\x1b[2J", interface="net1", network="n", container="c", state="attached")
    devices.tree(_view(filled, tmp_path, holders={filled.vf_bdf(FIRST, 0): (holder,)}, notes=("\x1b",)))
    out, err = capsys.readouterr()
    assert "\x1b" not in out + err
    assert r"a/\x1b[2J net1 (n)" in out


def _texts(drawing: str) -> list[str]:
    return [each.text or "" for each in ElementTree.fromstring(drawing).iter(f"{_SVG}text")]


def test_the_map(run: Run, filled: FakeSysfs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _configure(tmp_path)
    _hold(tmp_path, _attachment(filled.vf_bdf(FIRST, 1)))
    assert run("--svg", str(tmp_path / "map.svg")) == 0
    assert capsys.readouterr().out.strip().endswith("map.svg: 3 NICs, 3 VFs, 1 held")
    texts = _texts((tmp_path / "map.svg").read_text())
    for words in ("ens1f0  up", "example.com/fast", "telco/vfw", f"net1  {filled.vf_bdf(FIRST, 1)}  telco/fast1"):
        assert words in texts
    assert any(text.startswith(f"1  {filled.vf_bdf(FIRST, 1)}") for text in texts)


def test_the_map_of_nothing(fake: FakeSysfs, tmp_path: Path) -> None:
    assert "no network devices on this machine's PCI buses" in _texts(device_map.draw(_view(fake, tmp_path)))


def test_many_free_vfs_are_one_box(fake: FakeSysfs, tmp_path: Path) -> None:
    fake.pf(FIRST, netdev="ens1f0", total=63, num=60)
    holder = Holder(pod="<a>/\"&'\x07", interface="net1", network="n" * 300, container="c", state="attached")
    view = _view(fake, tmp_path, holders={fake.vf_bdf(FIRST, 20): (holder,)}, pools={fake.vf_bdf(FIRST, 20): "x/y"})
    texts = _texts(device_map.draw(view))
    assert {"0 to 19  20 free VFs  iavf", "21 to 59  39 free VFs  iavf"} <= set(texts)
    assert "<a>/\"&'\\x07" in texts
    assert max(len(text) for text in texts) < 60


def test_a_vf_that_was_given_by_hand_is_not_free_on_the_map(fake: FakeSysfs, tmp_path: Path) -> None:
    fake.pf(FIRST, netdev="ens1f0", total=64, num=64)
    owner = {fake.vf_bdf(FIRST, 10): "by hand: me"}
    texts = _texts(device_map.draw(_view(fake, tmp_path, owners=owner)))
    assert [each for each in texts if "free VFs" in each] == [
        "0 to 9  10 free VFs  iavf",
        "11 to 63  53 free VFs  iavf",
    ]
    assert {"by hand: me", fake.vf_bdf(FIRST, 10)} <= set(texts)


def test_a_map_that_cannot_be_written(run: Run, fake: FakeSysfs, tmp_path: Path) -> None:
    with pytest.raises(MultusError, match=r"map\.svg"):
        run("--svg", str(tmp_path / "nowhere/map.svg"))
    assert fake.sys.exists()


def test_this_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = _arguments(tmp_path, "--sysfs", "/sys", "--json")
    assert devices.run(arguments) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["notes"] == []


@pytest.mark.anyio
async def test_watching_shows_it_again_when_something_changed(
    fake: FakeSysfs, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Changes:
        """In place of the kernel: a change, one that makes no difference, another, and the end."""

        def __init__(self, _: Path) -> None:
            self.steps: list[Callable[[], object]] = [
                lambda: fake.pf(FIRST, netdev="ens1f0", total=4),
                lambda: None,
                lambda: fake.grow(FIRST, 2),
            ]

        async def __aenter__(self) -> "Changes":
            return self

        async def __aexit__(self, *_: object) -> None:
            return None

        def __aiter__(self) -> "Changes":
            return self

        async def __anext__(self) -> None:
            if not self.steps:
                raise StopAsyncIteration
            self.steps.pop(0)()

    monkeypatch.setattr(devices, "Uevents", Changes)
    monkeypatch.setattr(devices, "_SETTLE", 0)
    await devices.watch(_arguments(tmp_path, "--json", "--watch"))
    documents = [json.loads(line)["devices"] for line in capsys.readouterr().out.splitlines()]
    assert [len(found[0]["vfs"]) for found in documents] == [0, 2]


def test_no_box_of_the_map_covers_another_or_leaves_it(filled: FakeSysfs, tmp_path: Path) -> None:
    holders = {
        filled.vf_bdf(FIRST, 0): tuple(
            Holder(pod=f"a/p{number}", interface="net1", network="n", container="c", state="attached")
            for number in range(9)
        ),
        FIRST: (Holder(pod="a/p0", interface="net2", network="n", container="c", state="attached"),),
    }
    view = _view(filled, tmp_path, holders=holders, pools={filled.vf_bdf(FIRST, 1): "x/y", SECOND: "x/z"})
    drawing = ElementTree.fromstring(device_map.draw(view))
    page, *boxes = (
        tuple(float(rect.get(key, "0")) for key in ("x", "y", "width", "height"))
        for rect in drawing.iter(f"{_SVG}rect")
    )
    assert len(boxes) == 3 + 3 + 2 + 9
    for number, (x, y, width, height) in enumerate(boxes):
        assert x + width <= page[2]
        assert y + height <= page[3]
        for other_x, other_y, other_width, other_height in boxes[:number]:
            apart = (
                x >= other_x + other_width or other_x >= x + width or y >= other_y + other_height
            ) or other_y >= y + height
            assert apart

"""What a decision rests on, read from a fake tree and a namespace that is told."""

import contextlib
import subprocess
from pathlib import Path
from typing import Any

import pytest

from devices import guard
from devices.linux import links, netdevs, netns, routes, vfs
from devices.linux.links import Address, Link
from devices.linux.routes import Hop, Route
from devices.linux.sysfs import Sysfs
from devices.linux.vfs import SetMac, VFState
from dpdk.errors import DpdkError
from dpdk.kernel import Kernel
from tests.fake_sysfs import FakeSysfs

PF = "0000:03:00.0"


def route(destination: str, index: int, *, unicast: bool = True) -> Route:
    return Route(
        family=4,
        destination=destination,
        source="",
        table=254,
        metric=0,
        protocol=2,
        unicast=unicast,
        hops=(Hop(gateway="", index=index),),
        message=b"",
    )


@pytest.fixture
def tree(tmp_path: Path) -> FakeSysfs:
    made = FakeSysfs(tmp_path)
    made.driver("iavf")
    made.pf(PF, netdev="ens1", total=8, num=2, group=10)
    return made


@pytest.fixture
def kernel(tree: FakeSysfs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    monkeypatch.setattr(netns, "open_socket", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(vfs, "read", lambda _, index: {0: VFState(mac="02:aa:00:00:00:01"), 1: VFState(mac=None)})
    (tmp_path / "proc/sys/kernel/random").mkdir(parents=True)
    (tmp_path / "proc/sys/kernel/random/boot_id").write_text("b1\n")
    return Kernel(Sysfs(tree.sys, tree.dev), proc=tmp_path / "proc")


def test_facts(kernel: Kernel, tree: FakeSysfs, monkeypatch: pytest.MonkeyPatch) -> None:
    bdf = tree.vf_bdf(PF, 0)
    found = (Link(name="ens1v0", index=3, up=True, addresses=(Address(address="10.0.0.1/24"),)),)
    known = (
        route("10.0.0.0/24", 3),
        route("10.0.0.1/32", 4, unicast=False),
        route("fe80::/64", 5),
        route("0.0.0.0/0", 6),
    )
    monkeypatch.setattr(links, "read_links", lambda _: found)
    monkeypatch.setattr(routes, "read_routes", lambda _: known)
    monkeypatch.setattr(guard, "devices", lambda *_: {bdf: "the way out"})
    survey = kernel.survey()
    facts = kernel.facts(bdf, survey)
    assert facts.device is not None
    assert facts.device.bdf == bdf
    assert (facts.boot_id, facts.guarded, facts.admin_mac) == ("b1", "the way out", "02:aa:00:00:00:01")
    assert facts.links == found
    assert facts.routed == {3, 6}
    assert facts.group is not None
    assert facts.group.number == "11"
    assert facts.loaded == {"iavf", "ice"}
    assert kernel.facts("0000:ff:00.0", survey).device is None


def test_macs_go_through_the_pf(kernel: Kernel, tree: FakeSysfs, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[tuple[Any, ...]] = []
    monkeypatch.setattr(vfs, "apply", lambda _, *what: said.append(what))
    monkeypatch.setattr(netdevs, "change", lambda _, *what: said.append(what))
    index = int((tree.sys / "class/net/ens1/ifindex").read_text())
    kernel.set_admin_mac(PF, 1, "02:bb:00:00:00:02")
    kernel.set_address(7, "02:cc:00:00:00:03")
    assert said == [
        (index, 1, SetMac(mac="02:bb:00:00:00:02")),
        (7, netdevs.Change(mac="02:cc:00:00:00:03")),
    ]
    assert kernel.admin_mac(PF, 1) == ""
    assert kernel.admin_mac(PF, 5) == ""


def test_a_pf_without_an_interface_sets_no_mac(kernel: Kernel, tree: FakeSysfs) -> None:
    tree.remove_netdev("ens1")
    assert kernel.admin_mac(PF, 0) == ""
    with pytest.raises(DpdkError, match="no interface here"):
        kernel.set_admin_mac(PF, 0, "02:bb:00:00:00:02")


def test_nodes(kernel: Kernel, tree: FakeSysfs) -> None:
    assert kernel.node(tree.vf_bdf(PF, 0)) == tree.dev / "vfio/11"
    tree.pf("0000:04:00.0", netdev="ens2", total=8, num=1)
    vf = tree.vf_bdf("0000:04:00.0", 0)
    assert kernel.node(vf) is None
    (tree.path(vf) / "uio/uio3").mkdir(parents=True)
    assert kernel.node(vf) == tree.dev / "uio3"


def test_no_boot_id(tmp_path: Path) -> None:
    assert Kernel(proc=tmp_path).boot_id() == ""


@pytest.mark.parametrize(
    "fault",
    [
        subprocess.CompletedProcess([], 1, "", "modprobe: FATAL: Module vfio-pci not found."),
        FileNotFoundError("modprobe"),
        subprocess.TimeoutExpired("modprobe", 20),
    ],
    ids=["refused", "no modprobe", "hangs"],
)
def test_a_module_that_cannot_be_loaded(kernel: Kernel, monkeypatch: pytest.MonkeyPatch, fault: Any) -> None:
    def run(*_: object, **__: object) -> Any:
        if isinstance(fault, Exception):
            raise fault
        return fault

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(DpdkError, match="cannot load vfio-pci") as refused:
        kernel.load("vfio-pci")
    assert "/lib/modules" in refused.value.hint

"""IOMMU groups as sysfs shows them."""

import os
from pathlib import Path

import pytest

from devices.errors import KernelError
from devices.linux.sysfs import Sysfs
from dpdk.iommu import Group, Member, group_node, is_viable, noiommu_allowed, read_group
from tests.fake_sysfs import FakeSysfs


@pytest.fixture
def tree(tmp_path: Path) -> FakeSysfs:
    made = FakeSysfs(tmp_path)
    made.pf("0000:03:00.0", netdev="ens1f0", total=8, num=2)
    return made


def test_members_with_their_drivers(tree: FakeSysfs) -> None:
    first, second = (tree.vf_bdf("0000:03:00.0", index) for index in range(2))
    tree.device("0000:00:01.0", class_=0x060400, driver="shpchp", group=7)
    for bdf in (first, second):
        tree.group(bdf, 7)
    tree.bind(second, "vfio-pci")
    (tree.sys / "kernel/iommu_groups/7/type").write_text("DMA-FQ\n")
    group = read_group(Sysfs(tree.sys, tree.dev), first)
    assert group == Group(
        number="7",
        members=(
            Member(bdf="0000:00:01.0", driver="shpchp", bridge=True),
            Member(bdf=first, driver="iavf"),
            Member(bdf=second, driver="vfio-pci"),
        ),
        type="DMA-FQ",
    )
    assert group.translated
    assert [each.bdf for each in group.blockers(())] == [first]
    assert group.blockers({first}) == ()


def test_no_group(tree: FakeSysfs) -> None:
    assert read_group(Sysfs(tree.sys, tree.dev), tree.vf_bdf("0000:03:00.0", 0)) is None
    assert read_group(Sysfs(tree.sys, tree.dev), "0000:ff:00.0") is None


def test_a_group_without_an_iommu_has_another_node(tree: FakeSysfs) -> None:
    bdf = tree.vf_bdf("0000:03:00.0", 0)
    tree.group(bdf, 3, name="vfio-noiommu")
    sysfs = Sysfs(tree.sys, tree.dev)
    group = read_group(sysfs, bdf)
    assert group is not None
    assert group.noiommu
    assert group_node(sysfs, group) == tree.dev / "vfio/noiommu-3"
    assert not group.translated


@pytest.mark.parametrize(("text", "allowed"), [("Y", True), ("1", True), ("N", False), (None, False)])
def test_whether_vfio_takes_devices_without_an_iommu(tree: FakeSysfs, text: str | None, allowed: bool) -> None:
    if text is not None:
        home = tree.sys / "module/vfio/parameters"
        home.mkdir(parents=True)
        (home / "enable_unsafe_noiommu_mode").write_text(text + "\n")
    assert noiommu_allowed(Sysfs(tree.sys, tree.dev)) is allowed


def test_who_cannot_be_asked_says_nothing(tmp_path: Path) -> None:
    assert is_viable(tmp_path / "absent") is None
    (tmp_path / "plain").touch()
    assert is_viable(tmp_path / "plain") is None


@pytest.mark.skipif(os.geteuid() != 0, reason="a directory is opened to write by nobody, root included")
def test_a_refusal_is_told(tmp_path: Path) -> None:
    with pytest.raises(KernelError, match="asking about"):
        is_viable(tmp_path)

"""PCI devices read from a tree, with everything in it missing, garbled or vanishing; and refused writes explained."""

import errno
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices.errors import KernelError
from devices.linux import sysfs as module
from devices.linux.nodes import read_nodes
from devices.linux.sysfs import AddressError, Sysfs, parse_address, parse_class, parse_numa, vf_address, vf_index
from tests.fake_sysfs import FakeSysfs

PF = "0000:03:00.0"


@pytest.fixture
def fake(tmp_path: Path) -> FakeSysfs:
    return FakeSysfs(tmp_path)


@pytest.fixture
def sysfs(fake: FakeSysfs) -> Sysfs:
    return Sysfs(fake.sys, fake.dev)


def test_a_pf_and_its_vfs(fake: FakeSysfs, sysfs: Sysfs) -> None:
    fake.device("0000:00:1f.0", driver="lpc_ich")
    fake.pf(PF, netdev="ens1f0", total=8, num=3, group=20, numa=1, mac="aa:bb:cc:00:00:01", mtu=9000)
    pf, first, *_ = records = sysfs.read()
    assert [record.bdf for record in records] == [PF, "0000:03:01.0", "0000:03:01.1", "0000:03:01.2"]
    assert (pf.vendor, pf.device, pf.class_, pf.driver, pf.numa_node) == ("8086", "1592", 0x020000, "ice", 1)
    assert (pf.total_vfs, pf.num_vfs, pf.physfn, pf.iommu_group) == (8, 3, None, "20")
    assert pf.virtfns == ((0, "0000:03:01.0"), (1, "0000:03:01.1"), (2, "0000:03:01.2"))
    assert pf.netdev is not None
    assert (pf.netdev.name, pf.netdev.mac, pf.netdev.mtu) == ("ens1f0", "aa:bb:cc:00:00:01", 9000)
    assert (pf.netdev.carrier, pf.netdev.operstate, pf.netdev.type) == (True, "up", 1)
    assert (first.physfn, first.vf_index, first.driver, first.iommu_group, first.total_vfs) == (PF, 0, "iavf", "21", 0)
    assert [sysfs.read_one(record.bdf) for record in records] == list(records)


def test_an_empty_machine_and_none_at_all(sysfs: Sysfs, tmp_path: Path) -> None:
    assert sysfs.read() == ()
    assert Sysfs(tmp_path / "nowhere").read() == ()
    assert sysfs.read_one(PF) is None


def test_devices_that_count_whatever_their_class(fake: FakeSysfs, sysfs: Sysfs) -> None:
    fake.device("0000:00:01.0", class_=0x060400)
    fake.device("0000:00:02.0", class_=0x120000)
    fake.device("0000:00:03.0", class_=0x0B4000)
    fake.set("0000:00:03.0", "sriov_totalvfs", "16")
    assert [record.bdf for record in sysfs.read()] == ["0000:00:02.0", "0000:00:03.0"]


def test_a_virtio_interface_is_one_level_below(fake: FakeSysfs, sysfs: Sysfs) -> None:
    fake.device("0000:00:03.0", class_=0x020000, driver="virtio-pci")
    fake.netdev("0000:00:03.0", "eth0", within="virtio0")
    (record,) = sysfs.read()
    assert [net.name for net in record.netdevs] == ["eth0"]


def test_of_several_interfaces_the_uplink_stands_for_the_device(fake: FakeSysfs, sysfs: Sysfs) -> None:
    fake.pf(PF, driver="mlx5_core")
    fake.netdev(PF, "eth0", port_name="pf0vf0", switch_id="0c42a1")
    fake.netdev(PF, "eth9", port_name="p0", switch_id="0c42a1")
    (record,) = sysfs.read()
    assert record.netdev is not None
    assert (record.netdev.name, record.netdev.switch_id) == ("eth9", "0c42a1")


@pytest.mark.parametrize(("carrier", "seen"), [(True, True), (False, False), (None, None)])
def test_carrier(fake: FakeSysfs, sysfs: Sysfs, carrier: bool | None, seen: bool | None) -> None:
    fake.pf(PF, netdev="ens1f0", carrier=carrier)
    net = sysfs.read()[0].netdev
    assert net is not None
    assert net.carrier is seen


# 33
@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("01:00.0", "0000:01:00.0"),
        ("0000:01:00.0", "0000:01:00.0"),
        ("10000:3B:1F.7", "10000:3b:1f.7"),
        (" 0000:3b:02.1\n", "0000:3b:02.1"),
    ],
)
def test_addresses(text: str, full: str) -> None:
    assert parse_address(text) == full


@pytest.mark.parametrize(
    "text", ["", "junk", "0000:01:00.8", "0000:01:20.0", "01:00", "000:01:00.0", "0000:01:00.0/.."]
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(AddressError, match="no PCI address"):
        parse_address(text)


@given(st.text(max_size=40))
def test_addresses_fuzzed(text: str) -> None:
    try:
        full = parse_address(text)
    except AddressError:
        return
    assert parse_address(full) == full


# 34
@pytest.mark.parametrize(
    ("content", "node"),
    [("0", 0), ("1", 1), ("-1", -1), ("junk", -1), ("", -1), (None, -1), ("\u00b2", -1), ("9" * 40, -1)],
)
def test_numa(fake: FakeSysfs, sysfs: Sysfs, content: str | None, node: int) -> None:
    assert parse_numa(content) == node
    fake.pf(PF)
    if content is None:
        (fake.path(PF) / "numa_node").unlink()
    else:
        fake.set(PF, "numa_node", content)
    assert sysfs.read()[0].numa_node == node


# 35
@pytest.mark.parametrize(("content", "count"), [("3", 3), ("0", 0), ("junk", 0), ("-1", 0), ("", 0), (None, 0)])
def test_num_vfs(fake: FakeSysfs, sysfs: Sysfs, content: str | None, count: int) -> None:
    fake.pf(PF, total=8)
    if content is None:
        (fake.path(PF) / "sriov_numvfs").unlink()
    else:
        fake.set(PF, "sriov_numvfs", content)
    assert sysfs.read()[0].num_vfs == count


# 36
def test_the_number_of_a_vf_is_that_of_its_link(fake: FakeSysfs, sysfs: Sysfs) -> None:
    fake.pf(PF, total=8, num=4)
    vf = fake.vf_bdf(PF, 2)
    assert sysfs.read_one(vf).vf_index == 2  # type: ignore[union-attr]
    for file in ("sriov_offset", "sriov_stride"):  # an older kernel
        (fake.path(PF) / file).unlink()
    assert sysfs.read_one(vf).vf_index == 2  # type: ignore[union-attr]
    (fake.path(PF) / "virtfn2").unlink()
    assert sysfs.read_one(vf).vf_index == -1  # type: ignore[union-attr]
    assert {record.bdf: record.vf_index for record in sysfs.read()}[vf] == -1


def test_numbers_need_not_be_contiguous(fake: FakeSysfs, sysfs: Sysfs) -> None:
    fake.pf(PF, total=8, num=4)
    fake.remove(fake.vf_bdf(PF, 1))
    assert [record.vf_index for record in sysfs.read()] == [-1, 0, 2, 3]


# 37
def test_the_iommu_group(fake: FakeSysfs, sysfs: Sysfs) -> None:
    fake.pf(PF, driver="vfio-pci", group=1)
    assert sysfs.read()[0].iommu_group == "1"
    assert read_nodes(PF, sysfs=fake.sys).group == "1"
    assert sysfs.group_members("1") == (PF,)
    (fake.path(PF) / "iommu_group").unlink()
    (fake.path(PF) / "iommu_group").mkdir()  # what is no link is no group
    assert sysfs.read()[0].iommu_group is None
    assert read_nodes(PF, sysfs=fake.sys).group == ""


# 38
def test_uio(fake: FakeSysfs, sysfs: Sysfs) -> None:
    fake.pf(PF, driver="igb_uio")
    (fake.path(PF) / "uio/uio1").mkdir(parents=True)
    assert sysfs.read()[0].uio == ("uio1",)
    assert read_nodes(PF, sysfs=fake.sys).uio == ("uio1",)


# 39
def test_the_driver(fake: FakeSysfs, sysfs: Sysfs) -> None:
    fake.pf(PF, driver="vfio-pci")
    assert sysfs.read()[0].driver == "vfio-pci"
    fake.bind(PF, "")
    assert sysfs.read()[0].driver == ""


@pytest.mark.parametrize(("content", "seen"), [("(null)", ""), ("vfio-pci", "vfio-pci"), ("", "")])
def test_driver_override(fake: FakeSysfs, sysfs: Sysfs, content: str, seen: str) -> None:
    fake.pf(PF)
    fake.set(PF, "driver_override", content)
    assert sysfs.read()[0].driver_override == seen


# 40
@pytest.mark.parametrize(("text", "number"), [("c0fe", 0xC0FE), ("0x020000", 0x020000), ("20000\n", 0x020000)])
def test_classes(text: str, number: int) -> None:
    assert parse_class(text) == number


@pytest.mark.parametrize("text", ["", "0x", "network", "-"])
def test_what_is_no_class(text: str) -> None:
    with pytest.raises(AddressError, match="class"):
        parse_class(text)


def test_a_device_without_a_class_is_left_out(fake: FakeSysfs, sysfs: Sysfs) -> None:
    fake.pf(PF)
    fake.set(PF, "uevent", "DRIVER=ice")
    assert sysfs.read() == ()


# 41: an auxiliary device is none of the PCI bus, and its name no address
@pytest.mark.parametrize("name", ["mlx5_core.sf.123", ".-4", ""])
def test_auxiliary_devices_are_no_addresses(name: str) -> None:
    with pytest.raises(AddressError):
        parse_address(name)


@pytest.mark.parametrize(
    ("pf", "index", "offset", "stride", "vf"),
    [
        ("0000:03:00.0", 0, 8, 1, "0000:03:01.0"),
        ("0000:03:00.1", 63, 128, 2, "0000:03:1f.7"),
        ("0000:03:00.0", 9, 0x80, 0x10, "0000:04:02.0"),
        ("0001:ff:00.0", 0, 1, 0, "0001:ff:00.1"),
    ],
)
def test_where_vfs_are(pf: str, index: int, offset: int, stride: int, vf: str) -> None:
    assert vf_address(pf, index, offset, stride) == vf
    assert vf_index(pf, vf, offset, stride) == index


@pytest.mark.parametrize(
    ("vf", "offset", "stride"),
    [("0000:03:01.1", 8, 2), ("0000:03:00.7", 8, 1), ("0001:03:01.0", 8, 1), ("0000:03:01.0", 0, 0), ("junk", 8, 1)],
)
def test_where_they_are_not(vf: str, offset: int, stride: int) -> None:
    assert vf_index(PF, vf, offset, stride) == -1


def test_announced_before_its_links(fake: FakeSysfs, sysfs: Sysfs) -> None:
    fake.pf(PF, total=8)
    vf = fake.vf(PF, 0, linked=False)
    early = sysfs.read_one(vf)
    assert early is not None
    assert (early.physfn, early.vf_index) == (None, -1)
    fake.link_vf(PF, 0)
    late = sysfs.read_one(vf)
    assert late is not None
    assert (late.physfn, late.vf_index) == (PF, 0)


def _calls(monkeypatch: pytest.MonkeyPatch, at: int, then: Callable[[], None]) -> None:
    """Have something happen just before the read of an attribute, link or directory number `at`."""
    done = 0

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            nonlocal done
            done += 1
            if done == at:
                then()
            return function(*arguments)

        return call

    for name in ("_text", "_target", "_names"):
        monkeypatch.setattr(module, name, counted(getattr(module, name)))


@pytest.mark.parametrize("at", range(1, 60))
def test_a_vf_that_vanishes_while_it_is_read(
    fake: FakeSysfs, sysfs: Sysfs, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    fake.pf(PF, netdev="ens1f0", total=4, num=2, group=5)
    whole = sysfs.read()
    vf = fake.vf_bdf(PF, 1)
    _calls(monkeypatch, at, lambda: fake.remove(vf))
    found = sysfs.read()
    assert [record.bdf for record in found] in ([PF, fake.vf_bdf(PF, 0)], [record.bdf for record in whole])
    assert found[1].bdf == fake.vf_bdf(PF, 0)
    for record in found:
        assert all(net.ifindex and net.name for net in record.netdevs)


@pytest.mark.parametrize("at", range(1, 14))
def test_an_interface_that_goes_into_a_pod_while_it_is_read(
    fake: FakeSysfs, sysfs: Sysfs, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    fake.pf(PF, netdev="ens1f0")
    _calls(monkeypatch, at, lambda: fake.remove_netdev("ens1f0"))
    (record,) = sysfs.read()
    assert record.driver == "ice"
    assert all(net.ifindex for net in record.netdevs)


@settings(deadline=None, max_examples=30)
@given(st.binary(max_size=200))
def test_garbage_in_attributes(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        fake = FakeSysfs(Path(scratch))
        fake.pf(PF, netdev="e", total=2)
        path = fake.path(PF)
        for file in ("numa_node", "sriov_numvfs", "sriov_offset", "driver_override", "net/e/mtu", "net/e/carrier"):
            (path / file).write_bytes(data)
        (path / "uevent").write_bytes(b"PCI_CLASS=20000\n" + data)
        for record in Sysfs(fake.sys).read():
            assert record.num_vfs >= 0
            assert record.numa_node >= -1


def test_making_vfs(fake: FakeSysfs, sysfs: Sysfs) -> None:
    fake.pf(PF, total=8, num=2)
    sysfs.set_numvfs(PF, 4)
    assert fake.get(PF, "sriov_numvfs").startswith("4")


def test_the_same_number_is_not_written(fake: FakeSysfs, sysfs: Sysfs, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.pf(PF, total=8, num=2)
    monkeypatch.setattr(os, "write", lambda *_: pytest.fail("written"))
    sysfs.set_numvfs(PF, 2)


@pytest.mark.parametrize(
    ("code", "words", "retry"),
    [
        (errno.EBUSY, "has VFs, of another number", False),
        (errno.ERANGE, "more than the device has", False),
        (errno.ENOENT, "its driver does not create VFs", False),
        (errno.ENODEV, "was removed", False),
        (errno.EACCES, "root is needed", False),
        (errno.ENOMEM, "pci=realloc", True),
        (errno.EIO, "error", False),
    ],
)
def test_a_refusal_is_explained(
    fake: FakeSysfs, sysfs: Sysfs, monkeypatch: pytest.MonkeyPatch, code: int, words: str, retry: bool
) -> None:
    fake.pf(PF, total=8, num=2)

    def refuse(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "write", refuse)
    with pytest.raises(KernelError) as caught:
        sysfs.set_numvfs(PF, 4)
    assert caught.value.code == code
    assert words in str(caught.value)
    assert PF in caught.value.message
    assert caught.value.retry is retry


def test_writes(fake: FakeSysfs, sysfs: Sysfs) -> None:
    fake.pf(PF)
    home = fake.driver("vfio-pci")
    sysfs.write(PF, "driver_override", "vfio-pci")
    sysfs.write_driver("vfio-pci", "bind", PF)
    sysfs.probe(PF)
    assert (fake.path(PF) / "driver_override").read_text().startswith("vfio-pci")
    assert (home / "bind").read_text() == (fake.sys / "bus/pci/drivers_probe").read_text() == PF
    assert (sysfs.attribute(PF, "vendor"), sysfs.attribute(PF, "nothing")) == ("0x8086", None)
    with pytest.raises(KernelError, match="not loaded"):
        sysfs.write_driver("nowhere", "bind", PF)
    with pytest.raises(KernelError, match="not there"):
        sysfs.write("0000:09:00.0", "driver_override", "x")

"""Device-info files: names, copying, and what is left out rather than believed."""

import logging
import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multus import devinfo
from multus.files import FileError

pytestmark = pytest.mark.anyio

RESOURCE, DEVICE = "intel.com/sriov_net_A", "0000:3b:02.1"
DP_FILE = "intel.com-sriov_net_A-0000:3b:02.1-device.json"
INFO = {"type": "pci", "version": "1.1.0", "pci": {"pci-address": DEVICE}}
NAME = devinfo.cni_file_name("default/sriov", "abc", "net1")


def _told(directory: Path, data: bytes) -> None:
    (directory / "dp").mkdir(exist_ok=True)
    (directory / "dp" / DP_FILE).write_bytes(data)


def _entries(directory: Path) -> list[str]:
    return sorted(path.name for path in (directory / "cni").iterdir()) if (directory / "cni").exists() else []


def test_names_are_those_of_upstream() -> None:
    assert Path("/var/run/k8s.cni.cncf.io/devinfo/cni") == devinfo.CNI_DIRECTORY
    assert NAME == "default-sriov-abc_net1"
    assert devinfo.device_file_name(RESOURCE, DEVICE) == DP_FILE


def test_long_names_fit_the_file_system_and_stay_apart(tmp_path: Path) -> None:
    names = {devinfo.cni_file_name("ns/" + "n" * 253, "c" * 64, ifname) for ifname in ("net1", "net2")}
    assert len(names) == 2
    for name in names:
        (tmp_path / "cni").mkdir(exist_ok=True)
        (tmp_path / "cni" / f".{name}.multus-tmp-4194304").touch()


@given(st.text(), st.text(), st.text())
def test_a_name_is_always_one_component(network: str, container: str, ifname: str) -> None:
    name = devinfo.cni_file_name(network, container, ifname)
    assert "/" not in name
    assert "\0" not in name
    assert name not in ("", ".", "..")
    assert len(name.encode()) <= 200


async def test_what_the_device_plugin_told_reaches_delegate_and_status_and_is_taken_back(tmp_path: Path) -> None:
    _told(tmp_path, msgspec.json.encode(INFO))
    devinfo.publish(tmp_path, RESOURCE, DEVICE, NAME)
    assert (tmp_path / "cni" / NAME).stat().st_mode & 0o7777 == 0o444
    assert await devinfo.read(tmp_path, NAME) == INFO
    devinfo.withdraw(tmp_path, NAME)
    assert _entries(tmp_path) == []
    assert (tmp_path / "dp" / DP_FILE).exists()  # the device plugin's own
    devinfo.withdraw(tmp_path, NAME)
    assert await devinfo.read(tmp_path, NAME) is None


async def test_the_file_of_a_crashed_attachment_is_replaced(tmp_path: Path) -> None:
    _told(tmp_path, b'{"type": "vdpa"}')
    devinfo.publish(tmp_path, RESOURCE, DEVICE, NAME)
    _told(tmp_path, msgspec.json.encode(INFO))
    devinfo.publish(tmp_path, RESOURCE, DEVICE, NAME)
    assert await devinfo.read(tmp_path, NAME) == INFO
    assert _entries(tmp_path) == [NAME]


async def test_a_device_plugin_that_tells_nothing_is_no_matter(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    devinfo.publish(tmp_path, RESOURCE, DEVICE, NAME)
    assert not (tmp_path / "cni").exists()
    assert await devinfo.read(tmp_path, NAME) is None
    assert not caplog.records


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b'"x"', b"\xff", b"[" * 50_000, b'{"a":' * 12_000])
async def test_what_is_no_object_is_left_out_and_logged(
    data: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _told(tmp_path, data)
    devinfo.publish(tmp_path, RESOURCE, DEVICE, NAME)
    assert _entries(tmp_path) == []
    (tmp_path / "cni").mkdir(exist_ok=True)
    (tmp_path / "cni" / NAME).write_bytes(data)  # as a delegate may have written it
    assert await devinfo.read(tmp_path, NAME) is None
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2


async def test_neither_size_nor_kind_of_a_file_harms(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _told(tmp_path, b'{"a": "' + b"x" * 70_000 + b'"}')
    devinfo.publish(tmp_path, RESOURCE, DEVICE, NAME)
    assert _entries(tmp_path) == []
    (tmp_path / "cni").mkdir(exist_ok=True)
    os.mkfifo(tmp_path / "cni" / NAME)
    assert await devinfo.read(tmp_path, NAME) is None
    assert len(caplog.records) == 2


async def test_no_attachment_fails_for_a_directory_that_cannot_be_made(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _told(tmp_path, msgspec.json.encode(INFO))
    (tmp_path / "cni").write_text("in the way")
    devinfo.publish(tmp_path, RESOURCE, DEVICE, NAME)
    assert "not passed on" in caplog.text


def test_a_file_that_cannot_be_removed_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "cni" / NAME).mkdir(parents=True)
    with pytest.raises(FileError):
        devinfo.withdraw(tmp_path, NAME)


@pytest.mark.parametrize("name", ["../dp/" + DP_FILE, "/etc/passwd", "..", ".", "", "a\0b", "\ud800"])
async def test_a_name_leads_nowhere_else(name: str, tmp_path: Path) -> None:
    _told(tmp_path, msgspec.json.encode(INFO))
    assert await devinfo.read(tmp_path, name) is None
    devinfo.withdraw(tmp_path, name)
    devinfo.publish(tmp_path, RESOURCE, DEVICE, name)
    assert len(_entries(tmp_path)) == 1
    assert (tmp_path / "dp" / DP_FILE).exists()

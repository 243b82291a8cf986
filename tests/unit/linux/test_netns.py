"""Which namespace a path leads to, and what is refused: all that needs no root."""

import os
import socket
import struct
import sys
import threading
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.errors import DeviceError, KernelError, NamespaceError
from devices.linux import netns, rtnetlink
from devices.linux.links import read_links
from devices.linux.pci import driver_of
from devices.linux.routes import read_routes


def test_our_own_namespace_has_an_identity() -> None:
    found = Path("/proc/self/ns/net").stat()
    assert netns.identity("/proc/self/ns/net") == f"{found.st_dev}:{found.st_ino}"
    assert netns.identity("/proc/thread-self/ns/net") == netns.identity("/proc/self/ns/net")


@pytest.mark.parametrize("other", ["mnt", "uts", "ipc", "pid", "user"])
def test_a_namespace_of_another_type_is_no_network_namespace(other: str) -> None:
    assert netns.identity(f"/proc/self/ns/{other}") is None


@pytest.mark.parametrize(
    "path", ["", "/nowhere/at/all", "/proc/self/ns", "/dev/null", "/etc/passwd/x", "/a\0b", "/" + "x" * 300, "\udcff"]
)
def test_what_is_no_namespace_has_no_identity(path: str) -> None:
    assert netns.identity(path) is None


def test_a_fifo_and_a_plain_file_are_none_and_nothing_blocks(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("fifo", "file", "loop"):
        assert netns.identity(str(tmp_path / name)) is None
        with pytest.raises(NamespaceError):
            netns.interface_names(str(tmp_path / name))


def test_without_a_free_descriptor_a_namespace_is_not_taken_for_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: object) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("devices.linux.netns.os.open", exhausted)
    assert netns.identity("/proc/self/ns/net") is not None
    with pytest.raises(NamespaceError) as raised:
        netns.interface_names("/proc/self/ns/net")
    assert raised.value.retry
    assert not raised.value.gone


def test_what_the_kernel_cannot_say_is_an_error_and_not_absence(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> os.stat_result:
        raise OSError(5, "Input/output error")

    netns.identity("/proc/self/ns/net")
    monkeypatch.setattr("devices.linux.netns.os.stat", broken)
    with pytest.raises(NamespaceError, match="Input/output error"):
        netns.identity("/proc/self/ns/net")


def test_an_absent_namespace_says_so_with_what_to_look_at() -> None:
    with pytest.raises(NamespaceError, match="no network namespace at /nowhere") as raised:
        netns.run_in("/nowhere", int)
    assert raised.value.gone
    assert "HostToContainer" in raised.value.hint


@pytest.mark.parametrize("path", ["/a\0b", "/dev/null", "/etc"])
def test_what_is_no_namespace_cannot_be_entered(path: str) -> None:
    with pytest.raises(NamespaceError) as raised:
        netns.run_in(path, int)
    assert not raised.value.gone


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../x", "a\0b", "x" * 256])
def test_names_that_would_leave_the_directory_are_refused(name: str) -> None:
    with pytest.raises(NamespaceError):
        netns.create(name)
    with pytest.raises(NamespaceError):
        netns.delete(name)


def test_deleting_what_is_not_there_is_no_error() -> None:
    assert netns.delete("multus-test-never-made") is False


def test_the_thread_hands_on_the_answer_and_the_error() -> None:
    outside = threading.get_ident()
    assert netns._in_thread(threading.get_ident) != outside
    with pytest.raises(ZeroDivisionError):
        netns._in_thread(partial(divmod, 1, 0))
    with pytest.raises(SystemExit):  # it must not end the process from there, nor hang the caller
        netns._in_thread(partial(sys.exit, 3))


def test_interfaces_are_those_that_the_kernel_names() -> None:
    with rtnetlink.connect() as connection:
        links = read_links(connection)
    assert {link.index: link.name for link in links} == dict(socket.if_nameindex())
    lo = next(link for link in links if link.name == "lo")
    assert (lo.mtu, lo.kind, lo.peer_index) == (65536, "", 0)


def test_addresses_and_routes_of_our_own_namespace_can_be_read() -> None:
    with rtnetlink.connect() as connection:
        addresses = {item.address for link in read_links(connection) for item in link.addresses}
        routes = read_routes(connection)
    assert "127.0.0.1/8" in addresses
    assert any(route.destination == "127.0.0.0/8" and not route.unicast for route in routes)


def test_a_refusal_has_the_kernels_code_and_the_name_of_the_change() -> None:
    with rtnetlink.connect() as connection, pytest.raises(KernelError, match=r"^a test: ") as raised:
        rtnetlink.change(connection, 0x3FF, 0, bytes(16), "a test")
    assert raised.value.code > 0
    assert isinstance(raised.value, DeviceError)


def test_a_socket_is_usable_after_a_refusal_and_after_a_dump_that_was_given_up() -> None:
    with rtnetlink.connect() as connection:
        for _ in range(3):
            with pytest.raises(KernelError):
                rtnetlink.change(connection, 0x3FF, 0, bytes(16), "a test")
            next(rtnetlink._exchange(connection, rtnetlink.GETLINK, 0x300, bytes(16)))
            assert read_links(connection)


@given(st.binary(max_size=200))
def test_attributes_of_any_bytes_are_read_without_error(data: bytes) -> None:
    for content in rtnetlink.attributes(data).values():
        assert len(content) <= len(data) - 4


@given(st.dictionaries(st.integers(1, 0x3FFF), st.binary(max_size=40)))
def test_attributes_are_read_as_they_were_written(wanted: dict[int, bytes]) -> None:
    data = b"".join(rtnetlink.attribute(kind, content) for kind, content in wanted.items())
    assert rtnetlink.attributes(data) == wanted
    assert len(data) % 4 == 0


@pytest.mark.parametrize("length", [0, 15, 17])
def test_a_message_that_is_cut_short_is_an_error(length: int) -> None:
    with pytest.raises(KernelError, match="cut short"):
        list(rtnetlink._messages(struct.pack("=IHHII", length, 3, 0, 1, 0)))


def test_the_driver_of_a_device(tmp_path: Path) -> None:
    device = tmp_path / "bus/pci/devices/0000:3b:02.1"
    device.mkdir(parents=True)
    assert driver_of("0000:3b:02.1", sysfs=tmp_path) == ""
    (device / "driver").symlink_to("../../../../bus/pci/drivers/vfio-pci")
    assert driver_of("0000:3B:02.1", sysfs=tmp_path) == "vfio-pci"
    for address in ("", "../0000:3b:02.1", "0000:3b:02.9", "net1", "0000:3b:02.2"):
        assert driver_of(address, sysfs=tmp_path) == ""

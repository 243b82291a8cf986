"""Interfaces lent to a namespace and taken back on the real kernel; a veth stands for a VF's interface."""

import json
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from devices.errors import KernelError, NamespaceError
from devices.linux.addressing import NewRoute, arp_frame
from devices.linux.netdevs import Change, Netdev
from devices.linux.sysfs import NetRecord, PciRecord
from devices.linux.vf_kernel import LinuxKernel
from devices.linux.vfs import SetMac, SetTrust, SetVlan
from devices.vf import VFError
from devices.vf_netdev import host_netdev, lend, take_back

BDF = "0000:03:10.0"


class VethKernel(LinuxKernel):
    """Shows the veth as VF 0 of a PF while it is on the host."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.index = index
        self.pauses = 0

    def device(self, bdf: str) -> PciRecord | None:
        if bdf != BDF:
            return None
        here = [each for each in self.netdevs("") if each.index == self.index]
        netdevs = tuple(NetRecord(name=each.name, ifindex=each.index) for each in here)
        return PciRecord(bdf=BDF, driver="veth", physfn="0000:03:00.0", vf_index=0, netdevs=netdevs)

    def pause(self, seconds: float) -> None:
        self.pauses += 1


def ip(*words: str) -> Any:
    done = subprocess.run(["ip", "-j", *" ".join(words).split()], capture_output=True, text=True, check=True)
    return json.loads(done.stdout or "[]")


@pytest.fixture
def vf() -> Iterator[tuple[VethKernel, Netdev, str]]:
    """The kernel, the interface, and the name of its peer on the host."""
    name, peer = f"vf{os.getpid()}", f"pf{os.getpid()}"
    ip(f"link add {name} type veth peer name {peer}")
    try:
        ip(f"link set {name} mtu 1400 address 02:00:00:00:07:01")
        ip(f"link property add dev {name} altname {name}alt")
        ip(f"link set {peer} up")
        index = socket.if_nametoindex(name)
        kernel = VethKernel(index)
        yield kernel, host_netdev(kernel, name), peer
    finally:
        subprocess.run(["ip", "link", "del", peer], check=False, capture_output=True)


def test_there_and_back(vf: tuple[VethKernel, Netdev, str], make_namespace: Callable[[], Any]) -> None:
    kernel, original, _ = vf
    space = make_namespace()
    moved = lend(kernel, original, space.path, "net1", "02:00:00:00:07:99")
    assert (moved.name, moved.mac, moved.up) == ("net1", "02:00:00:00:07:99", True)
    assert original.name not in [each.name for each in kernel.netdevs("")]
    assert kernel.device(BDF) == PciRecord(bdf=BDF, driver="veth", physfn="0000:03:00.0", vf_index=0)
    # What a pod may do to it.
    kernel.change(space.path, moved.index, Change(up=False))
    kernel.change(space.path, moved.index, Change(name="renamed", mtu=1300))
    kernel.change(space.path, moved.index, Change(name="net1"))
    kernel.add_altname(space.path, moved.index, original.name)
    assert take_back(kernel, BDF, original, space.path, "net1")
    assert host_netdev(kernel, original.name) == original
    assert take_back(kernel, BDF, original, space.path, "net1")
    assert host_netdev(kernel, original.name) == original


def test_names_that_are_in_use(vf: tuple[VethKernel, Netdev, str], make_namespace: Callable[[], Any]) -> None:
    kernel, original, peer = vf
    space = make_namespace()
    ip(f"-n {space.name} link add {original.name} type veth peer name {original.name}alt")
    with pytest.raises(VFError, match="already"):
        lend(kernel, original, space.path, original.name, None)
    lend(kernel, original, space.path, "net1", None)
    ip(f"link property add dev {peer} altname net1")
    ip(f"link property add dev {peer} altname {original.name}")
    assert take_back(kernel, BDF, original, space.path, "net1")
    back = next(each for each in kernel.netdevs("") if each.index == original.index)
    assert back.name.startswith("vf")
    assert back.name != original.name
    ip(f"link property del dev {peer} altname {original.name}")
    assert take_back(kernel, BDF, original, space.path, "net1")
    assert host_netdev(kernel, original.name) == original


def test_an_interface_of_a_bridge_is_not_lent(vf: tuple[VethKernel, Netdev, str]) -> None:
    kernel, original, _ = vf
    bridge = f"br{os.getpid()}"
    ip(f"link add {bridge} type bridge")
    try:
        ip(f"link set {original.name} master {bridge}")
        with pytest.raises(VFError, match=f"{original.name} is part of {bridge}"):
            host_netdev(kernel, original.name)
    finally:
        ip(f"link del {bridge}")


def test_addresses_routes_and_neighbours(vf: tuple[VethKernel, Netdev, str], make_namespace: Callable[[], Any]) -> None:
    kernel, original, peer = vf
    space = make_namespace()
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003)) as wire:
        wire.bind((peer, 0))
        wire.settimeout(5)
        moved = lend(kernel, original, space.path, "net1", None)
        addresses = ("10.99.0.5/24", "fd00:99::5/64")
        routes = (
            NewRoute(destination="0.0.0.0/0", gateway="10.99.0.1", priority=7, mtu=1200),
            NewRoute(destination="10.98.0.0/16", table=300),
            NewRoute(destination="fd00:98::/32", gateway="fd00:99::1"),
            NewRoute(destination="10.98.0.0/16", table=300),
        )
        kernel.configure(space.path, moved, addresses, routes)
        kernel.announce(space.path, moved, addresses)
        own = bytes.fromhex("020000000701")
        wanted = arp_frame(own, socket.inet_aton("10.99.0.5"))
        while wire.recv(2048)[:42] != wanted:
            pass
    (link,) = ip(f"-n {space.name} addr show net1")
    assert {"10.99.0.5", "fd00:99::5"} <= {each["local"] for each in link["addr_info"]}
    (default,) = ip(f"-n {space.name} route show default")
    assert (default["gateway"], default["metric"]) == ("10.99.0.1", 7)
    assert [each["dst"] for each in ip(f"-n {space.name} route show table 300")] == ["10.98.0.0/16"]
    assert "fd00:99::1" in json.dumps(ip(f"-n {space.name} -6 route show"))
    with pytest.raises(KernelError, match=r"adding address 10.99.0.5/24: .*(exists|assigned)"):
        kernel.configure(space.path, moved, addresses[:1], ())


def test_a_driver_without_vfs_says_so(vf: tuple[VethKernel, Netdev, str]) -> None:
    kernel, original, _ = vf
    assert kernel.states(original.index) == {}
    for step in (SetTrust(on=True), SetMac(mac="02:00:00:00:00:01"), SetVlan(vlan=5), SetVlan(vlan=5, proto=0x88A8)):
        with pytest.raises(KernelError) as caught:
            kernel.set_vf(original.index, 0, step)
        assert caught.value.code == 95
    with pytest.raises(KernelError) as caught:
        kernel.states(2**31 - 1)
    assert caught.value.code == 19


def test_namespaces_that_are_gone(vf: tuple[VethKernel, Netdev, str]) -> None:
    kernel, original, _ = vf
    assert kernel.identity("/run/netns/none") is None
    for use in (
        lambda: kernel.netdevs("/run/netns/none"),
        lambda: kernel.move("", original.index, "/run/netns/none", "net1"),
        lambda: kernel.prepare("/run/netns/none", "net1"),
    ):
        with pytest.raises(NamespaceError) as caught:
            use()
        assert caught.value.gone
    assert host_netdev(kernel, original.name) == original

"""What a VF's settings are through its PF, by `devices.linux.vfs`, and what this hardware refuses."""

import errno
import socket
from collections.abc import Iterator

import msgspec
import pytest

from devices.errors import KernelError
from devices.linux import netns, vfs
from tests.vm.guest.hardware import Emulator, Hardware, run, until


@pytest.fixture
def netlink() -> Iterator[socket.socket]:
    with netns.open_socket("/proc/self/ns/net") as made:
        yield made


def test_every_setting_reads_back_and_only_on_its_vf(kept: Hardware, netlink: socket.socket) -> None:
    card = kept.cards[0]
    card.have(3)
    index = card.ifindex
    first = vfs.read(netlink, index)
    assert sorted(first) == [0, 1, 2]
    steps: dict[str, vfs.Step] = {
        "mac": vfs.SetMac(mac="02:aa:00:00:00:01"),
        "vlan": vfs.SetVlan(vlan=4095, qos=7),
        "spoofchk": vfs.SetSpoofchk(on=False),
        "trust": vfs.SetTrust(on=True),
        "max_tx": vfs.SetRate(min_tx=0, max_tx=200),
    }
    for step in steps.values():
        vfs.apply(netlink, index, 1, step)
    assert vfs.read(netlink, index) == first | {
        1: msgspec.structs.replace(
            first[1], mac="02:aa:00:00:00:01", vlan=4095, qos=7, spoofchk=False, trust=True, max_tx=200
        )
    }
    words = run(f"ip link show {card.netdev}")
    (line,) = (line for line in words.splitlines() if "vf 1 " in line)
    for word in ("02:aa:00:00:00:01", "vlan 4095", "qos 7", "spoof checking off", "trust on", "200"):
        assert word in line, line

    before = first[1]
    assert before.mac is not None
    for original in (
        vfs.SetMac(mac=before.mac),
        vfs.SetVlan(vlan=0),
        vfs.SetSpoofchk(on=True),
        vfs.SetTrust(on=False),
        vfs.SetRate(min_tx=0, max_tx=0),
    ):
        vfs.apply(netlink, index, 1, original)
    assert vfs.read(netlink, index) == first


def test_what_the_hardware_refuses_changes_nothing(kept: Hardware, netlink: socket.socket) -> None:
    card = kept.cards[0]
    card.have(3)
    before = vfs.read(netlink, card.ifindex)
    refusals: list[tuple[int, vfs.Step, int]] = [
        (0, vfs.SetVlan(vlan=5, proto=vfs.QINQ), errno.EPROTONOSUPPORT),
        (0, vfs.SetLinkState(state="enable"), errno.EOPNOTSUPP),
        (0, vfs.SetRate(min_tx=100, max_tx=200), errno.EINVAL),
        (0, vfs.SetMac(mac="01:00:00:00:00:01"), errno.EINVAL),
        (9, vfs.SetTrust(on=True), errno.EINVAL),
    ]
    for vf, step, code in refusals:
        with pytest.raises(KernelError) as refused:
            vfs.apply(netlink, card.ifindex, vf, step)
        assert refused.value.code == code, vfs.describe(step)
    assert vfs.read(netlink, card.ifindex) == before


def test_a_rate_is_refused_while_the_cable_is_out(kept: Hardware, netlink: socket.socket, qemu: Emulator) -> None:
    card = kept.cards[0]
    card.have(3)
    qemu("set_link", name=card.plug, up=False)
    try:
        until(lambda: not card.carrier, "the carrier to go")
        with pytest.raises(KernelError) as refused:
            vfs.apply(netlink, card.ifindex, 0, vfs.SetRate(min_tx=0, max_tx=200))
        assert refused.value.code == errno.EINVAL
    finally:
        qemu("set_link", name=card.plug, up=True)
    until(lambda: card.carrier, "the carrier")
    vfs.apply(netlink, card.ifindex, 0, vfs.SetRate(min_tx=0, max_tx=200))
    assert vfs.read(netlink, card.ifindex)[0].max_tx == 200
    vfs.apply(netlink, card.ifindex, 0, vfs.SetRate(min_tx=0, max_tx=0))


def test_no_mac_means_that_the_vf_chooses(kept: Hardware, netlink: socket.socket) -> None:
    card = kept.cards[0]
    card.have(3)
    vfs.apply(netlink, card.ifindex, 0, vfs.SetMac(mac=vfs.NO_MAC))
    assert vfs.read(netlink, card.ifindex)[0].mac == vfs.NO_MAC

"""VF messages against pyroute2's codec of the same attributes, and answers that a kernel gives."""

import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from devices.linux import rtnetlink, vfs
from devices.linux.rtnetlink import attribute
from devices.linux.vfs import SetLinkState, SetMac, SetRate, SetSpoofchk, SetTrust, SetVlan, Step, VFState

STEPS = [
    (SetVlan(vlan=100, qos=3), "IFLA_VF_VLAN", {"vlan": 100, "qos": 3}),
    (SetMac(mac="02:aa:00:00:00:01"), "IFLA_VF_MAC", {"mac": "02:aa:00:00:00:01"}),
    (SetRate(min_tx=1, max_tx=2), "IFLA_VF_RATE", {"min_tx_rate": 1, "max_tx_rate": 2}),
    (SetSpoofchk(on=True), "IFLA_VF_SPOOFCHK", {"spoofchk": 1}),
    (SetTrust(on=False), "IFLA_VF_TRUST", {"trust": 0}),
    (SetLinkState(state="disable"), "IFLA_VF_LINK_STATE", {"link_state": 2}),
]


def decoded(vf: int, step: Step) -> Any:
    """The step as pyroute2 reads it."""
    info = attribute(1, vfs.encode_step(vf, step))
    body = rtnetlink.LINK.pack(0, 0, 7, 0, 0) + attribute(22, info)
    message = ifinfmsg(struct.pack("=IHHII", 16 + len(body), 19, 1, 1, 0) + body)
    message.decode()
    return message.get_attr("IFLA_VFINFO_LIST").get_attrs("IFLA_VF_INFO")[0]


@pytest.mark.parametrize(("step", "name", "expected"), STEPS, ids=[name for _, name, _ in STEPS])
def test_steps(step: Step, name: str, expected: dict[str, object]) -> None:
    found = decoded(3, step).get_attr(name)
    assert found["vf"] == 3
    for key, value in expected.items():
        read = found[key]
        assert (read[:17] if key == "mac" else read) == value


def test_another_protocol_needs_the_list() -> None:
    assert decoded(3, SetVlan(vlan=100, qos=3, proto=0x88A8)).get_attr("IFLA_VF_VLAN_LIST").get_attr(
        "IFLA_VF_VLAN_INFO"
    ) == {"vf": 3, "vlan": 100, "qos": 3, "proto": 0x88A8}


def info(vf: int, *more: bytes) -> bytes:
    mac = attribute(1, struct.pack("=I", vf) + bytes.fromhex("02aa00000001").ljust(32, b"\0"))
    return attribute(1, mac + b"".join(more))


def test_answers_are_told_apart_by_number() -> None:
    unset = struct.pack("=II", 0, 0xFFFFFFFF)
    second = info(
        5,
        vfs.encode_step(5, SetVlan(vlan=9, qos=1)),
        vfs.encode_step(5, SetVlan(vlan=9, qos=1, proto=0x88A8)),
        vfs.encode_step(5, SetRate(min_tx=3, max_tx=4)),
        vfs.encode_step(5, SetSpoofchk(on=True)),
        vfs.encode_step(5, SetLinkState(state="enable")),
        attribute(9, unset),
    )
    found = dict(vfs._infos(second + info(0, vfs.encode_step(0, SetVlan(vlan=2)))))
    assert found[0] == VFState(mac="02:aa:00:00:00:01", vlan=2, qos=0, proto=0x8100)
    assert found[5] == VFState(
        mac="02:aa:00:00:00:01",
        vlan=9,
        qos=1,
        proto=0x88A8,
        spoofchk=True,
        link_state="enable",
        min_tx=3,
        max_tx=4,
    )


@settings(deadline=None)
@given(st.binary(max_size=200), st.binary(max_size=60))
def test_no_answer_is_too_strange(data: bytes, inner: bytes) -> None:
    for answer in (data, attribute(1, data), info(0, inner), info(0, attribute(12, inner), attribute(6, inner))):
        assert all(isinstance(state, VFState) for _, state in vfs._infos(answer))

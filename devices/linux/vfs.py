"""What a PF is told about its VFs, by route netlink: read for all of them at once, set one attribute at a time.

Source: include/uapi/linux/if_link.h of Linux 6.12. VFs are told apart by the number in each attribute, never by their
place in the answer. Everything blocks: call it from a worker thread.
"""

import socket
import struct
from collections.abc import Iterator
from typing import Final

import msgspec

from devices.linux import rtnetlink
from devices.linux.rtnetlink import NESTED, attribute

QINQ: Final = 0x88A8
DOT1Q: Final = 0x8100
"""Protocols of a VLAN: 802.1ad and 802.1Q."""

NO_MAC: Final = "00:00:00:00:00:00"
"""The administrative MAC of a VF that may choose its own."""

_INFO_LIST, _INFO = 22, 1
_MAC, _VLAN, _SPOOFCHK, _LINK_STATE, _RATE, _TRUST, _VLAN_LIST = 1, 2, 4, 5, 6, 9, 12
_VLAN_INFO = 1
_EXT_MASK, _WITH_VFS, _WITHOUT_STATISTICS = 29, 1, 8
_LINK_STATES = ("auto", "enable", "disable")

_VF = struct.Struct("=I")
_PAIR = struct.Struct("=II")
_TRIPLE = struct.Struct("=III")
_TAGGED = struct.Struct("=III")  # the protocol follows, in network order


class VFState(msgspec.Struct, frozen=True, kw_only=True):
    """A VF as its PF has it. None is what the driver does not tell. Rates are in Mbit/s, 0 for no limit.

    `mac` is the administrative one, `NO_MAC` while none was set. `link_state` is auto, enable or disable.
    """

    mac: str | None = None
    vlan: int | None = None
    qos: int | None = None
    proto: int | None = None
    spoofchk: bool | None = None
    trust: bool | None = None
    link_state: str | None = None
    min_tx: int | None = None
    max_tx: int | None = None


class SetVlan(msgspec.Struct, frozen=True, kw_only=True, tag="vlan"):
    """Tag what the VF sends; VLAN 0 with priority 0 is no tag."""

    vlan: int
    qos: int = 0
    proto: int = DOT1Q


class SetMac(msgspec.Struct, frozen=True, kw_only=True, tag="mac"):
    """The only MAC that the VF may have; `NO_MAC` lets it choose."""

    mac: str


class SetRate(msgspec.Struct, frozen=True, kw_only=True, tag="rate"):
    """Limits of what the VF may send, Mbit/s; 0 is none."""

    min_tx: int
    max_tx: int


class SetSpoofchk(msgspec.Struct, frozen=True, kw_only=True, tag="spoofchk"):
    """Whether it may send from its own MAC only."""

    on: bool


class SetTrust(msgspec.Struct, frozen=True, kw_only=True, tag="trust"):
    """Whether it may do what else only the PF may, such as change its MAC."""

    on: bool


class SetLinkState(msgspec.Struct, frozen=True, kw_only=True, tag="link_state"):
    """Whether its link follows the PF's: auto, enable or disable."""

    state: str


Step = SetVlan | SetMac | SetRate | SetSpoofchk | SetTrust | SetLinkState
"""One change of one VF."""


def read(connection: socket.socket, pf_ifindex: int) -> dict[int, VFState]:
    """Every VF of the PF by its number; nothing for a driver that tells of none, as in a virtual machine.

    :raises KernelError: there is no such interface.
    """
    mask = attribute(_EXT_MASK, _VF.pack(_WITH_VFS | _WITHOUT_STATISTICS))
    body = rtnetlink.LINK.pack(0, 0, pf_ifindex, 0, 0) + mask
    answers = rtnetlink.ask(connection, rtnetlink.GETLINK, body, rtnetlink.LINK.size, f"reading VFs of {pf_ifindex}")
    return dict(item for answer in answers for item in _infos(answer.attributes.get(_INFO_LIST, b"")))


def apply(connection: socket.socket, pf_ifindex: int, vf: int, step: Step) -> None:
    """Carry out one step on VF number `vf`.

    :raises KernelError: the driver refused: EOPNOTSUPP for what it cannot do, EINVAL for a value it does not take.
    """
    info = attribute(_INFO | NESTED, encode_step(vf, step))
    body = rtnetlink.LINK.pack(0, 0, pf_ifindex, 0, 0) + attribute(_INFO_LIST | NESTED, info)
    rtnetlink.change(connection, rtnetlink.SETLINK, 0, body, f"setting {describe(step)} of VF {vf}")


def describe(step: Step) -> str:
    """The step in words that `ip link` uses."""
    match step:
        case SetVlan():
            return f"vlan {step.vlan} qos {step.qos} proto {'802.1ad' if step.proto == QINQ else '802.1Q'}"
        case SetMac():
            return f"mac {step.mac}"
        case SetRate():
            return f"min_tx_rate {step.min_tx} max_tx_rate {step.max_tx}"
        case SetSpoofchk():
            return f"spoofchk {'on' if step.on else 'off'}"
        case SetTrust():
            return f"trust {'on' if step.on else 'off'}"
        case SetLinkState():
            return f"link_state {step.state}"


def encode_step(vf: int, step: Step) -> bytes:
    """The step as attribute of IFLA_VF_INFO."""
    match step:
        case SetVlan(proto=proto) if proto == DOT1Q:  # the old form, which every driver and kernel takes
            return attribute(_VLAN, _TRIPLE.pack(vf, step.vlan, step.qos))
        case SetVlan():
            tagged = _TAGGED.pack(vf, step.vlan, step.qos) + struct.pack(">H", step.proto) + bytes(2)
            return attribute(_VLAN_LIST | NESTED, attribute(_VLAN_INFO, tagged))
        case SetMac():
            return attribute(_MAC, _VF.pack(vf) + bytes.fromhex(step.mac.replace(":", "")).ljust(32, b"\0"))
        case SetRate():
            return attribute(_RATE, _TRIPLE.pack(vf, step.min_tx, step.max_tx))
        case SetSpoofchk():
            return attribute(_SPOOFCHK, _PAIR.pack(vf, step.on))
        case SetTrust():
            return attribute(_TRUST, _PAIR.pack(vf, step.on))
        case SetLinkState():
            return attribute(_LINK_STATE, _PAIR.pack(vf, _LINK_STATES.index(step.state)))


def _infos(data: bytes) -> Iterator[tuple[int, VFState]]:
    for kind, info in rtnetlink.every(data):
        found = rtnetlink.attributes(info)
        if kind == _INFO and len(found.get(_MAC, b"")) >= 10:
            yield _VF.unpack_from(found[_MAC])[0], _state(found)


def _state(found: dict[int, bytes]) -> VFState:
    vlan, qos, proto = _vlan(found)
    rates = _TRIPLE.unpack_from(found[_RATE])[1:] if len(found.get(_RATE, b"")) >= _TRIPLE.size else (None, None)
    link_state = _setting(found, _LINK_STATE)
    return VFState(
        mac=found[_MAC][4:10].hex(":"),
        vlan=vlan,
        qos=qos,
        proto=proto,
        spoofchk=_switch(found, _SPOOFCHK),
        trust=_switch(found, _TRUST),
        link_state=_LINK_STATES[link_state] if link_state is not None and link_state < len(_LINK_STATES) else None,
        min_tx=rates[0],
        max_tx=rates[1],
    )


def _vlan(found: dict[int, bytes]) -> tuple[int | None, int | None, int | None]:
    """The first tag: the list has room for more, which no driver in the kernel makes use of."""
    for kind, data in rtnetlink.every(found.get(_VLAN_LIST, b"")):
        if kind == _VLAN_INFO and len(data) >= _TAGGED.size + 2:
            _, vlan, qos = _TAGGED.unpack_from(data)
            return vlan, qos, struct.unpack_from(">H", data, _TAGGED.size)[0] or DOT1Q
    if len(found.get(_VLAN, b"")) >= _TRIPLE.size:
        _, vlan, qos = _TRIPLE.unpack_from(found[_VLAN])
        return vlan, qos, DOT1Q
    return None, None, None


def _switch(found: dict[int, bytes], kind: int) -> bool | None:
    setting = _setting(found, kind)
    return None if setting is None else bool(setting)


def _setting(found: dict[int, bytes], kind: int) -> int | None:
    """The kernel puts -1 where the driver has no such thing."""
    if len(found.get(kind, b"")) < _PAIR.size:
        return None
    setting: int = _PAIR.unpack_from(found[kind])[1]
    return None if setting == 0xFFFFFFFF else setting

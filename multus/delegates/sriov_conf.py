"""The configuration of `sriov`, strictly: what upstream lets pass in silence, such as "ON" for spoofchk, is refused.

Source: sriov-cni v2.10.0, pkg/types and pkg/config. Keys are those of upstream and one of ours, "driver": what the VF
is bound to for as long as the pod has it. Unknown ones are said to be so and ignored, for the files are upstream's.
"""

import difflib
import re
from typing import ClassVar, Final, TypeVar

import msgspec

from devices.errors import DeviceError
from devices.linux.pci_address import parse_address
from devices.linux.vfs import DOT1Q, QINQ
from devices.vf import VFConfig
from dpdk.plans import BIFURCATED, USERSPACE
from multus.cni import document
from multus.cni.args import Pairs
from multus.cni.document import Document, DocumentError
from multus.cni.network import is_plugin_type
from multus.errors import Fault, MultusError

T = TypeVar("T")

KEYS: Final = (
    *("cniVersion", "name", "type", "dns", "ipam", "prevResult", "capabilities", "args", "runtimeConfig", "deviceID"),
    *("vlan", "vlanQoS", "vlanProto", "mac", "min_tx_rate", "max_tx_rate", "spoofchk", "trust", "link_state"),
    *("logLevel", "logFile", "disableCheck", "disableGC", "cniVersions", "master", "VFID", "Master", "MAC", "MTU"),
    "driver",
)
DRIVERS: Final = tuple(sorted({*USERSPACE, *BIFURCATED}))
_OURS = re.compile(r"cni\.dev/.*")
_MAX_RATE = 2**32 - 1
_MAC = re.compile(r"([0-9a-f]{2})([:-])(?:[0-9a-f]{2}\2){4}[0-9a-f]{2}|(?:[0-9a-f]{4}\.){2}[0-9a-f]{4}")
_SWITCH = {"on": True, "off": False}
_PROTOCOLS = {"802.1q": DOT1Q, "802.1ad": QINQ}


class SriovConfError(MultusError):
    """The configuration of an SR-IOV network cannot be carried out."""

    fault: ClassVar[Fault] = Fault.OPERATOR


class SriovConf(msgspec.Struct, frozen=True, kw_only=True):
    """A configuration that was found to be right. `ipam` is the type of the address plugin, "" for none.

    `driver` is the one that a DPDK program in the pod works with, "" for whichever the VF has.
    """

    name: str
    cni_version: str
    device: str
    vf: VFConfig
    ipam: str = ""
    driver: str = ""
    unknown: tuple[str, ...] = ()


class Outline(msgspec.Struct, frozen=True, kw_only=True):
    """As much as a DEL needs of a configuration that an ADD may have refused. Empty for what cannot be read."""

    name: str = ""
    device: str = ""
    ipam: str = ""


def parse_sriov(data: bytes, args: Pairs) -> SriovConf:
    """The configuration of an ADD. A MAC in it yields to that of CNI_ARGS, and this to the runtime's.

    :raises SriovConfError: it is not right; the message names the key.
    """
    try:
        top = document.decode(data)
    except DocumentError as error:
        raise SriovConfError(f"sriov: the configuration cannot be read: {error}") from None
    device = _text(top, "deviceID")
    if not device:
        raise SriovConfError(
            "sriov: VF pci addr is required",
            hint="deviceID is the VF's address; annotate the network with k8s.v1.cni.cncf.io/resourceName to have one",
        )
    try:
        device = parse_address(device)
    except DeviceError as error:
        raise SriovConfError(f"sriov: deviceID: {error.message}", hint=error.hint) from None
    _check_logging(top)
    return SriovConf(
        name=_text(top, "name"),
        cni_version=_text(top, "cniVersion"),
        device=device,
        vf=_settings(top, dict(args).get("MAC", "")),
        ipam=_ipam(top),
        driver=_driver(top),
        unknown=_unknown(top),
    )


def outline(data: bytes) -> Outline:
    """What a DEL can make out of any bytes."""
    try:
        top = document.decode(data)
    except DocumentError:
        return Outline()
    found = {}
    for field, read in (("name", _name), ("device", _device), ("ipam", _ipam)):
        try:
            found[field] = read(top)
        except (SriovConfError, DeviceError):
            continue
    return Outline(**found)


def _name(top: Document) -> str:
    return _text(top, "name")


def _device(top: Document) -> str:
    return parse_address(_text(top, "deviceID"))


def _settings(top: Document, args_mac: str) -> VFConfig:
    vlan, qos, proto = _vlan(top)
    least, most = _rate(top, "min_tx_rate"), _rate(top, "max_tx_rate")
    if least and most and least > most:
        raise SriovConfError(f"sriov: min_tx_rate {least} is above max_tx_rate {most}", hint="0 is no limit")
    link_state = _text(top, "link_state")
    if link_state not in ("", "auto", "enable", "disable"):
        raise SriovConfError(f"sriov: invalid link_state value: {link_state!a:.40}", hint="auto, enable or disable")
    return VFConfig(
        mac=_mac(top, args_mac),
        vlan=vlan,
        qos=qos,
        proto=proto,
        spoofchk=_switch(top, "spoofchk"),
        trust=_switch(top, "trust"),
        link_state=link_state or None,
        min_tx=least,
        max_tx=most,
    )


def _vlan(top: Document) -> tuple[int | None, int, int]:
    vlan, qos, proto = _value(top, "vlan", int), _value(top, "vlanQoS", int), _value(top, "vlanProto", str)
    if vlan is None:
        for key, given in (("vlanQoS", qos), ("vlanProto", proto)):
            if given is not None:
                raise SriovConfError(f"sriov: {key} without vlan", hint="add vlan, or take it out")
        return None, 0, DOT1Q
    if not 0 <= vlan <= 4094:
        raise SriovConfError(f"sriov: vlan {vlan} invalid", hint="1 to 4094, or 0 for none")
    if qos is not None and not 0 <= qos <= 7:
        raise SriovConfError(f"sriov: vlanQoS {qos} invalid", hint="0 to 7")
    number = _PROTOCOLS.get((proto or "802.1q").lower())
    if number is None:
        raise SriovConfError(f"sriov: vlanProto {proto!a:.40} invalid", hint="802.1q or 802.1ad")
    if vlan == 0 and qos:
        raise SriovConfError(f"sriov: vlanQoS {qos} needs a vlan that is not 0")
    if vlan == 0 and number == QINQ:
        raise SriovConfError("sriov: vlanProto 802.1ad needs a vlan that is not 0")
    return vlan, qos or 0, number


def _mac(top: Document, args_mac: str) -> str | None:
    raw = document.member(top, "runtimeConfig")
    runtime = ""
    if raw is not None:
        try:
            runtime = _text(document.decode(bytes(raw)), "mac")
        except DocumentError as error:
            raise SriovConfError(f"sriov: runtimeConfig: {error}") from None
    text = runtime or args_mac or _text(top, "mac")
    if not text:
        return None
    lower = text.lower()
    if not _MAC.fullmatch(lower):
        raise SriovConfError(f"sriov: {text!a:.60} is no MAC address", hint='six octets, such as "02:00:5e:00:53:01"')
    octets = bytes.fromhex(re.sub(r"[:.\-]", "", lower))
    if octets[0] & 1 or not any(octets):
        raise SriovConfError(f"sriov: MAC {text} is no address of one interface", hint="it is all zeros, or a group's")
    return octets.hex(":")


def _rate(top: Document, key: str) -> int | None:
    rate = _value(top, key, int)
    if rate is not None and not 0 <= rate <= _MAX_RATE:
        raise SriovConfError(f"sriov: {key} {rate} invalid", hint="Mbit/s; 0 is no limit")
    return rate


def _switch(top: Document, key: str) -> bool | None:
    text = _text(top, key)
    if not text:
        return None
    if text not in _SWITCH:
        raise SriovConfError(f"sriov: {key} is {text!a:.40}", hint='"on" or "off", or nothing to leave it as it is')
    return _SWITCH[text]


def _driver(top: Document) -> str:
    name = _text(top, "driver")
    if name not in ("", *DRIVERS):
        near = difflib.get_close_matches(name[:40], DRIVERS, n=1)
        hint = f"is {near[0]} meant?" if near else f"one of {', '.join(DRIVERS)}; or nothing, to leave it where it is"
        raise SriovConfError(f"sriov: driver is {name!a:.40}, which DPDK does not work with", hint=hint)
    return name


def _ipam(top: Document) -> str:
    raw = document.member(top, "ipam")
    if raw is None:
        return ""
    try:
        kind = _text(document.decode(bytes(raw)), "type")
    except DocumentError as error:
        raise SriovConfError(f"sriov: ipam: {error}") from None
    if kind and not is_plugin_type(kind):
        raise SriovConfError(f"sriov: ipam: {kind!a:.60} cannot be a plugin's name")
    return kind


def _check_logging(top: Document) -> None:
    _text(top, "logFile")
    level = _text(top, "logLevel")
    if level not in ("", "panic", "fatal", "error", "warn", "warning", "info", "debug", "trace"):
        raise SriovConfError(f"sriov: logLevel {level!a:.40} invalid", hint="panic, error, warning, info or debug")


def _unknown(top: Document) -> tuple[str, ...]:
    """Sentences about keys that nobody reads."""
    known = {document.fold(key) for key in KEYS}
    found = []
    for key in top:
        if document.fold(key) not in known and not _OURS.fullmatch(key):
            near = difflib.get_close_matches(key, KEYS, n=1)
            found.append(f"{key[:60]!a} is no key of sriov" + (f"; is {near[0]} meant?" if near else ""))
    return tuple(found)


def _text(top: Document, key: str) -> str:
    return _value(top, key, str) or ""


def _value(top: Document, key: str, kind: type[T]) -> T | None:
    raw = document.member(top, key)
    if raw is None:
        return None
    try:
        return document.value(raw, kind)
    except DocumentError as error:
        raise SriovConfError(f"sriov: {key}: {error}") from None

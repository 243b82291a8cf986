"""The configuration of `sriov`: which are taken, which are refused, and what comes out for any bytes."""

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices.vf import VFConfig
from multus.cni.args import Pairs
from multus.delegates.sriov_conf import Outline, SriovConfError, outline, parse_sriov

BDF = "0000:03:10.0"


def conf(**more: Any) -> bytes:
    return json.dumps({"cniVersion": "1.0.0", "name": "n", "type": "sriov", "deviceID": BDF, **more}).encode()


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, VFConfig()),
        ({"vlan": 100}, VFConfig(vlan=100)),
        ({"vlan": 100, "vlanQoS": 7}, VFConfig(vlan=100, qos=7)),
        ({"vlan": 100, "vlanProto": "802.1Q"}, VFConfig(vlan=100)),
        ({"vlan": 100, "vlanProto": "802.1AD"}, VFConfig(vlan=100, proto=0x88A8)),
        ({"vlan": 0, "vlanQoS": 0, "vlanProto": "802.1Q"}, VFConfig(vlan=0)),
        ({"vlan": None, "mac": None, "trust": None}, VFConfig()),
        ({"VLAN": 4094}, VFConfig(vlan=4094)),
        ({"mac": "02:AB:00:00:00:01"}, VFConfig(mac="02:ab:00:00:00:01")),
        ({"mac": "02-ab-00-00-00-01"}, VFConfig(mac="02:ab:00:00:00:01")),
        ({"mac": "02ab.0000.0001"}, VFConfig(mac="02:ab:00:00:00:01")),
        ({"runtimeConfig": {"mac": "02:AB:00:00:00:01"}}, VFConfig(mac="02:ab:00:00:00:01")),
        ({"min_tx_rate": 0, "max_tx_rate": 0}, VFConfig(min_tx=0, max_tx=0)),
        ({"min_tx_rate": 5, "max_tx_rate": 0}, VFConfig(min_tx=5, max_tx=0)),
        ({"min_tx_rate": 5}, VFConfig(min_tx=5)),
        ({"max_tx_rate": 5}, VFConfig(max_tx=5)),
        ({"spoofchk": "on", "trust": "off"}, VFConfig(spoofchk=True, trust=False)),
        ({"spoofchk": "", "trust": "", "link_state": ""}, VFConfig()),
        ({"link_state": "auto"}, VFConfig(link_state="auto")),
        ({"link_state": "enable"}, VFConfig(link_state="enable")),
        ({"link_state": "disable"}, VFConfig(link_state="disable")),
        ({"runtimeConfig": {"ips": ["10.0.0.5/24"]}, "capabilities": {"ips": True, "mac": True}}, VFConfig()),
        ({"dns": {"nameservers": ["10.0.0.1"]}, "prevResult": {"cniVersion": "1.0.0"}, "args": {}}, VFConfig()),
        ({"master": "ens1f0", "VFID": 3, "MTU": 9000}, VFConfig()),  # upstream overwrites both by what sysfs says
        ({"logLevel": "debug", "logFile": "/x"}, VFConfig()),
    ],
)
def test_what_is_taken(keys: dict[str, Any], expected: VFConfig) -> None:
    parsed = parse_sriov(conf(**keys), ())
    assert parsed.vf == expected
    assert parsed.device == BDF
    assert parsed.unknown == ()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"deviceID": ""}, "VF pci addr is required"),
        ({"deviceID": None}, "VF pci addr is required"),
        ({"deviceID": "../../x"}, "deviceID: .* is no PCI address"),
        ({"deviceID": 3}, "deviceID: Expected `str`"),
        ({"vlan": 5000}, "vlan 5000 invalid"),
        ({"vlan": -1}, "vlan -1 invalid"),
        ({"vlan": 4095}, "vlan 4095 invalid"),
        ({"vlan": "100"}, "vlan: Expected `int`"),
        ({"vlan": True}, "vlan: Expected `int`"),
        ({"vlan": 1.5}, "vlan: Expected `int`"),
        ({"vlan": 0, "vlanQoS": 1}, "needs a vlan that is not 0"),
        ({"vlan": 0, "vlanProto": "802.1ad"}, "needs a vlan that is not 0"),
        ({"vlan": 100, "vlanQoS": 10}, "vlanQoS 10 invalid"),
        ({"vlan": 100, "vlanQoS": -1}, "vlanQoS -1 invalid"),
        ({"vlan": 100, "vlanProto": "802"}, "vlanProto '802' invalid"),
        ({"vlanQoS": 1}, "vlanQoS without vlan"),
        ({"vlanProto": "802.1q"}, "vlanProto without vlan"),
        ({"link_state": "up"}, "invalid link_state value: 'up'"),
        ({"spoofchk": "ON"}, "spoofchk is 'ON'"),
        ({"trust": "yes"}, "trust is 'yes'"),
        ({"trust": True}, "trust: Expected `str`"),
        ({"mac": "02:ab:00:00:00"}, "is no MAC address"),
        ({"mac": "02:ab-00:00:00:01"}, "is no MAC address"),
        ({"mac": "01:00:5e:00:00:01"}, "no address of one interface"),
        ({"mac": "00:00:00:00:00:00"}, "no address of one interface"),
        ({"min_tx_rate": 200, "max_tx_rate": 100}, "min_tx_rate 200 is above max_tx_rate 100"),
        ({"max_tx_rate": -1}, "max_tx_rate -1 invalid"),
        ({"max_tx_rate": 2**32}, "max_tx_rate 4294967296 invalid"),
        ({"logLevel": "loud"}, "logLevel 'loud' invalid"),
        ({"ipam": []}, "ipam: "),
        ({"ipam": {"type": "../sh"}}, "cannot be a plugin's name"),
        ({"runtimeConfig": 3}, "runtimeConfig: "),
    ],
)
def test_what_is_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(SriovConfError, match=message):
        parse_sriov(conf(**keys), ())


@pytest.mark.parametrize(
    ("args", "runtime", "expected"),
    [
        ((("IgnoreUnknown", "1"), ("K8S_POD_NAME", "p"), ("MAC", "02:AB:00:00:00:02")), {}, "02:ab:00:00:00:02"),
        ((("MAC", ""),), {}, "02:00:00:00:00:01"),
        ((("MAC", "02:00:00:00:00:02"),), {"mac": ""}, "02:00:00:00:00:02"),
        ((("MAC", "02:00:00:00:00:02"),), {"mac": "02-AB-00-00-00-03"}, "02:ab:00:00:00:03"),
        ((("mac", "02:00:00:00:00:02"),), {}, "02:00:00:00:00:01"),  # CNI_ARGS has upper case
        ((("MAC", "rubbish"),), {"mac": "02:00:00:00:00:03"}, "02:00:00:00:00:03"),
        ((("MAC", "rubbish"),), {}, ""),
        ((), {"mac": "01:00:5e:00:00:01"}, ""),
    ],
)
def test_forms_of_cni_args_and_runtime_config(args: Pairs, runtime: dict[str, str], expected: str) -> None:
    data = conf(mac="02:00:00:00:00:01", runtimeConfig=runtime)
    if expected:
        assert parse_sriov(data, args).vf.mac == expected
        return
    with pytest.raises(SriovConfError, match="MAC"):
        parse_sriov(data, args)


def test_precedence_of_macs() -> None:
    data = conf(mac="02:00:00:00:00:01", runtimeConfig={"mac": "02:00:00:00:00:03"})
    assert parse_sriov(data, (("MAC", "02:00:00:00:00:02"),)).vf.mac == "02:00:00:00:00:03"
    data = conf(mac="02:00:00:00:00:01")
    assert parse_sriov(data, (("MAC", "02:00:00:00:00:02"),)).vf.mac == "02:00:00:00:00:02"


def test_a_key_that_nobody_reads_is_named_with_the_one_that_may_be_meant() -> None:
    parsed = parse_sriov(conf(spoofcheck="on", nonsense=1, **{"cni.dev/attachments": []}), ())
    assert parsed.unknown == (
        "'spoofcheck' is no key of sriov; is spoofchk meant?",
        "'nonsense' is no key of sriov",
    )


def test_a_del_takes_what_it_can() -> None:
    assert outline(conf(ipam={"type": "dhcp"}, vlan="?")) == Outline(name="n", device=BDF, ipam="dhcp")
    assert outline(conf(deviceID="x", ipam=3)) == Outline(name="n")
    assert outline(b"rubbish") == Outline()


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
_KEYS = ("deviceID", "vlan", "vlanQoS", "vlanProto", "mac", "min_tx_rate", "trust", "ipam", "runtimeConfig", "logLevel")


@settings(deadline=None)
@given(st.binary() | st.dictionaries(st.sampled_from(_KEYS), _VALUES).map(lambda each: json.dumps(each).encode()))
def test_nothing_but_its_own_error_comes_out(data: bytes) -> None:
    with contextlib.suppress(SriovConfError):
        parse_sriov(data, (("MAC", data.decode(errors="replace")),))
    outline(data)

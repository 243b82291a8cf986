"""The network-status annotation, against what upstream writes."""

import json
import logging
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multus.cni.errors import CNIError
from multus.cni.result import DNS, IP, Interface, Result, Route, parse_result
from multus.status import StatusEntry, network_status

SANDBOX = "/var/run/netns/cni-1"
ETH0 = Interface(name="eth0", mac="92:79:27:01:7c:ce", sandbox=SANDBOX)
NET1 = Interface(name="net1", mac="ea:0e:fa:63:95:f9", sandbox=SANDBOX)
ON_HOST = Interface(name="veth1234", mac="be:ee:ee:ee:ee:ef")


def entry(
    *interfaces: Interface,
    ips: tuple[IP, ...] = (),
    routes: tuple[Route, ...] = (),
    default: bool = False,
    info: dict[str, Any] | None = None,
) -> StatusEntry:
    result = Result(interfaces=interfaces, ips=ips, routes=routes)
    return StatusEntry(name="test/net", ifname="net1", result=result, is_default=default, device_info=info)


def shown(*entries: StatusEntry) -> list[dict[str, Any]]:
    decoded: list[dict[str, Any]] = json.loads(network_status(entries))
    return decoded


def test_text_is_upstreams_byte_for_byte() -> None:
    default = StatusEntry(
        name="kindnet",
        ifname="eth0",
        is_default=True,
        result=Result(
            interfaces=(Interface(name="eth0", mac="92:79:27:01:7c:ce", mtu=1500, sandbox=SANDBOX),),
            ips=(IP(address="10.244.1.4/24", gateway="10.244.1.1", interface=0),),
            routes=(Route(dst="0.0.0.0/0", gw="10.244.1.1"), Route(dst="10.244.0.0/16", gw="10.244.1.1")),
        ),
    )
    other = StatusEntry(
        name="default/net-a&b",
        ifname="net1",
        is_default=False,
        result=Result(
            interfaces=(NET1,),
            routes=(Route(dst="0.0.0.0/0"),),
            dns=DNS(nameservers=("10.1.1.1",), domain="a<b>", search=("x", "y"), options=("ndots:2",)),
        ),
        device_info={"type": "pci", "version": "1.1.0", "pci": {"pci-address": "0000:03:02.1"}, "x": {}, "y": []},
    )
    assert (
        network_status([default, other])
        == """[{
    "name": "kindnet",
    "interface": "eth0",
    "ips": [
        "10.244.1.4"
    ],
    "mac": "92:79:27:01:7c:ce",
    "mtu": 1500,
    "default": true,
    "dns": {},
    "gateway": [
        "10.244.1.1"
    ]
},{
    "name": "default/net-a\\u0026b",
    "interface": "net1",
    "mac": "ea:0e:fa:63:95:f9",
    "dns": {
        "nameservers": [
            "10.1.1.1"
        ],
        "domain": "a\\u003cb\\u003e",
        "search": [
            "x",
            "y"
        ],
        "options": [
            "ndots:2"
        ]
    },
    "device-info": {
        "type": "pci",
        "version": "1.1.0",
        "pci": {
            "pci-address": "0000:03:02.1"
        },
        "x": {},
        "y": []
    },
    "gateway": [
        "\\u003cnil\\u003e"
    ]
}]"""
    )


def test_nothing_attached() -> None:
    assert network_status([]) == "[]"
    assert network_status([entry(default=True)]) == "[]"  # a plugin that answers nothing is not shown
    assert network_status([entry(ON_HOST, ON_HOST)]) == "[]"


def test_single_interface_has_all_addresses() -> None:
    ips = (IP(address="1.1.1.3/24"), IP(address="2001::1/64", interface=0))
    assert shown(entry(NET1, ips=ips)) == [
        {"name": "test/net", "interface": "net1", "ips": ["1.1.1.3", "2001::1"], "mac": NET1.mac, "dns": {}}
    ]


def test_single_interface_without_sandbox_is_not_named() -> None:
    ips = (IP(address="10.244.196.152/32"), IP(address="fd10:244::c497/128"))
    bare = Interface(name="foo", mac="00:00:5e:00:53:01", mtu=1500)
    assert shown(entry(bare, ips=ips, default=True)) == [
        {"name": "test/net", "ips": ["10.244.196.152", "fd10:244::c497"], "default": True, "dns": {}}
    ]


def test_result_of_cni_020_belongs_to_the_interface_that_was_asked_for() -> None:
    """Upstream shows nothing of it since 4.2, and lost the addresses."""
    old = parse_result(b'{"cniVersion":"0.2.0","ip4":{"ip":"10.1.1.5/24","gateway":"10.1.1.1"}}', where="plugin")
    status = StatusEntry(name="test/net", ifname="net1", result=old, is_default=False)
    assert shown(status) == [{"name": "test/net", "interface": "net1", "ips": ["10.1.1.5"], "dns": {}}]


def test_one_object_for_each_interface_in_the_container() -> None:
    foo = Interface(name="foo", mac="00:AA:BB:CC:DD:33")
    first = Interface(name="example0", mac="00:AA:BB:CC:DD:01", mtu=1500, sandbox=SANDBOX)
    second = Interface(name="example1", mac="00:AA:BB:CC:DD:02", mtu=1500, sandbox=SANDBOX)
    ips = (
        IP(address="192.0.2.1/24", interface=1),
        IP(address="192.0.2.2/24", interface=1),
        IP(address="192.0.2.3/24", interface=2),
        IP(address="192.0.2.4/24", interface=0),  # on the host
    )
    objects = shown(entry(foo, first, second, ips=ips, default=True))
    assert [(each["interface"], each["ips"], each["mtu"], each.get("default")) for each in objects] == [
        ("example0", ["192.0.2.1", "192.0.2.2"], 1500, True),
        ("example1", ["192.0.2.3"], 1500, None),
    ]
    assert all("default" not in each for each in shown(entry(foo, first, second, ips=ips)))


GATEWAY_ON = {
    "none": (None, None),
    "first": ("10.0.0.1", None),
    "second": (None, "10.0.0.1"),
    "both": ("10.0.0.1", "10.0.1.1"),
}


@pytest.mark.parametrize(("on", "default"), [("none", "eth0"), ("first", "eth0"), ("second", "net1"), ("both", "eth0")])
def test_default_is_where_the_gateway_is(on: str, default: str) -> None:
    gateways = GATEWAY_ON[on]
    ips = tuple(
        IP(address=f"10.0.{number}.5/24", gateway=gateway or "", interface=index)
        for number, (index, gateway) in enumerate(zip((1, 3), gateways, strict=True))
    )
    objects = shown(entry(ON_HOST, ETH0, ON_HOST, NET1, ips=ips, default=True))
    assert [each["interface"] for each in objects if each.get("default")] == [default]


def test_gateway_of_the_hosts_interface_is_not_the_pods() -> None:
    """Upstream then calls no interface the default one."""
    ips = (IP(address="10.0.0.1/24", gateway="10.0.0.254", interface=0), IP(address="10.0.0.5/24", interface=1))
    objects = shown(entry(ON_HOST, ETH0, NET1, ips=ips, default=True))
    assert [each.get("default", False) for each in objects] == [True, False]


def test_addresses_of_no_interface_are_the_last_ones() -> None:
    ips = (IP(address="192.0.2.1/24"),)
    assert [each["ips"] for each in shown(entry(ON_HOST, ETH0, ips=ips))] == [["192.0.2.1"]]
    assert [each.get("ips") for each in shown(entry(ON_HOST, ETH0, NET1, ips=ips))] == [None, ["192.0.2.1"]]
    assert [each.get("ips") for each in shown(entry(ETH0, NET1, ON_HOST, ips=ips))] == [None, ["192.0.2.1"]]


@pytest.mark.parametrize(
    ("routes", "gateway"),
    [
        ((), None),
        ((Route(dst="10.10.10.0/24", gw="10.10.10.10"),), None),
        ((Route(dst="0.0.0.0/0", gw="10.10.10.10"),), ["10.10.10.10"]),
        (
            (Route(dst="0.0.0.0/0", gw="10.10.10.10"), Route(dst="0.0.0.0/0", gw="20.20.20.20")),
            ["10.10.10.10", "20.20.20.20"],
        ),
        ((Route(dst="0.0.0.0/0", gw="10.0.0.1"), Route(dst="::/0", gw="2001:DB8::1")), ["10.0.0.1", "2001:db8::1"]),
        ((Route(dst="::0/0", gw="fe80::1"),), ["fe80::1"]),
        ((Route(dst="0.0.0.0/1", gw="10.0.0.1"), Route(dst="::/10", gw="fe80::1")), None),
        ((Route(dst="0.0.0.0/0"),), ["<nil>"]),
    ],
)
def test_gateways_are_those_of_default_routes(routes: tuple[Route, ...], gateway: list[str] | None) -> None:
    assert [each.get("gateway") for each in shown(entry(NET1, routes=routes))] == [gateway]
    assert [each.get("gateway") for each in shown(entry(ETH0, NET1, routes=routes))] == [gateway, gateway]


def test_addresses_in_their_usual_spelling() -> None:
    ips = (IP(address="2001:DB8:0:0::0001/64"), IP(address="::ffff:10.0.0.5/120"))
    assert shown(entry(NET1, ips=ips))[0]["ips"] == ["2001:db8::1", "10.0.0.5"]


def deep() -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for _ in range(100_000):
        tree = {"x": tree}
    return tree


@pytest.mark.parametrize("info", [deep(), {"x": 2**70 * 1j}, {"type": "\ud800"}], ids=["deep", "no JSON", "no text"])
def test_device_information_that_cannot_be_written_is_left_out(
    info: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert "device-info" not in shown(entry(NET1, info=info))[0]
    assert "device-info is left out" in caplog.text


KEYS = st.sampled_from(
    [
        *("interfaces", "ips", "routes", "dns", "name", "mac", "mtu", "sandbox", "address", "gateway", "interface"),
        *("dst", "gw", "nameservers", "domain", "ip4", "ip6", "ip", "cniVersion"),
    ]
)
VALUES = st.recursive(
    st.none()
    | st.integers(min_value=-1, max_value=3)
    | st.text(max_size=10)
    | st.sampled_from(["10.0.0.1/24", "::/0", "0.0.0.0/0", "10.0.0.1", "1.1.0", "/proc/1/ns/net"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=15,
)
INTERFACES = st.builds(
    Interface, name=st.text(st.characters(codec="utf-8"), max_size=5), sandbox=st.sampled_from(["", SANDBOX])
)
RESULTS = st.builds(
    Result,
    interfaces=st.lists(INTERFACES, max_size=4).map(tuple),
    ips=st.lists(
        st.builds(
            IP,
            address=st.sampled_from(["10.0.0.1/24", "::1/128", "", "x"]),
            gateway=st.sampled_from(["", "10.0.0.254", "?"]),
            interface=st.none() | st.integers(min_value=-1, max_value=5),
        ),
        max_size=4,
    ).map(tuple),
    routes=st.lists(st.builds(Route, dst=st.sampled_from(["0.0.0.0/0", "::/0", "", "/", "x/y"])), max_size=3).map(
        tuple
    ),
)


@settings(deadline=None)
@given(RESULTS, st.booleans(), st.none() | st.dictionaries(st.text(max_size=5), VALUES))
def test_any_result_gives_a_document(result: Result, default: bool, info: dict[str, Any] | None) -> None:
    status = StatusEntry(name="test/net", ifname="net1", result=result, is_default=default, device_info=info)
    objects = shown(status, status)
    assert len([each for each in objects if each.get("default")]) == (2 if default and objects else 0)


@settings(deadline=None)
@given(st.dictionaries(KEYS, VALUES, max_size=6).map(json.dumps))
def test_any_output_of_a_plugin_gives_a_document(output: str) -> None:
    try:
        result = parse_result(output.encode(), where="plugin")
    except CNIError:
        return
    shown(StatusEntry(name="test/net", ifname="net1", result=result, is_default=True))

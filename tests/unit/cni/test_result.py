"""Results: every version's document read and written, in every direction."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multus.cni.errors import CNIError, Code
from multus.cni.result import (
    DNS,
    IP,
    MAX_ITEMS,
    MAX_RESULT,
    SUPPORTED,
    Interface,
    Result,
    Route,
    at_least,
    encode_result,
    parse_result,
)

OLD, LISTS, NEW = ("0.1.0", "0.2.0"), ("0.3.0", "0.3.1", "0.4.0"), ("1.0.0", "1.1.0")

DNS_JSON = {
    "nameservers": ["10.96.0.10"],
    "domain": "cluster.local",
    "search": ["svc.cluster.local"],
    "options": ["ndots:5"],
}
ROUTES_JSON: list[dict[str, Any]] = [
    {"dst": "0.0.0.0/0", "gw": "10.1.0.1", "mtu": 1400, "advmss": 1360, "priority": 10, "table": 100, "scope": 0},
    {"dst": "::/0", "gw": "fd00::1"},
    {"dst": "192.168.0.0/16"},
]
NEW_JSON: dict[str, Any] = {
    "interfaces": [
        {"name": "cni0", "mac": "02:00:00:00:00:01"},
        {
            "name": "eth0",
            "mac": "02:00:00:00:00:02",
            "mtu": 1450,
            "sandbox": "/run/netns/p",
            "socketPath": "/run/x.sock",
            "pciID": "0000:00:1f.6",
        },
    ],
    "ips": [
        {"address": "10.1.0.5/24", "gateway": "10.1.0.1", "interface": 1},
        {"address": "fd00::5/64", "gateway": "fd00::1", "interface": 1},
        {"address": "10.1.0.6/24", "interface": 1},
    ],
    "routes": ROUTES_JSON,
    "dns": DNS_JSON,
}
LISTS_JSON: dict[str, Any] = {
    "interfaces": [
        {"name": "cni0", "mac": "02:00:00:00:00:01"},
        {"name": "eth0", "mac": "02:00:00:00:00:02", "sandbox": "/run/netns/p"},
    ],
    "ips": [
        {"version": "4", "address": "10.1.0.5/24", "gateway": "10.1.0.1", "interface": 1},
        {"version": "6", "address": "fd00::5/64", "gateway": "fd00::1", "interface": 1},
        {"version": "4", "address": "10.1.0.6/24", "interface": 1},
    ],
    "routes": ROUTES_JSON,
    "dns": DNS_JSON,
}
OLD_JSON: dict[str, Any] = {
    "ip4": {
        "ip": "10.1.0.5/24",
        "gateway": "10.1.0.1",
        "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.1"}, {"dst": "192.168.0.0/16"}],
    },
    "ip6": {"ip": "fd00::5/64", "gateway": "fd00::1", "routes": [{"dst": "::/0", "gw": "fd00::1"}]},
    "dns": DNS_JSON,
}
OLD_ROUTES = [
    {"dst": "0.0.0.0/0", "gw": "10.1.0.1"},
    {"dst": "192.168.0.0/16"},
    {"dst": "::/0", "gw": "fd00::1"},
]
# What becomes of the older documents in newer versions: nothing is made up that they did not say.
LISTS_AS_NEW = {**LISTS_JSON, "ips": NEW_JSON["ips"]}
OLD_AS_NEW = {
    "ips": [{"address": "10.1.0.5/24", "gateway": "10.1.0.1"}, {"address": "fd00::5/64", "gateway": "fd00::1"}],
    "routes": OLD_ROUTES,
    "dns": DNS_JSON,
}
OLD_AS_LISTS = {
    "ips": [
        {"version": "4", "address": "10.1.0.5/24", "gateway": "10.1.0.1"},
        {"version": "6", "address": "fd00::5/64", "gateway": "fd00::1"},
    ],
    "routes": OLD_ROUTES,
    "dns": DNS_JSON,
}


def shape(version: str) -> str:
    return "old" if version in OLD else "lists" if version in LISTS else "new"


SOURCES = {"old": OLD_JSON, "lists": LISTS_JSON, "new": NEW_JSON}
TARGETS = {
    ("old", "old"): OLD_JSON,
    ("old", "lists"): OLD_AS_LISTS,
    ("old", "new"): OLD_AS_NEW,
    ("lists", "old"): OLD_JSON,
    ("lists", "lists"): LISTS_JSON,
    ("lists", "new"): LISTS_AS_NEW,
    ("new", "old"): OLD_JSON,
    ("new", "lists"): LISTS_JSON,
    ("new", "new"): NEW_JSON,
}


@pytest.mark.parametrize("target", SUPPORTED)
@pytest.mark.parametrize("source", SUPPORTED)
def test_every_version_into_every_other(source: str, target: str) -> None:
    text = json.dumps({"cniVersion": source, **SOURCES[shape(source)]}).encode()
    written = json.loads(encode_result(parse_result(text, where="x"), target))
    assert written == {"cniVersion": target, **TARGETS[shape(source), shape(target)]}


@pytest.mark.parametrize(
    ("version", "text"),
    [
        ("0.2.0", b'{"cniVersion":"0.2.0","ip4":{"ip":"10.0.0.2/24"},"dns":{}}'),
        (
            "0.3.1",
            b'{"cniVersion":"0.3.1","interfaces":[{"name":"net1","sandbox":"/n"}],'
            b'"ips":[{"version":"4","address":"10.0.0.2/24","interface":0}],"dns":{}}',
        ),
        (
            "1.1.0",
            b'{"cniVersion":"1.1.0","interfaces":[{"name":"net1","sandbox":"/n"}],'
            b'"ips":[{"address":"10.0.0.2/24","interface":0}]}',
        ),
    ],
)
def test_written_byte_for_byte(version: str, text: bytes) -> None:
    result = Result(interfaces=(Interface(name="net1", sandbox="/n"),), ips=(IP(address="10.0.0.2/24", interface=0),))
    assert encode_result(result, version) == text
    assert encode_result(parse_result(text, where="x"), version) == text


@pytest.mark.parametrize("version", SUPPORTED)
def test_an_empty_result(version: str) -> None:
    empty: dict[str, object] = {"cniVersion": version} | ({} if version in NEW else {"dns": {}})
    assert json.loads(encode_result(Result(), version)) == empty
    assert parse_result(json.dumps(empty).encode(), where="x") == Result()
    assert parse_result(json.dumps({"cniVersion": version}).encode(), where="x") == Result()


def test_no_version_is_the_oldest() -> None:
    result = Result(ips=(IP(address="fd00::2/64"),))
    assert encode_result(result, "") == b'{"cniVersion":"0.1.0","ip6":{"ip":"fd00::2/64"},"dns":{}}'


def test_old_versions_drop_what_has_no_place() -> None:
    """The first address of each family, and the routes of a family that has one."""
    result = Result(
        interfaces=(Interface(name="a"),),
        ips=(IP(address="10.0.0.2/24", interface=0), IP(address="10.0.0.3/24", gateway="10.0.0.1")),
        routes=(Route(dst="::/0"), Route(dst="10.9.0.0/16", mtu=9000)),
    )
    assert json.loads(encode_result(result, "0.2.0")) == {
        "cniVersion": "0.2.0",
        "ip4": {"ip": "10.0.0.2/24", "routes": [{"dst": "10.9.0.0/16"}]},
        "dns": {},
    }


@pytest.mark.parametrize(
    ("asked", "text", "ips"),
    [
        ("1.0.0", '{"ips":[{"address":"10.0.0.2/24"}]}', 1),
        ("0.3.1", '{"ips":[{"version":"4","address":"10.0.0.2/24"}]}', 1),
        ("0.2.0", '{"ip4":{"ip":"10.0.0.2/24"}}', 1),
        ("", '{"ip4":{"ip":"10.0.0.2/24"}}', 1),
        ("0.2.0", '{"cniVersion":"1.0.0","ips":[{"address":"10.0.0.2/24"}]}', 1),  # what it says counts
        ("1.0.0", '{"cniVersion":"0.1.0","ip4":{"ip":"10.0.0.2/24"}}', 1),
        ("1.0.0", '{"cniVersion":"","ips":[{"address":"10.0.0.2/24"}]}', 1),
        ("1.0.0", '{"cniVersion":null,"ips":[{"address":"10.0.0.2/24"}]}', 1),
        ("", '{"ips":[{"address":"10.0.0.2/24"}]}', 0),  # 0.1.0 has no such key
        ("1.0.0", "null", 0),
        ("", " {}\n", 0),
    ],
)
def test_a_result_without_a_version_is_in_the_configuration_s(asked: str, text: str, ips: int) -> None:
    assert len(parse_result(text.encode(), where="x", version=asked).ips) == ips


def test_a_plugin_that_says_only_its_version() -> None:
    assert parse_result(b'{"cniVersion":"0.4.0"}', where="x") == Result()


def test_keys_in_any_case_and_null_for_nothing() -> None:
    text = b"""{"CNIVersion":"1.0.0","Interfaces":[{"NAME":"a","Sandbox":null,"PCIid":"0000:00:00.1"}],
        "IPs":[{"Address":"10.0.0.2/24","Gateway":null,"INTERFACE":0}],"routes":null,
        "Routes":[{"DST":"0.0.0.0/0","GW":"10.0.0.1"}],"DNS":{"Nameservers":["1.1.1.1"],"search":null},"more":{"x":1}}"""
    assert parse_result(text, where="x") == Result(
        interfaces=(Interface(name="a", pci_id="0000:00:00.1"),),
        ips=(IP(address="10.0.0.2/24", interface=0),),
        dns=DNS(nameservers=("1.1.1.1",)),
    )  # "routes" is spelled exactly, and null
    old = b'{"IP4":{"IP":"10.0.0.2/24","Routes":[{"Dst":"0.0.0.0/0"}]},"ip6":null}'
    assert parse_result(old, where="x") == Result(ips=(IP(address="10.0.0.2/24"),), routes=(Route(dst="0.0.0.0/0"),))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "it printed nothing"),
        (b"\n", "it printed nothing"),
        (b"[]", "a JSON object is expected, not list"),
        (b"true", "a JSON object is expected, not bool"),
        (b'"{}"', "a JSON object is expected, not str"),
        (b"Segmentation fault", "malformed"),
        (b"{", "truncated"),
        (b'{"cniVersion":"1.0.0"}\n{"cniVersion":"1.0.0"}', "trailing"),
        (b'\xff\xfe{"cniVersion"', "malformed"),
        (b'{"cniVersion":"1.0.0","dns":{"domain":"\xff"}}', "utf-8"),
        (b'{"cniVersion":1}', '"cniVersion" is no string'),
        (b'{"cniVersion":{"a":1}}', '"cniVersion" is no string'),
        (b'{"cniVersion":"1.0.0","ips":{}}', "Expected `array`, got `object`"),
        (b'{"cniVersion":"1.0.0","ips":[{}]}', "missing required field `address`"),
        (b'{"cniVersion":"1.0.0","ips":[{"address":null}]}', "missing required field `address`"),
        (b'{"cniVersion":"1.0.0","ips":["10.0.0.1/24"]}', "Expected `object`, got `str`"),
        (b'{"cniVersion":"1.0.0","interfaces":[{"mac":"x"}]}', "missing required field `name`"),
        (b'{"cniVersion":"1.0.0","interfaces":[{"name":"a","mtu":"1500"}]}', "Expected `int`, got `str`"),
        (b'{"cniVersion":"1.0.0","routes":[{"dst":"default"}]}', "route 'default' is not in CIDR form"),
        (b'{"cniVersion":"1.0.0","dns":[]}', "Expected `object`, got `array`"),
        (b'{"cniVersion":"0.2.0","ip4":{"gateway":"10.0.0.1"}}', "missing required field `ip`"),
        (b'{"cniVersion":"0.2.0","ip4":[{"ip":"10.0.0.1/8"}]}', "Expected `object | null`, got `array`"),
        (b'{"cniVersion":"1.0.0","a":' + b"[" * 200_000, "recursion"),
        (b'{"cniVersion":"1.0.0","ips":' + b"[" * 50 + b"]" * 50 + b"}", "Expected `object`, got `array`"),
    ],
)
def test_what_is_no_result(text: bytes, words: str) -> None:
    with pytest.raises(CNIError) as caught:
        parse_result(text, where='plugin "x"')
    assert caught.value.code == Code.DECODING_FAILURE
    assert caught.value.message.startswith('plugin "x": no CNI result: ')
    assert words in caught.value.message
    assert caught.value.details.startswith("it printed '")
    assert caught.value.details.isprintable()
    assert len(caught.value.details) < 900


@pytest.mark.parametrize(
    "address",
    [
        "", "10.0.0.1", "10.0.0.1/", "10.0.0.1/33", "10.0.0.1/-1", "10.0.0.1/+8", "10.0.0.1/ 8", "10.0.0.1/0008",
        "10.0.0.1/255.255.255.0", "10.0.0.1/8/8", "010.0.0.1/8", "10.0.1/8", "/8", "fe80::1%eth0/64", "fd00::1/129",
        "fd00::g/64", "10.0.0.1/\u0668", "\u0661\u0660.0.0.1/8", " 10.0.0.1/8", "x" * 500,
    ],
)  # fmt: skip
def test_addresses_are_as_go_reads_them(address: str) -> None:
    for key, entry in (("ips", {"address": address}), ("routes", {"dst": address})):
        with pytest.raises(CNIError, match="is not in CIDR form") as caught:
            parse_result(json.dumps({"cniVersion": "1.0.0", key: [entry]}).encode(), where="x")
        assert len(caught.value.message) < 150
    with pytest.raises(CNIError, match="is not in CIDR form"):
        parse_result(json.dumps({"cniVersion": "0.2.0", "ip4": {"ip": address}}).encode(), where="x")


@pytest.mark.parametrize("gateway", ["10.0.0.1/24", "gw", "10.0.0.256", "fe80::1%eth0", "010.0.0.1", " "])
def test_gateways_are_addresses(gateway: str) -> None:
    for key, entry in (
        ("ips", {"address": "10.0.0.2/24", "gateway": gateway}),
        ("routes", {"dst": "0.0.0.0/0", "gw": gateway}),
    ):
        with pytest.raises(CNIError, match="is no IP address"):
            parse_result(json.dumps({"cniVersion": "1.0.0", key: [entry]}).encode(), where="x")


@pytest.mark.parametrize("interface", [1, -1, 2**63, -(2**70)])
def test_an_address_is_on_an_interface_that_is_there(interface: int) -> None:
    body = {
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "a"}],
        "ips": [{"address": "10.0.0.2/24", "interface": interface}],
    }
    with pytest.raises(CNIError, match=r"on interface|<= |>= |out of range"):
        parse_result(json.dumps(body).encode(), where="x")


@pytest.mark.parametrize("version", ["0.9.0", "1.2.0", "2.0.0", "v1.0.0", "1.0", "x" * 9000])
def test_an_unknown_version(version: str) -> None:
    for text, asked in ((json.dumps({"cniVersion": version}), ""), ("{}", version)):
        with pytest.raises(CNIError) as caught:
            parse_result(text.encode(), where="x", version=asked)
        assert caught.value.code == Code.INCOMPATIBLE_VERSION
    with pytest.raises(CNIError) as caught:
        encode_result(Result(), version)
    assert caught.value.code == Code.INCOMPATIBLE_VERSION


def test_size_is_bounded() -> None:
    def of(count: int) -> bytes:
        body = {"cniVersion": "1.0.0", "routes": [{"dst": "10.0.0.0/8"}] * count}
        return json.dumps(body, separators=(",", ":")).encode()

    assert len(parse_result(of(MAX_ITEMS), where="x").routes) == MAX_ITEMS
    with pytest.raises(CNIError, match=f"a list of {MAX_ITEMS + 1} items"):
        parse_result(of(MAX_ITEMS + 1), where="x")
    with pytest.raises(CNIError, match="at most"):
        parse_result(b"{}" + b" " * MAX_RESULT, where="x")
    with pytest.raises(CNIError, match="1025 members"):
        parse_result(json.dumps({f"k{number}": 1 for number in range(1025)}).encode(), where="x")


V4 = st.tuples(st.ip_addresses(v=4), st.integers(0, 32)).map(lambda pair: f"{pair[0]}/{pair[1]}")
V6 = st.tuples(st.ip_addresses(v=6), st.integers(0, 128)).map(lambda pair: f"{pair[0]}/{pair[1]}")
ADDRESS = st.just("") | st.ip_addresses().map(str).filter(lambda text: "%" not in text)
NUMBER = st.none() | st.integers(0, 2**31)
INTERFACES = st.lists(
    st.builds(
        Interface,
        name=st.text(max_size=5),
        mac=st.text(max_size=5),
        mtu=st.integers(0, 9000),
        sandbox=st.sampled_from(["", "/run/netns/a"]),
        socket_path=st.text(max_size=3),
        pci_id=st.text(max_size=3),
    ),
    min_size=1,
    max_size=3,
).map(tuple)
IPS = st.lists(st.builds(IP, address=V4 | V6, gateway=ADDRESS, interface=st.sampled_from([None, 0])), max_size=4).map(
    tuple
)
ROUTES = st.lists(
    st.builds(Route, dst=V4 | V6, gw=ADDRESS, mtu=NUMBER, advmss=NUMBER, priority=NUMBER, table=NUMBER, scope=NUMBER),
    max_size=4,
).map(tuple)
TEXTS = st.lists(st.text(max_size=4), max_size=2).map(tuple)
RESULTS = st.builds(
    Result,
    interfaces=INTERFACES,
    ips=IPS,
    routes=ROUTES,
    dns=st.builds(DNS, nameservers=TEXTS, domain=st.text(max_size=4), search=TEXTS, options=TEXTS),
)


@settings(deadline=None)
@given(RESULTS, st.sampled_from(SUPPORTED))
def test_written_and_read(result: Result, version: str) -> None:
    written = encode_result(result, version)
    read = parse_result(written, where="x")
    assert encode_result(read, version) == written
    assert read.dns == result.dns
    if version in NEW:
        assert read == result
    elif version in LISTS:
        assert (read.ips, read.routes) == (result.ips, result.routes)
        assert [(each.name, each.mac, each.sandbox) for each in read.interfaces] == [
            (each.name, each.mac, each.sandbox) for each in result.interfaces
        ]
    else:
        assert len(read.ips) <= 2
        assert {ip.address for ip in read.ips} <= {ip.address for ip in result.ips}


@settings(deadline=None)
@given(RESULTS, st.sampled_from(SUPPORTED), st.sampled_from(SUPPORTED))
def test_a_detour_over_a_newer_version_loses_nothing(result: Result, first: str, second: str) -> None:
    """An answer that is turned into 1.0.0 on its way to an older shim arrives as if it had not been."""
    older, newer = (first, second) if at_least(second, first) else (second, first)
    direct = encode_result(result, older)
    detour = encode_result(parse_result(encode_result(parse_result(direct, where="x"), newer), where="x"), older)
    assert detour == direct


KEYS = st.sampled_from(
    [
        *("cniVersion", "interfaces", "ips", "routes", "dns", "ip4", "ip6", "IPS", "CNIVERSION"),
        *("name", "mac", "mtu", "sandbox", "address", "gateway", "interface", "version", "dst", "gw", "ip"),
        *("nameservers", "domain", "search", "options", "more"),
    ]
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=6)
    | st.sampled_from([*SUPPORTED, "10.0.0.1/24", "fd00::1/64", "10.0.0.1"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(
    st.binary(max_size=80)
    | st.text(max_size=80).map(str.encode)
    | VALUES.map(lambda value: json.dumps(value).encode())
    | st.dictionaries(KEYS, VALUES, max_size=5).map(lambda value: json.dumps(value).encode()),
    st.sampled_from(["", *SUPPORTED, "9.9.9"]),
)
def test_whatever_it_is_it_is_a_result_or_a_cni_error(data: bytes, version: str) -> None:
    try:
        result = parse_result(data, where="fuzz", version=version)
    except CNIError as error:
        assert error.code in (Code.DECODING_FAILURE, Code.INCOMPATIBLE_VERSION)
        error.encode("1.0.0")
        return
    for target in SUPPORTED:
        assert encode_result(parse_result(encode_result(result, target), where="x"), target)

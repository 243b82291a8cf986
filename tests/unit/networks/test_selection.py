"""Network selections: what pods write into their annotations, and what is made of it."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multus.errors import Fault
from multus.networks.errors import NetworkError
from multus.networks.selection import (
    MAX_SELECTIONS,
    Bandwidth,
    PortMapping,
    Selection,
    check_attributes,
    parse_default_network,
    parse_selections,
)

NAME_253 = ".".join(["a" * 63] * 3 + ["a" * 61])


def element(**keys: Any) -> str:
    """One selection in the JSON form; an underscore in a keyword stands for a hyphen."""
    return json.dumps([{"name": "net1", **{key.replace("_", "-"): value for key, value in keys.items()}}])


def one(text: str) -> Selection:
    (selection,) = parse_selections(text, "test")
    return selection


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("net1,net2", [("test", "net1", ""), ("test", "net2", "")]),
        ("net2,net1", [("test", "net2", ""), ("test", "net1", "")]),  # the order is the annotation's
        ("net1,net1", [("test", "net1", ""), ("test", "net1", "")]),  # twice is twice
        ("net1", [("test", "net1", "")]),
        ("default/net1", [("default", "net1", "")]),
        ("net1@my_interface", [("test", "net1", "my_interface")]),
        ("default/net1@my_interface", [("default", "net1", "my_interface")]),
        (" default / net1 @ eth1 ,\n net2 ", [("default", "net1", "eth1"), ("test", "net2", "")]),
        ("/net1", [("test", "net1", "")]),
        ("net1@", [("test", "net1", "")]),
        ("net1@fifteen_bytes_x", [("test", "net1", "fifteen_bytes_x")]),
        ("net1@ünïcödé", [("test", "net1", "ünïcödé")]),
        ("sriov.example.com", [("test", "sriov.example.com", "")]),  # Kubernetes has it, so it can be asked for
        (NAME_253, [("test", NAME_253, "")]),
        ("a" * 63 + "/0", [("a" * 63, "0", "")]),
    ],
)
def test_short_form(text: str, expected: list[tuple[str, str, str]]) -> None:
    assert [(each.namespace, each.name, each.ifname) for each in parse_selections(text, "test")] == expected


@pytest.mark.parametrize("text", ["", " ", "\n\t ", "[]", " [ ] "])
def test_nothing_asked_for(text: str) -> None:
    assert parse_selections(text, "test") == ()


MISMATCH = "one or more items did not match comma-delimited format"
IFNAME = "Failed to parse interface name: must be less than 15 chars and not contain '/' or spaces. interface name "
JSON = "failed to parse pod Network Attachment Selection Annotation JSON format"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("root@someIP/root@someOtherIP/root@thirdIP", "Invalid network object (failed at '/')"),
        ("root@someIP/root@someOtherIP@garbagevalue", "Invalid network object (failed at '@')"),
        ("root@someIP/root@someOtherIP", f"Failed to parse: {MISMATCH}"),
        ("root@someIP/root@someOtherIP", "mismatch @ 'root@someIP'"),
        ("default/net1@myIfc Name", f"{IFNAME}'myIfc Name'"),
        ("default/net1@very_long_interface_name", f"{IFNAME}'very_long_interface_name'"),
        ("net1@sixteen_bytes_xx", "1 to 15 bytes"),
        ("net1@ünïcödé_ünïcö", "1 to 15 bytes"),  # 13 characters, 19 bytes
        ("net1@..", IFNAME),
        ("net1@a:1", IFNAME),  # an alias to ifconfig, refused by libcni
        ("net1@a\x00b", IFNAME),
        ("net1,", "a network without a name"),
        (",", "a network without a name"),
        ("net1,,net2", "a network without a name"),
        ("kube-system/", "a network without a name"),
        ("@eth1", "a network without a name"),
        ("Net1", "mismatch @ 'Net1'"),
        ("-net1", MISMATCH),
        ("net1-", MISMATCH),
        ("net_1", MISMATCH),
        ("net1.", MISMATCH),
        ("net..1", MISMATCH),
        ("nét", MISMATCH),
        ("net1\n,net\n2", MISMATCH),
        ("my.ns/net1", "no name of a namespace"),
        ("a" * 64 + "/net1", "no name of a namespace"),
        (NAME_253 + "a", MISMATCH),
        ("net1\ud800", MISMATCH),
        ("net1," * MAX_SELECTIONS + "net1", f"more than {MAX_SELECTIONS} networks"),
        (json.dumps([{"name": "n"}] * (MAX_SELECTIONS + 1)), f"more than {MAX_SELECTIONS} networks"),
        ("[adsfasdfasdfasf]", f"{JSON}: not JSON"),
        ("[adsfasdfasdfasf]", "invalid character"),
        ('"net1"', JSON),
        ("{}", JSON),
        ('{"name":"net1"}', JSON),
        ("net1,{", JSON),
        ("[", JSON),
        ('[{"name":"net1"}] x', JSON),
        ('[{"name":"net1"},]', JSON),
        ("[" * 100_000, "nested too deeply"),
        ('["\ud800"]', JSON),
        ("[null]", f"{JSON}: network 1 of the list"),
        ('[{"name":"net1"},null]', f"{JSON}: network 2 of the list"),
        ('["net1"]', JSON),
        ("[[]]", JSON),
        ("[1]", JSON),
        ("[{}]", "network 1 of the list: a network without a name"),
        ('[{"name":null}]', "a network without a name"),
        ('[{"name":""}]', "a network without a name"),
        ('[{"name":7}]', f'{JSON}: network 1 of the list: "name"'),
        ('[{"name":"a/b"}]', "mismatch @ 'a/b'"),
        ('[{"name":"net1","namespace":"../x"}]', "mismatch @ '../x'"),
        ('[{"name":"net1","namespace":"\\u00e9"}]', "mismatch @ '\\xe9'"),
    ],
)
def test_what_cannot_be_read_is_refused(text: str, words: str) -> None:
    with pytest.raises(NetworkError) as caught:
        parse_selections(text, "test")
    assert words in str(caught.value)
    assert (caught.value.fault, caught.value.retry) == (Fault.OPERATOR, False)
    assert len(str(caught.value)) < 600  # whatever the annotation's length


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"interface": "sixteen_bytes_xx"}, IFNAME),  # upstream leaves all of these to libcni, after eth0 is made
        ({"interface": "a b"}, IFNAME),
        ({"interface": "a/b"}, IFNAME),
        ({"interface": "."}, IFNAME),
        ({"interface": "eth0\n"}, IFNAME),
        ({"interfaceRequest": "sixteen_bytes_xx"}, IFNAME),
        ({"ips": "10.0.0.1"}, '"ips"'),
        ({"ips": ["10.0.0.256"]}, 'failed to parse IP address "10.0.0.256"'),
        ({"ips": ["10.0.0.1", ""]}, 'failed to parse IP address ""'),
        ({"ips": ["10.0.0"]}, "failed to parse IP address"),
        ({"ips": ["10.0.0.01"]}, "failed to parse IP address"),
        ({"ips": ["fe80::1%eth0"]}, "failed to parse IP address"),
        ({"ips": ["10.0.0.1;IgnoreUnknown=0"]}, "failed to parse IP address"),
        ({"ips": ["10.0.0.1/33"]}, 'failed to parse CIDR "10.0.0.1/33"'),
        ({"ips": ["10.0.0.1/255.255.255.0"]}, "failed to parse CIDR"),
        ({"ips": ["2001:db8::1/129"]}, "failed to parse CIDR"),
        ({"ips": ["10.0.0.1/"]}, "failed to parse CIDR"),
        ({"ips": ["10.0.0.1/-1"]}, "failed to parse CIDR"),
        ({"ips": ["10.0.0.1/\u0661"]}, "failed to parse CIDR"),
        ({"ips": ["/24"]}, "failed to parse CIDR"),
        ({"ips": [None]}, '"ips"'),
        ({"mac": "02:00:5e:00:53"}, "failed to mac: address '02:00:5e:00:53': invalid MAC address"),
        ({"mac": "02:00:5e:00:53:01:02"}, "failed to mac"),
        ({"mac": "02:00:5e-00:53:01"}, "failed to mac"),
        ({"mac": "02005e005301"}, "failed to mac"),
        ({"mac": "2:0:5e:0:53:1"}, "failed to mac"),
        ({"mac": "02:00:5e:00:53:0g"}, "failed to mac"),
        ({"mac": "02:00:5e:00:53:01:"}, "failed to mac"),
        ({"mac": "02:00:5e:00:53:01;K=V"}, "failed to mac"),
        ({"mac": ["02:00:5e:00:53:01"]}, '"mac"'),
        ({"infiniband_guid": "c2:11:22"}, "failed to validate infiniband GUID"),
        ({"portMappings": {"hostPort": 1}}, '"portMappings"'),
        ({"portMappings": [None]}, '"portMappings"'),
        ({"portMappings": [{"hostPort": "80"}]}, '"hostPort"'),
        ({"portMappings": [{"hostPort": 65536}]}, '"hostPort"'),
        ({"portMappings": [{"containerPort": -1}]}, '"containerPort"'),
        ({"portMappings": [{"hostPort": True}]}, '"hostPort"'),
        ({"portMappings": [{"protocol": 6}]}, '"protocol"'),
        ({"portMappings": [{"hostIP": "node"}]}, "\"hostIP\" is 'node'"),
        ({"bandwidth": 5}, '"bandwidth"'),
        ({"bandwidth": {"ingressRate": "1G"}}, '"ingressRate"'),
        ({"bandwidth": {"egressBurst": 1.5}}, '"egressBurst"'),
        ({"bandwidth": {"egressRate": 2**63}}, '"egressRate"'),
        ({"bandwidth": {"ingressRate": -1}}, '"ingressRate"'),
        ({"deviceID": 1}, '"deviceID"'),
        ({"container": ["vfw"]}, '"container"'),
        ({"cni_args": ["a"]}, '"cni-args"'),
        ({"cni_args": "a=b"}, '"cni-args"'),
        ({"default_route": "10.0.0.1"}, '"default-route"'),
        ({"default_route": [None]}, '"default-route"'),
        ({"default_route": [""]}, "invalid IP address: ''"),  # upstream makes a route through no address of it
        ({"default_route": ["10.0.0.1/24"]}, "invalid IP address: '10.0.0.1/24'"),
        ({"default_route": ["router"]}, "invalid IP address"),
        ({"default_route": ["0.0.0.0"]}, "cannot be a gateway"),
        ({"default_route": ["ff02::1"]}, "cannot be a gateway"),
    ],
)
def test_json_with_a_wrong_value_is_refused(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(NetworkError) as caught:
        parse_selections(element(**keys), "test")
    assert words in str(caught.value)
    assert "network 1 of the list" in str(caught.value)


def test_json_form_in_full() -> None:
    selection = one(
        """[{"name":"net1","namespace":"other-ns","interface":"ens1","ips":["10.0.0.7/24","2001:db8::7"],
        "mac":"02:00:5e:00:53:01","infiniband-guid":"c2:11:22:33:44:55:66:77",
        "portMappings":[{"hostPort":8080,"containerPort":80,"protocol":"tcp","hostIP":"192.0.2.1"},{"hostPort":53}],
        "bandwidth":{"ingressRate":2048,"ingressBurst":1600,"egressRate":4096,"egressBurst":1600},
        "deviceID":"0000:03:02.1","container":"vfw","cni-args":{"a":1e3,"b":{"c":[null]}},
        "default-route":["10.0.0.1","2001:DB8::1"]}]"""
    )
    assert selection == Selection(
        namespace="other-ns",
        name="net1",
        ifname="ens1",
        ips=("10.0.0.7/24", "2001:db8::7"),
        mac="02:00:5e:00:53:01",
        infiniband_guid="c2:11:22:33:44:55:66:77",
        port_mappings=(
            PortMapping(host_port=8080, container_port=80, protocol="tcp", host_ip="192.0.2.1"),
            PortMapping(host_port=53, container_port=0),
        ),
        bandwidth=Bandwidth(ingress_rate=2048, ingress_burst=1600, egress_rate=4096, egress_burst=1600),
        device_id="0000:03:02.1",
        container="vfw",
        cni_args={"a": msgspec.Raw(b"1e3"), "b": msgspec.Raw(b'{"c":[null]}')},
        default_route=("10.0.0.1", "2001:db8::1"),
    )


def test_as_capability_arguments() -> None:
    text = element(
        ips=["10.0.0.7"],
        mac="02:00:5e:00:53:01",
        infiniband_guid="c2:11:22:33:44:55:66:77",
        portMappings=[{"hostPort": 8080, "containerPort": 80, "protocol": "udp"}, {"hostIP": "::1"}],
        bandwidth={"ingressRate": 2048},
    )
    assert one(text).capabilities() == {
        "ips": ["10.0.0.7"],
        "mac": "02:00:5e:00:53:01",
        "infinibandGUID": "c2:11:22:33:44:55:66:77",
        "portMappings": [
            {"hostPort": 8080, "containerPort": 80, "protocol": "udp"},
            {"hostPort": 0, "containerPort": 0, "hostIP": "::1"},
        ],
        "bandwidth": {"ingressRate": 2048, "ingressBurst": 0, "egressRate": 0, "egressBurst": 0},
    }
    assert one("net1").capabilities() == {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[{"name":"net1","ipRequest":"x","macRequest":5,"ipam-claim-reference":"c","x":{}}]', {}),
        ('[{"NAME":"net1","Interface":"ens1","IPS":["10.0.0.7"]}]', {"ifname": "ens1", "ips": ("10.0.0.7",)}),
        ('[{"Name":"net2","name":"net1","Mac":"","MAC":"0200.5e00.5301"}]', {"mac": "0200.5e00.5301"}),
        ('[{"name":"net2","name":"net1"}]', {}),
        ('[{"name":"net1","interfaceRequest":"ens1"}]', {"ifname": "ens1"}),
        ('[{"name":"net1","interface":"ens2","interfaceRequest":"ens1"}]', {"ifname": "ens2"}),
        ('[{"name":"net1","namespace":""}]', {}),
        (
            '[{"name":"net1","namespace":null,"ips":null,"mac":null,"portMappings":null,"bandwidth":null,'
            '"cni-args":null,"default-route":null,"deviceID":null,"container":null,"interface":null}]',
            {},
        ),
        ('[{"name":"net1","ips":[],"portMappings":[],"cni-args":{}}]', {}),
        ('[{"name":"net1","default-route":[]}]', {"default_route": ()}),
        ('[{"name":"net1","default-route":["::ffff:10.0.0.1"]}]', {"default_route": ("10.0.0.1",)}),
        ('[{"name":"net1","default-route":["fe80::1"]}]', {"default_route": ("fe80::1",)}),
        ('[{"name":"net1","bandwidth":{"IngressRate":1}}]', {"bandwidth": Bandwidth(ingress_rate=1)}),
        ('[{"name":"net1","device":"0000:03:02.1"}]', {}),
    ],
)
def test_json_keys_as_upstream_reads_them(text: str, expected: dict[str, Any]) -> None:
    assert one(text) == Selection(namespace="test", name="net1", **expected)


@pytest.mark.parametrize(
    "mac",
    [
        "02:00:5e:00:53:01",
        "02-00-5E-00-53-01",
        "0200.5e00.5301",
        "02:00:5e:10:00:00:00:01",
        "0200.5e10.0000.0001",
        "00:00:00:00:fe:80:00:00:00:00:00:00:02:00:5e:10:00:00:00:01",
    ],
)
def test_hardware_addresses_that_go_takes(mac: str) -> None:
    selection = one(element(mac=mac, infiniband_guid=mac))
    assert (selection.mac, selection.infiniband_guid) == (mac, mac)


def test_default_network() -> None:
    assert parse_default_network("net1", "kube-system") == Selection(namespace="kube-system", name="net1")
    assert parse_default_network("blue/net1@ens1", "kube-system") == Selection(
        namespace="blue", name="net1", ifname="ens1"
    )
    assert parse_default_network('[{"name":"net1","mac":"02:00:5e:00:53:01"}]', "x").mac == "02:00:5e:00:53:01"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("net1,net2", "more than one default network is specified"),
        ('[{"name":"net1"},{"name":"net2"}]', "more than one default network is specified"),
        ("[]", "no default network is specified"),
        (" ", "no default network is specified"),
        ("net1,", "a network without a name"),
        ("[null]", JSON),
    ],
)
def test_there_is_one_default_network(text: str, words: str) -> None:
    with pytest.raises(NetworkError) as caught:
        parse_default_network(text, "kube-system")
    assert words in str(caught.value)


def test_attributes_of_one_interface() -> None:
    assert check_attributes("", []) == ("", ())
    assert check_attributes("02:00:5e:00:53:01", ["10.0.0.7", "::1/64"]) == (
        "02:00:5e:00:53:01",
        ("10.0.0.7", "::1/64"),
    )
    with pytest.raises(NetworkError, match="failed to mac"):
        check_attributes("nobody", [])
    with pytest.raises(NetworkError, match="failed to parse CIDR"):
        check_attributes("", ["10.0.0.7/x"])


KEYS = st.sampled_from(
    [
        *("name", "NAME", "namespace", "interface", "interfaceRequest", "ips", "mac", "infiniband-guid", "deviceID"),
        *("portMappings", "bandwidth", "cni-args", "default-route", "container", "hostPort", "hostIP", "ingressRate"),
    ]
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["net1", "10.0.0.1", "::/0", "02:00:5e:00:53:01", "ens1"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.text(max_size=5), inner, max_size=5),
    max_leaves=12,
)
TEXTS = st.text(max_size=60) | st.text(alphabet='net1@/, .-[]{}":\\', max_size=40)
DOCUMENTS = st.lists(st.dictionaries(KEYS, VALUES, max_size=6), max_size=3).map(json.dumps)


@settings(deadline=None)
@given(st.one_of(TEXTS, DOCUMENTS, VALUES.map(json.dumps)))
def test_whatever_is_written_is_read_or_refused(text: str) -> None:
    try:
        selections = parse_selections(text, "test")
    except NetworkError as error:
        str(error).encode()  # no log and no event may choke on what it quotes
        return
    for selection in selections:
        assert selection.name
        assert selection.namespace
        msgspec.json.encode(selection)
        msgspec.json.encode(selection.capabilities())


@settings(deadline=None)
@given(DOCUMENTS, st.data())
def test_a_document_cut_short_is_refused(text: str, data: st.DataObject) -> None:
    cut = text[: data.draw(st.integers(min_value=1, max_value=len(text) - 1))]
    with pytest.raises(NetworkError):
        parse_selections(cut, "test")

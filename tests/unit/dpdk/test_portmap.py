"""The map of a pod's ports: what is in it, and that whoever reads one back takes nothing on trust."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpdk.eal import Port
from dpdk.errors import DpdkError
from dpdk.portmap import MAP_LIMIT, arguments, decode_map, encode_map, make_map, port_table, told

INSIDE = Port(
    network="vfw/inside",
    interface="net1",
    pci="0000:03:02.0",
    numa=1,
    driver="vfio-pci",
    mac="02:fe:00:00:00:01",
    vlan=100,
    ips=("10.1.0.5/24",),
)
OUTSIDE = Port(network="vfw/outside", interface="net2", pci="0000:02:02.0", driver="vfio-pci")


def test_a_map_in_the_order_of_the_networks() -> None:
    made = make_map((INSIDE, OUTSIDE), pod="vfw/fw", uid="u-1", sandbox="c1", memory_mb={1: 512})
    assert json.loads(encode_map(made)) == {
        "version": "1.0",
        "pod": "vfw/fw",
        "uid": "u-1",
        "sandbox": "c1",
        "eal": [
            *("-a", "0000:03:02.0", "-a", "0000:02:02.0", "--socket-mem", "0,512", "--in-memory"),
            *("--iova-mode", "va"),
        ],
        "memoryMb": {"1": 512},
        "ports": [
            {
                "port": 1,  # by address: DPDK does not care for the order of -a
                "network": "vfw/inside",
                "interface": "net1",
                "pci": "0000:03:02.0",
                "numa": 1,
                "driver": "vfio-pci",
                "mac": "02:fe:00:00:00:01",
                "vlan": 100,
                "ips": ["10.1.0.5/24"],
            },
            {"port": 0, "network": "vfw/outside", "interface": "net2", "pci": "0000:02:02.0", "driver": "vfio-pci"},
        ],
    }
    assert decode_map(encode_map(made), where="x") == made
    assert arguments(made, cpus=(2, 3)) == ("-l", "2-3", *made.eal)
    assert arguments(made, file_prefix="fw")[-4:-2] == ("fw", "--huge-unlink")


def test_what_the_status_says() -> None:
    made = make_map((INSIDE, OUTSIDE), pod="vfw/fw", sandbox="c1")
    assert told(made.ports[0], made) == {
        "port": 1,
        "driver": "vfio-pci",
        "mac": "02:fe:00:00:00:01",
        "vlan": 100,
        "numa": 1,
        "eal": list(made.eal),
    }
    assert told(made.ports[1], made) == {"port": 0, "driver": "vfio-pci", "eal": list(made.eal)}


def test_a_table_for_a_shell() -> None:
    odd = Port(network="a b/\nc", interface="net3", pci="0000:04:02.0", numa=0)
    made = make_map((INSIDE, OUTSIDE, odd), pod="vfw/fw", sandbox="c1")
    assert port_table(made).decode().splitlines() == [
        "1 vfw/inside net1 0000:03:02.0 02:fe:00:00:00:01 100 1",
        "0 vfw/outside net2 0000:02:02.0 - - -",
        "2 a_b/_c net3 0000:04:02.0 - - 0",
    ]


def test_without_an_iommu_addresses_are_physical() -> None:
    made = make_map((INSIDE,), pod="vfw/fw", sandbox="c1", noiommu=True)
    assert made.eal[-2:] == ("--iova-mode", "pa")
    assert arguments(made)[-2:] == ("--iova-mode", "pa")


def test_a_map_has_its_limit() -> None:
    many = [Port(network="n" * 300, interface=f"net{i}", pci=f"0000:{i:02x}:00.0") for i in range(250)]
    with pytest.raises(DpdkError, match=f"more than {MAP_LIMIT}"):
        encode_map(make_map(many, pod="a/b", sandbox="c1"))


@pytest.mark.parametrize(
    "change",
    [
        {"version": "2.0"},
        {"ports": [{"port": 0, "network": "a/b", "interface": "net1", "pci": "0000:03:02.0; reboot"}]},
        {"ports": [{"port": 0, "network": "a/b", "interface": "net1", "pci": "03:02.0"}]},
        {"ports": [{"port": "x", "network": "a/b", "interface": "net1", "pci": "0000:03:02.0"}]},
        {"ports": 7},
        {"pod": None},
    ],
)
def test_a_map_that_is_none(change: dict[str, object]) -> None:
    whole = json.loads(encode_map(make_map((INSIDE,), pod="vfw/fw", sandbox="c1")))
    with pytest.raises(DpdkError, match=r"^here"):
        decode_map(json.dumps(whole | change).encode(), where="here")


def test_what_a_map_says_of_its_arguments_is_not_believed() -> None:
    made = make_map((INSIDE,), pod="vfw/fw", sandbox="c1")
    whole = json.loads(encode_map(made)) | {"eal": ["-d", "/tmp/evil.so"]}
    assert arguments(decode_map(json.dumps(whole).encode(), where="x")) == made.eal


@given(
    st.binary(max_size=200)
    | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(json.dumps).map(str.encode)
)
def test_no_bytes_break_it(data: bytes) -> None:
    with pytest.raises(DpdkError):
        decode_map(data, where="x")

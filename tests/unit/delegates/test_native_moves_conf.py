"""Which configurations of `tuning` and `host-device` are done here, and which are left to the program."""

import json
from pathlib import Path
from typing import Any

import pytest

from multus.cni.request import Command
from multus.delegates.native.host_device import read_host_device
from multus.delegates.native.reading import Unsupported
from multus.delegates.native.tuning import read_tuning
from multus.delegates.plugin import Call

PREVIOUS = {"cniVersion": "1.0.0", "ips": []}


def call(body: dict[str, Any] | str, command: Command = Command.ADD, **args: str) -> Call:
    text = body if isinstance(body, str) else json.dumps({"cniVersion": "1.0.0", "name": "n", "type": "t", **body})
    pairs = (("IgnoreUnknown", "1"), *args.items())
    return Call(command=command, conf=text.encode(), container_id="c1", netns="/n", ifname="net1", args=pairs)


def test_a_tuning_conf_is_read_to_the_last_key() -> None:
    body = {
        "sysctl": {"net.ipv4.conf.IFNAME.arp_notify": "1", "net.core.somaxconn": "9"},
        "mac": "02:00:00:00:00:01",
        "mtu": 1400,
        "promisc": True,
        "allmulti": False,
        "dataDir": "/data",
        "args": {"cni": {"other": 1}},
        "capabilities": {"mac": True},
        "prevResult": PREVIOUS,
    }
    conf = read_tuning(call(body), "/host")
    assert conf.sysctls == (("ipv4/conf/net1/arp_notify", "1"), ("core/somaxconn", "9"))
    assert (conf.mac, conf.mtu, conf.promisc, conf.allmulti) == ("02:00:00:00:00:01", 1400, True, False)
    assert str(conf.backup) == "/host/data/c1_net1.json"
    assert conf.changes_interface
    assert not read_tuning(call({"sysctl": {}, "prevResult": PREVIOUS})).changes_interface


def test_the_runtime_s_mac_wins_over_the_arguments_and_these_over_the_conf() -> None:
    body = {"mac": "02:00:00:00:00:01", "prevResult": PREVIOUS}
    assert read_tuning(call(body, MAC="02:00:00:00:00:02")).mac == "02:00:00:00:00:02"
    body["runtimeConfig"] = {"mac": "02:00:00:00:00:03"}
    assert read_tuning(call(body, MAC="02:00:00:00:00:02")).mac == "02:00:00:00:00:03"


@pytest.mark.parametrize(
    "body",
    [
        {"txQLen": 1},
        {"Mtu": 1},
        {"mtu": "1"},
        {"mtu": -1},
        {"mtu": 2**31},
        {"mac": "020000000001"},
        {"allmulti": 1},
        {"dataDir": "relative"},
        {"sysctl": None},
        {"sysctl": []},
        {"sysctl": [["net.core.somaxconn", "1"]]},
        {"sysctl": {"net.core.somaxconn": 1}},
        {"sysctl": {"net.core..somaxconn": "1"}},
        {"sysctl": {"net/core/somaxconn": "1"}},
        {"sysctl": {"kernel.panic": "1"}},
        {"sysctl": {"net": "1"}},
        {"args": {"cni": {"mtu": 1}}},
        {"args": {"cni": {"SYSCTL": {}}}},
        {"cniVersion": "1.1.0"},
        {"cniVersion": "0.2.0"},
    ],
)
def test_another_tuning_conf_is_the_program_s(body: dict[str, Any]) -> None:
    with pytest.raises(Unsupported):
        read_tuning(call({"prevResult": PREVIOUS, **body}))


def test_a_sysctl_that_is_there_twice_or_an_allowlist_are_the_program_s(tmp_path: Path) -> None:
    twice = '{"cniVersion":"1.0.0","prevResult":{},"sysctl":{"net.core.a":"1","net.core.a":"2"}}'
    with pytest.raises(Unsupported):
        read_tuning(call(twice))
    plain = call({"sysctl": {"net.core.somaxconn": "9"}, "prevResult": PREVIOUS})
    assert read_tuning(plain, str(tmp_path)).sysctls
    (tmp_path / "etc/cni/tuning").mkdir(parents=True)
    (tmp_path / "etc/cni/tuning/allowlist.conf").write_text("^net")
    with pytest.raises(Unsupported):
        read_tuning(plain, str(tmp_path))


def test_an_add_of_tuning_needs_a_result_and_a_del_none() -> None:
    with pytest.raises(Unsupported):
        read_tuning(call({"mtu": 1400}))
    assert read_tuning(call({"mtu": 1400}, Command.DEL)).mtu == 1400


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"device": ""},
        {"device": 1},
        {"Device": "eth1"},
        {"device": "eth1", "DPDKMode": True},
        {"hwaddr": "0200.0000.0001"},
        {"kernelpath": "/sys/devices/../../etc"},
        {"kernelpath": "relative"},
        {"pciBusID": "0000:01:00.0"},  # it is not there
        {"pciBusID": "../x"},
        {"device": "eth1", "runtimeConfig": {"deviceID": "mlx5_core.sf.2"}},
        {"device": "eth1", "ipam": {"type": "../x"}},
        {"device": "eth1", "cniVersion": "1.1.0"},
    ],
)
def test_another_host_device_conf_is_the_program_s(tmp_path: Path, body: dict[str, Any]) -> None:
    with pytest.raises(Unsupported):
        read_host_device(call(body), str(tmp_path))


def test_which_device_is_told_in_the_program_s_order(tmp_path: Path) -> None:
    device = tmp_path / "sys/bus/pci/devices/0000:01:00.0"
    device.mkdir(parents=True)
    for driver, understood in (("iavf", True), ("vfio-pci", False), ("uio_pci_generic", False), ("igb_uio", False)):
        (device / "driver").unlink(missing_ok=True)
        (device / "driver").symlink_to(f"../../drivers/{driver}")
        body = call({"device": "eth1", "hwaddr": "02:00:00:00:0A:01", "pciBusID": "0000:01:00.0"})
        if not understood:
            with pytest.raises(Unsupported):
                read_host_device(body, str(tmp_path))
            continue
        conf = read_host_device(body, str(tmp_path))
        assert (conf.device, conf.hwaddr, conf.folder) == ("eth1", "02:00:00:00:0a:01", f"{device}/net")
    path = read_host_device(call({"kernelpath": "/sys/devices/a"}), "/host")
    assert path.folder == "/host/sys/devices/a/net"

"""CHECK finds every difference between what was attached and what is, in a real namespace, and nothing else."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from devices.linux import links, netns
from multus.check import CheckError, drift
from multus.cni.result import DNS, IP, Interface, Result, Route, encode_result
from multus.errors import MultusError
from multus.sandbox import Attachment, Sandbox, State

pytestmark = pytest.mark.anyio

VF = "0000:3b:02.1"


_CONF = b'{"name":"n","type":"x"}'


def _sandbox(pod: Any, *results: Result | None, device_id: str = "", conf: bytes = _CONF) -> Sandbox:
    names = ("eth0", "net1", "net2")
    return Sandbox(
        container_id="abc",
        ifname="eth0",
        state=State.ATTACHED,
        netns=pod.path,
        netns_id=netns.identity(pod.path) or "",
        boot_id="boot",
        pod_namespace="default",
        pod_name="pod",
        pod_uid="uid",
        attachments=tuple(
            Attachment(
                position=position,
                network=f"network-{names[position]}",
                ifname=names[position],
                conf=conf,
                device_id=device_id,
                result=encode_result(result, "1.1.0") if result is not None else None,
            )
            for position, result in enumerate(results)
        ),
    )


@pytest.fixture
def attached(pod: Any) -> tuple[Result, Result]:
    """What the plugins of eth0 and net1 answered, true of the pod as it is made."""
    pod.ip("route add default via 10.0.0.1 dev eth0")
    pod.ip("-6 route add 2001:db8::/32 via fd00:b::1 dev net1")
    macs = {link.name: link.mac for link in links.snapshot(pod.path)}
    eth0 = Result(
        interfaces=(
            Interface(name="cni0", mac="02:00:00:00:00:01"),  # on the host: its plugin's to check
            Interface(name="eth0", mac=macs["eth0"].upper(), mtu=1500, sandbox=pod.path),
        ),
        ips=(IP(address="10.0.0.2/24", gateway="10.0.0.1", interface=1), IP(address="FD00:A:0::2/64", interface=1)),
        routes=(Route(dst="0.0.0.0/0", gw="10.0.0.1"), Route(dst="10.0.0.7/24")),
        dns=DNS(nameservers=("10.96.0.10",)),
    )
    net1 = Result(
        interfaces=(Interface(name="net1", mac=macs["net1"], sandbox=pod.path),),
        ips=(IP(address="10.1.0.2/24"), IP(address="fd00:b::2/64")),
        routes=(Route(dst="2001:db8::/32", gw="fd00:b:0::1"),),
    )
    return eth0, net1


async def test_nothing_has_changed(pod: Any, attached: tuple[Result, Result]) -> None:
    assert await drift(_sandbox(pod, *attached, None), pod.path) == []


async def test_an_mtu_that_tuning_may_have_given_is_no_difference(pod: Any, attached: tuple[Result, Result]) -> None:
    pod.ip("link set eth0 mtu 1400")
    tuned = b'{"name":"n","cniVersion":"1.0.0","plugins":[{"type":"x"},{"type":"tuning","mtu":1400}]}'
    assert await drift(_sandbox(pod, *attached, conf=tuned), pod.path) == []
    pod.ip("link set eth0 address 02:00:00:00:00:09")
    assert "MAC" in (await drift(_sandbox(pod, *attached, conf=tuned), pod.path))[0]


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        (
            ["link del net1"],
            [
                "network-net1: interface net1 is missing",
                "network-net1: the route to 2001:db8::/32 through fd00:b:0::1 is missing",
            ],
        ),
        (
            ["link set net1 address 02:00:00:00:00:09"],
            ["network-net1: interface net1 has MAC 02:00:00:00:00:09 instead of {recorded}"],
        ),
        (["link set eth0 mtu 1400"], ["network-eth0: interface eth0 has MTU 1400 instead of 1500"]),
        (["addr del fd00:a::2/64 dev eth0"], ["network-eth0: address FD00:A:0::2/64 is missing on eth0"]),
        (
            ["addr add 10.1.0.2/16 dev net1", "addr del 10.1.0.2/24 dev net1"],
            ["network-net1: address 10.1.0.2/24 is missing on net1"],
        ),
        (
            ["addr del 10.0.0.2/24 dev eth0", "addr add 10.0.0.2/24 dev net1"],
            [
                "network-eth0: address 10.0.0.2/24 is missing on eth0",
                "network-eth0: the route to 0.0.0.0/0 through 10.0.0.1 is missing",
                "network-eth0: the route to 10.0.0.7/24 is missing",
            ],
        ),
        (["route del default"], ["network-eth0: the route to 0.0.0.0/0 through 10.0.0.1 is missing"]),
        (
            ["route replace default via 10.0.0.9 dev eth0"],
            ["network-eth0: the route to 0.0.0.0/0 through 10.0.0.1 is missing"],
        ),
        (
            ["route replace default via 10.1.0.1 dev net1"],
            ["network-eth0: the route to 0.0.0.0/0 through 10.0.0.1 is missing"],
        ),
        (["route replace unreachable default"], ["network-eth0: the route to 0.0.0.0/0 through 10.0.0.1 is missing"]),
        (
            ["link set net1 down"],  # the kernel drops addresses of IPv6 with it
            [
                "network-net1: address fd00:b::2/64 is missing on net1",
                "network-net1: interface net1 is down",
                "network-net1: the route to 2001:db8::/32 through fd00:b:0::1 is missing",
            ],
        ),
    ],
)
async def test_every_difference_is_one_sentence(
    changes: list[str], found: list[str], pod: Any, attached: tuple[Result, Result]
) -> None:
    for change in changes:
        pod.ip(change)
    recorded = attached[1].interfaces[0].mac
    expected = [sentence.format(recorded=recorded) for sentence in found]
    assert await drift(_sandbox(pod, *attached), pod.path) == expected


async def test_what_a_pod_adds_itself_is_no_difference(pod: Any, attached: tuple[Result, Result]) -> None:
    pod.ip("addr add 10.7.0.1/24 dev net1")
    pod.ip("route add 10.8.0.0/16 via 10.1.0.1")
    pod.ip("link add br0 type bridge")
    pod.ip("link set net1p down")  # no carrier: the other side's affair
    assert await drift(_sandbox(pod, *attached), pod.path) == []


async def test_routes_in_a_multipath_and_in_another_table_are_there(pod: Any, attached: tuple[Result, Result]) -> None:
    """Plugins such as sbr and vrf move an interface's routes to a table of its own and do not tell."""
    pod.ip("route replace default nexthop via 10.0.0.1 dev eth0 nexthop via 10.1.0.1 dev net1")
    pod.ip("-6 route del 2001:db8::/32")
    pod.ip("-6 route add 2001:db8::/32 via fd00:b::1 dev net1 table 100")
    eth0, net1 = attached
    assert await drift(_sandbox(pod, eth0, net1), pod.path) == []
    named = msgspec.structs.replace(net1, routes=(msgspec.structs.replace(net1.routes[0], table=101),))
    assert len(await drift(_sandbox(pod, eth0, named), pod.path)) == 1
    named = msgspec.structs.replace(net1, routes=(msgspec.structs.replace(net1.routes[0], table=100),))
    assert await drift(_sandbox(pod, eth0, named), pod.path) == []


async def test_the_first_default_route_wins_and_the_others_were_never_there(
    pod: Any, attached: tuple[Result, Result]
) -> None:
    eth0, net1 = attached
    both = msgspec.structs.replace(net1, routes=(Route(dst="0.0.0.0/0", gw="10.1.0.1"),))
    assert await drift(_sandbox(pod, eth0, both), pod.path) == []
    pod.ip("route replace default via 10.1.0.1 dev net1")  # and whichever was first
    assert await drift(_sandbox(pod, eth0, both), pod.path) == []
    pod.ip("route del default")
    assert len(await drift(_sandbox(pod, eth0, both), pod.path)) == 2


async def test_a_result_without_interfaces_is_checked_against_them_all(pod: Any) -> None:
    """Versions 0.1.0 and 0.2.0 know of addresses and routes only."""
    old = Result(ips=(IP(address="10.1.0.2/24"),), routes=(Route(dst="10.1.0.0/24"),))
    assert await drift(_sandbox(pod, old), pod.path) == []
    old = Result(ips=(IP(address="10.5.0.2/24"),), routes=(Route(dst="10.5.0.0/24"),))
    assert await drift(_sandbox(pod, old), pod.path) == [
        "network-eth0: address 10.5.0.2/24 is missing",
        "network-eth0: the route to 10.5.0.0/24 is missing",
    ]


def _dpdk(pod: Any, *interfaces: Interface) -> Result:
    return Result(
        interfaces=interfaces,
        ips=(IP(address="10.5.0.2/24", interface=0 if interfaces else None),),
        routes=(Route(dst="10.6.0.0/16", gw="10.5.0.1"),),
    )


async def test_a_device_for_dpdk_has_nothing_to_look_at(pod: Any, tmp_path: Path) -> None:
    assert await drift(_sandbox(pod, _dpdk(pod), device_id=VF), pod.path, sysfs=tmp_path) == []
    device = tmp_path / "bus/pci/devices" / VF
    device.mkdir(parents=True)
    (device / "driver").symlink_to("../drivers/vfio-pci")
    listed = Interface(name="net7", mac="02:00:00:00:00:07", sandbox=pod.path)
    assert await drift(_sandbox(pod, _dpdk(pod, listed), device_id=VF), pod.path, sysfs=tmp_path) == []
    listed = Interface(name="net7", sandbox=pod.path, pci_id=VF)
    assert await drift(_sandbox(pod, _dpdk(pod, listed)), pod.path, sysfs=tmp_path) == []


async def test_a_vf_of_the_kernel_that_is_missing_is_missing(pod: Any, tmp_path: Path) -> None:
    device = tmp_path / "bus/pci/devices" / VF
    device.mkdir(parents=True)
    (device / "driver").symlink_to("../drivers/iavf")
    result = Result(interfaces=(Interface(name="net7", sandbox=pod.path, pci_id=VF),))
    found = await drift(_sandbox(pod, result, device_id=VF), pod.path, sysfs=tmp_path)
    assert found == ["network-eth0: interface net7 is missing"]
    assert await drift(_sandbox(pod, result), pod.path) == ["network-eth0: interface net7 is missing"]


async def test_a_namespace_that_is_gone_or_another_is_said(
    pod: Any, attached: tuple[Result, Result], make_namespace: Callable[[], Any]
) -> None:
    sandbox = _sandbox(pod, *attached)
    (problem,) = await drift(sandbox, make_namespace().path)
    assert "is another network namespace" in problem
    netns.delete(pod.name)
    assert await drift(sandbox, pod.path) == [f"there is no network namespace at {pod.path}"]
    assert await drift(sandbox, "") == ["there is no network namespace at "]


async def test_what_cannot_be_read_is_an_error_and_not_a_difference(
    pod: Any, attached: tuple[Result, Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox = _sandbox(pod, *attached)

    def exhausted(*_: object) -> int:
        raise OSError(24, os.strerror(24))

    monkeypatch.setattr("devices.linux.netns.os.open", exhausted)
    with pytest.raises(CheckError, match="Too many open files") as raised:
        await drift(sandbox, pod.path)
    assert raised.value.retry


async def test_a_journal_that_was_tampered_with_is_an_error_of_ours(pod: Any, attached: tuple[Result, Result]) -> None:
    sandbox = _sandbox(pod, *attached)
    broken = msgspec.structs.replace(sandbox.attachments[0], result=b"{")
    with pytest.raises(MultusError, match="journal"):
        await drift(msgspec.structs.replace(sandbox, attachments=(broken,)), pod.path)

"""A bridge of the node and a pod's port of it: made, connected, and made the pod's gateway.

Source of what is done: containernetworking/plugins 1.1, bridge. Everything blocks: call it from a worker thread.
"""

import errno
import ipaddress
import os
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import msgspec

from devices.errors import DeviceError, KernelError
from devices.linux import addressing, link_changes, netdevs
from multus.cni.errors import Code
from multus.cni.result import IP
from multus.delegates.native.pod_side import remove
from multus.delegates.plugin import Call, PluginError
from multus.delegates.visit import Visit

_ATTEMPTS: Final = 10  # at a name that nobody has
_PORT_WAIT: Final = 2.55  # seconds until the bridge's port has to work
_PORT_PAUSE, _LONGEST_PORT_PAUSE = 0.0005, 0.01


class Port(msgspec.Struct, frozen=True, kw_only=True):
    """The node's end of the pair; `bridge_mac` is the one that the bridge had before."""

    name: str
    mac: str
    bridge: str
    bridge_mac: str


def create(call: Call, visit: Visit, *, bridge: str, mtu: int, mac: str, hairpin: bool, root: str) -> Port | None:
    """Make the pair and connect it, or leave nothing of it; the bridge is made when there is none.

    `mtu` 0 and `mac` "" are the kernel's choice, `root` is where /proc is. None when the program has to say what is
    wrong.

    :raises DeviceError: the kernel refused.
    """
    if not visit.is_possible:
        return None
    found = _prepare(visit.node, bridge, mtu, root)
    if found is None:
        return None
    name = _make_pair(call, visit, mtu, mac)
    try:
        port = _there(visit.node, name)
        with suppress(KernelError):
            link_changes.set_sysctl(f"ipv6/conf/{name}/accept_ra", "0", root, new=True)
        link_changes.join_bridge(visit.node, port.index, found.index, hairpin=hairpin)
    except BaseException:
        with suppress(DeviceError):
            remove(call)
        raise
    return Port(name=name, mac=port.mac, bridge=bridge, bridge_mac=found.mac)


def _prepare(connection: socket.socket, name: str, mtu: int, root: str) -> link_changes.Found | None:
    """See to the bridge; None when there is something else of that name."""
    bridge = link_changes.find(connection, name)
    if bridge is None:
        link_changes.create_bridge(connection, name, mtu=mtu)
        bridge = link_changes.find(connection, name)
    if bridge is None or bridge.kind != "bridge":
        return None
    with suppress(KernelError):
        link_changes.set_sysctl(f"ipv6/conf/{name}/accept_ra", "0", root)
    if not bridge.up:
        netdevs.change(connection, bridge.index, netdevs.Change(up=True))
    return bridge


def _make_pair(call: Call, visit: Visit, mtu: int, mac: str) -> str:
    """Make both ends where they belong; the name of the node's."""
    for _ in range(_ATTEMPTS):
        name = f"veth{os.urandom(4).hex()}"
        try:
            link_changes.create_veth(
                visit.pod, name=call.ifname, peer=name, peer_namespace=visit.node_namespace, mtu=mtu, mac=mac
            )
        except KernelError as error:
            if error.code != errno.EEXIST:
                raise
            if link_changes.find(visit.pod, call.ifname) is not None:
                words = "already exists"
                raise KernelError(f"container veth name provided ({call.ifname})", error.code, words) from None
        else:
            return name
    raise KernelError("failed to make veth pair", errno.EEXIST, "failed to find a unique veth name")


def finish(call: Call, visit: Visit, port: Port, ips: Sequence[IP], *, gateway: bool, root: str) -> str:
    """What is to be done when the port carries packets, which it does soon after the pod's end is up; the bridge's MAC.

    :raises PluginError: it does not. :raises DeviceError: the kernel refused.
    """
    deadline, pause = time.monotonic() + _PORT_WAIT, _PORT_PAUSE
    connection = visit.node
    while ips and not _there(connection, port.name).operational:
        if time.monotonic() > deadline:
            message = f"bridge port in error state: {port.name} is down"
            raise PluginError("bridge", call.command, Code.INTERNAL, message)
        time.sleep(pause)
        pause = min(pause * 2, _LONGEST_PORT_PAUSE)
    bridge = _there(connection, port.bridge)
    if not gateway or not ips:
        return bridge.mac
    for ip in ips:
        _give_gateway(connection, port, bridge, ip)
    if any(":" not in ip.address for ip in ips):
        link_changes.set_sysctl("ipv4/ip_forward", "1", root)
    if any(":" in ip.address for ip in ips):
        link_changes.set_sysctl("ipv6/conf/all/forwarding", "1", root)
    return _there(connection, port.bridge).mac


def _give_gateway(connection: socket.socket, port: Port, bridge: link_changes.Found, ip: IP) -> None:
    """Give the bridge the gateway's address, unless it has it. Another of that network is none that we replace."""
    wanted = ipaddress.ip_interface(f"{ip.gateway}/{ip.address.partition('/')[2]}")
    held = link_changes.addresses(connection, bridge.index, wanted.version)
    family = [ipaddress.ip_interface(each) for each in held]
    if wanted in family:
        return
    if any(wanted.version == 4 or each.ip in wanted.network or wanted.ip in each.network for each in family):
        words = f'"{port.bridge}" already has an IP address different from {wanted}'
        raise KernelError("failed to set bridge addr", errno.EEXIST, words)
    try:
        addressing.configure(connection, bridge.index, [str(wanted)], [])
    except KernelError as error:
        if error.code != errno.EEXIST:
            raise
    # The MAC that it had before, set: else it has the lowest of its ports', and changes as they come and go. One that
    # lost its last port before that has none: there the program fails for ever.
    mac = port.bridge_mac if port.bridge_mac.strip("0:") else _there(connection, port.bridge).mac
    netdevs.change(connection, bridge.index, netdevs.Change(mac=mac))


def _there(connection: socket.socket, name: str) -> link_changes.Found:
    found = link_changes.find(connection, name)
    if found is None:
        raise KernelError(f'could not lookup "{name}"', errno.ENODEV, "Link not found")
    return found

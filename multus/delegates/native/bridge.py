"""The plugin `bridge`, done over netlink: a bridge of the node, and a pair of interfaces from it to the pod.

Source of what it does: containernetworking/plugins 1.1. What it does otherwise: after a failed ADD interface and
addresses are gone. VLANs, masquerading, spoof checks, forced addresses, promiscuous mode and CHECK are the program's.
"""

import errno
import ipaddress
import logging
import os
import socket
from contextlib import suppress
from typing import Final

import anyio
import msgspec

from devices.errors import DeviceError, KernelError
from devices.linux import addressing, link_changes, netdevs, netns, rtnetlink
from multus.cni.errors import Code
from multus.cni.request import Command
from multus.cni.result import DNS, IP, Interface, Result, Route
from multus.delegates.chain import Delegate
from multus.delegates.native import reading
from multus.delegates.native.pod_side import addresses, configure, do, remove, undo
from multus.delegates.native.printing import printed
from multus.delegates.native.reading import Unsupported
from multus.delegates.native.removal import Removals
from multus.delegates.plugin import Call, PluginError

logger = logging.getLogger(__name__)

_ATTEMPTS: Final = 10  # at a name that nobody has
_PORT_WAIT: Final = 2.55  # seconds until the bridge's port has to work
_PORT_PAUSE: Final = 0.002
_SYSCTLS: Final = (("ipv6/conf/{}/accept_dad", "0"), ("ipv4/conf/{}/arp_notify", "1"))
_HOST: Final = "/proc/thread-self/ns/net"
_OFF: Final = ("ipMasq", "promiscMode", "forceAddress", "macspoofchk", "enabledad")
_KNOWN: Final = (
    *("cniVersion", "name", "type", "bridge", "isGateway", "isDefaultGateway", "hairpinMode", "mtu", "vlan"),
    *("ipam", "dns", "args", "runtimeConfig", "capabilities", "prevResult"),
    *_OFF,
)


class BridgeConf(msgspec.Struct, frozen=True, kw_only=True):
    """A configuration; `mtu` 0 and `mac` "" are the kernel's choice, `ipam` "" for no addresses."""

    version: str
    bridge: str
    gateway: bool
    default_gateway: bool
    hairpin: bool
    mtu: int
    mac: str
    ipam: str
    dns: DNS


class _Port(msgspec.Struct, frozen=True, kw_only=True):
    """The node's end of the pair."""

    name: str
    mac: str


class Bridge:
    """A delegate (see `multus.delegates.chain`). `runner` runs the program, `ipam` the address plugin."""

    def __init__(self, runner: Delegate, *, ipam: Delegate, removals: Removals) -> None:
        self._runner = runner
        self._removals = removals
        self._ipam = ipam

    async def __call__(self, plugin: str, call: Call) -> bytes:
        """Carry out a call; what the plugin would print.

        :raises MultusError: as the program.
        """
        if call.command not in (Command.ADD, Command.DEL):
            return await self._runner(plugin, call)
        try:
            conf = read_bridge(call)
        except Unsupported as reason:
            logger.debug("plugin %s: %s is not done here: %s", plugin, call.command, reason)
            return await self._runner(plugin, call)
        if call.command is Command.DEL:
            if call.netns:
                with self._removals.announced(call.netns):
                    await self._removals.remove(plugin, call)
            if conf.ipam:
                await self._ipam(conf.ipam, call)
            return b""
        bridge = await do(plugin, call, _prepare, conf, call)
        if bridge is None:
            return await self._runner(plugin, call)
        return printed(await self._add(plugin, conf, call, bridge.mac), conf.version)

    async def _add(self, plugin: str, conf: BridgeConf, call: Call, mac: str) -> Result:
        """All after the bridge is there, whose MAC is given; the pair is gone again after a failure."""
        port = await do(plugin, call, _attach, conf, call)
        answered = False
        given = Result()
        try:
            if conf.ipam:
                answer = await self._ipam(conf.ipam, call)
                answered = True  # before, it refused: what the container had is not this call's to give back
                given = addresses(plugin, conf.ipam, answer, call, version=conf.version, interface=2)
                given = with_gateways(given, conf)
            found = await configure(plugin, call, given, sysctls=_SYSCTLS if given.ips else ())
            mac = await _finish(plugin, conf, call, given, port, mac)
        except BaseException:
            await undo(plugin, self._ipam, conf.ipam if answered else "", call)
            raise
        interfaces = (
            Interface(name=conf.bridge, mac=mac),
            Interface(name=port.name, mac=port.mac),
            Interface(name=call.ifname, mac=found.mac, sandbox=call.netns),
        )
        return msgspec.structs.replace(given, interfaces=interfaces, dns=conf.dns)


def read_bridge(call: Call) -> BridgeConf:
    """The configuration of a call.

    :raises Unsupported: one for the program.
    """
    found = reading.members(call.conf, _KNOWN, only=True)
    given = reading.arguments(call.args)
    if any(reading.optional(found, key, bool, False) for key in _OFF) or reading.optional(found, "vlan", int, 0):
        raise Unsupported("what it asks for")
    default_gateway = reading.optional(found, "isDefaultGateway", bool, False)
    conf = BridgeConf(
        version=reading.optional(found, "cniVersion", str, ""),
        bridge=reading.optional(found, "bridge", str, "cni0"),
        gateway=default_gateway or reading.optional(found, "isGateway", bool, False),
        default_gateway=default_gateway,
        hairpin=reading.optional(found, "hairpinMode", bool, False),
        mtu=reading.optional(found, "mtu", int, 0),
        mac=_mac(found) or given.get("MAC", ""),
        ipam=reading.ipam_type(found),
        dns=reading.dns(found),
    )
    if conf.version not in reading.VERSIONS or not 0 <= conf.mtu < 2**31 or not reading.is_mac(conf.mac):
        raise Unsupported("version, mtu or mac")
    if not conf.bridge or len(os.fsencode(conf.bridge)) > 15 or "/" in conf.bridge:
        raise Unsupported("bridge")
    return conf


def with_gateways(given: Result, conf: BridgeConf) -> Result:
    """The result with the gateways that the bridge is to be, and with default routes through them when asked for."""
    if not conf.gateway:
        return given
    ips = tuple(ip if ip.gateway else msgspec.structs.replace(ip, gateway=_first(ip.address)) for ip in given.ips)
    routes = list(given.routes)
    if conf.default_gateway:
        for ip in ips:
            everything = "::/0" if ":" in ip.address else "0.0.0.0/0"
            if not any(route.gw and route.dst == everything for route in routes):
                routes.append(Route(dst=everything, gw=ip.gateway))
    return msgspec.structs.replace(given, ips=ips, routes=tuple(routes))


def _mac(found: dict[str, msgspec.Raw]) -> str:
    """Of the capability, else of `args.cni`."""
    runtime = reading.members(found["runtimeConfig"], ("mac",)) if "runtimeConfig" in found else {}
    args = reading.members(found["args"], ("cni",)) if "args" in found else {}
    cni = reading.members(args["cni"], ("mac",)) if "cni" in args else {}
    return reading.mac(runtime) or reading.mac(cni)


def _first(cidr: str) -> str:
    return str(ipaddress.ip_interface(cidr).network.network_address + 1)


def _prepare(conf: BridgeConf, call: Call) -> link_changes.Found | None:
    """See to the bridge; None when the program has to say what is wrong."""
    if netns.identity(call.netns) is None:
        return None
    with rtnetlink.connect() as connection:
        bridge = link_changes.find(connection, conf.bridge)
        if bridge is None:
            link_changes.create_bridge(connection, conf.bridge, mtu=conf.mtu)
            bridge = link_changes.find(connection, conf.bridge)
        if bridge is None or bridge.kind != "bridge":
            return None
        with suppress(KernelError):
            link_changes.set_sysctl(f"ipv6/conf/{conf.bridge}/accept_ra", "0")
        if not bridge.up:
            netdevs.change(connection, bridge.index, netdevs.Change(up=True))
    return bridge


def _attach(conf: BridgeConf, call: Call) -> _Port:
    """Make the pair and connect it, or leave nothing of it."""
    name = _make_pair(conf, call)
    try:
        return _connect(conf, name)
    except BaseException:
        with suppress(DeviceError):
            remove(call)
        raise


def _make_pair(conf: BridgeConf, call: Call) -> str:
    """Make both ends where they belong; the name of the node's."""
    host = os.open(_HOST, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with netns.open_socket(call.netns) as inside:
            for _ in range(_ATTEMPTS):
                name = f"veth{os.urandom(4).hex()}"
                try:
                    link_changes.create_veth(
                        inside, name=call.ifname, peer=name, peer_namespace=host, mtu=conf.mtu, mac=conf.mac
                    )
                except KernelError as error:
                    if error.code != errno.EEXIST:
                        raise
                    if link_changes.find(inside, call.ifname) is not None:
                        words = "already exists"
                        raise KernelError(f"container veth name provided ({call.ifname})", error.code, words) from None
                else:
                    return name
    finally:
        os.close(host)
    raise KernelError("failed to make veth pair", errno.EEXIST, "failed to find a unique veth name")


def _connect(conf: BridgeConf, name: str) -> _Port:
    with rtnetlink.connect() as connection:
        bridge, port = _there(connection, conf.bridge), _there(connection, name)
        with suppress(KernelError):
            link_changes.set_sysctl(f"ipv6/conf/{name}/accept_ra", "0")
        link_changes.join_bridge(connection, port.index, bridge.index, hairpin=conf.hairpin)
    return _Port(name=name, mac=port.mac)


async def _finish(plugin: str, conf: BridgeConf, call: Call, given: Result, port: _Port, mac: str) -> str:
    """What is to be done when the port carries packets, which it does soon after the pod's end is up; the bridge's MAC.

    `mac` is the one that it had before.
    """
    deadline = anyio.current_time() + _PORT_WAIT
    while (found := await do(plugin, call, _finish_now, conf, given, port, mac)) is None:
        if anyio.current_time() > deadline:
            raise PluginError(plugin, call.command, Code.INTERNAL, f"bridge port in error state: {port.name} is down")
        await anyio.sleep(_PORT_PAUSE)
    return found


def _finish_now(conf: BridgeConf, given: Result, port: _Port, mac: str) -> str | None:
    """Make the bridge the gateway, where it is to be; None when the port does not work yet, if it has to."""
    with rtnetlink.connect() as connection:
        if given.ips and not _there(connection, port.name).operational:
            return None
        bridge = _there(connection, conf.bridge)
        if not conf.gateway or not given.ips:
            return bridge.mac
        for ip in given.ips:
            _give_gateway(connection, conf, msgspec.structs.replace(bridge, mac=mac), ip)
        if any(":" not in ip.address for ip in given.ips):
            link_changes.set_sysctl("ipv4/ip_forward", "1")
        if any(":" in ip.address for ip in given.ips):
            link_changes.set_sysctl("ipv6/conf/all/forwarding", "1")
        return _there(connection, conf.bridge).mac


def _give_gateway(connection: socket.socket, conf: BridgeConf, bridge: link_changes.Found, ip: IP) -> None:
    """Give the bridge the gateway's address, unless it has it. Another of that network is none that we replace."""
    wanted = ipaddress.ip_interface(f"{ip.gateway}/{ip.address.partition('/')[2]}")
    held = [ipaddress.ip_interface(each) for each in link_changes.addresses(connection, bridge.index)]
    family = [each for each in held if each.version == wanted.version]
    if wanted in family:
        return
    if any(wanted.version == 4 or each.ip in wanted.network or wanted.ip in each.network for each in family):
        words = f'"{conf.bridge}" already has an IP address different from {wanted}'
        raise KernelError("failed to set bridge addr", errno.EEXIST, words)
    try:
        addressing.configure(connection, bridge.index, [str(wanted)], [])
    except KernelError as error:
        if error.code != errno.EEXIST:
            raise
    # The MAC that it had before, set: else it has the lowest of its ports', and changes as they come and go. One that
    # lost its last port before that has none: there the program fails for ever.
    mac = bridge.mac if bridge.mac.strip("0:") else _there(connection, conf.bridge).mac
    netdevs.change(connection, bridge.index, netdevs.Change(mac=mac))


def _there(connection: socket.socket, name: str) -> link_changes.Found:
    found = link_changes.find(connection, name)
    if found is None:
        raise KernelError(f'could not lookup "{name}"', errno.ENODEV, "Link not found")
    return found

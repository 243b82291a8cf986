"""The plugin `bridge`, done over netlink: a bridge of the node, and a pair of interfaces from it to the pod.

Source of what it does: containernetworking/plugins 1.1. What it does otherwise: after a failed ADD interface and
addresses are gone. VLANs, masquerading, spoof checks, forced addresses, promiscuous mode and CHECK are the program's.
"""

import ipaddress
import os
from typing import Final

import msgspec

from devices.linux import link_changes
from multus.cni.result import Interface, Result, Route
from multus.delegates.native import bridge_port, reading
from multus.delegates.native.bridge_port import Port
from multus.delegates.native.interface import Conf, Kind
from multus.delegates.native.reading import Unsupported
from multus.delegates.plugin import Call
from multus.delegates.visit import Visit

_OFF: Final = ("ipMasq", "promiscMode", "forceAddress", "macspoofchk", "enabledad")
_KNOWN: Final = (
    *("cniVersion", "name", "type", "bridge", "isGateway", "isDefaultGateway", "hairpinMode", "mtu", "vlan"),
    *("ipam", "dns", "args", "runtimeConfig", "capabilities", "prevResult"),
    *_OFF,
)


class BridgeConf(Conf, frozen=True, kw_only=True):
    """A configuration; `mtu` 0 and `mac` "" are the kernel's choice."""

    bridge: str
    gateway: bool
    default_gateway: bool
    hairpin: bool
    mtu: int
    mac: str


class Bridge(Kind[BridgeConf, Port]):
    """See `multus.delegates.native.interface`."""

    position = 2
    sysctls = (("ipv6/conf/{}/accept_dad", "0"), ("ipv4/conf/{}/arp_notify", "1"))

    def read(self, call: Call) -> BridgeConf:
        """As `Kind`."""
        return read_bridge(call)

    def create(self, conf: BridgeConf, call: Call, visit: Visit) -> Port | None:
        """As `Kind`."""
        return bridge_port.create(
            call, visit, bridge=conf.bridge, mtu=conf.mtu, mac=conf.mac, hairpin=conf.hairpin, root=self.root
        )

    def adjust(self, conf: BridgeConf, given: Result) -> Result:
        """As `Kind`."""
        return with_gateways(given, conf)

    def finish(
        self, conf: BridgeConf, call: Call, made: Port, given: Result, found: link_changes.Found, visit: Visit
    ) -> Result:
        """As `Kind`: when the port carries packets, the bridge is made the gateway."""
        mac = bridge_port.finish(call, visit, made, given.ips, gateway=conf.gateway, root=self.root)
        interfaces = (
            Interface(name=conf.bridge, mac=mac),
            Interface(name=made.name, mac=made.mac),
            Interface(name=call.ifname, mac=found.mac, sandbox=call.netns),
        )
        return msgspec.structs.replace(given, interfaces=interfaces, dns=conf.dns)


def read_bridge(call: Call) -> BridgeConf:
    """The configuration of a call.

    :raises Unsupported: one for the program.
    """
    given = reading.arguments(call.args)
    conf = _read(call.conf)
    mac = conf.mac or given.get("MAC", "")
    if not reading.is_mac(mac):
        raise Unsupported("mac")
    return conf if mac == conf.mac else msgspec.structs.replace(conf, mac=mac)


@reading.kept
def _read(data: bytes) -> BridgeConf:
    found = reading.members(data, _KNOWN, only=True)
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
        mac=_mac(found),
        ipam=reading.ipam_type(found),
        dns=reading.dns(found),
    )
    if conf.version not in reading.VERSIONS or not 0 <= conf.mtu < 2**31:
        raise Unsupported("version or mtu")
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

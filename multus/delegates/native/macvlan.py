"""The plugin `macvlan`, done over netlink: one interface on a master of the node, with what its address plugin says.

Source of what it does: containernetworking/plugins 1.1. What it does otherwise: after a failed ADD the interface and
the addresses are gone, and DEL does not need the master. CHECK is the program's.
"""

from typing import Final

import msgspec

from devices.linux import link_changes
from multus.delegates.native import reading
from multus.delegates.native.child import create_child
from multus.delegates.native.interface import Conf, Kind
from multus.delegates.native.reading import Unsupported
from multus.delegates.plugin import Call
from multus.delegates.visit import Visit

_KNOWN: Final = (
    *("cniVersion", "name", "type", "master", "mode", "mtu", "mac", "ipam", "dns", "args", "runtimeConfig"),
    *("capabilities", "prevResult"),
)


class MacvlanConf(Conf, frozen=True, kw_only=True):
    """A configuration; `mtu` 0 is the master's, `mac` "" the kernel's choice."""

    master: str
    mode: str
    mtu: int
    mac: str


class Macvlan(Kind[MacvlanConf, bool]):
    """See `multus.delegates.native.interface`."""

    sysctls = (("ipv4/conf/{}/arp_notify", "1"),)

    def read(self, call: Call) -> MacvlanConf:
        """As `Kind`."""
        return read_macvlan(call)

    def create(self, conf: MacvlanConf, call: Call, visit: Visit) -> bool | None:
        """As `Kind`."""
        data = link_changes.macvlan_data(conf.mode)
        return create_child("macvlan", data, call, visit, master=conf.master, mtu=conf.mtu, mac=conf.mac)


def read_macvlan(call: Call) -> MacvlanConf:
    """The configuration of a call.

    :raises Unsupported: one for the program.
    """
    given = reading.arguments(call.args)
    conf, by_capability = _read(call.conf)
    mac = given.get("MAC", "")
    if not mac or by_capability:
        return conf
    if not reading.is_mac(mac):
        raise Unsupported("mac")
    return msgspec.structs.replace(conf, mac=mac)


@reading.kept
def _read(data: bytes) -> tuple[MacvlanConf, bool]:
    """With whether the MAC is the capability's, which comes before that of CNI_ARGS."""
    found = reading.members(data, _KNOWN, only=True)
    runtime = reading.members(found["runtimeConfig"], ("mac",)) if "runtimeConfig" in found else {}
    mac = reading.mac(runtime) or reading.mac(found)
    conf = MacvlanConf(
        version=reading.optional(found, "cniVersion", str, ""),
        master=reading.optional(found, "master", str, ""),
        mode=reading.optional(found, "mode", str, "") or "bridge",
        mtu=reading.optional(found, "mtu", int, 0),
        mac=mac,
        ipam=reading.ipam_type(found),
        dns=reading.dns(found),
    )
    if conf.version not in reading.VERSIONS or conf.mode not in link_changes.MACVLAN_MODES:
        raise Unsupported("version or mode")
    if not conf.master or not 0 <= conf.mtu < 2**31 or not reading.is_mac(mac):
        raise Unsupported("master, mtu or mac")
    return conf, bool(reading.mac(runtime))

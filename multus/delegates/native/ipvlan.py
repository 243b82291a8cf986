"""The plugin `ipvlan`, done over netlink: one interface on a master of the node, with the master's MAC.

Source of what it does: containernetworking/plugins 1.1. What it does otherwise: after a failed ADD the interface and
the addresses are gone, and DEL does not need the master. Without an address plugin, and CHECK, are the program's.
"""

from typing import Final

from devices.linux import link_changes
from multus.delegates.native import reading
from multus.delegates.native.child import create_child
from multus.delegates.native.interface import Conf, Kind
from multus.delegates.native.reading import Unsupported
from multus.delegates.plugin import Call
from multus.delegates.visit import Visit

_KNOWN: Final = (
    *("cniVersion", "name", "type", "master", "mode", "mtu", "ipam", "dns", "args", "runtimeConfig", "capabilities"),
    "prevResult",
)


class IpvlanConf(Conf, frozen=True, kw_only=True):
    """A configuration; `mtu` 0 is the master's."""

    master: str
    mode: str
    mtu: int


class Ipvlan(Kind[IpvlanConf, bool]):
    """See `multus.delegates.native.interface`."""

    sysctls = (("ipv4/conf/{}/arp_notify", "1"),)

    def read(self, call: Call) -> IpvlanConf:
        """As `Kind`."""
        return read_ipvlan(call)

    def create(self, conf: IpvlanConf, call: Call, visit: Visit) -> bool | None:
        """As `Kind`."""
        return create_child(
            "ipvlan", link_changes.ipvlan_data(conf.mode), call, visit, master=conf.master, mtu=conf.mtu
        )


def read_ipvlan(call: Call) -> IpvlanConf:
    """The configuration of a call.

    :raises Unsupported: one for the program.
    """
    reading.arguments(call.args)
    return _read(call.conf)


@reading.kept
def _read(data: bytes) -> IpvlanConf:
    found = reading.members(data, _KNOWN, only=True)
    conf = IpvlanConf(
        version=reading.optional(found, "cniVersion", str, ""),
        master=reading.optional(found, "master", str, ""),
        mode=reading.optional(found, "mode", str, "") or "l2",
        mtu=reading.optional(found, "mtu", int, 0),
        ipam=reading.ipam_type(found),
        dns=reading.dns(found),
    )
    if conf.version not in reading.VERSIONS or conf.mode not in link_changes.IPVLAN_MODES:
        raise Unsupported("version or mode")
    if not conf.master or not conf.ipam or not 0 <= conf.mtu < 2**31:
        raise Unsupported("master, ipam or mtu")
    return conf

"""The plugin `vlan`, done over netlink: a VLAN of one of the node's interfaces.

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

_HIGHEST: Final = 4094
_KNOWN: Final = (
    *("cniVersion", "name", "type", "master", "vlanId", "mtu", "ipam", "dns", "args", "runtimeConfig", "capabilities"),
    "prevResult",
)


class VlanConf(Conf, frozen=True, kw_only=True):
    """A configuration; `mtu` 0 is the master's."""

    master: str
    number: int
    mtu: int


class Vlan(Kind[VlanConf, bool]):
    """See `multus.delegates.native.interface`."""

    def read(self, call: Call) -> VlanConf:
        """As `Kind`."""
        return read_vlan(call)

    def create(self, conf: VlanConf, call: Call, visit: Visit) -> bool | None:
        """As `Kind`."""
        return create_child("vlan", link_changes.vlan_data(conf.number), call, visit, master=conf.master, mtu=conf.mtu)


def read_vlan(call: Call) -> VlanConf:
    """The configuration of a call.

    :raises Unsupported: one for the program.
    """
    reading.arguments(call.args)
    return _read(call.conf)


@reading.kept
def _read(data: bytes) -> VlanConf:
    found = reading.members(data, _KNOWN, only=True)
    conf = VlanConf(
        version=reading.optional(found, "cniVersion", str, ""),
        master=reading.optional(found, "master", str, ""),
        number=reading.optional(found, "vlanId", int, 0),
        mtu=reading.optional(found, "mtu", int, 0),
        ipam=reading.ipam_type(found),
        dns=reading.dns(found),
    )
    if conf.version not in reading.VERSIONS or not 0 <= conf.number <= _HIGHEST:
        raise Unsupported("version or vlanId")
    if not conf.master or not conf.ipam or not 0 <= conf.mtu < 2**31:
        raise Unsupported("master, ipam or mtu")
    return conf

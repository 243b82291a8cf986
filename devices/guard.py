"""Which NICs carry the node's own traffic. They are never offered to pods, and nothing of them is changed.

A NIC is needed when an address of the node or one of its default routes is on it, or on what stands on it: a bridge, a
bond, a VLAN. Upstream looks at the IPv4 default route only, and since 2024 not even that.
"""

from collections.abc import Iterable, Mapping
from typing import Final

from devices.linux import links, routes
from devices.linux.links import Link
from devices.linux.routes import Route
from devices.linux.sysfs import PciRecord

OWN_NAMESPACE: Final = "/proc/self/ns/net"

_STACKED: Final = frozenset({"vlan", "macvlan", "macvtap", "ipvlan", "ipvtap", "macsec", "hsr", "dsa"})
"""Kinds of interfaces whose peer_index is what they stand on; a veth's or a tunnel's is something else."""

_OVS: Final = "openvswitch"
_SCOPES: Final = frozenset({"global", "site"})


def guarded(found: Iterable[Link], known: Iterable[Route]) -> dict[str, str]:
    """Why the node needs an interface, by its name; interfaces of all kinds, hardware or not."""
    by_index = {link.index: link for link in found}
    reasons: dict[int, str] = {}
    for route in sorted(known, key=lambda route: (route.family, route.metric)):
        if route.is_default:
            for hop in route.hops:
                reasons.setdefault(hop.index, f"the node's IPv{route.family} default route")
    for link in by_index.values():
        address = next((each.address for each in link.addresses if each.scope in _SCOPES), "")
        if address and link.name != "lo":
            reasons.setdefault(link.index, f"the node's address {address}")
    _spread(reasons, by_index)
    return {by_index[index].name: reason for index, reason in reasons.items() if index in by_index}


def read() -> dict[str, str]:
    """As `guarded`, of the namespace this process is in: the node's. Blocks.

    :raises NamespaceError: it cannot be entered.
    :raises KernelError: the kernel did not tell.
    """
    return guarded(links.snapshot(OWN_NAMESPACE), routes.snapshot(OWN_NAMESPACE))


def devices(records: Iterable[PciRecord], reasons: Mapping[str, str]) -> dict[str, str]:
    """Why the node needs a PCI device, by address, of the reasons for interfaces.

    A PF is needed when one of its VFs is: removing VFs would take it. Other VFs of a PF that the node uses are free.
    Where nothing could be traced to a NIC, the only one with a link is taken for the way out.
    """
    found: dict[str, str] = {}
    linked: list[str] = []
    for record in records:
        for net in record.netdevs:
            if net.name in reasons:
                found[record.bdf] = f"{net.name} carries {reasons[net.name]}"
                if record.physfn is not None:
                    found.setdefault(record.physfn, f"its VF {record.bdf} ({net.name}) carries {reasons[net.name]}")
        if record.physfn is None and any(net.carrier for net in record.netdevs):
            linked.append(record.bdf)
    if not found and len(linked) == 1:
        found[linked[0]] = "it is the only NIC with a link"
    return found


def _spread(reasons: dict[int, str], by_index: Mapping[int, Link]) -> None:
    """From what is needed to what it stands on: members of a bridge or bond, and what a VLAN is on."""
    pending = list(reasons)
    while pending:
        upper = by_index.get(pending.pop())
        if upper is None:
            continue
        below = [link for link in by_index.values() if link.master_index == upper.index]
        if upper.kind == _OVS:  # its ports belong to the datapath, another interface of that kind
            datapaths = {link.index for link in by_index.values() if link.kind == _OVS}
            below += [link for link in by_index.values() if link.master_index in datapaths]
        if upper.kind in _STACKED and upper.peer_index in by_index:
            below.append(by_index[upper.peer_index])
        for lower in below:
            if lower.index not in reasons:
                reasons[lower.index] = f"{reasons[upper.index]}, through {upper.name}"
                pending.append(lower.index)

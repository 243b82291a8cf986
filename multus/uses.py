"""Who uses virtual functions: programs by what they have open, others by what is missing here.

What pods use is in the journal (`multus.byhand.attached`).
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

from devices.inventory import VF
from devices.linux.pci import USERSPACE
from devices.linux.sysfs import PciRecord
from dpdk.holders import find_holders, nodes_of
from dpdk.kernel import Survey
from dpdk.plans import in_use


def of_hardware(found: Iterable[VF], *, sysfs: Path) -> dict[str, str]:
    """Who uses these VFs by what the kernel shows, by address: programs, and namespaces that are not this one. Blocks.

    InfiniBand VFs may have no interface at all.
    """
    used: dict[str, str] = {}
    for vf in found:
        if vf.driver in USERSPACE or vf.rdma:
            used.update((vf.bdf, holder) for holder in programs(vf.bdf, sysfs)[:1])
        if vf.driver not in USERSPACE and vf.driver and not vf.netdev and not (vf.rdma and vf.link_type != "ether"):
            used.setdefault(vf.bdf, "whoever has its interface, which is not in this network namespace")
    return used


def of_node(found: Iterable[VF], records: Mapping[str, PciRecord], survey: Survey) -> dict[str, str]:
    """Which of these VFs the node uses itself: interfaces in a bridge or bond, or with something upon them."""
    used = {vf.bdf: in_use(records[vf.bdf], survey.links, survey.routed) for vf in found if vf.netdev}
    return {bdf: f"the node: {reasons[0]}" for bdf, reasons in used.items() if reasons}


def programs(bdf: str, sysfs: Path) -> list[str]:
    """Programs that have the device open. Blocks."""
    return [str(each) for each in find_holders(bdf, nodes_of(bdf, sysfs=sysfs))]
